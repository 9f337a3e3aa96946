// Masked depthwise convolution: memory-bound, so one pass over the active positions.
#pragma once
#include "frame.h"

namespace ISA {

inline void depthwise_position(const Conv& p, const float* const* rows, int64_t position) {
  const int64_t taps = p.kernel_height * p.kernel_width, channels = p.outputs;
  const int64_t at = position * channels;
  int64_t c = 0;
  for (; c + 4 * WIDTH <= channels; c += 4 * WIDTH) {
    Vec sums[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) sums[v] = p.bias ? load(p.bias + c + v * WIDTH) : Vec{};
    for (int64_t t = 0; t < taps; ++t) {
      const float *row = rows[t] + c, *weight = p.weight + t * channels + c;
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) sums[v] += load(row + v * WIDTH) * load(weight + v * WIDTH);
    }
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const int64_t to = at + c + v * WIDTH;
      finish(sums[v], p.residual ? p.residual + to : nullptr, p.out + to, WIDTH, p.relu);
    }
  }
  for (; c + WIDTH <= channels; c += WIDTH) {
    Vec sum = p.bias ? load(p.bias + c) : Vec{};
    for (int64_t t = 0; t < taps; ++t) sum += load(rows[t] + c) * load(p.weight + t * channels + c);
    finish(sum, p.residual ? p.residual + at + c : nullptr, p.out + at + c, WIDTH, p.relu);
  }
  for (; c < channels; ++c) {
    Vec sum = {p.bias ? p.bias[c] : 0.0f};
    for (int64_t t = 0; t < taps; ++t) sum[0] += rows[t][c] * p.weight[t * channels + c];
    finish(sum, p.residual ? p.residual + at + c : nullptr, p.out + at + c, 1, p.relu);
  }
}

constexpr int64_t kAhead = 4;  // so many positions ahead, rows are asked for

void depthwise(const Conv& p) {
  const List<float> zeros(p.outputs, 0.0f);
  const int64_t count = p.batch * p.out_height * p.out_width;
  const List<int32_t> active = listed(p.mask, count);
  const Frame frame(p, p.dilation);
  const int64_t found = active.size();
  const bool sparse = 2 * found < count;
#pragma omp parallel num_threads(p.threads)
  {
    if (found < count && p.fill != kLeave) {
#pragma omp for schedule(static) nowait
      for (int64_t k = 0; k <= found; ++k) fill_gap(p, active, k, count, p.outputs);
    }
    List<const float*> rows(frame.offsets.size());
#pragma omp for schedule(dynamic, 64)
    for (int64_t k = 0; k < found; ++k) {
      if (sparse && k + kAhead < found) {
        frame.fetch(p.x, frame.window(active[k + kAhead]), p.outputs);
      }
      frame.point(p.x, frame.window(active[k]), zeros.data(), rows.data(), 1);
      depthwise_position(p, rows.data(), active[k]);
    }
  }
}

}  // namespace ISA
