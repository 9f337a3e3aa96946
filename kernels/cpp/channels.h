// Convolution of the channels that each sample keeps: its live inputs and the weights between
// those and its kept outputs are packed, then it is a convolution of all positions.
#pragma once
#include "conv.h"

namespace ISA {

inline void pack(const ChannelConv& p, const List<int32_t>& live,
                 const List<int32_t>& kept, List<float>& packed) {
  const int64_t taps = p.kernel_height * p.kernel_width;
  const int64_t depth = live.size(), outputs = kept.size();
  packed.assign(taps * depth * ((outputs + WIDTH - 1) / WIDTH * WIDTH), 0.0f);
  float* to = packed.data();
  for (int64_t first = 0; first < outputs; first += 2 * WIDTH) {
    const int64_t left = outputs - first, block = left > WIDTH ? 2 * WIDTH : WIDTH;
    const int64_t count = left < block ? left : block;
    for (int64_t t = 0; t < taps; ++t) {
      for (const int32_t c : live) {
        const float* from = p.weight + (t * p.channels + c) * p.outputs;
        for (int64_t k = 0; k < count; ++k) to[k] = from[kept[first + k]];
        to += block;
      }
    }
  }
}

inline void convolve(const ChannelConv& p, const float* x, const List<int32_t>& live,
                     const List<int32_t>& kept, float* out, List<float>* buffers) {
  const int64_t depth = live.size(), outputs = kept.size();
  const int64_t places = p.height * p.width, positions = p.out_height * p.out_width;
  List<float>&packed = buffers[0], &inner = buffers[1], &outer = buffers[2];
  List<float>& bias = buffers[3];
  pack(p, live, kept, packed);
  inner.resize(places * depth);
  for (int64_t k = 0; k < places; ++k) {
    for (int64_t c = 0; c < depth; ++c) inner[k * depth + c] = x[k * p.channels + live[c]];
  }
  outer.resize(positions * outputs);
  bias.assign(outputs, 0.0f);
  for (int64_t k = 0; p.bias && k < outputs; ++k) bias[k] = p.bias[kept[k]];
  const Conv small = {inner.data(), packed.data(), nullptr,         bias.data(),
                      nullptr,      outer.data(),  1,               p.height,
                      p.width,      depth,         p.out_height,    p.out_width,
                      outputs,      p.kernel_height, p.kernel_width, p.stride,
                      p.padding,    p.dilation,    1,               p.relu,
                      kLeave,       0,             1};
  conv(small);
  for (int64_t k = 0; k < positions; ++k) {
    for (int64_t o = 0; o < outputs; ++o) out[k * p.outputs + kept[o]] = outer[k * outputs + o];
  }
}

void channels(const ChannelConv& p) {
  const int64_t places = p.height * p.width, positions = p.out_height * p.out_width;
#pragma omp parallel num_threads(p.threads)
  {
    List<float> buffers[4];
#pragma omp for schedule(dynamic)
    for (int64_t b = 0; b < p.batch; ++b) {
      const float* x = p.x + b * places * p.channels;
      float* out = p.out + b * positions * p.outputs;
      const auto live = listed(p.inputs ? p.inputs + b * p.channels : nullptr, p.channels);
      const auto kept = listed(p.kept ? p.kept + b * p.outputs : nullptr, p.outputs);
      std::memset(out, 0, positions * p.outputs * sizeof(float));
      if (!kept.empty()) convolve(p, x, live, kept, out, buffers);
    }
  }
}

}  // namespace ISA
