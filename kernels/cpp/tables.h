// What the library exports, and the functions that each instruction set brings.
// Layout is NHWC, numbers are float32; a null pointer stands for an argument that is absent.
#pragma once
#include <cstdint>

enum Fill : int64_t { kZero = 0, kCopy = 1, kLeave = 2 };

// [relu](conv(x) + bias + residual) at the active positions. Backward, x is the gradient of the
// output, the mask is that of x, and out is the gradient of the input.
struct Conv {
  const float* x;         // (batch, height, width, groups * depth), pixels x_step apart
  const float* weight;    // packed: for each group and block of outputs [taps][depth][block]
  const uint8_t* mask;    // (batch, out_height, out_width), or all positions
  const float* bias;      // (outputs)
  const float* residual;  // (batch, out_height, out_width, outputs); may be out
  float* out;
  int64_t batch, height, width, depth;
  int64_t out_height, out_width, outputs;
  int64_t kernel_height, kernel_width, stride, padding, dilation, groups;
  int64_t relu, fill, backward, x_step, threads;
};

// [relu](keep * (scale * (conv(x) + bias) + shift) + residual), conv of the live inputs, keep 1 at
// the kept outputs of each sample, else 0.
struct ChannelConv {
  const float* x;          // (batch, height, width, channels)
  const float* weight;     // [outputs][channels][taps]
  const uint8_t* inputs;   // (batch, channels)
  const uint8_t* kept;     // (batch, outputs)
  const float* bias;       // (outputs)
  const float* scale;      // (batch, outputs)
  const float* shift;      // (outputs)
  const float* residual;   // as out
  float* out;              // (batch, out_height, out_width, outputs)
  int64_t batch, height, width, channels;
  int64_t out_height, out_width, outputs;
  int64_t kernel_height, kernel_width, stride, padding, dilation;
  int64_t relu, threads;
};

// [relu](scale * (conv(x) at the entries of the mask + residual) + shift).
struct EntryConv {
  const float* x;         // (batch, height, width, depth), pixels x_step apart
  const float* weight;    // packed twice: for each output [taps][depth], padded with 0 to whole pairs
                          // of vectors; then as Conv's
  const uint8_t* mask;    // (batch, out_height, out_width, outputs)
  const float* residual;  // (batch, out_height, out_width, outputs)
  const float *scale, *shift;  // (outputs); absent, 1 and 0
  float* out;
  int64_t batch, height, width, depth;
  int64_t out_height, out_width, outputs;
  int64_t kernel_height, kernel_width, stride, padding;
  int64_t relu, x_step, threads;
};

// x weight^T + bias at the kept outputs of each sample; elsewhere 0.
struct Linear {
  const float* x;       // (batch, depth), rows x_step apart
  const float* weight;  // packed: for each vector of outputs [depth][vector]
  const uint8_t* kept;  // (batch, blocks), each of outputs / blocks
  const float* bias;    // (outputs)
  float* out;           // (batch, outputs)
  int64_t batch, depth, outputs, blocks, x_step, threads;
};

// conv(x) + bias for a few outputs.
struct ThinConv {
  const float* x;       // (batch, height, width, depth)
  const float* weight;  // [outputs][taps][depth]
  const float* bias;    // (outputs)
  float* out;           // (batch, out_height, out_width, outputs)
  int64_t batch, height, width, depth;
  int64_t out_height, out_width, outputs;
  int64_t kernel_height, kernel_width, stride, padding;
  int64_t threads;
};

// [relu](scale * x + shift + residual) at the active positions.
struct Affine {
  const float* x;              // may be out
  const float *scale, *shift;  // (channels); both absent: 1 and 0
  const uint8_t* mask;
  const float* residual;
  float* out;
  int64_t positions, channels, relu, fill, threads;
};

enum CellKind : int64_t { kGru = 0, kLstm = 1, kTanh = 2 };

// The next state of a recurrence for the active samples; a copy of the state for the others.
struct Step {
  const float* x;          // (batch, inputs), rows x_step apart
  const float *h, *c;      // (batch, units); c is an LSTM's
  const uint8_t* mask;     // (batch)
  const float* weight_ih;  // packed: for each vector of units [inputs][gates][vector]
  const float* weight_hh;  // packed: for each vector of units [units][gates][vector]
  const float *bias_ih, *bias_hh;  // (gates * units)
  const float *weight_read;        // (reads, units)
  const float *bias_read;          // (reads)
  const float *read;               // (batch, reads): sigmoid(weight_read h + bias_read)
  float *next_h, *next_c, *next_read;
  int64_t batch, inputs, units, reads, x_step, cell, threads;
};

struct Table {
  int64_t vector_width;
  void (*conv)(const Conv&);
  void (*depthwise)(const Conv&);  // weight [taps][outputs], depth 1, groups = outputs
  void (*channels)(const ChannelConv&);
  void (*finish_channels)(const ChannelConv&);  // out holds conv(x) of all outputs
  void (*entries)(const EntryConv&);
  void (*affine)(const Affine&);
  void (*thin)(const ThinConv&);
  void (*step)(const Step&);
  void (*linear)(const Linear&);
};

extern const Table generic_table;
#ifdef __x86_64__
extern const Table avx2_table;
extern const Table avx512_table;
#endif
