// Convolution at single entries (position and channel). For every position its own mask says how:
// where many outputs are kept, all are computed in tiles of positions, as in conv.h; where few are,
// each takes its dot product with the window.
#pragma once
#include "conv.h"

namespace ISA {

constexpr int64_t kDot = 16;  // what a dot product takes besides its vectors, in their number

// What an entry becomes: [relu](scale * (sum + residual) + shift), for padded outputs too.
struct Finish {
  explicit Finish(const EntryConv& p)
      : residual(p.residual), out(p.out), relu(p.relu), scale(p.outputs + WIDTH, 1.0f),
        shift(p.outputs + WIDTH, 0.0f) {
    for (int64_t k = 0; k < p.outputs; ++k) {
      if (p.scale) scale[k] = p.scale[k];
      if (p.shift) shift[k] = p.shift[k];
    }
  }

  void entry(int64_t at, int64_t output, float sum) const {
    if (residual) sum += residual[at];
    const float value = scale[output] * sum + shift[output];
    out[at] = relu && value < 0.0f ? 0.0f : value;
  }

  // `count` entries of a vector of outputs, from output `first` on, at `at`.
  void vector(int64_t at, int64_t first, int64_t count, Vec sum) const {
    if (count < WIDTH) {
      float sums[WIDTH];
      store(sums, sum);
      for (int64_t k = 0; k < count; ++k) entry(at + k, first + k, sums[k]);
      return;
    }
    if (residual) sum += load(residual + at);
    const Vec value = load(&scale[first]) * sum + load(&shift[first]);
    store(out + at, relu ? positive(value) : value);
  }

  const float* residual;
  float* out;
  bool relu;
  List<float> scale, shift;
};

// The entries of a position that take a dot product.
struct Singles {
  explicit Singles(const EntryConv& p) : window(padded(p), 0.0f), kept(p.outputs + 1) {}
  static int64_t padded(const EntryConv& p) {
    const int64_t size = p.kernel_height * p.kernel_width * p.depth;
    return (size + 2 * WIDTH - 1) / (2 * WIDTH) * 2 * WIDTH;
  }
  void take(const uint8_t* mask, int64_t count) {
    int64_t* to = kept.data();
    int64_t k = 0;
    for (int64_t o = 0; o < count; ++o) {  // no branch to mispredict
      to[k] = o;
      k += mask[o] != 0;
    }
    found = k;
  }
  List<float> window;
  List<int64_t> kept;
  int64_t found = 0;
};

template <int COUNT>
inline void dots(const EntryConv& p, const Singles& singles, int64_t first, int64_t at,
                 const Finish& finish) {
  const int64_t size = singles.window.size();
  const int64_t* kept = &singles.kept[first];
  Vec sums[COUNT] = {}, others[COUNT] = {};
  const float *window = singles.window.data(), *rows[COUNT];
#pragma GCC unroll 4
  for (int k = 0; k < COUNT; ++k) rows[k] = p.weight + kept[k] * size;
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
  for (int k = 0; k < COUNT; ++k) finish.entry(at + kept[k], kept[k], totals[k]);
}

// Copy `count` floats; a last vector overlaps the one before.
inline void copy_row(float* to, const float* from, int64_t count) {
  if (count < WIDTH) {
    for (int64_t k = 0; k < count; ++k) to[k] = from[k];
    return;
  }
  for (int64_t k = 0; k + WIDTH < count; k += WIDTH) store(to + k, load(from + k));
  store(to + count - WIDTH, load(from + count - WIDTH));
}

inline void multiply_singles(const EntryConv& p, const Frame& frame, Singles& singles,
                             int64_t position, const float* zeros, const Finish& finish) {
  const int64_t taps = frame.offsets.size(), at = position * p.outputs;
  const Window from = frame.window(position);
  singles.take(p.mask + at, p.outputs);
  for (int64_t t = 0; t < taps; ++t) {
    copy_row(&singles.window[t * p.depth], frame.row(p.x, from, zeros, t), p.depth);
  }
  int64_t k = 0;
  for (; k + 4 <= singles.found; k += 4) dots<4>(p, singles, k, at, finish);
  for (; k + 2 <= singles.found; k += 2) dots<2>(p, singles, k, at, finish);
  for (; k < singles.found; ++k) dots<1>(p, singles, k, at, finish);
}

// All outputs of a block, from the first-th, at a tile of positions; sums of those not kept are 0.
template <int VECTORS>
inline void multiply_whole(const EntryConv& p, const Tile& tile, int64_t first, int64_t count,
                           const float* weight, const int32_t* positions, int64_t active,
                           const Finish& finish) {
  Vec sums[ROWS][VECTORS] = {};
  multiply<VECTORS>(tile, p.depth, 0, weight, sums);
#pragma GCC unroll 16
  for (int m = 0; m < ROWS; ++m) {
    if (m >= active) break;
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) {
      const int64_t output = first + v * WIDTH, left = count - v * WIDTH;
      const int64_t at = positions[m] * p.outputs + output;
      if (left >= WIDTH) {
        finish.vector(at, output, WIDTH, masked(sums[m][v], flags(p.mask + at)));
      } else if (left > 0) {
        uint8_t mask[WIDTH] = {};
        std::memcpy(mask, p.mask + at, left);
        finish.vector(at, output, left, masked(sums[m][v], flags(mask)));
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
  const int64_t count = p.batch * p.out_height * p.out_width, size = ROWS * kTiles;
  const int64_t window = p.kernel_height * p.kernel_width * p.depth, block = 2 * WIDTH;
  // In half cycles: a dot product loads twice for each of its vectors; a block is bound by its two
  // multiplications a cycle.
  const int64_t single = 2 * (window / WIDTH + kDot);
  const int64_t all = window * ((p.outputs + WIDTH - 1) / WIDTH);
  const Conv conv = geometry(p);
  const Frame frame(p, 1);
  const Finish finish(p);
  const float* in_blocks = p.weight + p.outputs * Singles::padded(p);
  const List<float> zeros(p.x_step, 0.0f);
#pragma omp parallel num_threads(p.threads)
  {
    List<Tile> tiles(kTiles, Tile(frame.offsets));
    Singles singles(p);
    List<int32_t> whole(size);
#pragma omp for schedule(dynamic)
    for (int64_t begin = 0; begin < count; begin += size) {
      const int64_t end = begin + size < count ? begin + size : count;
      int64_t found = 0;
      for (int64_t k = begin; k < end; ++k) {
        const uint8_t* mask = p.mask + k * p.outputs;
        const int64_t kept = kept_of(mask, p.outputs);
        if (kept * single >= all) {
          whole[found++] = static_cast<int32_t>(k);
          continue;
        }
        for (int64_t o = 0; o < p.outputs; o += WIDTH) {
          const int64_t left = p.outputs - o;
          finish.vector(k * p.outputs + o, o, left < WIDTH ? left : WIDTH, Vec{});
        }
        if (kept) multiply_singles(p, frame, singles, k, zeros.data(), finish);
      }
      const auto active = [&](int64_t k) { return found - k < ROWS ? found - k : ROWS; };
      for (int64_t k = 0; k < found; k += ROWS) {
        point(conv, frame, tiles[k / ROWS], &whole[k], active(k), zeros.data(), false);
      }
      for (int64_t first = 0; first < p.outputs; first += block) {
        const int64_t left = p.outputs - first, width = left < block ? left : block;
        const auto run = left > WIDTH ? multiply_whole<2> : multiply_whole<1>;
        for (int64_t k = 0; k < found; k += ROWS) {
          const float* weight = in_blocks + first * window;
          run(p, tiles[k / ROWS], first, width, weight, &whole[k], active(k), finish);
        }
      }
    }
  }
}

}  // namespace ISA
