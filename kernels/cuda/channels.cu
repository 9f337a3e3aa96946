// Convolution of the channels that each sample keeps: an implicit matrix product per sample, over
// its live input channels and to its kept output channels.
#include "prelude.cuh"
#include "numbers.cuh"
#include "tile.cuh"

// lists[b]: the set ones of the `channels` flags of sample b, ascending; counts[b]: how many.
// One warp per sample.
extern "C" __global__ void __launch_bounds__(32)
    channel_lists(const unsigned char* flags, int* lists, int* counts, int channels) {
  int lane = threadIdx.x, rank = 0;
  long long row = blockIdx.x * static_cast<long long>(channels);
  for (int first = 0; first < channels; first += 32) {
    int c = first + lane;
    bool set = c < channels && flags[row + c];
    unsigned votes = __ballot_sync(~0u, set);
    if (set) lists[row + rank + __popc(votes & ((1u << lane) - 1))] = c;
    rank += __popc(votes);
  }
  if (lane == 0) counts[blockIdx.x] = rank;
}
EXPORT(channel_lists)

// Without lists, all channels. [relu](scale * (conv(x) + bias) + shift + residual); what is not kept
// is not written. x is NHWC; w is (taps, C, O); scale is (batch, O), the residual as out.
extern "C" __global__ void __launch_bounds__(Scalar::THREADS)
    channel_conv(const unsigned* x, const unsigned* w, const float* bias, const float* scale,
                 const float* shift, const float* residual, const int* input_lists,
                 const int* input_counts, const int* output_lists, const int* output_counts,
                 float* out, int source_height, int source_width, int channels, int height,
                 int width, int columns, int kernel_height, int kernel_width, int stride,
                 int padding, int dilation, int with_relu) {
  using Tile = Scalar::Tile;
  __shared__ Tile tile;
  int across = (columns + Tile::COLUMNS - 1) / Tile::COLUMNS;
  int down = (height * width + Tile::ROWS - 1) / Tile::ROWS;
  int column = static_cast<int>(blockIdx.x) % across * Tile::COLUMNS;
  int first = blockIdx.x / across % down * Tile::ROWS;
  long long sample = blockIdx.x / across / down;
  int kept = output_counts ? output_counts[sample] : columns;
  int depth = input_counts ? input_counts[sample] : channels;
  if (column >= kept) return;
  const int* list = output_lists ? output_lists + sample * columns + column : nullptr;

  for (int i = threadIdx.x; i < Tile::ROWS; i += Scalar::THREADS) {
    Row row = {0, 0};
    int p = first + i;
    bool there = p < height * width;
    if (there) {
      int top = p / width * stride - padding, left = p % width * stride - padding;
      for (int ky = 0; ky < kernel_height; ++ky)
        for (int kx = 0; kx < kernel_width; ++kx) {
          int y = top + ky * dilation, x_ = left + kx * dilation;
          if (y >= 0 && y < source_height && x_ >= 0 && x_ < source_width)
            row.taps |= 1ull << (ky * kernel_width + kx);
        }
      row.base = (sample * source_height * source_width +
                  static_cast<long long>(top) * source_width + left) * channels;
    }
    tile.row[i] = row;
    tile.position[i] = there ? p : -1;
  }

  Source source = {x, list ? w : w + column, depth, min(Tile::COLUMNS, kept - column), columns,
                   kernel_width, kernel_height * kernel_width, dilation, source_width, channels, 0,
                   1, input_lists ? input_lists + sample * channels : nullptr, list, channels};
  Scalar math;
  multiply<1, true>(tile, source, math);
  math.finish([&](int row, int c, float (&v)[4]) {
    if (tile.position[row] < 0) return;
    long long pixel = (sample * height * width + tile.position[row]) * columns;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (column + c + i < kept) {
        int o = list ? list[c + i] : column + c + i;
        float u = v[i] + (bias ? bias[o] : 0);
        if (scale) u *= scale[sample * columns + o];
        if (shift) u += shift[o];
        if (residual) u += residual[pixel + o];
        out[pixel + o] = with_relu ? relu(u) : u;
      }
  });
}
EXPORT(channel_conv)
