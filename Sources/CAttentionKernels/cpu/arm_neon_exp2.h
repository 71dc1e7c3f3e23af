// Powers of two of four exponents.
#pragma once
#include <arm_neon.h>

#include "arm_targets.h"
#include "fast_exp.h"

#define MAGIC 12582912.0f  // 1.5 * 2^23: adding it rounds to an integer
#define MAGIC_BITS 0x4B400000

// exp2_fast, operation by operation.
INLINE float32x4_t exp2_x4(float32x4_t x) {
  x = vminnmq_f32(vmaxnmq_f32(x, vdupq_n_f32(-126.0f)), vdupq_n_f32(126.0f));
  float32x4_t shifted = vaddq_f32(x, vdupq_n_f32(MAGIC));
  float32x4_t f = vsubq_f32(x, vsubq_f32(shifted, vdupq_n_f32(MAGIC)));
  float32x4_t p = vdupq_n_f32(1.5403530e-4f);
  p = vaddq_f32(vmulq_f32(p, f), vdupq_n_f32(1.3333558e-3f));
  p = vaddq_f32(vmulq_f32(p, f), vdupq_n_f32(9.6181291e-3f));
  p = vaddq_f32(vmulq_f32(p, f), vdupq_n_f32(5.5504109e-2f));
  p = vaddq_f32(vmulq_f32(p, f), vdupq_n_f32(2.4022651e-1f));
  p = vaddq_f32(vmulq_f32(p, f), vdupq_n_f32(6.9314718e-1f));
  p = vaddq_f32(vmulq_f32(p, f), vdupq_n_f32(1.0f));
  int32x4_t exponent = vaddq_s32(vreinterpretq_s32_f32(shifted), vdupq_n_s32(127 - MAGIC_BITS));
  return vmulq_f32(p, vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23)));
}
