// Convolution to a few outputs: along a line of a window, inputs and weights both lie side by side,
// so each output is a few dot products. Lines are cut where they reach outside the image.
#pragma once
#include "vectors.h"

namespace ISA {

// Lane k of the result is the sum of vector k; the sums are made half by half.
inline Vec sums_of(const Vec (&values)[WIDTH]) {
  float lanes[WIDTH][WIDTH], sums[WIDTH];
  for (int k = 0; k < WIDTH; ++k) store(lanes[k], values[k]);
  for (int half = WIDTH / 2; half > 0; half /= 2) {
    for (int k = 0; k < WIDTH; ++k) {
      for (int l = 0; l < half; ++l) lanes[k][l] += lanes[k][l + half];
    }
  }
  for (int k = 0; k < WIDTH; ++k) sums[k] = lanes[k][0];
  return load(sums);
}

inline void add_products(const float* a, const float* b, int64_t count, Vec& sum) {
  int64_t c = 0;
  for (; c + WIDTH <= count; c += WIDTH) sum += load(a + c) * load(b + c);
  for (; c < count; ++c) sum[c % WIDTH] += a[c] * b[c];
}

inline Vec window_product(const ThinConv& p, const Place& at, const float* weight) {
  const int64_t top = at.row * p.stride - p.padding, left = at.column * p.stride - p.padding;
  const int64_t from = left < 0 ? -left : 0;
  const int64_t to = left + p.kernel_width > p.width ? p.width - left : p.kernel_width;
  Vec sum = {};
  for (int64_t i = 0; i < p.kernel_height; ++i) {
    const int64_t h = top + i;
    if (h < 0 || h >= p.height || from >= to) continue;
    const float* line = p.x + ((at.sample * p.height + h) * p.width + left + from) * p.depth;
    add_products(line, weight + (i * p.kernel_width + from) * p.depth, (to - from) * p.depth, sum);
  }
  return sum;
}

void thin(const ThinConv& p) {
  const int64_t count = p.batch * p.out_height * p.out_width;
  const int64_t size = p.kernel_height * p.kernel_width * p.depth;
#pragma omp parallel for schedule(static) num_threads(p.threads)
  for (int64_t first = 0; first < count; first += WIDTH) {
    const int64_t here = count - first < WIDTH ? count - first : WIDTH;
    for (int64_t o = 0; o < p.outputs; ++o) {
      Vec values[WIDTH] = {};
      for (int64_t k = 0; k < here; ++k) {
        values[k] = window_product(p, place(p, first + k), p.weight + o * size);
      }
      const Vec sums = sums_of(values);
      const float bias = p.bias ? p.bias[o] : 0.0f;
      for (int64_t k = 0; k < here; ++k) p.out[(first + k) * p.outputs + o] = sums[k] + bias;
    }
  }
}

}  // namespace ISA
