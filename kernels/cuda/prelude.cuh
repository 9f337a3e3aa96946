// What every kernel file shares. The launcher puts this text in place of the #include, because
// run-time compilation caches by the text of one source.
#pragma once

#ifndef CUDA_SHIM  // the tests' CPU shim brings its own twins of what follows
#define EXPORT(name)

#if __CUDA_ARCH__ >= 800
// Copies SIZE bytes (4 or 16) from global to shared memory without waiting; zeros if not present.
template <int SIZE>
__device__ __forceinline__ void copy_async(void* to, const void* from, bool present) {
  unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(from), "n"(SIZE),
               "r"(present ? SIZE : 0)
               : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits for this thread's copies, except those of the last ALLOWED groups.
template <int ALLOWED>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(ALLOWED) : "memory");
}

__device__ __forceinline__ float to_tf32(float v) {
  unsigned u;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(u) : "f"(v));
  return __uint_as_float(u);
}
// To nearest, ties to even, as torch does.
__device__ __forceinline__ unsigned short to_bf16(float v) {
  unsigned short bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(v));
  return bits;
}
// D (16 x 8) += A (16 x 8 words) B (8 words x 8); a word is a tf32 number or two bf16 numbers.
__device__ __forceinline__ void mma_tf32(float (&d)[4], const unsigned (&a)[4],
                                         const unsigned (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma_bf16(float (&d)[4], const unsigned (&a)[4],
                                         const unsigned (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#elif defined(__CUDA_ARCH__)
#error "these kernels need compute capability 8.0 or newer"
#endif
#endif
