// Depthwise convolution at the active positions: bound by memory, so one thread computes a few
// channels of one position and nothing is shared. The r-th row of threads also fills position r.
#include "prelude.cuh"
#include "finish.cuh"

template <class T, int W>
__device__ __forceinline__ void depthwise(const T* x, const float* w, const float* bias,
                                          const T* residual, const int* index, const int* inverse,
                                          const int* count, T* out, int n, int source_height,
                                          int source_width, int channels, int height, int width,
                                          int kernel_height, int kernel_width, int stride,
                                          int padding, int dilation, int with_relu, int fill) {
  long long r = blockIdx.x * static_cast<long long>(blockDim.y) + threadIdx.y;
  if (r >= n) return;
  bool filled = fill != LEAVE && inverse[r] < 0, active = r < count[0];
  long long p = active ? index[r] : 0;
  int top = static_cast<int>(p / width % height) * stride - padding;
  int left = static_cast<int>(p % width) * stride - padding;
  const T* image = x + p / width / height * source_height * source_width * channels;
  for (int c = threadIdx.x * W; c < channels; c += blockDim.x * W) {
    if (filled) fill_vector<W>(out, residual, fill, r * channels + c);
    if (!active) continue;
    float sum[W] = {};
    for (int ky = 0; ky < kernel_height; ++ky) {
      int y = top + ky * dilation;
      if (y < 0 || y >= source_height) continue;
      for (int kx = 0; kx < kernel_width; ++kx) {
        int column = left + kx * dilation;
        if (column < 0 || column >= source_width) continue;
        float a[W], b[W];
        load(image + (static_cast<long long>(y) * source_width + column) * channels + c, a);
        load(w + static_cast<long long>(ky * kernel_width + kx) * channels + c, b);
#pragma unroll
        for (int i = 0; i < W; ++i) sum[i] += a[i] * b[i];
      }
    }
    long long at = p * channels + c;
    write<true>(out + at, bias ? bias + c : nullptr, residual ? residual + at : nullptr, with_relu,
                W, sum);
  }
}

#define DEPTHWISE(name, T, W)                                                                     \
  extern "C" __global__ void __launch_bounds__(256, 4)                                             \
      name(const T* x, const float* w, const float* bias, const T* residual, const int* index,    \
           const int* inverse, const int* count, T* out, int n, int source_height,                \
           int source_width, int channels, int height, int width, int kernel_height,              \
           int kernel_width, int stride, int padding, int dilation, int with_relu, int fill) {    \
    depthwise<T, W>(x, w, bias, residual, index, inverse, count, out, n, source_height,           \
                    source_width, channels, height, width, kernel_height, kernel_width, stride,   \
                    padding, dilation, with_relu, fill);                                          \
  }                                                                                               \
  EXPORT(name)

DEPTHWISE(depthwise_f32, float, 4)
DEPTHWISE(depthwise_f32_any, float, 1)
DEPTHWISE(depthwise_bf16, bf16, 4)
DEPTHWISE(depthwise_bf16_any, bf16, 1)
