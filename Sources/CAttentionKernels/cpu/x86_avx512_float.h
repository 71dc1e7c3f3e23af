// What the float tile loops of AVX-512 share: formats, powers of two, the softmax of a row. Included
// inside their target region.
#pragma once
#include "x86_avx512vnni.h"

typedef struct {
  _Alignas(64) float p[ROWS][INTFA_MAX_TILE];  // logits, then probabilities
  float scale[ROWS], shift[ROWS], keep[ROWS];
} row_group;

// ---------------------------------------------------------------------------------- formats

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
    case INTFA_FLOAT32: return x;
    case INTFA_FLOAT16:
      return _mm512_cvtph_ps(_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    case INTFA_BFLOAT16: return drop_mantissa_x16(x, 16);
    case INTFA_FLOAT8: return round_float8_x16(x);
  }
  return x;
}
INLINE __m512 round_probability_x16(__m512 p, intfa_probability format) {
  switch (format) {
    case INTFA_P_FLOAT32: return p;
    case INTFA_P_FLOAT16: return round_x16(p, INTFA_FLOAT16);
    case INTFA_P_BFLOAT16: return drop_mantissa_x16(p, 16);
    case INTFA_P_FLOAT8:
      return _mm512_mul_ps(round_float8_x16(_mm512_mul_ps(p, _mm512_set1_ps(256))), _mm512_set1_ps(0x1p-8f));
    case INTFA_P_INT8:
      return _mm512_roundscale_ps(_mm512_fmadd_ps(p, _mm512_set1_ps(127), _mm512_set1_ps(0.5f)),
                                  _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  }
  return p;
}

// exp2_fast of sixteen exponents that are not positive.
INLINE __m512 exp2_x16(__m512 x) {
  x = _mm512_max_ps(x, _mm512_set1_ps(-126.0f));
  __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 f = _mm512_sub_ps(x, n), p = _mm512_set1_ps(1.5403530e-4f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.3333558e-3f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.6181291e-3f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.5504109e-2f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4022651e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9314718e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, n);
}

// ---------------------------------------------------------------------------------- rows

// Scales of the four rows from `row`; beyond the last row, the last one again, which is never stored.
INLINE int32_t load_row_scales(const intfa_attend_running *a, int32_t row, int32_t i, row_group *g) {
  int32_t r = row + i < a->rows ? row + i : a->rows - 1;
  g->scale[i] = a->query_scale[r];
  g->shift[i] = a->row_shift ? a->row_shift[r] : 0;
  return r;
}

// Sums of 4 rows x 64 keys to logits: times the scales, plus the bias.
INLINE void store_logits(const intfa_attend_running *a, row_group *g, __m512 acc[ROWS][4],
                         int64_t begin, int32_t offset, int64_t end) {
  UNROLL for (int j = 0; j < 4; j++) {
    const int64_t key = begin + offset + 16 * j;
    const __mmask16 exists = end - key > 0 ? lanes_of((int32_t)(end - key), 0) : 0;
    __m512 ks = _mm512_set1_ps(1), bias = _mm512_setzero_ps();
    if (a->score == INTFA_SCORE_INT8) ks = _mm512_maskz_loadu_ps(exists, a->key_scale + key);
    if (a->bias) bias = _mm512_maskz_loadu_ps(exists, a->bias + key);
    UNROLL for (int i = 0; i < ROWS; i++) {
      __m512 x = _mm512_mul_ps(_mm512_mul_ps(acc[i][j], ks), _mm512_set1_ps(g->scale[i]));
      _mm512_store_ps(g->p[i] + offset + 16 * j, _mm512_add_ps(x, bias));
    }
  }
}

// Caps logits and hides keys outside [first, last): rare, so out of the way.
static __attribute__((noinline)) void cap_and_mask(const intfa_attend_running *a, row_group *g,
                                                   int32_t i, int32_t first, int32_t last,
                                                   int32_t count) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  float *p = g->p[i];
  if (a->softcap > 0)
    for (int32_t j = first; j < last; j++) p[j] = soft_cap(p[j] + g->shift[i], a->softcap);
  for (int32_t j = 0; j < count; j += 16) {
    __m512i key = _mm512_add_epi32(lanes, _mm512_set1_epi32(j));
    __mmask16 seen = _mm512_cmpge_epi32_mask(key, _mm512_set1_epi32(first)) &
                     _mm512_cmplt_epi32_mask(key, _mm512_set1_epi32(last));
    __m512 none = _mm512_set1_ps(-__builtin_inff());
    _mm512_store_ps(p + j, _mm512_mask_blend_ps(seen, none, _mm512_load_ps(p + j)));
  }
}

// Logits of row i to probabilities relative to 2^top, and their sum. `format` is known to the compiler,
// so that sixty-four exponentials run side by side without a branch.
INLINE float probabilities(const intfa_probability format, row_group *g, int32_t i, float top,
                           int32_t count) {
  float *p = g->p[i];
  __m512 sum[4], reference = _mm512_set1_ps(top);
  UNROLL for (int32_t k = 0; k < 4; k++) sum[k] = _mm512_setzero_ps();
  KEEP_LOOP for (int32_t j = 0; j < count; j += KEYS)
    UNROLL for (int32_t k = 0; k < 4; k++) {
      __m512 x = _mm512_sub_ps(_mm512_load_ps(p + j + 16 * k), reference);
      // 2^-126 is where the polynomial ends; what was hidden is below and has to vanish.
      __mmask16 seen = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-126.0f), _CMP_GE_OQ);
      __m512 exact = _mm512_maskz_mov_ps(seen, exp2_x16(x));
      sum[k] = _mm512_add_ps(sum[k], exact);
      _mm512_store_ps(p + j + 16 * k, round_probability_x16(exact, format));
    }
  return sum_of_lanes(_mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3])));
}

// The softmax of the four rows from `row` over the tile [begin, end); rows that see none of it get
// probabilities 0 and keep what they have.
INLINE void softmax_rows(const intfa_probability format, const intfa_attend_running *a, row_group *g,
                         int32_t row, int64_t begin, int64_t end, int32_t count) {
  __m512 largest[ROWS];
  UNROLL for (int32_t i = 0; i < ROWS; i++) {
    key_range seen = visible_keys(&a->visible, row + i, begin, end);
    int32_t first = (int32_t)(seen.begin - begin), last = (int32_t)(seen.end - begin);
    if (first > 0 || last < count || a->softcap > 0) cap_and_mask(a, g, i, first, last, count);
    largest[i] = _mm512_set1_ps(-__builtin_inff());
    for (int32_t j = 0; j < count; j += 16)
      largest[i] = _mm512_max_ps(largest[i], _mm512_load_ps(g->p[i] + j));
  }
  _Alignas(16) float tops[ROWS], sums[ROWS];
  __m128 before = _mm_loadu_ps(a->reference + row), total = _mm_loadu_ps(a->total + row);
  __m128 top = _mm_max_ps(four_maxima(largest), before);
  __m128 keep = exp2_x4(_mm_sub_ps(before, top));
  _mm_store_ps(tops, top);
  UNROLL for (int32_t i = 0; i < ROWS; i++) sums[i] = probabilities(format, g, i, tops[i], count);
  _mm_storeu_ps(g->keep, keep);
  _mm_storeu_ps(a->reference + row, top);
  _mm_storeu_ps(a->total + row, _mm_add_ps(_mm_mul_ps(total, keep), _mm_load_ps(sums)));
}

// out = keep * out + acc for 64 channels of `rows` rows.
INLINE void store_values(const intfa_attend_running *a, const row_group *g, __m512 acc[ROWS][4],
                         int32_t row, int32_t rows, int32_t c) {
  UNROLL for (int i = 0; i < ROWS; i++) {
    if (i >= rows) break;
    __m512 keep = _mm512_set1_ps(g->keep[i]);
    float *out = a->out + (row + i) * a->out_stride + c;
    UNROLL for (int j = 0; j < 4; j++)
      _mm512_store_ps(out + 16 * j, _mm512_fmadd_ps(_mm512_load_ps(out + 16 * j), keep, acc[i][j]));
  }
}
