// Float tile loop with 256-bit fused multiply-add: P against the running row maximum.
//
// Serves every recipe of attend_running. Operands are rounded to their format and packed as float32, so
// products of 16-bit formats are exact; INT8 codes are small integers, whose sums stay below
// 256 * 127 * 127 = 4.2e6 < 2^24 and so are exact too.
//
// Registers: 12 sums (6 rows x 16 keys or channels), 2 keys or values, 1 broadcast: 8 loads for 12
// vfmadd231ps, which two load ports and two multiply ports sustain.
// Packed keys: per 16 tokens [D][16]. Packed values: per 64 tokens [Dv / 16][64][16], zeros where
// there are no tokens or channels.
// Error against the portable kernel: the order of float32 sums and fused polynomials, about 1e-6 of
// the result.
#if defined(__x86_64__)
#include "kernels.h"

#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#include "x86_avx2_rows.h"

// What six rows need from their scores to their values.
typedef struct {
  _Alignas(32) float logit[ROWS][INTFA_MAX_TILE];  // then P
  _Alignas(32) float row_top[LANES], keep[LANES];
  int32_t row, rows;           // first row; rows that exist
  int32_t first_sub, end_sub;  // sub-tiles of the tile that some row sees
} group;

typedef struct {
  group g;
  _Alignas(32) float sink[INTFA_MAX_DIMENSION];  // output of rows that do not exist
  _Alignas(32) float query[(INTFA_MAX_ROWS + ROWS - 1) / ROWS * ROWS * INTFA_MAX_DIMENSION];
} state;  // query: [group][D][ROWS]
_Static_assert(sizeof(state) <= INTFA_SCRATCH_BYTES, "fits the scratch memory of a call");

// ---------------------------------------------------------------------------------- packing

int64_t intfa_running_key_bytes__avx2(const intfa_running_formats *formats, int64_t tokens,
                                      int32_t dimension) {
  (void)formats;
  return padded(tokens, INTFA_PACK_UNIT) * dimension * (int64_t)sizeof(float);
}
int64_t intfa_running_value_bytes__avx2(const intfa_running_formats *formats, int64_t tokens,
                                        int32_t dimension) {
  (void)formats;
  return padded(tokens, INTFA_PACK_UNIT) * padded(dimension, KEYS) * (int64_t)sizeof(float);
}

INLINE __m256 code_lanes(const int8_t *codes, int32_t left) {
  int64_t eight = 0;
  memcpy(&eight, codes, (size_t)(left < LANES ? left : LANES));
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(eight)));
}
// Channels c ... c + 7 of a token as they multiply.
INLINE __m256 operand_lanes(const intfa_pack_running *a, intfa_format format, int64_t token, int32_t c) {
  if (token >= a->end || c >= a->dimension) return _mm256_setzero_ps();
  if (format == INTFA_INT8)
    return code_lanes(a->codes + (token - a->begin) * a->dimension + c, a->dimension - c);
  __m256 x = load_lanes(&a->rows, token, c, a->dimension);
  return round_x8(_mm256_mul_ps(x, _mm256_set1_ps(a->multiplier)), format);
}

void intfa_pack_running_keys__avx2(const intfa_pack_running *a) {
  const int32_t d = a->dimension;
  for (int64_t first = a->begin; first < padded(a->end, INTFA_PACK_UNIT); first += LANES) {
    float *target = (float *)a->target + first / KEYS * KEYS * d + first % KEYS;
    for (int32_t c = 0; c < d; c += LANES) {
      __m256 rows[LANES];
      for (int32_t i = 0; i < LANES; i++) rows[i] = operand_lanes(a, a->formats.score, first + i, c);
      transpose8(rows);
      for (int32_t i = 0; i < LANES && c + i < d; i++) _mm256_store_ps(target + (c + i) * KEYS, rows[i]);
    }
  }
}

void intfa_pack_running_values__avx2(const intfa_pack_running *a) {
  const int32_t width = (int32_t)padded(a->dimension, KEYS);
  for (int64_t token = a->begin; token < padded(a->end, INTFA_PACK_UNIT); token++) {
    const int64_t unit = token / INTFA_PACK_UNIT * INTFA_PACK_UNIT;
    float *target = (float *)a->target + unit * width + (token - unit) * KEYS;
    for (int32_t c = 0; c < width; c += LANES)
      _mm256_store_ps(target + c / KEYS * KEYS * INTFA_PACK_UNIT + c % KEYS,
                      operand_lanes(a, a->formats.value, token, c));
  }
}

static void load_queries(const intfa_attend_running *a, state *s) {
  const int32_t d = a->head_dimension;
  const __m256 multiplier = _mm256_set1_ps(a->query_multiplier);
  for (int32_t row = 0; row < a->rows; row += ROWS)
    for (int32_t c = 0; c < d; c += LANES) {
      __m256 rows[LANES];
      for (int32_t i = 0; i < LANES; i++) {
        rows[i] = _mm256_setzero_ps();
        if (i >= ROWS || row + i >= a->rows) continue;
        if (a->formats.score == INTFA_INT8)
          rows[i] = code_lanes(a->query_codes + (int64_t)(row + i) * d + c, d - c);
        else
          rows[i] = round_x8(_mm256_mul_ps(load_lanes(&a->query, row + i, c, d), multiplier),
                             a->formats.score);
      }
      transpose8(rows);
      for (int32_t i = 0; i < LANES && c + i < d; i++)
        _mm256_maskstore_ps(s->query + (int64_t)row * d + (c + i) * ROWS, first_lanes(ROWS), rows[i]);
    }
}

// ---------------------------------------------------------------------------------- scores

// Logits of six rows and the sixteen keys from `key`.
INLINE void score(const intfa_attend_running *a, const float *q, int64_t key, group *g, int32_t sub) {
  const float *k = (const float *)a->key + key * a->head_dimension;
  __m256 acc[ROWS][2];
  UNROLL for (int i = 0; i < ROWS; i++) acc[i][0] = acc[i][1] = _mm256_setzero_ps();
  KEEP_LOOP for (int32_t c = 0; c < a->head_dimension; c++, k += KEYS, q += ROWS) {
    __m256 k0 = _mm256_load_ps(k), k1 = _mm256_load_ps(k + 8);
    UNROLL for (int i = 0; i < ROWS; i++) {
      __m256 x = _mm256_broadcast_ss(q + i);
      acc[i][0] = _mm256_fmadd_ps(x, k0, acc[i][0]);
      acc[i][1] = _mm256_fmadd_ps(x, k1, acc[i][1]);
    }
  }
  const bool codes = a->formats.score == INTFA_INT8;
  UNROLL for (int i = 0; i < ROWS; i++) {
    __m256 scale = _mm256_set1_ps(i < g->rows ? a->query_scale[g->row + i] : 0);
    UNROLL for (int j = 0; j < 2; j++) {
      __m256 x = acc[i][j];
      if (codes) x = _mm256_mul_ps(x, _mm256_loadu_ps(a->key_scale + key + 8 * j));
      x = _mm256_mul_ps(x, scale);
      if (a->bias) x = _mm256_add_ps(x, _mm256_loadu_ps(a->bias + key + 8 * j));
      _mm256_store_ps(g->logit[i] + sub * KEYS + 8 * j, x);
    }
  }
}

static void cap_logits(const intfa_attend_running *a, group *g) {
  for (int32_t i = 0; i < g->rows; i++) {
    const float shift = a->row_shift ? a->row_shift[g->row + i] : 0;
    for (int32_t j = g->first_sub * KEYS; j < g->end_sub * KEYS; j++)
      g->logit[i][j] = soft_cap(g->logit[i][j] + shift, a->softcap);
  }
}

// Logits of keys that a row does not see become -inf.
static void mask_logits(const intfa_attend_running *a, group *g, int64_t begin, int64_t end) {
  const __m256 none = _mm256_set1_ps(-__builtin_inff());
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  for (int32_t i = 0; i < ROWS; i++) {
    key_range seen = visible_keys(&a->visible, g->row + i, begin, end);
    __m256i first = _mm256_set1_epi32((int32_t)(seen.begin - begin));
    __m256i last = _mm256_set1_epi32((int32_t)(seen.end > begin ? seen.end - begin : 0));
    for (int32_t j = g->first_sub * KEYS; j < g->end_sub * KEYS; j += LANES) {
      __m256i key = _mm256_add_epi32(lanes, _mm256_set1_epi32(j));
      __m256i visible = _mm256_andnot_si256(_mm256_cmpgt_epi32(first, key), _mm256_cmpgt_epi32(last, key));
      __m256 x = _mm256_blendv_ps(none, _mm256_load_ps(g->logit[i] + j), _mm256_castsi256_ps(visible));
      _mm256_store_ps(g->logit[i] + j, x);
    }
  }
}

// ---------------------------------------------------------------------------------- softmax

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
  return _mm256_and_ps(_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent)), seen);
}

INLINE __m256 round_probability(__m256 p, const intfa_probability format) {
  switch (format) {
    case INTFA_P_FLOAT32: return p;
    case INTFA_P_FLOAT16: return round_float16_x8(p);
    case INTFA_P_BFLOAT16: return drop_mantissa_x8(p, 16);
    // 256 p uses the upper part of the format's range; the power of two cancels exactly.
    case INTFA_P_FLOAT8:
      return _mm256_mul_ps(round_float8_x8(_mm256_mul_ps(p, _mm256_set1_ps(256))), _mm256_set1_ps(0x1p-8f));
    case INTFA_P_INT8: {
      __m256 levels = _mm256_add_ps(_mm256_mul_ps(p, _mm256_set1_ps(127)), _mm256_set1_ps(0.5f));
      return _mm256_round_ps(levels, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
    }
  }
  return p;
}

// Logits become P against the running maximum, which moves; totals follow.
INLINE void softmax(const intfa_probability format, const intfa_attend_running *a, group *g) {
  _Alignas(32) float reference[LANES] = {0}, sums[LANES] = {0};
  const int32_t first = g->first_sub * KEYS, end = g->end_sub * KEYS;
  __m256 tops[ROWS];
  for (int32_t i = 0; i < ROWS; i++) {
    tops[i] = _mm256_set1_ps(-1e30f);
    for (int32_t j = first; j < end; j += LANES)
      tops[i] = _mm256_max_ps(tops[i], _mm256_load_ps(g->logit[i] + j));
  }
  memcpy(reference, a->reference + g->row, sizeof(float) * (size_t)g->rows);
  __m256 before = _mm256_load_ps(reference), top = six_maxima(tops);
  if (has_whole_reference(format)) top = _mm256_ceil_ps(top);
  top = _mm256_max_ps(before, top);
  _mm256_store_ps(g->row_top, top);
  _mm256_store_ps(g->keep, exp2_x8(_mm256_sub_ps(before, top)));
  for (int32_t i = 0; i < g->rows; i++) {
    __m256 row_top = _mm256_broadcast_ss(g->row_top + i), sum[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    KEEP_LOOP for (int32_t j = first; j < end; j += KEYS) UNROLL for (int half = 0; half < 2; half++) {
      float *logit = g->logit[i] + j + 8 * half;
      __m256 p = power(_mm256_sub_ps(_mm256_load_ps(logit), row_top));
      sum[half] = _mm256_add_ps(sum[half], p);
      _mm256_store_ps(logit, round_probability(p, format));
    }
    sums[i] = sum_of_lanes(sum[0], sum[1]);
    a->reference[g->row + i] = g->row_top[i];
    a->total[g->row + i] = a->total[g->row + i] * g->keep[i] + sums[i];
  }
}

// ---------------------------------------------------------------------------------- values

// out = keep * out + p x values of sixteen channels; `value` is the column at the tile's first token.
INLINE void value_column(const group *g, const float *value, int64_t block, float *const out[ROWS]) {
  __m256 acc[ROWS][2];
  UNROLL for (int i = 0; i < ROWS; i++) acc[i][0] = acc[i][1] = _mm256_setzero_ps();
  KEEP_LOOP for (int32_t sub = g->first_sub; sub < g->end_sub; sub++) {
    const float *v = value + sub / BLOCK * block + sub % BLOCK * KEYS * KEYS;
    const float *p = g->logit[0] + sub * KEYS;
    KEEP_LOOP for (int32_t j = 0; j < KEYS; j++, v += KEYS, p++) {
      __m256 v0 = _mm256_load_ps(v), v1 = _mm256_load_ps(v + 8);
      UNROLL for (int i = 0; i < ROWS; i++) {
        __m256 x = _mm256_broadcast_ss(p + i * INTFA_MAX_TILE);
        acc[i][0] = _mm256_fmadd_ps(x, v0, acc[i][0]);
        acc[i][1] = _mm256_fmadd_ps(x, v1, acc[i][1]);
      }
    }
  }
  UNROLL for (int i = 0; i < ROWS; i++) {
    __m256 keep = _mm256_broadcast_ss(g->keep + i);
    UNROLL for (int j = 0; j < 2; j++)
      _mm256_storeu_ps(out[i] + 8 * j, _mm256_fmadd_ps(_mm256_loadu_ps(out[i] + 8 * j), keep, acc[i][j]));
  }
}

INLINE void add_values(const intfa_attend_running *a, state *s, int64_t begin) {
  const int32_t width = (int32_t)padded(a->value_dimension, KEYS);
  const int64_t block = (int64_t)width * INTFA_PACK_UNIT;
  const float *value = (const float *)a->value + begin * width;
  float *out[ROWS];
  for (int32_t i = 0; i < ROWS; i++)
    out[i] = i < s->g.rows ? a->out + (s->g.row + i) * a->out_stride : s->sink;
  KEEP_LOOP for (int32_t c = 0; c < width; c += KEYS, value += KEYS * INTFA_PACK_UNIT) {
    value_column(&s->g, value, block, out);
    UNROLL for (int i = 0; i < ROWS; i++) out[i] += KEYS;
  }
}

// ---------------------------------------------------------------------------------- the loop

INLINE void attend(const intfa_probability format, const intfa_attend_running *a) {
  state *s = a->scratch;
  group *g = &s->g;
  memset(g, 0, sizeof *g);
  load_queries(a, s);
  for (int64_t begin = a->key_begin, end; begin < a->key_end; begin = end) {
    end = tile_end(begin, a->key_end, a->first_tile, a->tile);
    for (g->row = 0; g->row < a->rows; g->row += ROWS) {
      g->rows = a->rows - g->row < ROWS ? a->rows - g->row : ROWS;
      const key_range first = visible_keys(&a->visible, g->row, begin, end);
      const key_range last = visible_keys(&a->visible, g->row + g->rows - 1, begin, end);
      if (first.begin >= last.end) continue;
      g->first_sub = (int32_t)(first.begin - begin) / KEYS;
      g->end_sub = (int32_t)(last.end - begin + KEYS - 1) / KEYS;
      const float *query = s->query + (int64_t)g->row * a->head_dimension;
      KEEP_LOOP for (int32_t sub = g->first_sub; sub < g->end_sub; sub++)
        score(a, query, begin + sub * KEYS, g, sub);
      if (a->softcap > 0) cap_logits(a, g);
      if (last.begin > begin + g->first_sub * KEYS || first.end < begin + g->end_sub * KEYS)
        mask_logits(a, g, begin, end);
      softmax(format, a, g);
      add_values(a, s, begin);
    }
  }
}

// One copy per format of P.
void intfa_attend_running__avx2(const intfa_attend_running *a) {
  switch (a->formats.probability) {
    case INTFA_P_FLOAT32: attend(INTFA_P_FLOAT32, a); return;
    case INTFA_P_FLOAT16: attend(INTFA_P_FLOAT16, a); return;
    case INTFA_P_BFLOAT16: attend(INTFA_P_BFLOAT16, a); return;
    case INTFA_P_FLOAT8: attend(INTFA_P_FLOAT8, a); return;
    case INTFA_P_INT8: attend(INTFA_P_INT8, a); return;
  }
}
#pragma clang attribute pop
#endif
