// Convolution at single entries (position and channel): the window of a position is copied once,
// and four channels at a time take their dot products with it.
#pragma once
#include "vectors.h"

namespace ISA {

template <int COUNT>
inline void dots(const float* window, const float* weight, int64_t size, const int64_t* kept,
                 const float* residual, float* out) {
  Vec sums[COUNT] = {};
  const float* rows[COUNT];
#pragma GCC unroll 4
  for (int k = 0; k < COUNT; ++k) rows[k] = weight + kept[k] * size;
  for (int64_t c = 0; c < size; c += WIDTH) {
    const Vec values = load(window + c);
#pragma GCC unroll 4
    for (int k = 0; k < COUNT; ++k) sums[k] += values * load(rows[k] + c);
  }
  float totals[COUNT];
  sum_lanes(sums, totals);
#pragma GCC unroll 4
  for (int k = 0; k < COUNT; ++k) {
    out[kept[k]] = totals[k] + (residual ? residual[kept[k]] : 0.0f);
  }
}

void entries(const EntryConv& p) {
  const int64_t taps = p.kernel_height * p.kernel_width, depth = p.depth;
  const int64_t size = (taps * depth + WIDTH - 1) / WIDTH * WIDTH;  // weights are padded to it
  const int64_t count = p.batch * p.out_height * p.out_width;
  const int64_t line = p.kernel_width * depth;
  const List<float> zeros(depth, 0.0f);
#pragma omp parallel num_threads(p.threads)
  {
    List<const float*> rows(taps);
    List<float> window(size, 0.0f);
    List<int64_t> kept(p.outputs);
#pragma omp for schedule(dynamic, 32)
    for (int64_t k = 0; k < count; ++k) {
      const int64_t at = k * p.outputs;
      fill_row(p.out + at, p.residual + at, p.outputs, p.residual ? kCopy : kZero);
      int64_t found = 0;
      for (int64_t o = 0; o < p.outputs; ++o) {
        kept[found] = o;
        found += p.mask[at + o] != 0;
      }
      if (!found) continue;
      const Place here = place(p, k);
      const float* first = corner(p, 1, depth, here);
      if (first) {  // the taps of a line lie side by side
        for (int64_t i = 0; i < p.kernel_height; ++i) {
          std::memcpy(&window[i * line], first + i * p.width * depth, line * sizeof(float));
        }
      } else {
        windows(p, 1, depth, here, zeros.data(), rows.data(), 1);
        for (int64_t t = 0; t < taps; ++t) {
          std::memcpy(&window[t * depth], rows[t], depth * sizeof(float));
        }
      }
      const float* residual = p.residual ? p.residual + at : nullptr;
      int64_t o = 0;
      for (; o + 4 <= found; o += 4) {
        dots<4>(window.data(), p.weight, size, &kept[o], residual, p.out + at);
      }
      for (; o < found; ++o) {
        dots<1>(window.data(), p.weight, size, &kept[o], residual, p.out + at);
      }
    }
  }
}

}  // namespace ISA
