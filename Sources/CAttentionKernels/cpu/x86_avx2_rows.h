// Rows of a caller's tensor in 256-bit registers. Included inside the target region of AVX2, FMA, F16C.
#pragma once
#include "x86_avx2.h"

INLINE __m256i first_lanes(int32_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// Channels c ... c + 7 of a row; zeros beyond its end.
INLINE __m256 load_lanes(const intfa_rows *rows, int64_t row, int32_t c, int32_t dimension) {
  const int64_t at = row * rows->stride + c;
  const int32_t left = dimension - c;
  if (rows->format == INTFA_FLOAT32) {
    const float *x = (const float *)rows->base + at;
    return left >= LANES ? _mm256_loadu_ps(x) : _mm256_maskload_ps(x, first_lanes(left));
  }
  const uint16_t *x = (const uint16_t *)rows->base + at;
  __m128i half = _mm_setzero_si128();
  if (left >= LANES)
    half = _mm_loadu_si128((const __m128i *)x);
  else if (left > 0)
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
