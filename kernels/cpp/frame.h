// Where the windows of a convolution lie, and which of their taps are inside the image.
#pragma once
#include "vectors.h"

namespace ISA {

// Division by a number that stays the same, as a product; for dividends and divisors below 2^31. Of
// an output without positions the number is 0, and nothing is divided by it.
struct Divisor {
  explicit Divisor(int64_t number)
      : number(number), factor((uint64_t{1} << 63) / static_cast<uint64_t>(number ? number : 1) + 1) {}
  int64_t quotient(int64_t k) const {
    return static_cast<int64_t>(static_cast<unsigned __int128>(factor) * k >> 63);
  }
  int64_t number;
  uint64_t factor;
};

// Where an output position is.
struct Place {
  int64_t sample, row, column;
};

// One window: how far its first tap is from the start of x, and a bit for each tap that is inside.
struct Window {
  int64_t at;
  uint64_t inside;
};

// What all windows of a convolution share. There are at most 64 taps.
struct Frame {
  template <class Shape>
  Frame(const Shape& p, int64_t dilation)
      : height(p.out_height),
        width(p.out_width),
        stride(p.stride),
        line(p.width * p.x_step),
        image(p.height * line),
        step(p.x_step),
        start(-p.padding * (line + step)) {
    for (int64_t i = 0; i < p.kernel_height; ++i) {
      for (int64_t j = 0; j < p.kernel_width; ++j) {
        offsets.push_back(i * dilation * line + j * dilation * step);
      }
    }
    const auto reached = [&](int64_t out, int64_t size, auto&& along) {
      List<uint64_t> found(out, 0);
      for (int64_t k = 0; k < out; ++k) {
        for (int64_t t = 0; t < p.kernel_height * p.kernel_width; ++t) {
          const int64_t at = k * p.stride - p.padding + along(t) * dilation;
          if (at >= 0 && at < size) found[k] |= uint64_t{1} << t;
        }
      }
      return found;
    };
    rows = reached(p.out_height, p.height, [&](int64_t t) { return t / p.kernel_width; });
    columns = reached(p.out_width, p.width, [&](int64_t t) { return t % p.kernel_width; });
    whole = ~uint64_t{0} >> (64 - offsets.size());
  }

  Place place(int64_t position) const {
    const int64_t row = width.quotient(position), sample = height.quotient(row);
    return {sample, row - sample * height.number, position - row * width.number};
  }

  // The place after another one.
  void advance(Place& at) const {
    if (++at.column < width.number) return;
    at.column = 0;
    if (++at.row < height.number) return;
    at.row = 0, ++at.sample;
  }

  Window window(int64_t position) const { return window(place(position)); }

  Window window(const Place& at) const {
    return {start + at.sample * image + at.row * stride * line + at.column * stride * step,
            rows[at.row] & columns[at.column]};
  }

  // The rows of x that a window reads, tap by tap, `apart` apart; `zeros` outside the image.
  void point(const float* x, const Window& from, const float* zeros, const float** to,
             int64_t apart) const {
    const int64_t taps = offsets.size();
    for (int64_t t = 0; t < taps; ++t) to[t * apart] = row(x, from, zeros, t);
  }

  // One of them, without a branch: along a border a processor would often mispredict it.
  const float* row(const float* x, const Window& from, const float* zeros, int64_t tap) const {
    const uint64_t on = -(from.inside >> tap & 1), off = reinterpret_cast<uint64_t>(zeros);
    const uint64_t there = reinterpret_cast<uint64_t>(x) + (from.at + offsets[tap]) * sizeof(float);
    return reinterpret_cast<const float*>(off ^ ((off ^ there) & on));
  }

  Divisor height, width;
  int64_t stride, line, image, step, start;
  uint64_t whole;
  List<int64_t> offsets;
  List<uint64_t> rows, columns;
};

}  // namespace ISA
