// Masked convolution as an indirect matrix product: every active position has one pointer per tap
// into the input, so nothing is copied; a register-blocked micro-kernel multiplies ROWS positions
// with two vectors of outputs.
#pragma once
#include "frame.h"

namespace ISA {

constexpr int64_t kTiles = 8;          // tiles of ROWS positions that a thread takes at a time
constexpr int64_t ROOM = (ROWS + 7) / 8 * 8;  // pointers of a tap, in whole vectors
constexpr int64_t kFetched = 64;       // rows of up to so many channels are asked for ahead
constexpr int64_t kSmall = 64 * 1024;  // so many weights stay in a core's second cache

// What a tile reads. Where all windows lie inside the image: one corner per position, from which
// the taps have the same offsets. Else, for each used tap, ROOM pointers; taps that are outside for
// the whole tile are left out.
struct Tile {
  explicit Tile(const List<int64_t>& offsets)
      : offsets(offsets.data()), rows(offsets.size() * ROOM), taps(offsets.size()) {}
  const int64_t* offsets;
  const float* corners[ROWS];
  List<const float*> rows;
  List<int64_t> taps;
  int64_t used = 0;
  bool inside = false;
  bool scattered = false;  // the rows lie where the processor does not foresee them
};

template <int VECTORS>
inline void multiply(const Tile& tile, int64_t depth, int64_t offset, const float* weight,
                     Vec (&sums)[ROWS][VECTORS]) {
  for (int64_t t = 0; t < tile.used; ++t) {
    const float* w = weight + (tile.inside ? t : tile.taps[t]) * depth * VECTORS * WIDTH;
    const float* row[ROWS];
#pragma GCC unroll 16
    for (int m = 0; m < ROWS; ++m) {
      row[m] = tile.inside ? tile.corners[m] + tile.offsets[t] : tile.rows[t * ROOM + m];
      row[m] += offset;
    }
    if (tile.scattered && depth <= kFetched && t + 1 < tile.used) {
#pragma GCC unroll 16
      for (int m = 0; m < ROWS; ++m) {
        const float* next = tile.inside ? tile.corners[m] + tile.offsets[t + 1]
                                        : tile.rows[(t + 1) * ROOM + m];
        for (int64_t c = 0; c < depth; c += 16) __builtin_prefetch(next + offset + c, 0, 3);
      }
    }
    for (int64_t c = 0; c < depth; ++c, w += VECTORS * WIDTH) {
      Vec values[VECTORS];
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; ++v) values[v] = load(w + v * WIDTH);
#pragma GCC unroll 16
      for (int m = 0; m < ROWS; ++m) {
        const float factor = row[m][c];
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) sums[m][v] += factor * values[v];
      }
    }
  }
}

// One block of `count` outputs, from the first-th of the layer, for `active` positions.
template <int VECTORS>
inline void block(const Conv& p, const Tile& tile, int64_t offset, const float* weight,
                  const float* bias, int64_t first, int64_t count, const int32_t* positions,
                  int64_t active) {
  Vec sums[ROWS][VECTORS];
#pragma GCC unroll 16
  for (int m = 0; m < ROWS; ++m) {
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) sums[m][v] = load(bias + v * WIDTH);
  }
  multiply<VECTORS>(tile, p.depth, offset, weight, sums);
#pragma GCC unroll 16
  for (int m = 0; m < ROWS; ++m) {
    if (m >= active) break;
    const int64_t at = positions[m] * p.outputs + first;
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) {
      const int64_t left = count - v * WIDTH;
      const float* residual = p.residual ? p.residual + at + v * WIDTH : nullptr;
      if (left > 0) {
        finish(sums[m][v], residual, p.out + at + v * WIDTH, left < WIDTH ? left : WIDTH, p.relu);
      }
    }
  }
}

// The rows of the output's gradient that one input position gathers, `zeros` off the mask; and a
// bit for each tap that has one.
inline uint64_t gradient_rows(const Conv& p, const Place& here, const float* zeros,
                              const float** rows, int64_t step) {
  uint64_t found = 0, bit = 1;
  for (int64_t i = 0; i < p.kernel_height; ++i) {
    const int64_t y = here.row + p.padding - i * p.dilation, h = y / p.stride;
    const bool inside = y >= 0 && y % p.stride == 0 && h < p.height;
    for (int64_t j = 0; j < p.kernel_width; ++j, rows += step, bit <<= 1) {
      const int64_t z = here.column + p.padding - j * p.dilation, w = z / p.stride;
      *rows = zeros;
      if (!inside || z < 0 || z % p.stride != 0 || w >= p.width) continue;
      const int64_t at = (here.sample * p.height + h) * p.width + w;
      if (p.mask && !p.mask[at]) continue;
      *rows = p.x + at * p.x_step;
      found |= bit;
    }
  }
  return found;
}

typedef int64_t Addresses __attribute__((vector_size(64), aligned(8), may_alias));

// Find what a tile reads, forward.
inline void point(const Conv& p, const Frame& frame, Tile& tile, const int32_t* positions,
                  int64_t active, const float* zeros, bool scattered) {
  const int64_t taps = frame.offsets.size();
  Addresses starts[ROOM / 8] = {}, insides[ROOM / 8] = {};
  int64_t* at = reinterpret_cast<int64_t*>(starts);
  int64_t* inside = reinterpret_cast<int64_t*>(insides);
  uint64_t all = frame.whole, any = 0;
  const bool together = positions[active - 1] - positions[0] == active - 1;
  Place place = frame.place(positions[0]);
  for (int64_t m = 0; m < active; ++m) {
    const Window window = together ? frame.window(place) : frame.window(positions[m]);
    if (together) frame.advance(place);
    at[m] = reinterpret_cast<int64_t>(p.x + window.at), inside[m] = window.inside;
    all &= window.inside, any |= window.inside;
  }
  for (int64_t m = active; m < ROWS; ++m) at[m] = at[0], inside[m] = inside[0];  // not written
  tile.used = 0;
  tile.scattered = scattered;
  tile.inside = all == frame.whole;
  if (tile.inside) {
    for (int64_t m = 0; m < ROWS; ++m) tile.corners[m] = reinterpret_cast<const float*>(at[m]);
    tile.used = taps;
    return;
  }
  const Addresses outside = Addresses{} + reinterpret_cast<int64_t>(zeros);
  for (int64_t t = 0; t < taps; ++t) {
    if (!(any >> t & 1)) continue;
    const int64_t offset = frame.offsets[t] * sizeof(float);
    Addresses* rows = reinterpret_cast<Addresses*>(&tile.rows[tile.used * ROOM]);
    for (int64_t v = 0; v < ROOM / 8; ++v) {
      rows[v] = (insides[v] >> t & 1) != 0 ? starts[v] + offset : outside;
    }
    tile.taps[tile.used++] = t;
  }
}

// The same backward.
inline void point_back(const Conv& p, const Frame& frame, Tile& tile, const int32_t* positions,
                       int64_t active, const float* zeros) {
  const int64_t taps = p.kernel_height * p.kernel_width;
  for (const float*& row : tile.rows) row = zeros;
  uint64_t any = 0;
  for (int64_t m = 0; m < active; ++m) {
    any |= gradient_rows(p, frame.place(positions[m]), zeros, &tile.rows[m], ROOM);
  }
  tile.used = 0;
  for (int64_t t = 0; t < taps; ++t) {
    if (!(any >> t & 1)) continue;
    const float** rows = &tile.rows[t * ROOM];
    if (tile.used < t) std::memcpy(&tile.rows[tile.used * ROOM], rows, ROWS * sizeof(*rows));
    tile.taps[tile.used++] = t;
  }
}

inline List<int32_t> active_positions(const Conv& p, const Frame& frame, const float* zeros) {
  const int64_t count = p.batch * p.out_height * p.out_width;
  if (!p.backward) return listed(p.mask, count);
  List<int32_t> found;
  List<const float*> rows(p.kernel_height * p.kernel_width);
  for (int64_t k = 0; k < count; ++k) {
    if (gradient_rows(p, frame.place(k), zeros, rows.data(), 1)) {
      found.push_back(static_cast<int32_t>(k));
    }
  }
  return found;
}

void conv(const Conv& p) {
  const List<float> zeros(p.groups * p.depth, 0.0f);
  const Frame frame(p, p.dilation);
  const List<int32_t> active = active_positions(p, frame, zeros.data());
  const int64_t count = p.batch * p.out_height * p.out_width;
  const int64_t found = static_cast<int64_t>(active.size());
  const int64_t size = ROWS * kTiles, parts = (found + size - 1) / size;
  const int64_t taps = p.kernel_height * p.kernel_width, outputs = p.outputs / p.groups;
  const int64_t padded = (outputs + WIDTH - 1) / WIDTH * WIDTH;
  const bool sparse = 2 * found < count;
  List<float> bias(p.groups * padded, 0.0f);
  for (int64_t k = 0; p.bias && k < p.outputs; ++k) {
    bias[k / outputs * padded + k % outputs] = p.bias[k];
  }
  // Large weights: all tiles use one block of them in turn. Small ones: one tile uses all blocks.
  const int64_t together = p.groups * taps * p.depth * padded > kSmall ? kTiles : 1;
  if (!found) return fill_gaps(p, active, 0, 1, count);
#pragma omp parallel num_threads(p.threads)
  {
    List<Tile> tiles(kTiles, Tile(frame.offsets));
#pragma omp for schedule(dynamic)
    for (int64_t part = 0; part < parts; ++part) {
      const int32_t* positions = active.data() + part * size;
      const int64_t here = found - part * size < size ? found - part * size : size;
      const int64_t used = (here + ROWS - 1) / ROWS;
      const auto rows = [&](int64_t k) { return here - k * ROWS < ROWS ? here - k * ROWS : ROWS; };
      const auto find = [&](int64_t k) {
        const int32_t* where = positions + k * ROWS;
        if (p.backward) return point_back(p, frame, tiles[k], where, rows(k), zeros.data());
        point(p, frame, tiles[k], where, rows(k), zeros.data(), sparse);
      };
      fill_gaps(p, active, part * size, part * size + here, count);
      for (int64_t begin = 0; begin < used; begin += together) {
        const int64_t end = begin + together < used ? begin + together : used;
        for (int64_t group = 0; group < p.groups; ++group) {
          const float* weight = p.weight + group * taps * p.depth * padded;
          for (int64_t first = 0; first < outputs; first += 2 * WIDTH) {
            const int64_t left = outputs - first, at = group * outputs + first;
            const int64_t width = left < 2 * WIDTH ? left : 2 * WIDTH;
            const float* packed = weight + first * taps * p.depth;
            const float* from = bias.data() + group * padded + first;
            const auto run = left > WIDTH ? block<2> : block<1>;
            for (int64_t k = begin; k < end; ++k) {
              if (at == 0) find(k);
              const int32_t* where = positions + k * ROWS;
              run(p, tiles[k], group * p.depth, packed, from, at, width, where, rows(k));
            }
          }
        }
      }
    }
  }
}

}  // namespace ISA
