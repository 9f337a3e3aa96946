// Scale, shift and activation at the active positions.
#pragma once
#include "vectors.h"

namespace ISA {

void affine(const Affine& p) {
#pragma omp parallel for schedule(static) num_threads(p.threads)
  for (int64_t k = 0; k < p.positions; ++k) {
    const int64_t at = k * p.channels;
    if (!p.mask[k]) {
      fill_row(p.out + at, p.residual + at, p.channels, p.fill);
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
