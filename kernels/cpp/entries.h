// Convolution at single entries (position and channel). For every position and block of outputs, as
// in conv.h, its own mask says how: where many outputs are kept, all of the block are computed in
// tiles of positions; where few are, the window is copied once and each takes its dot product.
#pragma once
#include "conv.h"

namespace ISA {

constexpr int64_t kDot = 16;  // what a dot product takes besides its vectors, in their number

// Copy `count` floats; a last vector overlaps the one before.
inline void copy_row(float* to, const float* from, int64_t count) {
  if (count < WIDTH) {
    for (int64_t k = 0; k < count; ++k) to[k] = from[k];
    return;
  }
  for (int64_t k = 0; k + WIDTH < count; k += WIDTH) store(to + k, load(from + k));
  store(to + count - WIDTH, load(from + count - WIDTH));
}

template <int COUNT>
inline void dots(const float* window, const float* weight, int64_t size, const int64_t* kept,
                 const float* residual, float* out) {
  Vec sums[COUNT] = {}, others[COUNT] = {};
  const float* rows[COUNT];
#pragma GCC unroll 4
  for (int k = 0; k < COUNT; ++k) rows[k] = weight + kept[k] * size;
  for (int64_t c = 0; c < size; c += 2 * WIDTH) {
    const Vec values = load(window + c), more = load(window + c + WIDTH);
#pragma GCC unroll 4
    for (int k = 0; k < COUNT; ++k) {
      sums[k] += values * load(rows[k] + c);
      others[k] += more * load(rows[k] + c + WIDTH);
    }
  }
#pragma GCC unroll 4
  for (int k = 0; k < COUNT; ++k) sums[k] += others[k];
  float totals[COUNT];
  sum_lanes(sums, totals);
#pragma GCC unroll 4
  for (int k = 0; k < COUNT; ++k) {
    out[kept[k]] = totals[k] + (residual ? residual[kept[k]] : 0.0f);
  }
}

// The entries of a position that take a dot product.
struct Singles {
  explicit Singles(const EntryConv& p) : window(padded(p), 0.0f), kept(p.outputs) {}
  static int64_t padded(const EntryConv& p) {
    const int64_t size = p.kernel_height * p.kernel_width * p.depth;
    return (size + 2 * WIDTH - 1) / (2 * WIDTH) * 2 * WIDTH;
  }
  void add(const uint8_t* mask, int64_t first, int64_t count) {
    for (int64_t k = 0; k < count; k += 8) {
      for (uint64_t left = eight(mask + k, count - k); left; left &= left - 1) {
        kept[found++] = first + k + __builtin_ctzll(left) / 8;
      }
    }
  }
  List<float> window;
  List<int64_t> kept;
  int64_t found = 0;
};

inline void multiply_singles(const EntryConv& p, const Frame& frame, Singles& singles,
                             int64_t position, const float* zeros) {
  const int64_t taps = frame.offsets.size(), size = singles.window.size();
  const Window from = frame.window(place(p, position));
  for (int64_t t = 0; t < taps; ++t) {
    const float* row = from.inside >> t & 1 ? p.x + from.at + frame.offsets[t] : zeros;
    copy_row(&singles.window[t * p.depth], row, p.depth);
  }
  const int64_t at = position * p.outputs;
  const float *window = singles.window.data(), *residual = p.residual ? p.residual + at : nullptr;
  const int64_t* kept = singles.kept.data();
  int64_t o = 0;
  for (; o + 4 <= singles.found; o += 4) {
    dots<4>(window, p.weight, size, kept + o, residual, p.out + at);
  }
  for (; o < singles.found; ++o) dots<1>(window, p.weight, size, kept + o, residual, p.out + at);
}

// All outputs of a block, from the first-th, at a tile of positions; written where they are kept.
template <int VECTORS>
inline void multiply_whole(const EntryConv& p, const Tile& tile, int64_t first, int64_t count,
                           const float* weight, const int32_t* positions, int64_t active) {
  Vec sums[ROWS][VECTORS] = {};
  multiply<VECTORS>(tile, p.depth, 0, weight, sums);
#pragma GCC unroll 16
  for (int m = 0; m < ROWS; ++m) {
    if (m >= active) break;
    const int64_t at = positions[m] * p.outputs + first;
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) {
      const int64_t to = at + v * WIDTH, left = count - v * WIDTH;
      const float* residual = p.residual ? p.residual + to : nullptr;
      if (left >= WIDTH) {
        finish(masked(sums[m][v], p.mask + to), residual, p.out + to, WIDTH, false);
      } else if (left > 0) {
        uint8_t mask[WIDTH] = {};
        std::memcpy(mask, p.mask + to, left);
        finish(masked(sums[m][v], mask), residual, p.out + to, left, false);
      }
    }
  }
}

// The convolution that has the geometry of these entries, to point tiles with.
inline Conv geometry(const EntryConv& p) {
  Conv conv = {};
  conv.x = p.x;
  conv.batch = p.batch, conv.height = p.height, conv.width = p.width, conv.depth = p.depth;
  conv.out_height = p.out_height, conv.out_width = p.out_width, conv.outputs = p.outputs;
  conv.kernel_height = p.kernel_height, conv.kernel_width = p.kernel_width;
  conv.stride = p.stride, conv.padding = p.padding, conv.dilation = conv.groups = 1;
  conv.x_step = p.x_step;
  return conv;
}

void entries(const EntryConv& p) {
  const int64_t taps = p.kernel_height * p.kernel_width, block = 2 * WIDTH;
  const int64_t count = p.batch * p.out_height * p.out_width, size = ROWS * kTiles;
  const int64_t blocks = (p.outputs + block - 1) / block, window = taps * p.depth;
  const Conv conv = geometry(p);
  const Frame frame(p, 1);
  const float* in_blocks = p.weight + p.outputs * Singles::padded(p);
  const List<float> zeros(p.x_step, 0.0f);
#pragma omp parallel num_threads(p.threads)
  {
    Tile tile(frame.offsets);
    Singles singles(p);
    List<int32_t> whole(blocks * size);
    List<int64_t> found(blocks);
#pragma omp for schedule(dynamic)
    for (int64_t begin = 0; begin < count; begin += size) {
      const int64_t end = begin + size < count ? begin + size : count;
      for (int64_t b = 0; b < blocks; ++b) found[b] = 0;
      for (int64_t k = begin; k < end; ++k) {
        singles.found = 0;
        for (int64_t b = 0, first = 0; b < blocks; ++b, first += block) {
          const int64_t left = p.outputs - first, width = left < block ? left : block;
          const int64_t at = k * p.outputs + first, kept = kept_of(p.mask + at, width);
          if (kept * (window / WIDTH + kDot) >= window * (left > WIDTH ? 1 : 0.5)) {
            whole[b * size + found[b]++] = static_cast<int32_t>(k);
            continue;
          }
          fill_row(p.out + at, p.residual ? p.residual + at : nullptr, width,
                   p.residual ? kCopy : kZero);
          if (kept) singles.add(p.mask + at, first, width);
        }
        if (singles.found) multiply_singles(p, frame, singles, k, zeros.data());
      }
      for (int64_t b = 0, first = 0; b < blocks; ++b, first += block) {
        const int64_t left = p.outputs - first, width = left < block ? left : block;
        const auto run = left > WIDTH ? multiply_whole<2> : multiply_whole<1>;
        for (int64_t k = 0; k < found[b]; k += ROWS) {
          const int32_t* positions = &whole[b * size + k];
          const int64_t active = found[b] - k < ROWS ? found[b] - k : ROWS;
          point(conv, frame, tile, positions, active, zeros.data(), false);
          run(p, tile, first, width, in_blocks + first * taps * p.depth, positions, active);
        }
      }
    }
  }
}

}  // namespace ISA
