// Linear layer of the kept outputs: for each vector of outputs, the samples that keep some of them
// are multiplied, up to ROWS at a time.
#pragma once
#include "vectors.h"

namespace ISA {

// Of the widest vectors half: blocks of outputs that are kept together are often of 8.
constexpr int LANES = WIDTH > 8 ? 8 : WIDTH;
typedef float Lanes __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

template <int ROOM>
inline void linear_rows(const Linear& p, const int32_t* rows, int64_t active, const float* weight,
                        int64_t first, int64_t count) {
  Lanes sums[ROOM] = {};
  const float* from[ROOM];
#pragma GCC unroll 16
  for (int m = 0; m < ROOM; ++m) from[m] = p.x + rows[m < active ? m : 0] * p.depth;
  for (int64_t c = 0; c < p.depth; ++c, weight += LANES) {
    const Lanes values = *reinterpret_cast<const Lanes*>(weight);
#pragma GCC unroll 16
    for (int m = 0; m < ROOM; ++m) sums[m] += from[m][c] * values;
  }
  for (int64_t m = 0; m < active; ++m) {
    const int64_t at = rows[m] * p.outputs + first;
    for (int64_t k = 0; k < count; ++k) {
      const float bias = p.bias ? p.bias[first + k] : 0.0f;
      p.out[at + k] = !p.kept || p.kept[at + k] ? sums[m][k] + bias : 0.0f;
    }
  }
}

void linear(const Linear& p) {
#pragma omp parallel num_threads(p.threads)
  {
    List<int32_t> rows(p.batch + 1);
#pragma omp for schedule(dynamic)
    for (int64_t first = 0; first < p.outputs; first += LANES) {
      const int64_t left = p.outputs - first, count = left < LANES ? left : LANES;
      int64_t found = 0;
      for (int64_t b = 0; b < p.batch; ++b) {
        const int64_t at = b * p.outputs + first;
        bool any = !p.kept;
        for (int64_t k = 0; p.kept && k < count; ++k) any |= p.kept[at + k] != 0;
        if (!any) std::memset(p.out + at, 0, count * sizeof(float));
        rows[found] = static_cast<int32_t>(b);
        found += any;
      }
      for (int64_t m = 0; m < found; m += ROWS) {
        const int64_t active = found - m < ROWS ? found - m : ROWS;
        const auto run = active <= 3 ? linear_rows<3> : ROWS > 8 && active <= 8 ? linear_rows<8> : linear_rows<ROWS>;
        run(p, &rows[m], active, p.weight + first * p.depth, first, count);
      }
    }
  }
}

}  // namespace ISA
