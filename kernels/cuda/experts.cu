// Assignments of tokens to experts sorted by expert, and the sum of what a token's experts say.
#include "prelude.cuh"
#include "numbers.cuh"

constexpr int THREADS = 256, WARPS = THREADS / 32;

// order: the assignments sorted by expert, in order; offsets[e]: where those of expert e begin.
// One block per expert reads all; each thread reads a stretch of its own.
extern "C" __global__ void __launch_bounds__(THREADS)
    route(const long long* chosen, int n, int experts, long long* order, long long* offsets) {
  __shared__ int warp_less[WARPS], warp_own[WARPS];
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, expert = blockIdx.x;
  int stretch = (n + THREADS - 1) / THREADS;
  long long first = static_cast<long long>(stretch) * threadIdx.x;
  long long last = min(first + stretch, static_cast<long long>(n));
  int less = 0, own = 0;
  for (long long i = first; i < last; ++i) {
    less += chosen[i] < expert;
    own += chosen[i] == expert;
  }
  int upto = own;
#pragma unroll
  for (int by = 1; by < 32; by *= 2) {
    int other = __shfl_up_sync(~0u, upto, by);
    if (lane >= by) upto += other;
    less += __shfl_xor_sync(~0u, less, by);
  }
  if (lane == 31) {
    warp_less[warp] = less;
    warp_own[warp] = upto;
  }
  __syncthreads();
  int begin = 0, rank = upto - own;
  for (int w = 0; w < WARPS; ++w) {
    begin += warp_less[w];
    if (w < warp) rank += warp_own[w];
  }
  if (threadIdx.x == 0) {
    offsets[expert] = begin;
    if (expert == 0) offsets[experts] = n;
  }
  for (long long i = first; i < last; ++i)
    if (chosen[i] == expert) order[begin + rank++] = i;
}
EXPORT(route)

// place[order[i]] = i.
extern "C" __global__ void __launch_bounds__(THREADS)
    invert(const long long* order, int* place, int n) {
  long long i = blockIdx.x * static_cast<long long>(THREADS) + threadIdx.x;
  if (i < n) place[order[i]] = static_cast<int>(i);
}
EXPORT(invert)

// out[t] = sum over the choices j of weights[t, j] * y[place[t, j]], in the order of j.
template <class T, int W>
__device__ __forceinline__ void combine(const T* y, const int* place, const T* weights, T* out,
                                        int tokens, int choices, int width) {
  long long t = blockIdx.x * static_cast<long long>(blockDim.y) + threadIdx.y;
  if (t >= tokens) return;
  for (int c = threadIdx.x * W; c < width; c += blockDim.x * W) {
    float sum[W] = {};
    for (int j = 0; j < choices; ++j) {
      float v[W], weight = to_float(weights[t * choices + j]);
      load(y + static_cast<long long>(place[t * choices + j]) * width + c, v);
#pragma unroll
      for (int i = 0; i < W; ++i) sum[i] += weight * v[i];
    }
    store(out + t * width + c, sum);
  }
}

#define COMBINE(name, T, W)                                                                 \
  extern "C" __global__ void __launch_bounds__(THREADS)                                     \
      name(const T* y, const int* place, const T* weights, T* out, int tokens, int choices, \
           int width) {                                                                     \
    combine<T, W>(y, place, weights, out, tokens, choices, width);                          \
  }                                                                                         \
  EXPORT(name)

COMBINE(combine_f32, float, 4)
COMBINE(combine_f32_any, float, 1)
COMBINE(combine_bf16, bf16, 4)
COMBINE(combine_bf16_any, bf16, 1)
