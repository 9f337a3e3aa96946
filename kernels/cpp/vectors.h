// Vectors of WIDTH floats, and what all operations share. Included once per instruction set, in a
// namespace of its own, so that no function of one is ever linked into another.
#pragma once
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#include "tables.h"

namespace ISA {

typedef float Vec __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));

inline Vec load(const float* from) { return *reinterpret_cast<const Vec*>(from); }
inline void store(float* to, Vec value) { *reinterpret_cast<Vec*>(to) = value; }
inline Vec positive(Vec value) { return value < 0.0f ? Vec{} : value; }

// The sums of the lanes of each vector; all of them are halved together until one lane is left.
template <int COUNT>
inline void sum_lanes(const Vec (&values)[COUNT], float* sums) {
  float lanes[COUNT][WIDTH];
#pragma GCC unroll 16
  for (int k = 0; k < COUNT; ++k) store(lanes[k], values[k]);
#pragma GCC unroll 4
  for (int half = WIDTH / 2; half > 0; half /= 2) {
#pragma GCC unroll 16
    for (int k = 0; k < COUNT; ++k) {
      for (int l = 0; l < half; ++l) lanes[k][l] += lanes[k][l + half];
    }
  }
  for (int k = 0; k < COUNT; ++k) sums[k] = lanes[k][0];
}

// A vector of the standard library is a weak symbol, which the linker may take from the file of any
// instruction set; with an allocator of this namespace it is this one's.
template <class T>
struct Heap {
  using value_type = T;
  Heap() = default;
  template <class U>
  Heap(const Heap<U>&) {}
  T* allocate(std::size_t count) { return static_cast<T*>(::operator new(count * sizeof(T))); }
  void deallocate(T* memory, std::size_t) { ::operator delete(memory); }
  template <class U>
  bool operator==(const Heap<U>&) const { return true; }
  template <class U>
  bool operator!=(const Heap<U>&) const { return false; }
};

template <class T>
using List = std::vector<T, Heap<T>>;

// Copy `count` floats, or zeros from null. Of a random mask the gaps are short, and calls of memset
// and memcpy take longer than they do; the empty assembly keeps the compiler from making them.
inline void move(float* out, const float* from, int64_t count) {
  if (count > 32 * WIDTH) {
    from ? std::memcpy(out, from, count * sizeof(float)) : std::memset(out, 0, count * sizeof(float));
    return;
  }
  int64_t k = 0;
  for (; k + WIDTH <= count; k += WIDTH) {
    store(out + k, from ? load(from + k) : Vec{});
    asm volatile("");
  }
  for (; k < count; ++k) {
    out[k] = from ? from[k] : 0.0f;
    asm volatile("");
  }
}

// What stands at a position that is not computed.
inline void fill_row(float* out, const float* residual, int64_t count, int64_t fill) {
  if (fill == kZero) move(out, nullptr, count);
  if (fill == kCopy && out != residual) move(out, residual, count);
}

__attribute__((noinline)) void finish_part(const float* values, const float* residual, float* out,
                                           int64_t count, bool relu) {
  for (int64_t k = 0; k < count; ++k) {
    const float sum = residual ? values[k] + residual[k] : values[k];
    out[k] = relu && sum < 0.0f ? 0.0f : sum;
  }
}

// Write `count` <= WIDTH entries of [relu](value + residual).
inline void finish(Vec value, const float* residual, float* out, int64_t count, bool relu) {
  if (count < WIDTH) {
    float values[WIDTH];
    store(values, value);
    finish_part(values, residual, out, count, relu);
    return;
  }
  if (residual) value += load(residual);
  store(out, relu ? positive(value) : value);
}

// Where an output position is.
struct Place {
  int64_t sample, row, column;
};

template <class Shape>
inline Place place(const Shape& p, int64_t position) {
  // In 32 bits, where a division takes a third of the time; there are fewer than 2^31 positions.
  const uint32_t width = static_cast<uint32_t>(p.out_width), k = static_cast<uint32_t>(position);
  const uint32_t height = static_cast<uint32_t>(p.out_height), line = k / width;
  return {line / height, line % height, k % width};
}

// The input under the first tap of a position, if all its taps are inside the image; else null.
template <class Shape>
inline const float* corner(const Shape& p, int64_t dilation, int64_t channels, const Place& at) {
  const int64_t top = at.row * p.stride - p.padding, left = at.column * p.stride - p.padding;
  const bool inside = top >= 0 && left >= 0 &&
                      top + (p.kernel_height - 1) * dilation < p.height &&
                      left + (p.kernel_width - 1) * dilation < p.width;
  return inside ? p.x + ((at.sample * p.height + top) * p.width + left) * channels : nullptr;
}

// How far each tap lies from the first.
template <class Shape>
inline List<int64_t> tap_offsets(const Shape& p, int64_t dilation, int64_t channels) {
  List<int64_t> offsets;
  for (int64_t i = 0; i < p.kernel_height; ++i) {
    for (int64_t j = 0; j < p.kernel_width; ++j) {
      offsets.push_back((i * p.width + j) * dilation * channels);
    }
  }
  return offsets;
}

// The rows of the input that one output position reads, tap by tap; `zeros` outside the image.
template <class Shape>
inline void windows(const Shape& p, int64_t dilation, int64_t channels, const Place& at,
                    const float* zeros, const float** rows, int64_t step) {
  const float* image = p.x + at.sample * p.height * p.width * channels;
  for (int64_t i = 0; i < p.kernel_height; ++i) {
    const int64_t h = at.row * p.stride - p.padding + i * dilation;
    const bool inside = h >= 0 && h < p.height;
    for (int64_t j = 0; j < p.kernel_width; ++j, rows += step) {
      const int64_t w = at.column * p.stride - p.padding + j * dilation;
      const bool here = inside && w >= 0 && w < p.width;
      *rows = here ? image + (h * p.width + w) * channels : zeros;
    }
  }
}

// The positions of a mask (all, if there is none), in order; without a branch to mispredict.
inline List<int32_t> listed(const uint8_t* mask, int64_t count) {
  List<int32_t> found(count);
  int64_t size = 0;
  for (int64_t k = 0; k < count; ++k) {
    found[size] = static_cast<int32_t>(k);
    size += !mask || mask[k];
  }
  found.resize(size);
  return found;
}

// Fill what lies before the k-th active position; k = found is the end.
template <class Shape>
inline void fill_gap(const Shape& p, const List<int32_t>& active, int64_t k, int64_t count,
                     int64_t channels) {
  const int64_t found = active.size();
  const int64_t begin = k ? active[k - 1] + 1 : 0, end = k < found ? active[k] : count;
  const float* residual = p.residual ? p.residual + begin * channels : nullptr;
  if (begin < end) fill_row(p.out + begin * channels, residual, (end - begin) * channels, p.fill);
}

}  // namespace ISA
