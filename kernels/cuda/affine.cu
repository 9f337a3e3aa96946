// Scale, shift, residual and ReLU at the active positions, and the fill elsewhere; bound by
// memory.
#include "prelude.cuh"
#include "finish.cuh"

template <class T, int W>
__device__ __forceinline__ void affine(const T* x, const float* scale, const float* shift,
                                       const T* residual, const unsigned char* mask, T* out, int n,
                                       int channels, int with_relu, int fill) {
  long long p = blockIdx.x * static_cast<long long>(blockDim.y) + threadIdx.y;
  if (p >= n) return;
  bool active = mask[p];
  if (!active && fill == LEAVE) return;
  for (int c = threadIdx.x * W; c < channels; c += blockDim.x * W) {
    long long at = p * channels + c;
    if (!active) {
      fill_vector<W>(out, residual, fill, at);
      continue;
    }
    float v[W], s[W];
    load(x + at, v);
    load(scale + c, s);
#pragma unroll
    for (int i = 0; i < W; ++i) v[i] *= s[i];
    write<true>(out + at, shift + c, residual ? residual + at : nullptr, with_relu, W, v);
  }
}

#define AFFINE(name, T, W)                                                                        \
  extern "C" __global__ void __launch_bounds__(256)                                               \
      name(const T* x, const float* scale, const float* shift, const T* residual,                 \
           const unsigned char* mask, T* out, int n, int channels, int with_relu, int fill) {     \
    affine<T, W>(x, scale, shift, residual, mask, out, n, channels, with_relu, fill);             \
  }                                                                                               \
  EXPORT(name)

AFFINE(affine_f32, float, 4)
AFFINE(affine_f32_any, float, 1)
AFFINE(affine_bf16, bf16, 4)
AFFINE(affine_bf16_any, bf16, 1)
