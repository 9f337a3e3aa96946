// Masked depthwise convolution: memory-bound, so one pass over the active positions.
#pragma once
#include "vectors.h"

namespace ISA {

inline void depthwise_position(const Conv& p, const float* const* rows, int64_t position) {
  const int64_t taps = p.kernel_height * p.kernel_width, channels = p.outputs;
  const int64_t at = position * channels;
  int64_t c = 0;
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

void depthwise(const Conv& p) {
  const List<float> zeros(p.outputs, 0.0f);
  const int64_t count = p.batch * p.out_height * p.out_width;
#pragma omp parallel num_threads(p.threads)
  {
    List<const float*> rows(p.kernel_height * p.kernel_width);
#pragma omp for schedule(dynamic, 64)
    for (int64_t k = 0; k < count; ++k) {
      if (p.mask && !p.mask[k]) {
        fill_row(p.out + k * p.outputs, p.residual + k * p.outputs, p.outputs, p.fill);
        continue;
      }
      windows(p, p.dilation, p.outputs, place(p, k), zeros.data(), rows.data(), 1);
      depthwise_position(p, rows.data(), k);
    }
  }
}

}  // namespace ISA
