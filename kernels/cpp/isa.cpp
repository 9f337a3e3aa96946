// All operations for one instruction set: compiled once for each, with its own flags.
#if defined(ROBUSTDYN_AVX512)
#define ISA avx512
#define TABLE avx512_table
#define WIDTH 16
#define ROWS 14
#elif defined(ROBUSTDYN_AVX2)
#define ISA avx2
#define TABLE avx2_table
#define WIDTH 8
#define ROWS 6
#else
#define ISA generic
#define TABLE generic_table
#define WIDTH 4
#define ROWS 6
#endif

#include "affine.h"
#include "channels.h"
#include "conv.h"
#include "depthwise.h"
#include "entries.h"
#include "linear.h"
#include "recurrent.h"
#include "thin.h"

const Table TABLE = {WIDTH,         ISA::conv,    ISA::depthwise, ISA::channels, ISA::finish_channels,
                     ISA::entries,  ISA::affine,  ISA::thin,      ISA::step,     ISA::linear};
