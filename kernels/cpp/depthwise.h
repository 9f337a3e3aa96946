// Masked depthwise convolution: memory-bound, so one pass over the active positions.
#pragma once
#include "frame.h"

namespace ISA {

constexpr int64_t kStrip = 16;            // positions of a strip
constexpr int kTogether = 4;              // of these, such that share the loaded weights
constexpr int kWide = WIDTH > 8 ? 4 : 2;  // vectors of channels for each

// Some positions and their rows, tap by tap; those that are not there repeat the first.
struct Strip {
  explicit Strip(int64_t taps) : rows(kStrip * taps) {}
  List<const float*> rows;
  int64_t positions[kStrip], count = 0;
};

// VECTORS vectors of channels, from the c-th, at positions of a strip, from the first-th.
template <int VECTORS>
inline void convolve_part(const Conv& p, const Strip& strip, int64_t first, int64_t c) {
  const int64_t taps = p.kernel_height * p.kernel_width;
  const float* const* rows = &strip.rows[first * taps];
  const float* weight = p.weight + c;
  Vec sums[kTogether][VECTORS];
#pragma GCC unroll 4
  for (int v = 0; v < VECTORS; ++v) {
    const Vec bias = p.bias ? load(p.bias + c + v * WIDTH) : Vec{};
#pragma GCC unroll 4
    for (int k = 0; k < kTogether; ++k) sums[k][v] = bias;
  }
  for (int64_t t = 0; t < taps; ++t, weight += p.outputs) {
    Vec weights[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) weights[v] = load(weight + v * WIDTH);
#pragma GCC unroll 4
    for (int k = 0; k < kTogether; ++k) {
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) {
        sums[k][v] += load(rows[k * taps + t] + c + v * WIDTH) * weights[v];
      }
    }
  }
#pragma GCC unroll 4
  for (int k = 0; k < kTogether; ++k) {
    if (first + k >= strip.count) break;
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      const int64_t at = strip.positions[first + k] * p.outputs + c + v * WIDTH;
      finish(sums[k][v], p.residual ? p.residual + at : nullptr, p.out + at, WIDTH, p.relu);
    }
  }
}

// The c-th channel alone.
inline void convolve_channel(const Conv& p, const Strip& strip, int64_t c) {
  const int64_t taps = p.kernel_height * p.kernel_width;
  for (int64_t k = 0; k < strip.count; ++k) {
    float sum = p.bias ? p.bias[c] : 0.0f;
    for (int64_t t = 0; t < taps; ++t) {
      sum += strip.rows[k * taps + t][c] * p.weight[t * p.outputs + c];
    }
    const int64_t at = strip.positions[k] * p.outputs + c;
    if (p.residual) sum += p.residual[at];
    p.out[at] = p.relu && sum < 0.0f ? 0.0f : sum;
  }
}

template <int VECTORS>
inline void convolve_strip(const Conv& p, const Strip& strip, int64_t c) {
  for (int64_t k = 0; k < strip.count; k += kTogether) convolve_part<VECTORS>(p, strip, k, c);
}

inline void convolve(const Conv& p, const Strip& strip) {
  int64_t c = 0;
  for (; c + kWide * WIDTH <= p.outputs; c += kWide * WIDTH) convolve_strip<kWide>(p, strip, c);
  for (; c + WIDTH <= p.outputs; c += WIDTH) convolve_strip<1>(p, strip, c);
  for (; c < p.outputs; ++c) convolve_channel(p, strip, c);
}

void depthwise(const Conv& p) {
  const List<float> zeros(p.outputs, 0.0f);
  const int64_t count = p.batch * p.out_height * p.out_width;
  const List<int32_t> active = listed(p.mask, count);
  const Frame frame(p, p.dilation);
  const int64_t found = active.size(), taps = frame.offsets.size();
  if (!found) return fill_gaps(p, active, 0, 1, count);
#pragma omp parallel num_threads(p.threads)
  {
    Strip strip(taps);
#pragma omp for schedule(dynamic, 4)
    for (int64_t begin = 0; begin < found; begin += kStrip) {
      strip.count = found - begin < kStrip ? found - begin : kStrip;
      for (int64_t k = 0; k < kStrip; ++k) {
        strip.positions[k] = active[begin + (k < strip.count ? k : 0)];
        const Window window = frame.window(strip.positions[k]);
        frame.point(p.x, window, zeros.data(), &strip.rows[k * taps], 1);
      }
      fill_gaps(p, active, begin, begin + strip.count, count);
      convolve(p, strip);
    }
  }
}

}  // namespace ISA
