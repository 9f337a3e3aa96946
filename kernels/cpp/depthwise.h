// Masked depthwise convolution: memory-bound, so one pass over the active positions.
#pragma once
#include "frame.h"

namespace ISA {

constexpr int64_t kTogether = 16;  // positions that share the loaded weights
constexpr int kWide = WIDTH > 8 ? 2 : 1;  // vectors of channels whose weights fit the registers

// Some positions and their rows, tap by tap.
struct Strip {
  explicit Strip(int64_t taps) : rows(kTogether * taps) {}
  List<const float*> rows;
  int64_t positions[kTogether], count = 0;
};

// VECTORS vectors of channels, from the c-th, at all positions of a strip; TAPS 0: any number.
template <int VECTORS, int TAPS>
inline void convolve_strip(const Conv& p, const Strip& strip, int64_t c) {
  const int64_t taps = TAPS ? TAPS : p.kernel_height * p.kernel_width;
  Vec bias[VECTORS], weights[TAPS ? TAPS : 1][VECTORS];
#pragma GCC unroll 4
  for (int v = 0; v < VECTORS; ++v) {
    bias[v] = p.bias ? load(p.bias + c + v * WIDTH) : Vec{};
#pragma GCC unroll 16
    for (int t = 0; t < TAPS; ++t) weights[t][v] = load(p.weight + t * p.outputs + c + v * WIDTH);
  }
  for (int64_t k = 0; k < strip.count; ++k) {
    const float* const* rows = &strip.rows[k * taps];
    Vec sums[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) sums[v] = bias[v];
#pragma GCC unroll 16
    for (int64_t t = 0; t < taps; ++t) {
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) {
        const int64_t at = c + v * WIDTH;
        const Vec weight = TAPS ? weights[t][v] : load(p.weight + t * p.outputs + at);
        sums[v] += load(rows[t] + at) * weight;
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      const int64_t at = strip.positions[k] * p.outputs + c + v * WIDTH;
      finish(sums[v], p.residual ? p.residual + at : nullptr, p.out + at, WIDTH, p.relu);
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

template <int TAPS>
inline void convolve_strip(const Conv& p, const Strip& strip) {
  int64_t c = 0;
  for (; c + kWide * WIDTH <= p.outputs; c += kWide * WIDTH) {
    convolve_strip<kWide, TAPS>(p, strip, c);
  }
  for (; c + WIDTH <= p.outputs; c += WIDTH) convolve_strip<1, TAPS>(p, strip, c);
  for (; c < p.outputs; ++c) convolve_channel(p, strip, c);
}

// Ask for the row under a window's last tap, the only one that windows before have not read.
inline void fetch_last(const Conv& p, const Frame& frame, const Window& window) {
  const int64_t last = frame.offsets.size() - 1;
  if (!(window.inside >> last & 1)) return;
  const float* row = p.x + window.at + frame.offsets[last];
  for (int64_t c = 0; c < p.outputs; c += 16) __builtin_prefetch(row + c, 0, 3);
}

void depthwise(const Conv& p) {
  const List<float> zeros(p.outputs, 0.0f);
  const int64_t count = p.batch * p.out_height * p.out_width;
  const List<int32_t> active = listed(p.mask, count);
  const Frame frame(p, p.dilation);
  const int64_t found = active.size(), taps = frame.offsets.size();
#pragma omp parallel num_threads(p.threads)
  {
    if (found < count && p.fill != kLeave) {
#pragma omp for schedule(static) nowait
      for (int64_t k = 0; k <= found; ++k) fill_gap(p, active, k, count, p.outputs);
    }
    Strip strip(taps);
#pragma omp for schedule(dynamic, 4)
    for (int64_t begin = 0; begin < found; begin += kTogether) {
      strip.count = found - begin < kTogether ? found - begin : kTogether;
      for (int64_t k = 0; k < strip.count; ++k) {
        strip.positions[k] = active[begin + k];
        const int64_t ahead = begin + k + kTogether;
        if (ahead < found) fetch_last(p, frame, frame.window(active[ahead]));
        frame.point(p.x, frame.window(active[begin + k]), zeros.data(), &strip.rows[k * taps], 1);
      }
      taps == 9 ? convolve_strip<9>(p, strip) : convolve_strip<0>(p, strip);
    }
  }
}

}  // namespace ISA
