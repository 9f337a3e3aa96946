// What happens to a computed number on its way out: + bias, + residual, ReLU; and what is written
// where nothing is computed.
#pragma once
#include "numbers.cuh"

enum Fill { LEAVE = 0, ZERO = 1, COPY = 2 };

// W columns of one row; bias and residual may be null. With ALIGNED, either all columns exist or
// none does, and vectors are aligned.
template <bool ALIGNED, class T, int W>
__device__ __forceinline__ void write(T* out, const float* bias, const T* residual, bool with_relu,
                                      int left, float (&v)[W]) {
  if (left <= 0) return;
  if (ALIGNED) {
    float other[W];
    if (bias) {
      load(bias, other);
#pragma unroll
      for (int i = 0; i < W; ++i) v[i] += other[i];
    }
    if (residual) {
      load(residual, other);
#pragma unroll
      for (int i = 0; i < W; ++i) v[i] += other[i];
    }
    if (with_relu)
#pragma unroll
      for (int i = 0; i < W; ++i) v[i] = relu(v[i]);
    store(out, v);
  } else {
#pragma unroll
    for (int i = 0; i < W; ++i)
      if (i < left) {
        float u = v[i] + (bias ? bias[i] : 0) + (residual ? to_float(residual[i]) : 0);
        out[i] = from_float<T>(with_relu ? relu(u) : u);
      }
  }
}

// Fills columns [0, columns) of the inactive ones among positions [first, last).
template <int THREADS, class T>
__device__ __forceinline__ void fill_inactive(T* out, const T* residual, const int* inverse,
                                              int fill, long long first, long long last,
                                              int columns, int channels) {
  if (fill == LEAVE) return;
  for (long long i = threadIdx.x; i < (last - first) * columns; i += THREADS) {
    long long p = first + i / columns, at = p * channels + i % columns;
    if (inverse[p] < 0) out[at] = fill == COPY ? residual[at] : from_float<T>(0);
  }
}

// Fills W numbers of an inactive position.
template <int W, class T>
__device__ __forceinline__ void fill_vector(T* out, const T* residual, int fill, long long at) {
  float v[W] = {};
  if (fill == COPY) load(residual + at, v);
  store(out + at, v);
}
