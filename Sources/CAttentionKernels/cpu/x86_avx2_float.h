// Floats in 256-bit registers: rows of a caller's tensor, roundings, powers of two. Included inside
// the target region of AVX2, FMA and F16C.
#pragma once
#include "x86_avx2.h"

INLINE __m256i first_lanes(int32_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// Channels c ... c + 7 of a row; zeros beyond its end.
INLINE __m256 load_lanes(const intfa_rows *rows, int64_t row, int32_t c, int32_t dimension) {
  const int64_t at = row * rows->stride + c;
  const int32_t left = dimension - c;
  if (left <= 0) return _mm256_setzero_ps();  // no masked load: an empty mask may cost an assist
  if (rows->format == INTFA_FLOAT32) {
    const float *x = (const float *)rows->base + at;
    return left >= LANES ? _mm256_loadu_ps(x) : _mm256_maskload_ps(x, first_lanes(left));
  }
  const uint16_t *x = (const uint16_t *)rows->base + at;
  __m128i half = _mm_setzero_si128();
  if (left >= LANES)
    half = _mm_loadu_si128((const __m128i *)x);
  else
    memcpy(&half, x, sizeof(uint16_t) * (size_t)left);
  if (rows->format == INTFA_FLOAT16) return _mm256_cvtph_ps(half);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

// drop_mantissa and the roundings of number_formats.h, operation by operation.
INLINE __m256 drop_mantissa_x8(__m256 x, int drop) {
  __m256i bits = _mm256_castps_si256(x);
  __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, drop), _mm256_set1_epi32(1));
  bits = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32((1 << (drop - 1)) - 1)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_srli_epi32(bits, drop), drop));
}
INLINE __m256 round_float16_x8(__m256 x) {
  return _mm256_cvtph_ps(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
INLINE __m256 round_float8_x8(__m256 x) {
  const __m256 magic = _mm256_set1_ps(24576.0f), smallest = _mm256_set1_ps(0x1p-6f);
  x = _mm256_max_ps(_mm256_min_ps(x, _mm256_set1_ps(448)), _mm256_set1_ps(-448));
  __m256 subnormal = _mm256_sub_ps(_mm256_add_ps(x, magic), magic);
  __m256 magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x);
  return _mm256_blendv_ps(drop_mantissa_x8(x, 20), subnormal,
                          _mm256_cmp_ps(magnitude, smallest, _CMP_LT_OQ));
}
INLINE __m256 round_x8(__m256 x, intfa_format format) {
  switch (format) {
    case INTFA_FLOAT16: return round_float16_x8(x);
    case INTFA_BFLOAT16: return drop_mantissa_x8(x, 16);
    case INTFA_FLOAT8: return round_float8_x8(x);
    case INTFA_FLOAT32:
    case INTFA_INT8: return x;
  }
  return x;
}

// exp2_fast with fused multiply-add, and 0 for a masked logit.
INLINE __m256 power(__m256 x) {
  __m256 seen = _mm256_cmp_ps(x, _mm256_set1_ps(-__builtin_inff()), _CMP_GT_OQ);
  x = _mm256_max_ps(x, _mm256_set1_ps(-126.0f));
  __m256 shifted = _mm256_add_ps(x, _mm256_set1_ps(12582912.0f));
  __m256 f = _mm256_sub_ps(x, _mm256_sub_ps(shifted, _mm256_set1_ps(12582912.0f)));
  __m256 p = _mm256_fmadd_ps(_mm256_set1_ps(1.5403530e-4f), f, _mm256_set1_ps(1.3333558e-3f));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(9.6181291e-3f));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(5.5504109e-2f));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(2.4022651e-1f));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(6.9314718e-1f));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.0f));
  // The exponent of a power of two at most is added in place.
  __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
  return _mm256_and_ps(_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent)),
                       seen);
}

INLINE __m256 round_probability(__m256 p, const intfa_probability format) {
  switch (format) {
    case INTFA_P_FLOAT32: return p;
    case INTFA_P_FLOAT16: return round_float16_x8(p);
    case INTFA_P_BFLOAT16: return drop_mantissa_x8(p, 16);
    // 256 p uses the upper part of the format's range; the power of two cancels exactly.
    case INTFA_P_FLOAT8:
      return _mm256_mul_ps(round_float8_x8(_mm256_mul_ps(p, _mm256_set1_ps(256))),
                           _mm256_set1_ps(0x1p-8f));
    case INTFA_P_INT8: {
      __m256 levels = _mm256_add_ps(_mm256_mul_ps(p, _mm256_set1_ps(127)), _mm256_set1_ps(0.5f));
      return _mm256_round_ps(levels, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
    }
  }
  return p;
}
