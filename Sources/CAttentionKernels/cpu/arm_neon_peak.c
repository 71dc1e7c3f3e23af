// How fast the processor issues the instruction that a tile loop is made of: sixteen independent
// accumulators, operands in registers, nothing else.
#if defined(__aarch64__)
#include "arm_targets.h"
#include "kernels.h"

// One instruction on each of v0 ... v15; v16 and v17 hold zeros. `type` is that of the operands.
#define ON(i, n, type) i " v" #n ".4s, v16." type ", v17." type "\n\t"
#define ON_SIXTEEN(i, t)                                                                    \
  ON(i, 0, t) ON(i, 1, t) ON(i, 2, t) ON(i, 3, t) ON(i, 4, t) ON(i, 5, t) ON(i, 6, t)       \
  ON(i, 7, t) ON(i, 8, t) ON(i, 9, t) ON(i, 10, t) ON(i, 11, t) ON(i, 12, t) ON(i, 13, t)   \
  ON(i, 14, t) ON(i, 15, t)
#define REGISTERS                                                                           \
  "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12", "v13",   \
      "v14", "v15", "v16", "v17"
#define ISSUE(i, t)                                                                         \
  for (int64_t round = 0; round < rounds; round++)                                          \
  __asm__ volatile("movi v16.16b, #0\n\tmovi v17.16b, #0\n\t" ON_SIXTEEN(i, t)              \
                   ON_SIXTEEN(i, t) ON_SIXTEEN(i, t) ON_SIXTEEN(i, t)::: REGISTERS)

enum { INSTRUCTIONS = 64 };

static int64_t float_peak(int64_t rounds) {
  ISSUE("fmla", "4s");
  return rounds * INSTRUCTIONS * 8;
}

TARGET_DOTPROD
int64_t intfa_peak__neondotprod(intfa_peak_kind kind, int64_t rounds) {
  switch (kind) {
    case INTFA_PEAK_INT8: ISSUE("sdot", "16b"); return rounds * INSTRUCTIONS * 32;
    case INTFA_PEAK_FLOAT: return float_peak(rounds);
    case INTFA_PEAK_BFLOAT16: return 0;
  }
  return 0;
}
TARGET_END

TARGET_I8MM
int64_t intfa_peak__neoni8mm(intfa_peak_kind kind, int64_t rounds) {
  switch (kind) {
    case INTFA_PEAK_INT8: ISSUE("smmla", "16b"); return rounds * INSTRUCTIONS * 64;
    case INTFA_PEAK_FLOAT: return float_peak(rounds);
    case INTFA_PEAK_BFLOAT16: return 0;
  }
  return 0;
}
TARGET_END
#endif
