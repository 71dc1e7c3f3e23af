// Float tile loop with 512-bit fused multiply-add: P against the running row maximum.
//
// Serves every recipe of attend_running. Operands are rounded to their format and kept as float32, so
// products of 16-bit formats are exact; INT8 codes are small integers, whose sums stay below 2^24 and
// so are exact too. A register tile is 4 rows x 64 keys for scores and 4 rows x 64 channels for
// values: 8 loads for 16 multiply-adds, which two load ports and two multiply ports sustain.
// Error against the portable kernel: the order of float32 sums, about 1e-6 of the result.
#if defined(__x86_64__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c"))), \
                             apply_to = function)
#include "x86_avx512vnni.h"

typedef struct {
  _Alignas(64) float key[INTFA_MAX_DIMENSION * INTFA_MAX_TILE];    // [channel][key of the tile]
  _Alignas(64) float value[INTFA_MAX_TILE * INTFA_MAX_DIMENSION];  // [key of the tile][width]
} float_tile;

typedef struct {
  _Alignas(64) float p[ROWS][INTFA_MAX_TILE];  // logits, then probabilities
  _Alignas(64) float query[ROWS][INTFA_MAX_DIMENSION];
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

// ---------------------------------------------------------------------------------- tiles

INLINE __m512 code_chunk(const int8_t *codes, int32_t dimension, int32_t chunk) {
  __m128i bytes = _mm_maskz_loadu_epi8(lanes_of(dimension, chunk), codes + 16 * chunk);
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
}

// Keys of [begin, end), transposed; keys beyond the end are zero.
static void load_keys(const intfa_attend_running *a, int64_t begin, int64_t end, float_tile *tile) {
  const int32_t d = a->head_dimension, count = (int32_t)(end - begin);
  const __m512 multiplier = _mm512_set1_ps(a->key_multiplier);
  for (int32_t first = 0; first < padded(count, KEYS); first += 16)
    for (int32_t chunk = 0; 16 * chunk < d; chunk++) {
      __m512i rows[16];
      for (int32_t i = 0; i < 16; i++) {
        __m512 x = _mm512_setzero_ps();
        int64_t row = begin + first + i;
        if (row < end && a->score == INTFA_SCORE_INT8)
          x = code_chunk(a->key_codes + row * d, d, chunk);
        else if (row < end)
          x = round_x16(_mm512_mul_ps(load_chunk(&a->key, row, d, chunk), multiplier), a->key_round);
        rows[i] = _mm512_castps_si512(x);
      }
      transpose16(rows);
      for (int32_t i = 0; i < 16 && 16 * chunk + i < d; i++)
        _mm512_store_si512(tile->key + (16 * chunk + i) * INTFA_MAX_TILE + first, rows[i]);
    }
}

static void load_values(const intfa_attend_running *a, int64_t begin, int64_t end, int32_t width,
                        float_tile *tile) {
  const int32_t d = a->value_dimension;
  const __m512 multiplier = _mm512_set1_ps(a->value_multiplier);
  for (int64_t row = begin; row < end; row++)
    for (int32_t chunk = 0; 16 * chunk < width; chunk++) {
      __m512 x = _mm512_setzero_ps();
      if (16 * chunk < d && a->probability == INTFA_P_INT8)
        x = code_chunk(a->value_codes + row * d, d, chunk);
      else if (16 * chunk < d)
        x = round_x16(_mm512_mul_ps(load_chunk(&a->value, row, d, chunk), multiplier), a->value_round);
      _mm512_store_ps(tile->value + (row - begin) * width + 16 * chunk, x);
    }
}

// ---------------------------------------------------------------------------------- four rows

static void load_queries(const intfa_attend_running *a, int32_t row, row_group *g) {
  for (int32_t i = 0; i < ROWS; i++) {
    int32_t r = row + i < a->rows ? row + i : a->rows - 1;  // the last row again, never stored
    const int64_t at = (int64_t)r * a->head_dimension;
    for (int32_t c = 0; c < a->head_dimension; c++)
      g->query[i][c] = a->score == INTFA_SCORE_INT8 ? (float)a->query_codes[at + c] : a->query[at + c];
    g->scale[i] = a->query_scale[r];
    g->shift[i] = a->row_shift ? a->row_shift[r] : 0;
  }
}

// Logits of 4 rows x 64 keys from key `offset` of the tile.
INLINE void score_rows(const intfa_attend_running *a, row_group *g, const float_tile *tile,
                       int64_t begin, int32_t offset, int64_t end) {
  __m512 acc[ROWS][4];
  UNROLL for (int i = 0; i < ROWS; i++)
    UNROLL for (int j = 0; j < 4; j++) acc[i][j] = _mm512_setzero_ps();
  const float *k = tile->key + offset;
  KEEP_LOOP for (int32_t c = 0; c < a->head_dimension; c++, k += INTFA_MAX_TILE) {
    __m512 k0 = _mm512_load_ps(k), k1 = _mm512_load_ps(k + 16);
    __m512 k2 = _mm512_load_ps(k + 32), k3 = _mm512_load_ps(k + 48);
    UNROLL for (int i = 0; i < ROWS; i++) {
      __m512 q = _mm512_set1_ps(g->query[i][c]);
      acc[i][0] = _mm512_fmadd_ps(q, k0, acc[i][0]);
      acc[i][1] = _mm512_fmadd_ps(q, k1, acc[i][1]);
      acc[i][2] = _mm512_fmadd_ps(q, k2, acc[i][2]);
      acc[i][3] = _mm512_fmadd_ps(q, k3, acc[i][3]);
    }
  }
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

// Logits to probabilities, for the row's keys [first, last) of the tile; others become 0.
INLINE void softmax_row(const intfa_attend_running *a, row_group *g, int32_t i, int32_t row,
                        int32_t first, int32_t last, int32_t count) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512 none = _mm512_set1_ps(-__builtin_inff());
  float *p = g->p[i];
  if (a->softcap > 0)
    for (int32_t j = first; j < last; j++) p[j] = soft_cap(p[j] + g->shift[i], a->softcap);
  __m512 largest = none;
  for (int32_t j = 0; j < count; j += 16) {
    __m512i key = _mm512_add_epi32(lanes, _mm512_set1_epi32(j));
    __mmask16 seen = _mm512_cmpge_epi32_mask(key, _mm512_set1_epi32(first)) &
                     _mm512_cmplt_epi32_mask(key, _mm512_set1_epi32(last));
    __m512 x = _mm512_mask_blend_ps(seen, none, _mm512_load_ps(p + j));
    _mm512_store_ps(p + j, x);
    largest = _mm512_max_ps(largest, x);
  }
  float top = _mm512_reduce_max_ps(largest), before = a->reference[row];
  top = top > before ? top : before;
  __m512 sum = _mm512_setzero_ps(), reference = _mm512_set1_ps(top);
  for (int32_t j = 0; j < count; j += 16) {
    __m512 x = _mm512_load_ps(p + j);
    __mmask16 seen = _mm512_cmp_ps_mask(x, none, _CMP_NEQ_OQ);
    __m512 exact = _mm512_maskz_mov_ps(seen, exp2_x16(_mm512_sub_ps(x, reference)));
    sum = _mm512_add_ps(sum, exact);
    _mm512_store_ps(p + j, round_probability_x16(exact, a->probability));
  }
  float keep = exp2_fast(before - top);
  g->keep[i] = keep;
  a->reference[row] = top;
  a->total[row] = a->total[row] * keep + sum_of_lanes(sum);
}

// out = keep * out + p x values, for `rows` of four.
INLINE void add_rows(const intfa_attend_running *a, const row_group *g, const float_tile *tile,
                     int32_t row, int32_t rows, int32_t width, int32_t first, int32_t last) {
  KEEP_LOOP for (int32_t c = 0; c < width; c += 64) {
    __m512 acc[ROWS][4];
    UNROLL for (int i = 0; i < ROWS; i++)
      UNROLL for (int j = 0; j < 4; j++) acc[i][j] = _mm512_setzero_ps();
    const float *v = tile->value + (int64_t)first * width + c;
    KEEP_LOOP for (int32_t j = first; j < last; j++, v += width) {
      __m512 v0 = _mm512_load_ps(v), v1 = _mm512_load_ps(v + 16);
      __m512 v2 = _mm512_load_ps(v + 32), v3 = _mm512_load_ps(v + 48);
      UNROLL for (int i = 0; i < ROWS; i++) {
        __m512 p = _mm512_set1_ps(g->p[i][j]);
        acc[i][0] = _mm512_fmadd_ps(p, v0, acc[i][0]);
        acc[i][1] = _mm512_fmadd_ps(p, v1, acc[i][1]);
        acc[i][2] = _mm512_fmadd_ps(p, v2, acc[i][2]);
        acc[i][3] = _mm512_fmadd_ps(p, v3, acc[i][3]);
      }
    }
    UNROLL for (int i = 0; i < ROWS; i++) {
      if (i >= rows) break;
      __m512 keep = _mm512_set1_ps(g->keep[i]);
      float *out = a->out + (row + i) * a->out_stride + c;
      UNROLL for (int j = 0; j < 4; j++)
        _mm512_store_ps(out + 16 * j, _mm512_fmadd_ps(_mm512_load_ps(out + 16 * j), keep, acc[i][j]));
    }
  }
}

// ---------------------------------------------------------------------------------- the loop

void intfa_attend_running__avx512vnni(const intfa_attend_running *a) {
  float_tile *tile = a->scratch;
  row_group g;
  const int32_t width = (int32_t)padded(a->value_dimension, 64);
  for (int64_t begin = a->key_begin, end; begin < a->key_end; begin = end) {
    end = tile_end(begin, a->key_end, a->first_tile, a->tile);
    load_keys(a, begin, end, tile);
    load_values(a, begin, end, width, tile);
    for (int32_t row = 0; row < a->rows; row += ROWS) {
      const int32_t rows = a->rows - row < ROWS ? a->rows - row : ROWS;
      const int64_t first = visible_keys(&a->visible, row, begin, end).begin;
      const int64_t last = visible_keys(&a->visible, row + rows - 1, begin, end).end;
      if (first >= last) continue;
      const int32_t count = (int32_t)padded(last - begin, KEYS);
      load_queries(a, row, &g);
      for (int32_t offset = 0; offset < count; offset += KEYS)
        score_rows(a, &g, tile, begin, offset, end);
      for (int32_t i = 0; i < ROWS; i++) {
        key_range seen = visible_keys(&a->visible, row + i, begin, end);
        if (i >= rows || seen.begin >= seen.end) {
          g.keep[i] = 1;
          memset(g.p[i], 0, sizeof g.p[i]);
          continue;
        }
        softmax_row(a, &g, i, row + i, (int32_t)(seen.begin - begin), (int32_t)(seen.end - begin), count);
      }
      add_rows(a, &g, tile, row, rows, width, (int32_t)(first - begin), (int32_t)(last - begin));
    }
  }
}
#pragma clang attribute pop
#endif
