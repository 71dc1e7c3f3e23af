// How fast the processor issues the instruction that a tile loop is made of: sixteen independent
// accumulators, operands in registers, nothing else.
#if defined(__x86_64__)
#include "kernels.h"

// One instruction on each of zmm0 ... zmm15; zmm16 and zmm17 hold zeros.
#define ON(instruction, n) instruction " %%zmm16, %%zmm17, %%zmm" #n "\n\t"
#define ON_SIXTEEN(i)                                                                      \
  ON(i, 0) ON(i, 1) ON(i, 2) ON(i, 3) ON(i, 4) ON(i, 5) ON(i, 6) ON(i, 7) ON(i, 8) ON(i, 9) \
  ON(i, 10) ON(i, 11) ON(i, 12) ON(i, 13) ON(i, 14) ON(i, 15)
#define REGISTERS                                                                             \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",    \
      "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "xmm16", "xmm17"
#define ISSUE(instruction)                                                         \
  for (int64_t round = 0; round < rounds; round++)                                 \
  __asm__ volatile("vpxord %%zmm16, %%zmm16, %%zmm16\n\tvpxord %%zmm17, %%zmm17, %%zmm17\n\t" \
                   ON_SIXTEEN(instruction) ON_SIXTEEN(instruction) ON_SIXTEEN(instruction)        \
                   ON_SIXTEEN(instruction)::: REGISTERS)

__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16")))
int64_t intfa_peak__avx512vnni(intfa_peak_kind kind, int64_t rounds) {
  const int64_t issued = rounds * 64;
  switch (kind) {
    case INTFA_PEAK_INT8: ISSUE("vpdpbusd"); return issued * 128;
    case INTFA_PEAK_BFLOAT16:
      if (!__builtin_cpu_supports("avx512bf16")) return 0;
      ISSUE("vdpbf16ps");
      return issued * 64;
    case INTFA_PEAK_FLOAT: ISSUE("vfmadd231ps"); return issued * 32;
  }
  return 0;
}
#endif
