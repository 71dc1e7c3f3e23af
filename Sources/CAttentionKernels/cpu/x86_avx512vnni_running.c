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
#include "x86_avx512_float.h"

typedef struct {
  _Alignas(64) float key[INTFA_MAX_DIMENSION * INTFA_MAX_TILE];    // [channel][key of the tile]
  _Alignas(64) float value[INTFA_MAX_TILE * INTFA_MAX_DIMENSION];  // [key of the tile][width]
} float_tile;

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

// Four query rows as float32: where they lie, or converted from codes.
typedef struct {
  const float *row[ROWS];
  _Alignas(64) float converted[ROWS][INTFA_MAX_DIMENSION];
} query_rows;

static void load_queries(const intfa_attend_running *a, int32_t row, row_group *g, query_rows *q) {
  const int32_t d = a->head_dimension;
  for (int32_t i = 0; i < ROWS; i++) {
    const int64_t at = (int64_t)load_row_scales(a, row, i, g) * d;
    q->row[i] = a->score == INTFA_SCORE_INT8 ? q->converted[i] : a->query + at;
    if (a->score == INTFA_SCORE_INT8)
      for (int32_t chunk = 0; 16 * chunk < d; chunk++)
        _mm512_store_ps(q->converted[i] + 16 * chunk, code_chunk(a->query_codes + at, d, chunk));
  }
}

// Logits of 4 rows x 64 keys from key `offset` of the tile.
INLINE void score_rows(const intfa_attend_running *a, row_group *g, const query_rows *queries,
                       const float_tile *tile, int64_t begin, int32_t offset, int64_t end) {
  __m512 acc[ROWS][4];
  UNROLL for (int i = 0; i < ROWS; i++)
    UNROLL for (int j = 0; j < 4; j++) acc[i][j] = _mm512_setzero_ps();
  const float *k = tile->key + offset;
  KEEP_LOOP for (int32_t c = 0; c < a->head_dimension; c++, k += INTFA_MAX_TILE) {
    __m512 k0 = _mm512_load_ps(k), k1 = _mm512_load_ps(k + 16);
    __m512 k2 = _mm512_load_ps(k + 32), k3 = _mm512_load_ps(k + 48);
    UNROLL for (int i = 0; i < ROWS; i++) {
      __m512 q = _mm512_set1_ps(queries->row[i][c]);
      acc[i][0] = _mm512_fmadd_ps(q, k0, acc[i][0]);
      acc[i][1] = _mm512_fmadd_ps(q, k1, acc[i][1]);
      acc[i][2] = _mm512_fmadd_ps(q, k2, acc[i][2]);
      acc[i][3] = _mm512_fmadd_ps(q, k3, acc[i][3]);
    }
  }
  store_logits(a, g, acc, begin, offset, end);
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
    store_values(a, g, acc, row, rows, c);
  }
}

// ---------------------------------------------------------------------------------- the loop

INLINE void attend(const intfa_probability format, const intfa_attend_running *a) {
  float_tile *tile = a->scratch;
  row_group g;
  query_rows queries;
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
      load_queries(a, row, &g, &queries);
      for (int32_t offset = 0; offset < count; offset += KEYS)
        score_rows(a, &g, &queries, tile, begin, offset, end);
      softmax_rows(format, a, &g, row, begin, end, count);
      add_rows(a, &g, tile, row, rows, width, (int32_t)(first - begin), (int32_t)(last - begin));
    }
  }
}

// One copy per format of P.
void intfa_attend_running__avx512vnni(const intfa_attend_running *a) {
  switch (a->probability) {
    case INTFA_P_FLOAT32: attend(INTFA_P_FLOAT32, a); return;
    case INTFA_P_FLOAT16: attend(INTFA_P_FLOAT16, a); return;
    case INTFA_P_BFLOAT16: attend(INTFA_P_BFLOAT16, a); return;
    case INTFA_P_FLOAT8: attend(INTFA_P_FLOAT8, a); return;
    case INTFA_P_INT8: attend(INTFA_P_INT8, a); return;
  }
}
#pragma clang attribute pop
#endif
