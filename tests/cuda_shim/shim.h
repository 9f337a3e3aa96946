// Runs unchanged CUDA kernels on the CPU, to test them without a GPU. Included before the source.
//
// Every CUDA thread of a block is a fiber (ucontext, switched by _setjmp and _longjmp) that runs
// until it waits: at the block's barrier or in an operation of its warp. Blocks run one after
// another. The order of the fibers is chosen by the caller, so that a missing barrier shows as a
// wrong result in at least one order. Not covered: weak memory order, concurrent blocks, timing.
#pragma once
#define CUDA_SHIM 1

#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <ucontext.h>

#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
// All shared memory lies in one section, which is poisoned before every block.
#define __shared__ static __attribute__((section("shim_shared")))
extern "C" unsigned char __start_shim_shared[] __attribute__((weak));
extern "C" unsigned char __stop_shim_shared[] __attribute__((weak));

struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

namespace shim {

enum Status { READY, BARRIER, WARP, DONE };
enum Order { FORWARD, REVERSE, RANDOM };

struct Copy { void* to; const void* from; int bytes, size, group; };

struct Fiber {
  ucontext_t start;
  jmp_buf here;
  bool started;
  Status status;
  int line;               // where it waits
  unsigned mask;          // of the warp operation it waits in
  int turn;               // which of the two slots its next warp operation uses
  uint32_t slot[2][8];    // what it shows its warp
  int committed;
  std::vector<Copy> copies;
  std::unique_ptr<char[]> stack;
};

struct Index { int x, y, z; };

constexpr size_t STACK = 128 * 1024;
inline std::vector<Fiber> fibers;
inline Fiber* self;
inline int self_id, threads, order, skipped_line;
inline uint32_t random_state;
inline jmp_buf scheduler;
inline char error[256];
inline void (*body)(void**);
inline void** arguments;

inline uint32_t draw() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 17;
  return random_state ^= random_state << 5;
}

inline void yield() {
  if (!_setjmp(self->here)) _longjmp(scheduler, 1);
}

inline void run_fiber() {
  body(arguments);
  self->status = DONE;
  _longjmp(scheduler, 1);
}

inline void barrier(int line) {
  if (line == skipped_line) return;
  self->status = BARRIER;
  self->line = line;
  yield();
}

// Shows `count` words to the warp and waits for all lanes of the mask; returns the slot used.
inline int meet(unsigned mask, const void* words, int count, int line) {
  int turn = self->turn;
  self->turn ^= 1;
  memcpy(self->slot[turn], words, 4 * count);
  self->status = WARP;
  self->line = line;
  self->mask = mask;
  yield();
  return turn;
}

inline uint32_t shown(int turn, int lane, int word = 0) {
  return fibers[self_id / 32 * 32 + lane].slot[turn][word];
}

template <class T> T shuffle(unsigned mask, T value, int lane, int line) {
  static_assert(sizeof(T) == 4);
  int turn = meet(mask, &value, 1, line);
  if (lane < 0 || lane > 31) return value;
  uint32_t word = shown(turn, lane);
  memcpy(&value, &word, 4);
  return value;
}

inline unsigned ballot(unsigned mask, bool value, int line) {
  uint32_t word = value;
  int turn = meet(mask, &word, 1, line);
  unsigned votes = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) votes |= (shown(turn, lane) & 1) << lane;
  return votes;
}

// An asynchronous copy lands as early as it may, as late as it may, or either by chance.
inline void finish(const Copy& copy) {
  memcpy(copy.to, copy.from, copy.bytes);
  memset(static_cast<char*>(copy.to) + copy.bytes, 0, copy.size - copy.bytes);
}

inline void copy_later(void* to, const void* from, int bytes, int size) {
  if (reinterpret_cast<uintptr_t>(to) % size || (bytes && reinterpret_cast<uintptr_t>(from) % size))
    snprintf(error, sizeof error, "misaligned asynchronous copy");
  Copy copy{to, from, bytes, size, self->committed};
  if (order == FORWARD || (order == RANDOM && draw() & 1)) finish(copy);
  else self->copies.push_back(copy);
}

inline void wait_copies(int allowed) {
  std::vector<Copy> left;
  for (const Copy& copy : self->copies)
    if (copy.group < self->committed - allowed) finish(copy);
    else left.push_back(copy);
  self->copies.swap(left);
}

}  // namespace shim

inline shim::Index threadIdx, blockIdx, blockDim, gridDim;

#define __syncthreads() shim::barrier(__LINE__)
#define LANE_ (shim::self_id % 32)
#define __syncwarp() (void)shim::ballot(~0u, true, __LINE__)
#define __ballot_sync(mask, value) shim::ballot(mask, value, __LINE__)
#define __shfl_sync(mask, value, lane) shim::shuffle(mask, value, lane, __LINE__)
#define __shfl_up_sync(mask, value, by) shim::shuffle(mask, value, LANE_ - (by), __LINE__)
#define __shfl_xor_sync(mask, value, by) shim::shuffle(mask, value, LANE_ ^ (by), __LINE__)

inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline unsigned __float_as_uint(float v) { unsigned u; memcpy(&u, &v, 4); return u; }
inline float __uint_as_float(unsigned u) { float v; memcpy(&v, &u, 4); return v; }
template <class T> T __ldg(const T* p) { return *p; }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline long long min(long long a, long long b) { return a < b ? a : b; }

// What prelude.cuh writes in PTX.
template <int SIZE> void copy_async(void* to, const void* from, bool present) {
  shim::copy_later(to, from, present ? SIZE : 0, SIZE);
}
inline void commit_copies() { ++shim::self->committed; }
template <int ALLOWED> void wait_copies() { shim::wait_copies(ALLOWED); }

inline float to_tf32(float v) {
  return __uint_as_float((__float_as_uint(v) + 0x1000u) & ~0x1fffu);
}

inline unsigned short to_bf16(float v) {
  unsigned u = __float_as_uint(v);
  return v != v ? 0x7fc0u : (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
}

// D (16 x 8) += A (16 x 8 words) B (8 words x 8), the fragments spread over the warp as by
// mma.sync.m16n8k8 (tf32: a word is a number) and m16n8k16 (bf16: a word is two numbers).
template <class Multiply>
void mma_words(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], Multiply multiply) {
  uint32_t words[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  int turn = shim::meet(~0u, words, 6, __LINE__), lane = LANE_;
  for (int i = 0; i < 4; ++i) {
    int row = lane / 4 + (i & 2 ? 8 : 0), column = lane % 4 * 2 + (i & 1);
    for (int k = 0; k < 8; ++k) {
      uint32_t left = shim::shown(turn, row % 8 * 4 + k % 4, row / 8 + (k / 4) * 2);
      uint32_t right = shim::shown(turn, column * 4 + k % 4, 4 + k / 4);
      d[i] += multiply(left, right);
    }
  }
}

inline void mma_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  mma_words(d, a, b, [](uint32_t p, uint32_t q) {
    return __uint_as_float(p & ~0x1fffu) * __uint_as_float(q & ~0x1fffu);
  });
}

inline void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  mma_words(d, a, b, [](uint32_t p, uint32_t q) {
    return __uint_as_float(p << 16) * __uint_as_float(q << 16) +
           __uint_as_float(p & 0xffff0000u) * __uint_as_float(q & 0xffff0000u);
  });
}

namespace shim {

// Releases whoever may go on; false if nobody can, with the reason in `error`.
inline bool release() {
  int waiting = 0, done = 0, line = 0;
  bool progress = false;
  for (int i = 0; i < threads; ++i) {
    Fiber& f = fibers[i];
    done += f.status == DONE;
    waiting += f.status == BARRIER;
    if (f.status == BARRIER) line = f.line;
  }
  if (done == threads) return false;
  for (int base = 0; base < threads; base += 32)
    for (int lane = 0; lane < 32 && base + lane < threads; ++lane) {
      Fiber& f = fibers[base + lane];
      if (f.status != WARP) continue;
      bool all = f.mask >> lane & 1;
      for (int other = 0; other < 32; ++other)
        if (f.mask >> other & 1) {
          Fiber* o = base + other < threads ? &fibers[base + other] : nullptr;
          all = all && o && o->status == WARP && o->mask == f.mask && o->line == f.line;
        }
      if (!all) continue;
      for (unsigned mask = f.mask; mask; mask &= mask - 1)
        fibers[base + __builtin_ctz(mask)].status = READY;
      progress = true;
    }
  if (progress) return true;
  if (waiting == threads) {
    for (int i = 0; i < threads; ++i) {
      if (fibers[i].line != line) {
        snprintf(error, sizeof error, "barriers of lines %d and %d meet", line, fibers[i].line);
        return false;
      }
      fibers[i].status = READY;
    }
    return true;
  }
  if (waiting + done == threads)
    snprintf(error, sizeof error, "partial-block barrier, line %d: %d threads wait, %d are done",
             line, waiting, done);
  else
    snprintf(error, sizeof error, "deadlock: %d of %d threads at the barrier of line %d", waiting,
             threads, line);
  return false;
}

inline void run_block() {
  if (__start_shim_shared)
    memset(__start_shim_shared, 0xff, __stop_shim_shared - __start_shim_shared);
  for (int i = 0; i < threads; ++i) {
    Fiber& f = fibers[i];
    f.started = false;
    f.status = READY;
    f.turn = f.committed = 0;
    f.copies.clear();
    if (!f.stack) f.stack.reset(new char[STACK]);
  }
  do {
    int offset = order == RANDOM ? draw() % threads : 0;
    for (int step = 0; step < threads; ++step) {
      int i = order == REVERSE ? threads - 1 - step : (step + offset) % threads;
      Fiber& f = fibers[i];
      if (f.status != READY) continue;
      self = &f;
      self_id = i;
      threadIdx = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
      if (_setjmp(scheduler)) continue;
      if (f.started) _longjmp(f.here, 1);
      f.started = true;
      getcontext(&f.start);
      f.start.uc_stack.ss_sp = f.stack.get();
      f.start.uc_stack.ss_size = STACK;
      f.start.uc_link = nullptr;
      makecontext(&f.start, run_fiber, 0);
      setcontext(&f.start);
    }
  } while (!error[0] && release());
}

template <class... A, size_t... I>
void call(void (*kernel)(A...), void** args, std::index_sequence<I...>) {
  kernel(*static_cast<A*>(args[I])...);
}

// Launches as cuLaunchKernel does; returns what went wrong, or "".
inline const char* launch(void (*entry)(void**), int grid, int block_x, int block_y, int fiber_order,
                          int line_to_skip, void** args) {
  body = entry;
  arguments = args;
  order = fiber_order;
  skipped_line = line_to_skip;
  random_state = 88172645u;
  error[0] = 0;
  threads = block_x * block_y;
  gridDim = {grid, 1, 1};
  blockDim = {block_x, block_y, 1};
  if (grid < 1 || threads < 1 || threads > 1024) return "a grid or block of that size cannot run";
  if (int(fibers.size()) < threads) fibers.resize(threads);
  for (int block = 0; block < grid && !error[0]; ++block) {
    blockIdx = {block, 0, 0};
    run_block();
  }
  return error;
}

}  // namespace shim

#define EXPORT(name)                                                                            \
  template <class... A> void name##_unpack(void (*kernel)(A...), void** args) {                 \
    shim::call(kernel, args, std::index_sequence_for<A...>{});                                  \
  }                                                                                             \
  extern "C" const char* name##_on_cpu(int grid, int x, int y, int order, int skip, void** args) { \
    return shim::launch([](void** a) { name##_unpack(name, a); }, grid, x, y, order, skip, args); \
  }
