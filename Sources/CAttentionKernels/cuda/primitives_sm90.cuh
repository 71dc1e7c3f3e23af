// Instructions of sm_90a: warpgroup matrix products, barriers in shared memory, the copy engine.
#pragma once
#include "primitives.cuh"

#ifndef HOST_SIMULATOR
// Operand lists of wgmma m64nNk32: N/2 accumulators a thread, in blocks of 32.
#define TEXT_0                                                                                  \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,"  \
  "%25,%26,%27,%28,%29,%30,%31"
#define TEXT_32                                                                                 \
  TEXT_0                                                                                        \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,"   \
  "%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define IO4(i) "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3])
#define IO32(i)                                                                                 \
  IO4(i), IO4(i + 4), IO4(i + 8), IO4(i + 12), IO4(i + 16), IO4(i + 20), IO4(i + 24), IO4(i + 28)
#define IO_32 IO32(0)
#define IO_64 IO32(0), IO32(32)
// ss: both operands in shared memory. rs: A in registers; _first overwrites d.
#define DEFINE_WGMMA(REGS, N, TEXT, P0, P1, P2, P3, P4)                                         \
  DEVICE void wgmma_s8s8_ss(int (&d)[REGS], u64 a, u64 b, int accumulate) {                     \
    asm volatile("{.reg .pred p; setp.ne.b32 p,%" P2                                            \
                 ",0;\n wgmma.mma_async.sync.aligned.m64n" N "k32.s32.s8.s8 {" TEXT "},%" P0    \
                 ",%" P1 ",p;}"                                                                 \
                 : IO_##REGS                                                                    \
                 : "l"(a), "l"(b), "r"(accumulate));                                            \
  }                                                                                             \
  DEVICE void wgmma_u8s8_rs(int (&d)[REGS], const u32 (&a)[4], u64 b) {                         \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" N "k32.s32.u8.s8 {" TEXT "},{%" P0 ",%" P1 \
                 ",%" P2 ",%" P3 "},%" P4 ",1;"                                                 \
                 : IO_##REGS                                                                    \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                         \
  }                                                                                             \
  DEVICE void wgmma_u8s8_rs_first(int (&d)[REGS], const u32 (&a)[4], u64 b) {                   \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" N "k32.s32.u8.s8 {" TEXT "},{%" P0 ",%" P1 \
                 ",%" P2 ",%" P3 "},%" P4 ",0;"                                                 \
                 : IO_##REGS                                                                    \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                         \
  }
DEFINE_WGMMA(32, "64", TEXT_0, "32", "33", "34", "35", "36")
DEFINE_WGMMA(64, "128", TEXT_32, "64", "65", "66", "67", "68")

DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Says to the compiler that registers change here: no use or definition moves across.
template <int M>
DEVICE void pin(int (&d)[M]) {
  UNROLL for (int i = 0; i < M; i++) asm volatile("" : "+r"(d[i])::"memory");
}
template <int M>
DEVICE void pin(float (&d)[M]) {
  UNROLL for (int i = 0; i < M; i++) asm volatile("" : "+f"(d[i])::"memory");
}
template <int M>
DEVICE void pin(u32 (&d)[M][4]) {
  UNROLL for (int i = 0; i < M; i++) {
    asm volatile("" : "+r"(d[i][0]), "+r"(d[i][1]), "+r"(d[i][2]), "+r"(d[i][3])::"memory");
  }
}
// Waits until at most N groups are in flight; d holds the result from here on.
template <int N, int M>
DEVICE void wgmma_wait(int (&d)[M]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
  pin(d);
}

DEVICE void barrier_init(u32 b, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0],%1;" ::"r"(b), "r"(arrivals) : "memory");
}
DEVICE void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
DEVICE void barrier_expect(u32 b, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _,[%0],%1;" ::"r"(b), "r"(bytes)
               : "memory");
}
DEVICE void barrier_arrive(u32 b) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _,[%0];" ::"r"(b) : "memory");
}
DEVICE void barrier_wait(u32 b, u32 parity) {
  asm volatile(
      "{.reg .pred p;\nL%=: mbarrier.try_wait.parity.shared::cta.b64 p,[%0],%1;\n@!p bra L%=;}" ::"r"(b),
      "r"(parity)
      : "memory");
}
// The box of a two-dimensional tensor at column x, row y; what lies outside arrives as zeros.
DEVICE void tma_load_2d(u32 destination, const intfa_cuda_tensor_map* map, u32 barrier, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0],[%1,{%3,%4}],[%2];" ::"r"(destination),
      "l"(map), "r"(barrier), "r"(x), "r"(y)
      : "memory");
}
DEVICE void bulk_load(u32 destination, const void* source, u32 bytes, u32 barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0],[%1],%2,[%3];" ::"r"(
          destination),
      "l"(source), "r"(bytes), "r"(barrier)
      : "memory");
}
// A barrier of the first THREADS threads of the block.
template <int THREADS>
DEVICE void sync_threads() {
  asm volatile("bar.sync 1,%0;" ::"n"(THREADS) : "memory");
}
template <int N>
DEVICE void registers_raise() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
DEVICE void registers_lower() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
#endif

// The descriptor of a K-major tile of bytes whose rows are as long as the swizzle's span, 128 or 64.
// Groups of eight rows lie 8 * ROW_BYTES apart; 32 steps along k add 32 bytes to the address.
//   bits 0-13 address/16 | 16-29 unused with a swizzle | 32-45 stride of a group/16 | 62-63 swizzle
template <int ROW_BYTES>
DEVICE u64 k_major_descriptor(u32 address) {
  constexpr u64 swizzle = ROW_BYTES == 128 ? 1 : 2;
  return (u64)((address & 0x3FFFF) >> 4) | (u64)1 << 16 | (u64)(8 * ROW_BYTES >> 4) << 32 |
         swizzle << 62;
}
