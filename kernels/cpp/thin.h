// Convolution to a few outputs: along a line of a window, inputs and weights both lie side by side,
// so each output is a few dot products. Lines are cut where they reach outside the image.
#pragma once
#include "vectors.h"

namespace ISA {

inline void add_products(const float* a, const float* b, int64_t count, Vec& sum) {
  int64_t c = 0;
  for (; c + WIDTH <= count; c += WIDTH) sum += load(a + c) * load(b + c);
  for (; c < count; ++c) sum[c % WIDTH] += a[c] * b[c];
}

// The lines of the windows of one row of outputs: those of the kernel from `begin` to `end` are
// inside the image, and `image` is where the kernel's first line would be.
struct Lines {
  const float* image;
  int64_t begin, end;
};

inline Lines lines(const ThinConv& p, int64_t row) {
  const int64_t sample = row / p.out_height;
  const int64_t top = row % p.out_height * p.stride - p.padding;
  const int64_t below = p.height - top;
  return {p.x + (sample * p.height + top) * p.width * p.depth, top < 0 ? -top : 0,
          below < p.kernel_height ? below : p.kernel_height};
}

inline Vec window_product(const ThinConv& p, const Lines& from, int64_t column,
                          const float* weight) {
  const int64_t left = column * p.stride - p.padding;
  const int64_t begin = left < 0 ? -left : 0;
  const int64_t end = left + p.kernel_width > p.width ? p.width - left : p.kernel_width;
  Vec sum = {};
  for (int64_t i = from.begin; begin < end && i < from.end; ++i) {
    const float* line = from.image + (i * p.width + left + begin) * p.depth;
    const float* w = weight + (i * p.kernel_width + begin) * p.depth;
    add_products(line, w, (end - begin) * p.depth, sum);
  }
  return sum;
}

void thin(const ThinConv& p) {
  const int64_t rows = p.batch * p.out_height;
  const int64_t size = p.kernel_height * p.kernel_width * p.depth;
#pragma omp parallel for schedule(static) num_threads(p.threads)
  for (int64_t row = 0; row < rows; ++row) {
    const Lines from = lines(p, row);
    float* out = p.out + row * p.out_width * p.outputs;
    for (int64_t o = 0; o < p.outputs; ++o) {
      const float bias = p.bias ? p.bias[o] : 0.0f;
      for (int64_t first = 0; first < p.out_width; first += WIDTH) {
        const int64_t left = p.out_width - first, here = left < WIDTH ? left : WIDTH;
        Vec values[WIDTH] = {};
        for (int64_t k = 0; k < here; ++k) {
          values[k] = window_product(p, from, first + k, p.weight + o * size);
        }
        float sums[WIDTH];
        sum_lanes(values, sums);
        for (int64_t k = 0; k < here; ++k) out[(first + k) * p.outputs + o] = sums[k] + bias;
      }
    }
  }
}

}  // namespace ISA
