// Linear layer of the kept outputs: for each vector of outputs, the samples that keep some of them
// are multiplied, many at a time.
#pragma once
#include "vectors.h"

namespace ISA {

// Of the widest vectors half: blocks of outputs that are kept together are often of 8.
constexpr int LANES = WIDTH > 8 ? 8 : WIDTH;
constexpr int SAMPLES = 2 * ROWS / 4 * 4;  // the most at a time: there are registers for so many
typedef float Lanes __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

// A vector of outputs.
struct Part {
  Part(const Linear& p, int64_t first) : first(first), weight(p.weight + first * p.depth) {
    count = p.outputs - first < LANES ? p.outputs - first : LANES;
    for (int64_t k = 0; k < count; ++k) {
      block[k] = (first + k) / (p.outputs / p.blocks);
      bias[k] = p.bias ? p.bias[first + k] : 0.0f;
    }
  }
  int64_t first, count, block[LANES];
  const float* weight;
  float bias[LANES];
};

// ROOM samples, of which `active` are there; with fewer than ROOM - 3, in less room.
template <int ROOM>
inline void linear_rows(const Linear& p, const int32_t* rows, int64_t active, const Part& part) {
  if constexpr (ROOM > 4) {
    if (active <= ROOM - 4) return linear_rows<ROOM - 4>(p, rows, active, part);
  }
  const float* weight = part.weight;
  Lanes sums[ROOM] = {};
  const float* from[ROOM];
#pragma GCC unroll 32
  for (int m = 0; m < ROOM; ++m) from[m] = p.x + rows[m < active ? m : 0] * p.x_step;
  for (int64_t c = 0; c < p.depth; ++c, weight += LANES) {
    const Lanes values = *reinterpret_cast<const Lanes*>(weight);
#pragma GCC unroll 32
    for (int m = 0; m < ROOM; ++m) sums[m] += from[m][c] * values;
  }
  for (int64_t m = 0; m < active; ++m) {
    const uint8_t* kept = p.kept + rows[m] * p.blocks;
    float* out = p.out + rows[m] * p.outputs + part.first;
    for (int64_t k = 0; k < part.count; ++k) {
      out[k] = kept[part.block[k]] ? sums[m][k] + part.bias[k] : 0.0f;
    }
  }
}

void linear(const Linear& p) {
#pragma omp parallel num_threads(p.threads)
  {
    List<int32_t> rows(p.batch + 1);
#pragma omp for schedule(dynamic)
    for (int64_t first = 0; first < p.outputs; first += LANES) {
      const Part part(p, first);
      int64_t found = 0;
      for (int64_t b = 0; b < p.batch; ++b) {
        const uint8_t* kept = p.kept + b * p.blocks;
        bool any = false;
        for (int64_t k = part.block[0]; k <= part.block[part.count - 1]; ++k) any |= kept[k] != 0;
        if (!any) std::memset(p.out + b * p.outputs + first, 0, part.count * sizeof(float));
        rows[found] = static_cast<int32_t>(b);
        found += any;
      }
      // As few tiles as there can be, of equal size: a small rest would leave the units idle.
      const int64_t tiles = (found + SAMPLES - 1) / SAMPLES;
      for (int64_t k = 0; k < tiles; ++k) {
        const int64_t from = found * k / tiles, to = found * (k + 1) / tiles;
        linear_rows<SAMPLES>(p, &rows[from], to - from, part);
      }
    }
  }
}

}  // namespace ISA
