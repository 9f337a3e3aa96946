// Scale, shift and activation at the active positions.
#pragma once
#include "vectors.h"

namespace ISA {

// Without scale and shift.
inline void add_residual(const Affine& p, int64_t at) {
  const float* const residual = p.residual ? p.residual + at : nullptr;
  int64_t c = 0;
  for (; c + WIDTH <= p.channels; c += WIDTH) {
    finish(load(p.x + at + c), residual ? residual + c : nullptr, p.out + at + c, WIDTH, p.relu);
  }
  if (c < p.channels) {
    finish_part(p.x + at + c, residual ? residual + c : nullptr, p.out + at + c, p.channels - c,
                p.relu);
  }
}

void affine(const Affine& p) {
  const bool done = !p.scale && !p.residual && !p.relu && p.x == p.out;
#pragma omp parallel for schedule(static) num_threads(p.threads)
  for (int64_t k = 0; k < p.positions; ++k) {
    const int64_t at = k * p.channels;
    if (!p.mask[k]) {
      fill_row(p.out + at, p.residual + at, p.channels, p.fill);
      continue;
    }
    if (done) continue;
    if (!p.scale) {
      add_residual(p, at);
      continue;
    }
    int64_t c = 0;
    for (; c + WIDTH <= p.channels; c += WIDTH) {
      const Vec value = load(p.x + at + c) * load(p.scale + c) + load(p.shift + c);
      finish(value, p.residual ? p.residual + at + c : nullptr, p.out + at + c, WIDTH, p.relu);
    }
    for (; c < p.channels; ++c) {
      const Vec value = {p.x[at + c] * p.scale[c] + p.shift[c]};
      finish(value, p.residual ? p.residual + at + c : nullptr, p.out + at + c, 1, p.relu);
    }
  }
}

}  // namespace ISA
