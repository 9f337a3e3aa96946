// Convolution at single entries (position and channel). For every position and block of outputs, as
// in conv.h, its own mask says how: where many outputs are kept, all of the block are computed in
// tiles of positions; where few are, each takes its dot product with the window.
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
  void add(const uint8_t* mask, int64_t first, int64_t count) {
    int64_t* to = kept.data();
    int64_t k = found;
    for (int64_t o = 0; o < count; ++o) {  // no branch to mispredict
      to[k] = first + o;
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
  for (int64_t t = 0; t < taps; ++t) {
    const float* row = from.inside >> t & 1 ? p.x + from.at + frame.offsets[t] : zeros;
    copy_row(&singles.window[t * p.depth], row, p.depth);
  }
  int64_t k = 0;
  for (; k + 4 <= singles.found; k += 4) dots<4>(p, singles, k, at, finish);
  for (; k < singles.found; ++k) dots<1>(p, singles, k, at, finish);
}

// All outputs of a block, from the first-th, at a tile of positions; the sums of those not kept are 0.
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
        finish.vector(at, output, WIDTH, masked(sums[m][v], p.mask + at));
      } else if (left > 0) {
        uint8_t mask[WIDTH] = {};
        std::memcpy(mask, p.mask + at, left);
        finish.vector(at, output, left, masked(sums[m][v], mask));
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
  const int64_t each = 2 * (window / WIDTH + kDot);
  const Conv conv = geometry(p);
  const Frame frame(p, 1);
  const Finish finish(p);
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
          if (kept * each >= (left > WIDTH ? 2 * window : window)) {
            whole[b * size + found[b]++] = static_cast<int32_t>(k);
            continue;
          }
          for (int64_t o = 0; o < width; o += WIDTH) {
            finish.vector(at + o, first + o, width - o < WIDTH ? width - o : WIDTH, Vec{});
          }
          if (kept) singles.add(p.mask + at, first, width);
        }
        if (singles.found) multiply_singles(p, frame, singles, k, zeros.data(), finish);
      }
      for (int64_t b = 0, first = 0; b < blocks; ++b, first += block) {
        const int64_t left = p.outputs - first, width = left < block ? left : block;
        const auto run = left > WIDTH ? multiply_whole<2> : multiply_whole<1>;
        for (int64_t k = 0; k < found[b]; k += ROWS) {
          const int32_t* positions = &whole[b * size + k];
          const int64_t active = found[b] - k < ROWS ? found[b] - k : ROWS;
          point(conv, frame, tile, positions, active, zeros.data(), false);
          const float* weight = in_blocks + first * taps * p.depth;
          run(p, tile, first, width, weight, positions, active, finish);
        }
      }
    }
  }
}

}  // namespace ISA
