// Types and small functions of the 256-bit kernels. Included inside their target region.
#pragma once
#include <immintrin.h>

#include "portable.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("clang loop unroll(full)")
#define KEEP_LOOP _Pragma("clang loop unroll(disable)")

enum {
  ROWS = 6,   // query rows of a register tile
  KEYS = 16,  // its keys or channels: 6 x 16 32-bit sums fill 12 of the 16 registers
  SUBS = INTFA_MAX_TILE / KEYS,
  LANES = 8,
  BLOCK = INTFA_PACK_UNIT / KEYS  // sub-tiles that values are packed in
};

INLINE int64_t padded(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

// exp2_fast of eight exponents, operation by operation.
INLINE __m256 exp2_x8(__m256 x) {
  x = _mm256_min_ps(_mm256_max_ps(x, _mm256_set1_ps(-126.0f)), _mm256_set1_ps(126.0f));
  __m256 shifted = _mm256_add_ps(x, _mm256_set1_ps(12582912.0f));
  __m256 f = _mm256_sub_ps(x, _mm256_sub_ps(shifted, _mm256_set1_ps(12582912.0f)));
  __m256 p = _mm256_set1_ps(1.5403530e-4f);
  p = _mm256_add_ps(_mm256_mul_ps(p, f), _mm256_set1_ps(1.3333558e-3f));
  p = _mm256_add_ps(_mm256_mul_ps(p, f), _mm256_set1_ps(9.6181291e-3f));
  p = _mm256_add_ps(_mm256_mul_ps(p, f), _mm256_set1_ps(5.5504109e-2f));
  p = _mm256_add_ps(_mm256_mul_ps(p, f), _mm256_set1_ps(2.4022651e-1f));
  p = _mm256_add_ps(_mm256_mul_ps(p, f), _mm256_set1_ps(6.9314718e-1f));
  p = _mm256_add_ps(_mm256_mul_ps(p, f), _mm256_set1_ps(1.0f));
  __m256i exponent =
      _mm256_add_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(127 - 0x4B400000));
  return _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}

// The first halves, and the second halves, of two registers.
INLINE __m256 low_halves(__m256 a, __m256 b) { return _mm256_permute2f128_ps(a, b, 0x20); }
INLINE __m256 high_halves(__m256 a, __m256 b) { return _mm256_permute2f128_ps(a, b, 0x31); }

// Horizontal maxima of six registers, in the first six lanes.
INLINE __m256 maxima_of_four(__m256 a, __m256 b, __m256 c, __m256 d) {
  __m256 ab = _mm256_max_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
  __m256 cd = _mm256_max_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
  return _mm256_max_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xEE));
}
INLINE __m256 six_maxima(const __m256 x[ROWS]) {
  __m256 a = maxima_of_four(x[0], x[1], x[2], x[3]), b = maxima_of_four(x[4], x[5], x[4], x[5]);
  return _mm256_max_ps(low_halves(a, b), high_halves(a, b));
}

// Lanes of -inf where the key is not in [first, end).
INLINE __m256 masked(__m256 logits, __m256i key, __m256i first, __m256i end) {
  __m256i seen = _mm256_andnot_si256(_mm256_cmpgt_epi32(first, key), _mm256_cmpgt_epi32(end, key));
  return _mm256_blendv_ps(_mm256_set1_ps(-__builtin_inff()), logits, _mm256_castsi256_ps(seen));
}

// Sixteen partial sums added as intfa_dot adds them: halves onto each other.
INLINE float sum_of_lanes(__m256 low, __m256 high) {
  __m256 a = _mm256_add_ps(low, high);
  __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  b = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}

// 8 rows of 8 dwords -> 8 columns.
INLINE void transpose8(__m256 *r) {
  __m256 t[8];
  UNROLL for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  UNROLL for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xEE);
    r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
  }
  UNROLL for (int i = 0; i < 4; i++) {
    __m256 low = low_halves(r[i], r[i + 4]), high = high_halves(r[i], r[i + 4]);
    r[i] = low, r[i + 4] = high;
  }
}
