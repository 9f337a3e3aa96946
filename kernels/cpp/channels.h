// Convolution of the channels that each sample keeps, plane by plane: the live inputs are copied to
// planes with a border of zeros, and vectors run along a plane's lines, over the border too. So any
// list of inputs and outputs works at full width, and no weights are packed.
#pragma once
#include "small_channels.h"

namespace ISA {

constexpr int kOutputs = WIDTH == 16 ? 5 : 4;  // that share what is loaded from a plane
constexpr int kVectors = WIDTH == 16 ? 4 : 3;  // of positions for each
constexpr int kNarrow = WIDTH == 16 ? 8 : 6;   // outputs where there are at most two vectors

inline int64_t vectors(int64_t count) { return (count + WIDTH - 1) / WIDTH; }

// At least `count` floats, an odd number of cache lines: so far apart, channels share no cache set.
inline int64_t apart(int64_t count) { return ((count + 15) / 16 | 1) * 16; }

// How what the outputs read lies in memory: value k of tap t of the c-th live channel, for the k-th
// output, is at c * size + taps[t] + k. After out_width outputs of a line, up to pitch, come some
// that are not wanted.
struct Layout {
  int64_t pitch, size, count;  // count: of the outputs, unwanted ones between lines included
  List<int64_t> taps;
};

// The live inputs as planes with a border. Those of a stride s are cut in s * s phases, so that the
// inputs of neighbouring outputs lie side by side: pixel (h, w) is at line[h] + column[w].
struct Planes : Layout {
  explicit Planes(const ChannelConv& p) {
    const int64_t reach_h = (p.out_height - 1) * p.stride + (p.kernel_height - 1) * p.dilation + 1;
    const int64_t reach_w = (p.out_width - 1) * p.stride + (p.kernel_width - 1) * p.dilation + 1;
    const int64_t h = p.height + p.padding > reach_h ? p.height + p.padding : reach_h;
    const int64_t w = p.width + p.padding > reach_w ? p.width + p.padding : reach_w;
    pitch = (w + p.stride - 1) / p.stride;
    const int64_t phase = (h + p.stride - 1) / p.stride * pitch;
    size = apart(phase * p.stride * p.stride);
    count = (p.out_height - 1) * pitch + p.out_width;
    for (int64_t k = 0; k < h; ++k) {
      line.push_back(k % p.stride * p.stride * phase + k / p.stride * pitch);
    }
    for (int64_t k = 0; k < w; ++k) column.push_back(k % p.stride * phase + k / p.stride);
    for (int64_t i = 0; i < p.kernel_height; ++i) {
      for (int64_t j = 0; j < p.kernel_width; ++j) {
        taps.push_back(line[i * p.dilation] + column[j * p.dilation]);
      }
    }
  }
  List<int64_t> line, column;
};

// The same values tap by tap, without unwanted ones: worth its copies where those are many.
struct Columns : Layout {
  explicit Columns(const ChannelConv& p) {
    const int64_t window = p.kernel_height * p.kernel_width;
    pitch = p.out_width;
    count = p.out_height * p.out_width;
    const int64_t room = vectors(count) * WIDTH;
    size = apart(window * room);
    for (int64_t t = 0; t < window; ++t) taps.push_back(t * room);
  }
};

inline void copy_planes(const ChannelConv& p, const Planes& planes, const float* x,
                        const List<int32_t>& live, List<float>& to) {
  const int64_t depth = live.size();
  to.assign(depth * planes.size + kVectors * WIDTH, 0.0f);
  for (int64_t h = 0; h < p.height; ++h) {
    float* line = to.data() + planes.line[h + p.padding];
    for (int64_t w = 0; w < p.width; ++w, x += p.channels) {
      float* pixel = line + planes.column[w + p.padding];
      for (int64_t k = 0; k < depth; ++k) pixel[k * planes.size] = x[live[k]];
    }
  }
}

inline void copy_columns(const ChannelConv& p, const Planes& planes, const Layout& columns,
                         int64_t depth, const float* from, List<float>& to) {
  to.resize(depth * columns.size + kVectors * WIDTH);
  float* start = to.data();
  for (int64_t c = 0; c < depth; ++c, from += planes.size, start += columns.size) {
    for (std::size_t t = 0; t < columns.taps.size(); ++t) {
      const float* line = from + planes.taps[t];
      float* out = start + columns.taps[t];  // what a line writes too far, the next one writes over
      for (int64_t h = 0; h < p.out_height; ++h, line += planes.pitch, out += p.out_width) {
        for (int64_t k = 0; k < p.out_width; k += WIDTH) store(out + k, load(line + k));
      }
    }
  }
}

template <int OUTPUTS, int VECTORS>
inline void product(const ChannelConv& p, const Layout& layout, const List<int32_t>& live,
                    const float* from, const int32_t* kept, float* to) {
  const int64_t taps = layout.taps.size(), depth = live.size();
  Vec sums[OUTPUTS][VECTORS];
#pragma GCC unroll 8
  for (int o = 0; o < OUTPUTS; ++o) {
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) sums[o][v] = Vec{};
  }
  for (int64_t k = 0; k < depth; ++k, from += layout.size) {
    const float* weights[OUTPUTS];
#pragma GCC unroll 8
    for (int o = 0; o < OUTPUTS; ++o) weights[o] = p.weight + (kept[o] * p.channels + live[k]) * taps;
    for (int64_t t = 0; t < taps; ++t) {
      Vec values[VECTORS];
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) values[v] = load(from + layout.taps[t] + v * WIDTH);
#pragma GCC unroll 8
      for (int o = 0; o < OUTPUTS; ++o) {
        const float weight = weights[o][t];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) sums[o][v] += weight * values[v];
      }
    }
  }
#pragma GCC unroll 8
  for (int o = 0; o < OUTPUTS; ++o) {
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      store(to + (o * VECTORS + v) * WIDTH, sums[o][v]);
    }
  }
}

// OUTPUTS outputs at VECTORS vectors of positions, from the first-th of the plane.
template <int OUTPUTS, int VECTORS>
inline void convolve(const ChannelConv& p, const Layout& layout, const List<int32_t>& live,
                     const float* from, const int32_t* kept, int64_t first, float* out) {
  float sums[OUTPUTS * VECTORS * WIDTH];
  product<OUTPUTS, VECTORS>(p, layout, live, from + first, kept, sums);
  const int64_t end = layout.count - first < VECTORS * WIDTH ? layout.count - first : VECTORS * WIDTH;
  int64_t row = first / layout.pitch, column = first % layout.pitch;
  for (int64_t k = 0; k < end; ++k) {
    if (column < p.out_width) {
      float* to = out + (row * p.out_width + column) * p.outputs;
#pragma GCC unroll 8
      for (int o = 0; o < OUTPUTS; ++o) to[kept[o]] = sums[o * VECTORS * WIDTH + k];
    }
    if (++column == layout.pitch) ++row, column = 0;
  }
}

template <int OUTPUTS>
inline void convolve_all(const ChannelConv& p, const Layout& layout, const List<int32_t>& live,
                         const float* from, const int32_t* kept, float* out) {
  int64_t first = 0;
  if constexpr (OUTPUTS <= kOutputs) {
    for (; layout.count - first > 2 * WIDTH; first += kVectors * WIDTH) {
      convolve<OUTPUTS, kVectors>(p, layout, live, from, kept, first, out);
    }
  }
  for (; layout.count - first > WIDTH; first += 2 * WIDTH) {
    convolve<OUTPUTS, 2>(p, layout, live, from, kept, first, out);
  }
  for (; first < layout.count; first += WIDTH) {
    convolve<OUTPUTS, 1>(p, layout, live, from, kept, first, out);
  }
}

// What becomes of a sample's sums: mask, scale and shift of each output, then residual and ReLU.
inline void finish_sample(const ChannelConv& p, int64_t b) {
  List<float> scale(p.outputs, 1.0f), shift(p.outputs, 0.0f);
  if (p.scale) std::memcpy(scale.data(), p.scale + b * p.outputs, p.outputs * sizeof(float));
  for (int64_t o = 0; o < p.outputs; ++o) {
    if (p.bias) shift[o] = scale[o] * p.bias[o];
    if (p.shift) shift[o] += p.shift[o];
  }
  List<uint8_t> kept(p.outputs, 1);
  if (p.kept) std::memcpy(kept.data(), p.kept + b * p.outputs, p.outputs);
  const int64_t size = p.out_height * p.out_width * p.outputs;
  float* const out = p.out + b * size;
  const float* const residual = p.residual ? p.residual + b * size : nullptr;
  int64_t o = 0;
  for (; o + WIDTH <= p.outputs; o += WIDTH) {
    const Vec factor = load(&scale[o]), term = load(&shift[o]);
    const Integers on = flags(&kept[o]);
    for (int64_t at = o; at < size; at += p.outputs) {
      Vec value = masked(load(out + at) * factor + term, on);
      if (residual) value += load(residual + at);
      store(out + at, p.relu ? positive(value) : value);
    }
  }
  for (; o < p.outputs; ++o) {
    for (int64_t at = o; at < size; at += p.outputs) {
      float value = kept[o] ? out[at] * scale[o] + shift[o] : 0.0f;
      if (residual) value += residual[at];
      out[at] = p.relu && value < 0.0f ? 0.0f : value;
    }
  }
}

// The kept outputs of one sample, at least one, by planes.
inline void convolve_planes(const ChannelConv& p, const Planes& planes, const Columns* columns,
                            const float* x, const List<int32_t>& live, const List<int32_t>& kept,
                            List<float>& copied, List<float>& ordered, float* out) {
  const int64_t count = kept.size();
  copy_planes(p, planes, x, live, copied);
  if (columns) copy_columns(p, planes, *columns, live.size(), copied.data(), ordered);
  const Layout& layout = columns ? static_cast<const Layout&>(*columns) : planes;
  const float* from = columns ? ordered.data() : copied.data();
  int64_t o = 0;
  for (; layout.count <= 2 * WIDTH && o + kNarrow <= count; o += kNarrow) {
    convolve_all<kNarrow>(p, layout, live, from, &kept[o], out);
  }
  for (; o + kOutputs <= count; o += kOutputs) {
    convolve_all<kOutputs>(p, layout, live, from, &kept[o], out);
  }
  for (; o + 2 <= count; o += 2) convolve_all<2>(p, layout, live, from, &kept[o], out);
  for (; o < count; ++o) convolve_all<1>(p, layout, live, from, &kept[o], out);
}

void channels(const ChannelConv& p) {
  const int64_t places = p.height * p.width, positions = p.out_height * p.out_width;
  if (!positions) return;  // the window may be larger than the image: no plane has room for it
  const Planes planes(p);
  const Columns columns(p);
  const bool small = is_small(p);
  const bool masked_only = !p.bias && !p.scale && !p.shift && !p.residual && !p.relu;
  const bool copy = 4 * vectors(columns.count) <= 3 * vectors(planes.count);
  const List<int32_t> sources = small ? permutations(p) : List<int32_t>();
#pragma omp parallel num_threads(p.threads)
  {
    List<float> copied, ordered;
#pragma omp for schedule(dynamic)
    for (int64_t b = 0; b < p.batch; ++b) {
      const float* x = p.x + b * places * p.channels;
      float* out = p.out + b * positions * p.outputs;
      const auto live = listed(p.inputs ? p.inputs + b * p.channels : nullptr, p.channels);
      auto kept = listed(p.kept ? p.kept + b * p.outputs : nullptr, p.outputs);
      if (masked_only && static_cast<int64_t>(kept.size()) < p.outputs) {
        std::memset(out, 0, positions * p.outputs * sizeof(float));
      }
      if (!kept.empty() && small) {
        copy_channels(p, x, live, copied);
        convolve_small(p, sources, live, copied.data(), kept, out);
      } else if (!kept.empty()) {
        convolve_planes(p, planes, copy ? &columns : nullptr, x, live, kept, copied, ordered, out);
      }
      if (!masked_only) finish_sample(p, b);
    }
  }
}

void finish_channels(const ChannelConv& p) {
#pragma omp parallel for schedule(static) num_threads(p.threads)
  for (int64_t b = 0; b < p.batch; ++b) finish_sample(p, b);
}

}  // namespace ISA
