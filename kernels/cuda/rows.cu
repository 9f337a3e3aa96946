// Rows moved by index: samples, tokens, time steps. Indices are unique, so nothing is atomic.
#include "prelude.cuh"
#include "numbers.cuh"

constexpr int UNROLL = 4;  // rows in flight per thread

// Row r of the compact side belongs to row index[r] + r / per_group * group_rows of the other.
template <class Body>
__device__ __forceinline__ void for_rows(const long long* index, int n, int per_group,
                                         int group_rows, Body body) {
  long long first = blockIdx.x * static_cast<long long>(blockDim.y * UNROLL) + threadIdx.y;
  int compact[UNROLL];
  long long spread[UNROLL];
#pragma unroll
  for (int i = 0; i < UNROLL; ++i) {
    long long r = first + i * static_cast<int>(blockDim.y);
    compact[i] = r < n ? static_cast<int>(r) : -1;
    if (r < n) spread[i] = index[r] + r / per_group * group_rows;
  }
  body(compact, spread);
}

template <class Word>
__device__ __forceinline__ void move(const Word* from, const long long* index, Word* to, int n,
                                     int words, int per_group, int group_rows, bool scatter) {
  for_rows(index, n, per_group, group_rows, [&](int (&compact)[UNROLL], long long (&spread)[UNROLL]) {
    for (int w = threadIdx.x; w < words; w += blockDim.x) {
      Word v[UNROLL];
#pragma unroll
      for (int i = 0; i < UNROLL; ++i)
        if (compact[i] >= 0)
          v[i] = from[(scatter ? compact[i] : spread[i]) * static_cast<long long>(words) + w];
#pragma unroll
      for (int i = 0; i < UNROLL; ++i)
        if (compact[i] >= 0)
          to[(scatter ? spread[i] : compact[i]) * static_cast<long long>(words) + w] = v[i];
    }
  });
}

template <class T, int W>
__device__ __forceinline__ void add(const T* from, const long long* index, T* to, int n, int words) {
  for_rows(index, n, n, 0, [&](int (&compact)[UNROLL], long long (&spread)[UNROLL]) {
    for (int w = threadIdx.x * W; w < words; w += blockDim.x * W)
#pragma unroll
      for (int i = 0; i < UNROLL; ++i)
        if (compact[i] >= 0) {
          float old[W], more[W];
          T* at = to + spread[i] * words + w;
          load(at, old);
          load(from + compact[i] * static_cast<long long>(words) + w, more);
#pragma unroll
          for (int j = 0; j < W; ++j) old[j] += more[j];
          store(at, old);
        }
  });
}

#define MOVE(name, Word, SCATTER)                                                                 \
  extern "C" __global__ void __launch_bounds__(256)                                               \
      name(const Word* from, const long long* index, Word* to, int n, int words, int per_group,   \
           int group_rows) {                                                                      \
    move(from, index, to, n, words, per_group, group_rows, SCATTER);                              \
  }                                                                                               \
  EXPORT(name)

#define ADD(name, T, W)                                                                         \
  extern "C" __global__ void __launch_bounds__(256)                                               \
      name(const T* from, const long long* index, T* to, int n, int words) {                      \
    add<T, W>(from, index, to, n, words);                                                         \
  }                                                                                               \
  EXPORT(name)

MOVE(gather_16, uint4, false)
MOVE(gather_4, unsigned, false)
MOVE(gather_1, unsigned char, false)
MOVE(scatter_16, uint4, true)
MOVE(scatter_4, unsigned, true)
MOVE(scatter_1, unsigned char, true)
ADD(add_f32, float, 4)
ADD(add_f32_any, float, 1)
ADD(add_bf16, bf16, 8)
ADD(add_bf16_any, bf16, 1)
