// Storage types: float, and bf16 with float arithmetic. Vectors of W numbers, aligned.
#pragma once

struct bf16 {
  unsigned short bits;
};

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(bf16 v) {
  return __uint_as_float(static_cast<unsigned>(v.bits) << 16);
}

template <class T>
__device__ __forceinline__ T from_float(float v);
template <>
__device__ __forceinline__ float from_float<float>(float v) { return v; }
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float v) { return {to_bf16(v)}; }

template <class T, int W>
struct alignas(sizeof(T) * W) Vector {
  T at[W];
};

template <int W, class T>
__device__ __forceinline__ void load(const T* from, float (&to)[W]) {
  Vector<T, W> v = *reinterpret_cast<const Vector<T, W>*>(from);
#pragma unroll
  for (int i = 0; i < W; ++i) to[i] = to_float(v.at[i]);
}

template <int W, class T>
__device__ __forceinline__ void store(T* to, const float (&from)[W]) {
  Vector<T, W> v;
#pragma unroll
  for (int i = 0; i < W; ++i) v.at[i] = from_float<T>(from[i]);
  *reinterpret_cast<Vector<T, W>*>(to) = v;
}

// NaN stays NaN, as in torch.
__device__ __forceinline__ float relu(float v) { return v < 0 ? 0 : v; }
