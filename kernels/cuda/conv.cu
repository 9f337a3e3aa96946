// Convolution at the active positions, its input gradient, and products sorted by expert: an
// implicit matrix product whose rows are fetched by the positions' indices. NHWC.
//
// Forward: positions are outputs, x is the input. Transposed (input gradient): positions are
// inputs, x is the output's gradient. With source_inverse, inactive pixels of x count as zero.
// w is (taps, depth words of a group, columns of all groups). Blocks beyond the count only fill.
// With offsets, rows offsets[e] to offsets[e + 1] are multiplied by the e-th w and biased by the
// e-th bias, without index, inverse and fill.
#include "prelude.cuh"
#include "finish.cuh"
#include "tile.cuh"

template <class Math, int VECTOR, class T>
__device__ __forceinline__ void conv(
    typename Math::Tile& tile, const unsigned* x, const unsigned* w, const float* bias,
    const T* residual, const int* index, const int* inverse, const int* count,
    const int* source_inverse, const long long* offsets, T* out, int n, int experts,
    int source_height, int source_width, int pixel, int height, int width, int columns, int groups,
    int kernel_height, int kernel_width, int stride, int padding, int dilation, int transposed,
    int with_relu, int fill, int compact) {
  using Tile = typename Math::Tile;
  int group_columns = columns / groups;
  int across = (group_columns + Tile::COLUMNS - 1) / Tile::COLUMNS;
  int tile_id = blockIdx.x / (across * groups), group = blockIdx.x / across % groups;
  int in_group = static_cast<int>(blockIdx.x) % across * Tile::COLUMNS;
  int column = group * group_columns + in_group;
  int here = min(Tile::COLUMNS, group_columns - in_group);
  long long first = static_cast<long long>(tile_id) * Tile::ROWS;
  int depth = pixel / groups;
  long long last;
  if (offsets) {  // the tile_id-th tile, when every expert begins with a tile of its own
    int e = 0, tiles = tile_id;
    for (; e < experts; ++e) {
      int own = static_cast<int>((offsets[e + 1] - offsets[e] + Tile::ROWS - 1) / Tile::ROWS);
      if (tiles < own) break;
      tiles -= own;
    }
    if (e == experts) return;
    first = offsets[e] + static_cast<long long>(tiles) * Tile::ROWS;
    last = offsets[e + 1];
    w += static_cast<long long>(e) * depth * columns;
    if (bias) bias += static_cast<long long>(e) * columns;
  } else {
    last = count[0];
  }

  if (!compact)
    fill_inactive<Math::THREADS>(out + column, residual ? residual + column : nullptr, inverse,
                                 fill, first, min(first + Tile::ROWS, static_cast<long long>(n)),
                                 here, columns);
  if (first >= last) return;

  for (int i = threadIdx.x; i < Tile::ROWS; i += Math::THREADS) {
    Row row = {0, 0};
    int position = -1;
    if (first + i < last) {
      int p = index ? index[first + i] : static_cast<int>(first) + i;
      position = compact ? static_cast<int>(first) + i : p;
      int px = p % width, py = p / width % height;
      long long image = static_cast<long long>(p / width / height) * source_height * source_width;
      int top = transposed ? py + padding : py * stride - padding;
      int left = transposed ? px + padding : px * stride - padding;
      for (int ky = 0; ky < kernel_height; ++ky)
        for (int kx = 0; kx < kernel_width; ++kx) {
          int sy = top + (transposed ? -ky : ky) * dilation;
          int sx = left + (transposed ? -kx : kx) * dilation;
          bool there = sy >= 0 && sx >= 0;
          if (transposed) {
            there = there && sy % stride == 0 && sx % stride == 0;
            sy /= stride;
            sx /= stride;
          }
          there = there && sy < source_height && sx < source_width;
          if (there && source_inverse)
            there = source_inverse[image + static_cast<long long>(sy) * source_width + sx] >= 0;
          if (there) row.taps |= 1ull << (ky * kernel_width + kx);
        }
      tile.top[i] = top;
      tile.left[i] = left;
      bool by_stride = transposed && stride > 1;
      long long corner = by_stride ? 0 : static_cast<long long>(top) * source_width + left;
      row.base = (image + corner) * pixel + static_cast<long long>(group) * depth;
    }
    tile.row[i] = row;
    tile.position[i] = position;
  }

  Source source = {x, w + column, depth, here, columns, kernel_width, kernel_height * kernel_width,
                   dilation, source_width, pixel, transposed, stride, nullptr, nullptr, depth};
  Math math;
  multiply<VECTOR>(tile, source, math);
  math.finish([&](int row, int c, auto& v) {
    if (tile.position[row] < 0) return;
    long long at = static_cast<long long>(tile.position[row]) * columns + column + c;
    write<VECTOR == 4>(out + at, bias ? bias + column + c : nullptr,
                       residual ? residual + at : nullptr, with_relu, here - c, v);
  });
}

#define CONV(name, T, VECTOR, BLOCKS, ...)                                                        \
  extern "C" __global__ void __launch_bounds__(__VA_ARGS__::THREADS, BLOCKS)                      \
      name(const unsigned* x, const unsigned* w, const float* bias, const T* residual,            \
           const int* index, const int* inverse, const int* count, const int* source_inverse,     \
           const long long* offsets, T* out, int n, int experts, int source_height,               \
           int source_width, int pixel, int height, int width, int columns, int groups,           \
           int kernel_height, int kernel_width, int stride, int padding, int dilation,            \
           int transposed, int with_relu, int fill, int compact) {                                \
    __shared__ __VA_ARGS__::Tile tile;                                                            \
    conv<__VA_ARGS__, VECTOR>(tile, x, w, bias, residual, index, inverse, count, source_inverse,  \
                              offsets, out, n, experts, source_height, source_width, pixel,       \
                              height, width, columns, groups, kernel_height, kernel_width,        \
                              stride, padding, dilation, transposed, with_relu, fill, compact);   \
  }                                                                                               \
  EXPORT(name)

CONV(conv_f32, float, 4, 6, Scalar)
CONV(conv_f32_any, float, 1, 5, Scalar)
CONV(conv_tf32, float, 4, 2, Tensor<128, 128, false>)
CONV(conv_tf32_narrow, float, 4, 3, Tensor<128, 64, false>)
CONV(conv_bf16, bf16, 4, 2, Tensor<128, 128, true>)
CONV(conv_bf16_narrow, bf16, 4, 3, Tensor<128, 64, true>)
