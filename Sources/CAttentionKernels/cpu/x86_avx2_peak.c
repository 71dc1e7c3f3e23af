// How fast the processor issues the instruction that a 256-bit tile loop is made of: twelve
// independent accumulators, operands in registers, nothing else.
#if defined(__x86_64__)
#include "kernels.h"

// One instruction on each of ymm0 ... ymm11; ymm12 and ymm13 hold zeros.
#define ON(instruction, n) instruction " %%ymm12, %%ymm13, %%ymm" #n "\n\t"
#define ON_TWELVE(i)                                                                          \
  ON(i, 0) ON(i, 1) ON(i, 2) ON(i, 3) ON(i, 4) ON(i, 5) ON(i, 6) ON(i, 7) ON(i, 8) ON(i, 9)  \
  ON(i, 10) ON(i, 11)
#define ON_SIXTY_FOUR(i) \
  ON_TWELVE(i)           \
  ON_TWELVE(i) ON_TWELVE(i) ON_TWELVE(i) ON_TWELVE(i) ON(i, 0) ON(i, 1) ON(i, 2) ON(i, 3)
#define REGISTERS                                                                                  \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",\
      "xmm12", "xmm13"
#define ISSUE(instruction)                         \
  for (int64_t round = 0; round < rounds; round++) \
  __asm__ volatile("vpxor %%ymm12, %%ymm12, %%ymm12\n\tvpxor %%ymm13, %%ymm13, %%ymm13\n\t" \
                   ON_SIXTY_FOUR(instruction)::: REGISTERS)

// Of floats, both sets fuse multiply and add; neither has bfloat16 products.
__attribute__((target("avx2,fma")))
static int64_t float_peak(intfa_peak_kind kind, int64_t rounds) {
  if (kind != INTFA_PEAK_FLOAT) return 0;
  ISSUE("vfmadd231ps");
  return rounds * 64 * 16;
}

__attribute__((target("avx2,avxvnni")))
int64_t intfa_peak__avxvnni(intfa_peak_kind kind, int64_t rounds) {
  if (kind != INTFA_PEAK_INT8) return float_peak(kind, rounds);
  ISSUE("%{vex%} vpdpbusd");
  return rounds * 64 * 64;
}

__attribute__((target("avx2")))
int64_t intfa_peak__avx2(intfa_peak_kind kind, int64_t rounds) {
  if (kind != INTFA_PEAK_INT8) return float_peak(kind, rounds);
  ISSUE("vpmaddwd");
  return rounds * 64 * 32;
}
#endif
