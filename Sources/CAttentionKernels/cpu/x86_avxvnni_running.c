// Float tile loop with 256-bit vpdpbusd for INT8 scores; float scores are those of AVX2.
// Bounds and error: x86_avx2_running.h; INT8 scores: x86_avxvnni.c.
#if defined(__x86_64__)
#include "kernels.h"

#pragma clang attribute push(__attribute__((target("avx2,avxvnni,fma,f16c"))), apply_to = function)
#include "x86_avxvnni_units.h"

#include "x86_avx2_running.h"

void intfa_attend_running__avxvnni(const intfa_attend_running *a) {
  if (a->formats.score == INTFA_INT8)
    attend_running(a);
  else
    intfa_attend_running__avx2(a);
}
#pragma clang attribute pop
#endif
