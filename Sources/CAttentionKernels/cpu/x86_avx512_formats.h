// Formats and powers of two in 512-bit registers. Included inside a target region.
#pragma once
#include "x86_avx512vnni.h"

INLINE __m512 drop_mantissa_x16(__m512 x, int32_t drop) {
  __m512i bits = _mm512_castps_si512(x);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, drop), _mm512_set1_epi32(1));
  bits = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32((1 << (drop - 1)) - 1)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_srli_epi32(bits, drop), drop));
}
INLINE __m512 round_float8_x16(__m512 x) {
  x = _mm512_max_ps(_mm512_min_ps(x, _mm512_set1_ps(448)), _mm512_set1_ps(-448));
  __m512 normal = drop_mantissa_x16(x, 20), magic = _mm512_set1_ps(24576.0f);
  __m512 subnormal = _mm512_sub_ps(_mm512_add_ps(x, magic), magic);
  __mmask16 small = _mm512_cmp_ps_mask(_mm512_abs_ps(x), _mm512_set1_ps(0x1p-6f), _CMP_LT_OQ);
  return _mm512_mask_blend_ps(small, normal, subnormal);
}
INLINE __m512 round_x16(__m512 x, intfa_format format) {
  switch (format) {
    case INTFA_FLOAT16:
      return _mm512_cvtph_ps(_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    case INTFA_BFLOAT16: return drop_mantissa_x16(x, 16);
    case INTFA_FLOAT8: return round_float8_x16(x);
    case INTFA_FLOAT32:
    case INTFA_INT8: return x;
  }
  return x;
}
// P in a floating format, held as float32.
INLINE __m512 round_probability_x16(__m512 p, intfa_probability format) {
  switch (format) {
    case INTFA_P_FLOAT16: return round_x16(p, INTFA_FLOAT16);
    case INTFA_P_BFLOAT16: return drop_mantissa_x16(p, 16);
    case INTFA_P_FLOAT8:
      return _mm512_mul_ps(round_float8_x16(_mm512_mul_ps(p, _mm512_set1_ps(256))), _mm512_set1_ps(0x1p-8f));
    case INTFA_P_FLOAT32:
    case INTFA_P_INT8: return p;
  }
  return p;
}

// 2^x for x <= 0: a polynomial in x - floor(x), exact at 0 and 1, so without a jump at whole numbers.
// Its relative error is below 1.1e-7, and 1.1e-4 of the short one, which gives factor * 2^x.
INLINE __m512 exp2_x16(__m512 x) {
  __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF), p = _mm512_set1_ps(0.00187931865f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.0089909951f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.055818676f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.240159271f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.693151739f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, x);
}
INLINE __m512 exp2_short_x16(__m512 x, const float factor) {
  __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF), p = _mm512_set1_ps(0.0782679701f * factor);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.226307682f * factor));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.695424348f * factor));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(factor));
  return _mm512_scalef_ps(p, x);
}
