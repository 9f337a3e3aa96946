// The plain C interface, and the choice of an instruction set at run time.
#include "tables.h"

namespace {

const Table* table(int64_t isa) {
#ifdef __x86_64__
  if (isa == 2) return &avx512_table;
  if (isa == 1) return &avx2_table;
#endif
  return &generic_table;
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// The best instruction set of this processor: 0 generic, 1 AVX2 with FMA, 2 AVX-512.
int64_t robustdyn_best_isa() {
#ifdef __x86_64__
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")) return 2;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
  return 0;
}

int64_t robustdyn_vector_width(int64_t isa) { return table(isa)->vector_width; }
void robustdyn_conv(int64_t isa, const Conv* call) { table(isa)->conv(*call); }
void robustdyn_depthwise(int64_t isa, const Conv* call) { table(isa)->depthwise(*call); }
void robustdyn_channels(int64_t isa, const ChannelConv* call) { table(isa)->channels(*call); }
void robustdyn_finish_channels(int64_t isa, const ChannelConv* call) {
  table(isa)->finish_channels(*call);
}
void robustdyn_entries(int64_t isa, const EntryConv* call) { table(isa)->entries(*call); }
void robustdyn_affine(int64_t isa, const Affine* call) { table(isa)->affine(*call); }
void robustdyn_thin(int64_t isa, const ThinConv* call) { table(isa)->thin(*call); }
void robustdyn_step(int64_t isa, const Step* call) { table(isa)->step(*call); }
void robustdyn_linear(int64_t isa, const Linear* call) { table(isa)->linear(*call); }
}
#pragma GCC visibility pop
