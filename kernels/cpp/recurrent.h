// One step of a recurrence for the active samples: both products, the gates and the new state in one
// pass, for TILE samples and a vector of units at a time; a copy of the state for the others.
#pragma once
#include "vectors.h"

namespace ISA {

typedef int32_t Bits __attribute__((vector_size(WIDTH * 4)));

constexpr int TILE = ROWS / 2;  // with four sums each they fill the registers

// e^x within 2 ulp; x is cut to where the result is a normal number. Cody and Waite's reduction,
// and the polynomial of Cephes' expf.
inline Vec exponential(Vec x) {
  x = x < -87.0f ? Vec{} - 87.0f : x;
  x = x > 88.0f ? Vec{} + 88.0f : x;
  const float shift = 12582912.0f;  // 1.5 * 2^23: a sum with it has no digits after the point
  const Vec shifted = x * 1.44269504f + shift, whole = shifted - shift;
  const Vec rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;
  Vec sum = rest * 1.9875691500e-4f + 1.3981999507e-3f;
  sum = sum * rest + 8.3334519073e-3f;
  sum = sum * rest + 4.1665795894e-2f;
  sum = sum * rest + 1.6666665459e-1f;
  sum = sum * rest + 5.0000001201e-1f;
  sum = sum * rest * rest + rest + 1.0f;
  const Bits power = (reinterpret_cast<Bits>(shifted) << 23) + (127 << 23);
  return sum * reinterpret_cast<Vec>(power);
}

inline Vec sigmoid(Vec x) { return 1.0f / (1.0f + exponential(-x)); }
inline Vec hyperbolic_tangent(Vec x) { return 1.0f - 2.0f / (1.0f + exponential(2.0f * x)); }

// Where a sample's units are: before the step, and after.
struct Units {
  Vec h, c;
};

// Each cell: how many gates its weights stack, how many sums it needs, in which of them the two
// products of a gate are added up, and what it makes of these.
struct Tanh {
  static constexpr int gates = 1, sums = 1;
  static constexpr int from_x[] = {0}, from_h[] = {0};
  static Units next(const Vec* sum, Units) { return {hyperbolic_tangent(sum[0]), Vec{}}; }
};

struct Gru {
  static constexpr int gates = 3, sums = 4;
  static constexpr int from_x[] = {0, 1, 2}, from_h[] = {0, 1, 3};
  static Units next(const Vec* sum, Units old) {
    const Vec reset = sigmoid(sum[0]), stay = sigmoid(sum[1]);
    const Vec fresh = hyperbolic_tangent(sum[2] + reset * sum[3]);
    return {fresh + stay * (old.h - fresh), Vec{}};
  }
};

struct Lstm {
  static constexpr int gates = 4, sums = 4;
  static constexpr int from_x[] = {0, 1, 2, 3}, from_h[] = {0, 1, 2, 3};
  static Units next(const Vec* sum, Units old) {
    const Vec enter = sigmoid(sum[0]), stay = sigmoid(sum[1]), leave = sigmoid(sum[3]);
    const Vec c = stay * old.c + enter * hyperbolic_tangent(sum[2]);
    return {leave * hyperbolic_tangent(c), c};
  }
};

// A vector of which `count` <= WIDTH entries may be read; the others are 0.
inline Vec load_part(const float* from, int64_t count) {
  if (count == WIDTH) return load(from);
  float values[WIDTH] = {};
  std::memcpy(values, from, count * sizeof(float));
  return load(values);
}

template <class Cell>
inline void add_products(const float* const* rows, int64_t depth, const float* weight,
                         const int (&to)[Cell::gates], Vec (&sums)[TILE][Cell::sums]) {
  for (int64_t k = 0; k < depth; ++k, weight += Cell::gates * WIDTH) {
    Vec values[Cell::gates];
#pragma GCC unroll 4
    for (int g = 0; g < Cell::gates; ++g) values[g] = load(weight + g * WIDTH);
#pragma GCC unroll 8
    for (int m = 0; m < TILE; ++m) {
      const float factor = rows[m][k];
#pragma GCC unroll 4
      for (int g = 0; g < Cell::gates; ++g) sums[m][to[g]] += factor * values[g];
    }
  }
}

// The units from the first-th on, of up to TILE samples.
template <class Cell>
inline void tile(const Step& p, const float* bias, const int32_t* samples, int64_t active,
                 int64_t first) {
  const float *inputs[TILE], *states[TILE];
  Vec sums[TILE][Cell::sums];
#pragma GCC unroll 8
  for (int m = 0; m < TILE; ++m) {
    const int64_t sample = samples[m < active ? m : 0];  // what is too much is not written
    inputs[m] = p.x + sample * p.x_step;
    states[m] = p.h + sample * p.units;
#pragma GCC unroll 4
    for (int s = 0; s < Cell::sums; ++s) sums[m][s] = load(bias + s * WIDTH);
  }
  const float* weight_ih = p.weight_ih + first * Cell::gates * p.inputs;
  const float* weight_hh = p.weight_hh + first * Cell::gates * p.units;
  add_products<Cell>(inputs, p.inputs, weight_ih, Cell::from_x, sums);
  add_products<Cell>(states, p.units, weight_hh, Cell::from_h, sums);
  const int64_t left = p.units - first, count = left < WIDTH ? left : WIDTH;
#pragma GCC unroll 8
  for (int m = 0; m < TILE; ++m) {
    if (m >= active) break;
    const int64_t at = samples[m] * p.units + first;
    const Vec c = p.c ? load_part(p.c + at, count) : Vec{};
    const Units next = Cell::next(sums[m], {load_part(p.h + at, count), c});
    finish(next.h, nullptr, p.next_h + at, count, false);
    if (p.c) finish(next.c, nullptr, p.next_c + at, count, false);
  }
}

// What the sums of each block of units start from.
template <class Cell>
inline List<float> starts(const Step& p, int64_t blocks) {
  List<float> bias(blocks * Cell::sums * WIDTH, 0.0f);
  for (int g = 0; g < Cell::gates; ++g) {
    for (int64_t k = 0; k < p.units; ++k) {
      float* to = &bias[k / WIDTH * Cell::sums * WIDTH + k % WIDTH];
      if (p.bias_ih) to[Cell::from_x[g] * WIDTH] += p.bias_ih[g * p.units + k];
      if (p.bias_hh) to[Cell::from_h[g] * WIDTH] += p.bias_hh[g * p.units + k];
    }
  }
  return bias;
}

// What is read from the new state of one sample.
inline void read(const Step& p, int64_t sample) {
  const float* h = p.next_h + sample * p.units;
  for (int64_t r = 0; r < p.reads; ++r) {
    Vec sum = {};
    for (int64_t k = 0; k < p.units; k += WIDTH) {
      const int64_t count = p.units - k < WIDTH ? p.units - k : WIDTH;
      sum += load_part(p.weight_read + r * p.units + k, count) * load_part(h + k, count);
    }
    float value;
    sum_lanes<1>({sum}, &value);
    value += p.bias_read ? p.bias_read[r] : 0.0f;
    p.next_read[sample * p.reads + r] = sigmoid(Vec{value})[0];
  }
}

template <class Cell>
inline void run(const Step& p) {
  const List<int32_t> active = listed(p.mask, p.batch);
  const int64_t found = active.size(), tiles = (found + TILE - 1) / TILE;
  const int64_t blocks = (p.units + WIDTH - 1) / WIDTH;
  const List<float> bias = starts<Cell>(p, blocks);
#pragma omp parallel num_threads(p.threads)
  {
#pragma omp for schedule(static) nowait
    for (int64_t k = 0; k <= found; ++k) {  // what lies between two active samples
      const int64_t begin = k ? active[k - 1] + 1 : 0, end = k < found ? active[k] : p.batch;
      const auto copy = [&](float* to, const float* from, int64_t size) {
        if (from && begin < end) {
          fill_row(to + begin * size, from + begin * size, (end - begin) * size, kCopy);
        }
      };
      copy(p.next_h, p.h, p.units);
      copy(p.next_c, p.c, p.units);
      copy(p.next_read, p.read, p.reads);
    }
#pragma omp for schedule(static) collapse(2)
    for (int64_t block = 0; block < blocks; ++block) {  // all samples use one block in turn
      for (int64_t t = 0; t < tiles; ++t) {
        const float* from = bias.data() + block * Cell::sums * WIDTH;
        tile<Cell>(p, from, active.data() + t * TILE, found - t * TILE, block * WIDTH);
      }
    }
#pragma omp for schedule(static)
    for (int64_t k = 0; k < found; ++k) read(p, active[k]);
  }
}

void step(const Step& p) {
  if (p.cell == kGru) {
    run<Gru>(p);
  } else if (p.cell == kLstm) {
    run<Lstm>(p);
  } else {
    run<Tanh>(p);
  }
}

}  // namespace ISA
