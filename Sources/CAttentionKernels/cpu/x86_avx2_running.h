// Float tile loop of 6 query rows x 16 keys or channels in 256-bit registers: P against the running
// row maximum. Included inside the target region of an instruction set with FMA and F16C, after its
// units, which multiply INT8 scores.
//
// Registers: 12 sums, 2 keys or values, 1 broadcast: 8 loads for 12 vfmadd231ps, which two load
// ports and two multiply ports sustain. Operands in 16 bits are kept as float32, so their products
// are exact; so are the sums of INT8 values and P, below 128 * 127 * 127 = 2.1e6 < 2^24.
// Error against the portable kernel: the order of float32 sums and fused polynomials, about 1e-6 of
// the result.
#pragma once
#include "key_mask.h"
#include "x86_avx2_float.h"
#include "x86_avx2_scores.h"

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
  union {
    _Alignas(32) float query[GROUPS * ROWS * INTFA_MAX_DIMENSION];  // [group][D][ROWS]
    struct {
      _Alignas(32) int32_t start[GROUPS][LANES];
      int32_t units[QUERY_UNITS];  // [group][step][ROWS]
      key_buffer keys;
    };
  };
} state;
_Static_assert(sizeof(state) <= INTFA_SCRATCH_BYTES, "fits the scratch memory of a call");

// ---------------------------------------------------------------------------------- queries

static void load_codes(const intfa_attend_running *a, state *s) {
  const int32_t d = a->head_dimension;
  for (int32_t row = 0; row < a->rows; row += ROWS)
    load_query_units(a->query_codes + (int64_t)row * d, a->rows - row < ROWS ? a->rows - row : ROWS,
                     d, s->units + (int64_t)row * steps_of(d), s->start[row / ROWS]);
}

static void load_floats(const intfa_attend_running *a, state *s) {
  const int32_t d = a->head_dimension;
  const __m256 multiplier = _mm256_set1_ps(a->query_multiplier);
  for (int32_t row = 0; row < a->rows; row += ROWS)
    for (int32_t c = 0; c < d; c += LANES) {
      __m256 rows[LANES];
      for (int32_t i = 0; i < LANES; i++) {
        rows[i] = _mm256_setzero_ps();
        if (i < ROWS && row + i < a->rows)
          rows[i] = round_x8(_mm256_mul_ps(load_lanes(&a->query, row + i, c, d), multiplier),
                             a->formats.score);
      }
      transpose8(rows);
      for (int32_t i = 0; i < LANES && c + i < d; i++)
        _mm256_maskstore_ps(s->query + (int64_t)row * d + (c + i) * ROWS, first_lanes(ROWS),
                            rows[i]);
    }
}

// ---------------------------------------------------------------------------------- scores

// Products of six rows with sixteen keys.
INLINE void float_scores(const float *q, const float *k, int32_t d, __m256 acc[ROWS][2]) {
  UNROLL for (int i = 0; i < ROWS; i++) acc[i][0] = acc[i][1] = _mm256_setzero_ps();
  KEEP_LOOP for (int32_t c = 0; c < d; c++, k += KEYS, q += ROWS) {
    __m256 k0 = _mm256_load_ps(k), k1 = _mm256_load_ps(k + LANES);
    UNROLL for (int i = 0; i < ROWS; i++) {
      __m256 x = _mm256_broadcast_ss(q + i);
      acc[i][0] = _mm256_fmadd_ps(x, k0, acc[i][0]);
      acc[i][1] = _mm256_fmadd_ps(x, k1, acc[i][1]);
    }
  }
}
// Logits of sub-tile `sub` of the tile at `begin`; `codes` are its keys where they are integers.
INLINE void score(const intfa_attend_running *a, state *s, int64_t begin, const uint8_t *codes,
                  int32_t sub) {
  const int32_t d = a->head_dimension, steps = steps_of(d);
  const int64_t key = begin + sub * KEYS;
  group *g = &s->g;
  __m256 acc[ROWS][2];
  if (codes)
    code_scores(s->units + (int64_t)g->row * steps, s->start[g->row / ROWS],
                codes + (int64_t)sub * steps * STEP_BYTES, steps, acc);
  else
    float_scores(s->query + (int64_t)g->row * d, (const float *)a->key + key * d, d, acc);
  UNROLL for (int i = 0; i < ROWS; i++) {
    __m256 scale = _mm256_set1_ps(i < g->rows ? a->query_scale[g->row + i] : 0);
    UNROLL for (int j = 0; j < 2; j++) {
      __m256 x = acc[i][j];
      if (codes) x = _mm256_mul_ps(x, _mm256_loadu_ps(a->key_scale + key + LANES * j));
      x = _mm256_mul_ps(x, scale);
      if (a->bias) x = _mm256_add_ps(x, _mm256_loadu_ps(a->bias + key + LANES * j));
      _mm256_store_ps(g->logit[i] + sub * KEYS + LANES * j, x);
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

static void add_mask(const intfa_attend_running *a, group *g, int64_t begin, int64_t end) {
  const int32_t first = g->first_sub * KEYS, last = g->end_sub * KEYS;
  const int32_t stop = last < end - begin ? last : (int32_t)(end - begin);
  for (int32_t i = 0; i < g->rows; i++)
    mask_row(a->mask, g->row + i, begin + first, stop - first, g->logit[i] + first);
}

// Logits of keys that a row does not see become -inf.
static void mask_logits(const intfa_attend_running *a, group *g, int64_t begin, int64_t end) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  for (int32_t i = 0; i < ROWS; i++) {
    key_range seen = visible_keys(&a->visible, g->row + i, begin, end);
    __m256i first = _mm256_set1_epi32((int32_t)(seen.begin - begin));
    __m256i last = _mm256_set1_epi32((int32_t)(seen.end > begin ? seen.end - begin : 0));
    for (int32_t j = g->first_sub * KEYS; j < g->end_sub * KEYS; j += LANES) {
      __m256i key = _mm256_add_epi32(lanes, _mm256_set1_epi32(j));
      __m256 x = masked(_mm256_load_ps(g->logit[i] + j), key, first, last);
      _mm256_store_ps(g->logit[i] + j, x);
    }
  }
}

// ---------------------------------------------------------------------------------- softmax

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
    __m256 row_top = _mm256_broadcast_ss(g->row_top + i),
           sum[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    KEEP_LOOP for (int32_t j = first; j < end; j += KEYS) UNROLL
      for (int half = 0; half < 2; half++) {
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

// out = keep * out + p x values of sixteen channels; `value` is the column, from the tile on.
INLINE void value_column(const group *g, const float *value, int64_t block,
                         float *const out[ROWS]) {
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
      _mm256_storeu_ps(out[i] + 8 * j,
                       _mm256_fmadd_ps(_mm256_loadu_ps(out[i] + 8 * j), keep, acc[i][j]));
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
  const bool has_codes = a->formats.score == INTFA_INT8;
  if (has_codes)
    load_codes(a, s);
  else
    load_floats(a, s);
  for (int64_t begin = a->key_begin, end; begin < a->key_end; begin = end) {
    end = tile_end(begin, a->key_end, a->first_tile, a->tile);
    const uint8_t *codes = NULL;
    for (int32_t unit = 0; has_codes && begin + unit * INTFA_PACK_UNIT < end; unit++) {
      const int64_t place = begin + unit * INTFA_PACK_UNIT;
      const uint8_t *keys = load_keys(a->key, false, a->head_dimension, place, unit, &s->keys);
      if (unit == 0) codes = keys;  // the others follow
    }
    for (g->row = 0; g->row < a->rows; g->row += ROWS) {
      g->rows = a->rows - g->row < ROWS ? a->rows - g->row : ROWS;
      const key_range first = visible_keys(&a->visible, g->row, begin, end);
      const key_range last = visible_keys(&a->visible, g->row + g->rows - 1, begin, end);
      if (first.begin >= last.end) continue;
      if (a->mask && !mask_shows(a->mask, g->row, g->row + g->rows, first.begin, last.end)) continue;
      g->first_sub = (int32_t)(first.begin - begin) / KEYS;
      g->end_sub = (int32_t)(last.end - begin + KEYS - 1) / KEYS;
      KEEP_LOOP for (int32_t sub = g->first_sub; sub < g->end_sub; sub++)
        score(a, s, begin, codes, sub);
      if (a->softcap > 0) cap_logits(a, g);
      if (a->mask) add_mask(a, g, begin, end);
      if (last.begin > begin + g->first_sub * KEYS || first.end < begin + g->end_sub * KEYS)
        mask_logits(a, g, begin, end);
      softmax(format, a, g);
      add_values(a, s, begin);
    }
  }
}

// One copy per format of P.
INLINE void attend_running(const intfa_attend_running *a) {
  switch (a->formats.probability) {
    case INTFA_P_FLOAT32: attend(INTFA_P_FLOAT32, a); return;
    case INTFA_P_FLOAT16: attend(INTFA_P_FLOAT16, a); return;
    case INTFA_P_BFLOAT16: attend(INTFA_P_BFLOAT16, a); return;
    case INTFA_P_FLOAT8: attend(INTFA_P_FLOAT8, a); return;
    case INTFA_P_INT8: attend(INTFA_P_INT8, a); return;
  }
}
