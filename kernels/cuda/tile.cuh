// A tile of a matrix product whose left rows are fetched through pointers, tap by tap.
//
// C[r, n] = sum over taps t and depth k of X[row r at tap t][k] * W[t][k][n]. Everything is counted
// in 4-byte words: a float, or two bf16 numbers adjacent in k. Copies to shared memory run STAGES-1
// steps ahead of the arithmetic; one barrier per step separates both reading and overwriting.
#pragma once
#include "numbers.cuh"

constexpr int DEPTH = 16;  // words of k per step

// One row of the tile: where its tap (0, 0) starts, in words, and which taps it has.
struct alignas(16) Row {
  long long base;
  unsigned long long taps;
};

template <int ROWS_, int COLUMNS_, int STAGES_>
struct Tile {
  static constexpr int ROWS = ROWS_, COLUMNS = COLUMNS_, STAGES = STAGES_;
  alignas(16) unsigned a[STAGES][ROWS][DEPTH + 4];
  alignas(16) unsigned b[STAGES][DEPTH][COLUMNS + 8];
  Row row[ROWS];
  int top[ROWS], left[ROWS];  // only for the taps of a strided input gradient
  int position[ROWS];         // which row of the output, or -1
};

// Where the operands lie. Words are fetched VECTOR (1 or 4) at a time.
struct Source {
  const unsigned* x;
  const unsigned* w;       // first column of this tile
  int depth;          // words of k per tap
  int columns;        // of this tile
  int w_stride;       // words from one k to the next
  int kernel_width, taps;
  int dilation;
  int width, pixel;    // of the fetched image: pixels per line, words per pixel
  int transposed;      // input gradient: taps go backwards, and by 1 / stride
  int stride;
  // Only with LISTS: which k of x and w are taken and which columns of w, or null for all.
  const int* depth_list;
  const int* column_list;
  int all_depth;  // words of k per tap in w
};

template <class T, int THREADS, int VECTOR, bool LISTS>
struct Loader {
  T& tile;
  const Source& source;
  int tap = 0, ky = 0, kx = 0, k = 0;

  __device__ Loader(T& tile, const Source& source) : tile(tile), source(source) {}

  __device__ __forceinline__ int steps() const {
    return source.taps * ((source.depth + DEPTH - 1) / DEPTH);
  }

  __device__ __forceinline__ int listed(int k) const {
    return LISTS && source.depth_list ? source.depth_list[k] : k;
  }

  // Fetches the next step.
  __device__ __forceinline__ void fetch(int stage) {
    constexpr int A_PIECES = DEPTH / VECTOR, B_PIECES = T::COLUMNS / VECTOR;
    static_assert(THREADS % A_PIECES == 0, "a thread keeps its place in k");
    int dy = ky * source.dilation, dx = kx * source.dilation;
    long long shift = (static_cast<long long>(dy) * source.width + dx) * source.pixel;
    if (source.transposed) shift = -shift;
    int at = k + threadIdx.x % A_PIECES * VECTOR;
#pragma unroll 4
    for (int i = threadIdx.x / A_PIECES; i < T::ROWS; i += THREADS / A_PIECES) {
      Row row = tile.row[i];
      bool present = (row.taps >> tap & 1) && at < source.depth;
      if (source.transposed && source.stride > 1) {
        int y = (tile.top[i] - dy) / source.stride, x = (tile.left[i] - dx) / source.stride;
        shift = (static_cast<long long>(y) * source.width + x) * source.pixel;
      }
      copy_async<4 * VECTOR>(&tile.a[stage][i][at - k],
                             source.x + (present ? row.base + shift + listed(at) : 0), present);
    }
    const unsigned* w = source.w + static_cast<long long>(tap) *
                                       (LISTS ? source.all_depth : source.depth) * source.w_stride;
#pragma unroll 4
    for (int i = threadIdx.x; i < DEPTH * B_PIECES; i += THREADS) {
      int depth = i / B_PIECES, column = i % B_PIECES * VECTOR;
      bool present = k + depth < source.depth && column < source.columns;
      int from = LISTS && present && source.column_list ? source.column_list[column] : column;
      copy_async<4 * VECTOR>(
          &tile.b[stage][depth][column],
          present ? w + static_cast<long long>(listed(k + depth)) * source.w_stride + from
                  : source.w,
          present);
    }
    k += DEPTH;
    if (k >= source.depth) {
      k = 0;
      ++tap;
      if (++kx == source.kernel_width) {
        kx = 0;
        ++ky;
      }
    }
  }
};

// Fills the accumulators of `math`. The rows of the tile must have been written by any thread.
template <int VECTOR, bool LISTS = false, class T, class Math>
__device__ __forceinline__ void multiply(T& tile, const Source& source, Math& math) {
  Loader<T, Math::THREADS, VECTOR, LISTS> loader(tile, source);
  int steps = loader.steps();
  __syncthreads();
  int read = 0, write = 0;
  for (int step = 1 - T::STAGES; step < steps; ++step) {  // the first only fetch
    if (step >= 0) {
      wait_copies<T::STAGES - 2>();
      __syncthreads();
    }
    if (step + T::STAGES - 1 < steps) loader.fetch(write);
    commit_copies();
    write = write + 1 == T::STAGES ? 0 : write + 1;
    if (step >= 0) {
      math.step(tile, read);
      read = read + 1 == T::STAGES ? 0 : read + 1;
    }
  }
}

// Ordinary arithmetic: each thread 8 rows x 8 columns; 64 x 64 by 64 threads.
struct Scalar {
  static constexpr int THREADS = 64, WIDTH = 4;  // WIDTH: columns put at once
  using Tile = ::Tile<64, 64, 3>;
  using Number = float;
  float sum[8][8] = {};

  __device__ __forceinline__ static int row(int i) { return threadIdx.x / 8 + 8 * i; }
  __device__ __forceinline__ static int column(int half) { return threadIdx.x % 8 * 4 + 32 * half; }

  __device__ __forceinline__ void step(const Tile& tile, int stage) {
#pragma unroll
    for (int k = 0; k < DEPTH; k += 4) {
      float a[8][4];
#pragma unroll
      for (int i = 0; i < 8; ++i)
        load(reinterpret_cast<const float*>(&tile.a[stage][row(i)][k]), a[i]);
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        float b[2][4];
#pragma unroll
        for (int h = 0; h < 2; ++h)
          load(reinterpret_cast<const float*>(&tile.b[stage][k + q][column(h)]), b[h]);
#pragma unroll
        for (int i = 0; i < 8; ++i)
#pragma unroll
          for (int j = 0; j < 8; ++j) sum[i][j] += a[i][q] * b[j / 4][j % 4];
      }
    }
  }

  template <class Put>
  __device__ __forceinline__ void finish(Put put) {
#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float v[4] = {sum[i][4 * h], sum[i][4 * h + 1], sum[i][4 * h + 2], sum[i][4 * h + 3]};
        put(row(i), column(h), v);
      }
  }
};

// Tensor cores: each warp 64 rows x 32 columns, in fragments of 16 x 8.
template <int ROWS, int COLUMNS, bool BF16>
struct Tensor {
  static constexpr int THREADS = ROWS / 64 * (COLUMNS / 32) * 32, WIDTH = 2;
  using Tile = ::Tile<ROWS, COLUMNS, 2>;
  float sum[4][4][4] = {};

  __device__ __forceinline__ static int lane() { return threadIdx.x % 32; }
  __device__ __forceinline__ static int row() {
    return threadIdx.x / 32 / (COLUMNS / 32) * 64 + lane() / 4;
  }
  __device__ __forceinline__ static int column() { return threadIdx.x / 32 % (COLUMNS / 32) * 32; }

  __device__ __forceinline__ static unsigned rounded(unsigned word) {
    return BF16 ? word : __float_as_uint(to_tf32(__uint_as_float(word)));
  }

  __device__ __forceinline__ void step(const Tile& tile, int stage) {
#pragma unroll
    for (int k = 0; k < DEPTH; k += 8) {
      unsigned a[4][4], b[4][2];
      int at = k + lane() % 4;
#pragma unroll
      for (int m = 0; m < 4; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          a[m][i] = rounded(tile.a[stage][row() + 16 * m + i % 2 * 8][at + i / 2 * 4]);
#pragma unroll
      for (int n = 0; n < 4; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i)
          b[n][i] = rounded(tile.b[stage][at + 4 * i][column() + 8 * n + lane() / 4]);
#pragma unroll
      for (int m = 0; m < 4; ++m)
#pragma unroll
        for (int n = 0; n < 4; ++n)
          if (BF16) mma_bf16(sum[m][n], a[m], b[n]);
          else mma_tf32(sum[m][n], a[m], b[n]);
    }
  }

  template <class Put>
  __device__ __forceinline__ void finish(Put put) {
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
      for (int n = 0; n < 4; ++n)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float v[2] = {sum[m][n][2 * half], sum[m][n][2 * half + 1]};
          put(row() + 16 * m + 8 * half, column() + 8 * n + lane() % 4 * 2, v);
        }
  }
};
