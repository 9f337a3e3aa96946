// Convolution of the channels that each sample keeps, for images of one vector of positions: what a
// tap reads is a permutation of the input's positions, so that it never goes through memory.
#pragma once
#include "vectors.h"

namespace ISA {

constexpr int kSharing = 8;  // outputs that share a permutation

inline bool is_small(const ChannelConv& p) {
  return p.height * p.width <= WIDTH && p.out_height * p.out_width <= WIDTH;
}

// For each tap, the input that each output reads, WIDTH for none.
inline List<int32_t> permutations(const ChannelConv& p) {
  List<int32_t> found(p.kernel_height * p.kernel_width * WIDTH, WIDTH);
  int32_t* from = found.data();
  for (int64_t i = 0; i < p.kernel_height; ++i) {
    for (int64_t j = 0; j < p.kernel_width; ++j, from += WIDTH) {
      for (int64_t k = 0; k < p.out_height * p.out_width; ++k) {
        const int64_t h = k / p.out_width * p.stride - p.padding + i * p.dilation;
        const int64_t w = k % p.out_width * p.stride - p.padding + j * p.dilation;
        if (h >= 0 && h < p.height && w >= 0 && w < p.width) {
          from[k] = static_cast<int32_t>(h * p.width + w);
        }
      }
    }
  }
  return found;
}

// The live channels of one sample, each a vector.
inline void copy_channels(const ChannelConv& p, const float* x, const List<int32_t>& live,
                          List<float>& to) {
  const int64_t depth = live.size();
  to.resize(depth * WIDTH);
  for (int64_t at = 0; at < p.height * p.width; ++at, x += p.channels) {
    for (int64_t k = 0; k < depth; ++k) to[k * WIDTH + at] = x[live[k]];
  }
}

// kSharing outputs at all positions. TAPS is the number of taps, 0 if it is not known.
template <int TAPS>
inline void convolve_together(const ChannelConv& p, const List<int32_t>& sources,
                              const List<int32_t>& live, const float* from, const int32_t* kept,
                              float* out) {
  const int64_t taps = TAPS ? TAPS : sources.size() / WIDTH, depth = live.size();
  const Integers* const places = reinterpret_cast<const Integers*>(sources.data());
  const float* weights[kSharing];
  for (int o = 0; o < kSharing; ++o) weights[o] = p.weight + kept[o] * p.channels * taps;
  Vec sums[kSharing] = {};
  for (int64_t k = 0; k < depth; ++k) {
    const Vec channel = load(from + k * WIDTH);
    const int64_t first = live[k] * taps;
#pragma GCC unroll 9
    for (int64_t t = 0; t < taps; ++t) {
      const Vec values = permuted(channel, places[t]);
#pragma GCC unroll 8
      for (int o = 0; o < kSharing; ++o) sums[o] += weights[o][first + t] * values;
    }
  }
  float placed[kSharing * WIDTH];
  for (int o = 0; o < kSharing; ++o) store(placed + o * WIDTH, sums[o]);
  for (int64_t at = 0; at < p.out_height * p.out_width; ++at, out += p.outputs) {
#pragma GCC unroll 8
    for (int o = 0; o < kSharing; ++o) out[kept[o]] = placed[o * WIDTH + at];
  }
}

// All kept outputs, at least one, of one sample.
inline void convolve_small(const ChannelConv& p, const List<int32_t>& sources,
                           const List<int32_t>& live, const float* from, List<int32_t>& kept,
                           float* out) {
  while (kept.size() % kSharing) kept.push_back(kept.back());  // writes the same once more
  const auto run = sources.size() == 9 * WIDTH ? convolve_together<9> : convolve_together<0>;
  for (std::size_t o = 0; o < kept.size(); o += kSharing) {
    run(p, sources, live, from, &kept[o], out);
  }
}

}  // namespace ISA
