// Ordered mask compaction with the count on the device, and mask dilation.
#include "prelude.cuh"

constexpr int THREADS = 256, WARPS = THREADS / 32, PER_THREAD = 16;
constexpr int PER_BLOCK = THREADS * PER_THREAD;

// Bit i of the result: whether mask[first + i] is set.
__device__ __forceinline__ unsigned read_bits(const unsigned char* mask, long long first, int n) {
  unsigned bits = 0;
  if (first + PER_THREAD <= n && reinterpret_cast<unsigned long long>(mask + first) % 16 == 0) {
    uint4 loaded = *reinterpret_cast<const uint4*>(mask + first);
    unsigned words[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
#pragma unroll
    for (int i = 0; i < PER_THREAD; ++i)
      bits |= static_cast<unsigned>((words[i / 4] >> (i % 4 * 8) & 0xffu) != 0) << i;
  } else {
    for (int i = 0; i < PER_THREAD; ++i)
      if (first + i < n && mask[first + i]) bits |= 1u << i;
  }
  return bits;
}

__device__ __forceinline__ int warp_sum(int value) {
#pragma unroll
  for (int by = 16; by; by /= 2) value += __shfl_xor_sync(~0u, value, by);
  return value;
}

// block_counts[g]: how many of the g-th PER_BLOCK entries are set.
extern "C" __global__ void __launch_bounds__(THREADS)
    mask_count(const unsigned char* mask, int n, int* block_counts) {
  __shared__ int warp_counts[WARPS];
  long long first = blockIdx.x * static_cast<long long>(PER_BLOCK) + threadIdx.x * PER_THREAD;
  int sum = warp_sum(__popc(read_bits(mask, first, n)));
  if (threadIdx.x % 32 == 0) warp_counts[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    int total = 0;
    for (int w = 0; w < WARPS; ++w) total += warp_counts[w];
    block_counts[blockIdx.x] = total;
  }
}
EXPORT(mask_count)

// index[r]: position of the r-th set entry, -1 from r = count[0] on; inverse[p]: its r, or -1.
template <class Index>
__device__ __forceinline__ void compact(int (&warp_before)[WARPS], int (&warp_all)[WARPS],
                                        int (&warp_counts)[WARPS], const unsigned char* mask, int n,
                                        const int* block_counts, Index* index, Index* inverse,
                                        Index* count) {
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int before = 0, all = 0;
  for (int g = threadIdx.x; g < static_cast<int>(gridDim.x); g += THREADS) {
    int set = block_counts[g];
    all += set;
    if (g < static_cast<int>(blockIdx.x)) before += set;
  }
  before = warp_sum(before);
  all = warp_sum(all);

  long long first = blockIdx.x * static_cast<long long>(PER_BLOCK) + threadIdx.x * PER_THREAD;
  unsigned bits = read_bits(mask, first, n);
  int own = __popc(bits), upto = own;
#pragma unroll
  for (int by = 1; by < 32; by *= 2) {
    int other = __shfl_up_sync(~0u, upto, by);
    if (lane >= by) upto += other;
  }
  if (lane == 31) {
    warp_before[warp] = before;
    warp_all[warp] = all;
    warp_counts[warp] = upto;
  }
  __syncthreads();
  int rank = upto - own, total = 0;
  for (int w = 0; w < WARPS; ++w) {
    rank += warp_before[w] + (w < warp ? warp_counts[w] : 0);
    total += warp_all[w];
  }
  if (threadIdx.x == 0 && blockIdx.x == 0) count[0] = total;
#pragma unroll
  for (int i = 0; i < PER_THREAD; ++i) {
    if (first + i >= n) break;
    bool set = bits >> i & 1;
    if (set) index[rank] = static_cast<Index>(first + i);
    if (first + i >= total) index[first + i] = -1;
    inverse[first + i] = set ? rank : -1;
    rank += set;
  }
}

#define COMPACT(name, Index)                                                                       \
  extern "C" __global__ void __launch_bounds__(THREADS)                                            \
      name(const unsigned char* mask, int n, const int* block_counts, Index* index,                \
           Index* inverse, Index* count) {                                                         \
    __shared__ int warp_before[WARPS], warp_all[WARPS], warp_counts[WARPS];                        \
    compact(warp_before, warp_all, warp_counts, mask, n, block_counts, index, inverse, count);     \
  }                                                                                                \
  EXPORT(name)

COMPACT(mask_compact_i32, int)
COMPACT(mask_compact_i64, long long)

// reached[b, y, x]: whether the window of a set output (b, y', x') holds input (y, x).
extern "C" __global__ void __launch_bounds__(THREADS)
    mask_dilate(const unsigned char* mask, unsigned char* reached, int n, int height, int width,
                int out_height, int out_width, int kernel_height, int kernel_width, int stride,
                int padding_y, int padding_x, int dilation) {
  long long i = blockIdx.x * static_cast<long long>(THREADS) + threadIdx.x;
  if (i >= n) return;
  int x = i % width, y = i / width % height;
  const unsigned char* image = mask + i / width / height * out_height * out_width;
  unsigned char found = 0;
  for (int ky = 0; ky < kernel_height && !found; ++ky) {
    int top = y + padding_y - ky * dilation;
    if (top < 0 || top % stride || top / stride >= out_height) continue;
    for (int kx = 0; kx < kernel_width && !found; ++kx) {
      int left = x + padding_x - kx * dilation;
      if (left < 0 || left % stride || left / stride >= out_width) continue;
      found = image[static_cast<long long>(top / stride) * out_width + left / stride] != 0;
    }
  }
  reached[i] = found;
}
EXPORT(mask_dilate)
