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

typedef uint8_t Bytes __attribute__((vector_size(WIDTH), aligned(1), may_alias));
typedef int32_t Integers __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));

// The next entries of a mask, as a vector.
inline Integers flags(const uint8_t* mask) {
  return __builtin_convertvector(*reinterpret_cast<const Bytes*>(mask), Integers);
}

// For each entry of `from`, that entry of the value; 0 for WIDTH.
inline Vec permuted(Vec value, Integers from) {
#ifdef __clang__
  Vec found = {};
  for (int k = 0; k < WIDTH; ++k) found[k] = from[k] < WIDTH ? value[from[k]] : 0.0f;
  return found;
#else
  return __builtin_shuffle(value, Vec{}, from);
#endif
}

// The value where the mask is on, 0 elsewhere.
inline Vec masked(Vec value, Integers on) { return on != 0 ? value : Vec{}; }

// The next eight entries of a mask, at most `left` of them: bit 8 k is that of the k-th.
inline uint64_t eight(const uint8_t* mask, int64_t left) {
  uint64_t bytes = 0;
  if (left >= 8) {
    std::memcpy(&bytes, mask, 8);  // one load: the number is known
  } else {
    for (int64_t k = 0; k < left; ++k) bytes |= static_cast<uint64_t>(mask[k]) << 8 * k;
  }
  return bytes & 0x0101010101010101u;
}

// How many of `count` entries of a mask are on.
inline int64_t kept_of(const uint8_t* mask, int64_t count) {
  int64_t kept = 0;
  for (int64_t k = 0; k < count; k += 8) {
    kept += static_cast<int64_t>(eight(mask + k, count - k) * 0x0101010101010101u >> 56);
  }
  return kept;
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

// Fill what lies before the active positions from the begin-th to before the end-th; if these are
// the last ones, or there are none, what lies after them too.
template <class Shape>
inline void fill_gaps(const Shape& p, const List<int32_t>& active, int64_t begin, int64_t end,
                      int64_t count) {
  const int64_t found = active.size();
  if (end >= found) end = found + 1;
  for (int64_t k = begin; k < end; ++k) {
    const int64_t from = k ? active[k - 1] + 1 : 0, to = k < found ? active[k] : count;
    const float* residual = p.residual ? p.residual + from * p.outputs : nullptr;
    if (from < to) fill_row(p.out + from * p.outputs, residual, (to - from) * p.outputs, p.fill);
  }
}

}  // namespace ISA
