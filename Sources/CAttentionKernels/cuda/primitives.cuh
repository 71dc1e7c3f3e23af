// Instructions and types that all CUDA kernels share; everything here exists from sm_80 on.
//
// No header of CUDA is included, so NVRTC needs no include path. With HOST_SIMULATOR a host compiler
// builds the same kernels, and device.h of the simulator supplies functions of the same names.
#pragma once
#include "cuda_parameters.h"

#define UNROLL _Pragma("unroll")

#ifdef HOST_SIMULATOR
#include "device.h"
#else
typedef unsigned char u8;
typedef signed char s8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
#define DEVICE __device__ __forceinline__
#define DYNAMIC_SHARED_MEMORY extern __shared__ __align__(1024) u8 shared_memory[]
#define STATIC_SHARED_MEMORY __shared__
// The entry point NAME with one argument; its body follows.
#define KERNEL(NAME, PARAMETERS, THREADS)                                  \
  extern "C" __global__ void __launch_bounds__(THREADS, 1)                 \
      NAME(const __grid_constant__ PARAMETERS p)

DEVICE u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// Four 8x8 matrices of 16-bit elements; lane 8m + r gives the address of row r of matrix m.
// Plain: lane 4g + t gets elements 2t, 2t+1 of row g. Transposed: elements g of rows 2t, 2t+1.
DEVICE void load_matrix_x4(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
DEVICE void load_matrix_x4_transposed(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// d = a * b + c on 16 x 32 times 32 x 8. c is apart from d, so that a constant c costs no moves.
#define DEFINE_MMA_INT8(NAME, A_TYPE)                                                           \
  DEVICE void NAME(int (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, int c0, int c1, int c2,      \
                   int c3) {                                                                    \
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32." A_TYPE                                \
                 ".s8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%10,%11,%12,%13};"               \
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])                               \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c0),       \
                   "r"(c1), "r"(c2), "r"(c3));                                                  \
  }
DEFINE_MMA_INT8(mma_s8s8, "s8")
DEFINE_MMA_INT8(mma_u8s8, "u8")

// d += a * b on 16 x 16 times 16 x 8.
#define DEFINE_MMA_FLOAT16(NAME, TYPE)                                                          \
  DEVICE void NAME(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {                          \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE                         \
                 ".f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"                      \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                               \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));               \
  }
DEFINE_MMA_FLOAT16(mma_f16, "f16")
DEFINE_MMA_FLOAT16(mma_bf16, "bf16")

// Copies 16 bytes to shared memory; those beyond `valid` arrive as zero.
DEVICE void copy_async_16(u32 destination, const void* source, u32 valid) {
  asm volatile("cp.async.cg.shared.global [%0],[%1],16,%2;" ::"r"(destination), "l"(source),
               "r"(valid)
               : "memory");
}
DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0,%1;" : "=f"(y) : "f"(x));
  return y;
}

// Four floats in 0...255 to four bytes, ties to even, the first in the lowest byte.
DEVICE u32 pack_u8x4(float a, float b, float c, float d) {
#if __CUDA_ARCH__ == 800
  // No packing conversion: adding 1.5 * 2^23 leaves the rounded value in the low byte.
  const u32 ia = __float_as_uint(a + 12582912.f), ib = __float_as_uint(b + 12582912.f);
  const u32 ic = __float_as_uint(c + 12582912.f), id = __float_as_uint(d + 12582912.f);
  return __byte_perm(__byte_perm(ia, ib, 0x0040), __byte_perm(ic, id, 0x0040), 0x5410);
#else
  // Conversion and packing fuse into one instruction per two values.
  const int ia = __float2int_rn(a), ib = __float2int_rn(b);
  const int ic = __float2int_rn(c), id = __float2int_rn(d);
  u32 upper, all;
  asm("cvt.pack.sat.u8.s32.b32 %0,%1,%2,%3;" : "=r"(upper) : "r"(id), "r"(ic), "r"(0));
  asm("cvt.pack.sat.u8.s32.b32 %0,%1,%2,%3;" : "=r"(all) : "r"(ib), "r"(ia), "r"(upper));
  return all;
#endif
}
// Two floats to two 16-bit ones, the first in the lower half.
DEVICE u32 pack_f16x2(float low, float high) {
  u32 r;
  asm("cvt.rn.f16x2.f32 %0,%1,%2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
DEVICE u32 pack_bf16x2(float low, float high) {
  u32 r;
  asm("cvt.rn.bf16x2.f32 %0,%1,%2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
DEVICE float float_of_f16(u16 x) {
  float y;
  asm("cvt.f32.f16 %0,%1;" : "=f"(y) : "h"(x));
  return y;
}
// c + the products of four unsigned bytes of a with four signed bytes of b.
DEVICE int dot_u8s8(u32 a, u32 b, int c) {
  int d;
  asm("dp4a.u32.s32 %0,%1,%2,%3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
DEVICE u32 select_bytes(u32 a, u32 b, u32 selector) { return __byte_perm(a, b, selector); }
DEVICE float bits_as_float(u32 x) { return __uint_as_float(x); }
DEVICE u32 float_as_bits(float x) { return __float_as_uint(x); }
DEVICE int round_to_int(float x) { return __float2int_rn(x); }
// The compiler forgets what it knows about x, and so cannot move its uses out of a loop.
DEVICE void hide(int& x) { asm volatile("" : "+r"(x)); }
DEVICE void atomic_min(u64* place, u64 value) { atomicMin(place, value); }
DEVICE void atomic_max(u32* place, u32 value) { atomicMax(place, value); }
#endif

// Stands for "no key seen"; finite, because infinity minus infinity is not a number.
constexpr float kMasked = -1e30f, kMaskedTest = -1e29f;
constexpr u32 kAllLanes = 0xffffffffu;
constexpr float kSmallestMaximum = 0x1p-100f;  // of a row of zeros, which gets codes 0

// 3 * 2^22: an accumulator that starts at its bits holds the bits of the float kMagic + sum, as long as
// |sum| < 2^22, so one multiply-add converts and scales.
constexpr float kMagic = 12582912.f;
constexpr int kMagicBits = 0x4B400000;

// Leaves the whole part of p, 0...255, and returns the rest in units of 1/256; 0 unless `splits`.
DEVICE float split_rest(float& p, bool splits) {
  const float whole = floorf(p), rest = fminf(256.f * (p - whole), 255.f);
  if (!splits) return 0.f;
  p = whole;
  return rest;
}

// What such a multiply-add takes: {scale, -kMagic * scale}. Two bits of the scale are cleared, so that
// the product is exact.
struct ScalePair {
  float scale, offset;
};
DEVICE ScalePair scale_pair(float scale) {
  const float s = bits_as_float(float_as_bits(scale) & ~3u);
  return {s, -kMagic * s};
}

// The order in which P of 16 keys stands in a register of lane t, and so the order of weights and of
// transposed values: position 4t + 2j + b of a group of 16 holds key 8j + 2t + b.
DEVICE int permuted_key(int position) {
  const int t = position >> 2 & 3, j = position >> 1 & 1, b = position & 1;
  return (position & ~15) + 8 * j + 2 * t + b;
}
