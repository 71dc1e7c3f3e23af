// bfloat16 tile loop with 512-bit vdpbf16ps: two products a lane and instruction, summed in float32.
//
// Computes the recipe whose queries, keys, values and P are all bfloat16, and leaves every other to
// x86_avx512vnni_running.c. Same tiling: 4 rows x 64 keys, 4 rows x 64 channels, 8 loads for 16
// vdpbf16ps. Pairs of channels (keys) and pairs of tokens (values) share a 32-bit lane.
// Error against the portable kernel: the order of float32 sums, and vdpbf16ps flushes denormals.
#if defined(__x86_64__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,f16c"))), \
                             apply_to = function)
#include "kernels.h"
#include "x86_avx512_float.h"

typedef struct {
  _Alignas(64) uint32_t key[INTFA_MAX_DIMENSION / 2 * INTFA_MAX_TILE];    // [channel / 2][key]
  _Alignas(64) uint32_t value[INTFA_MAX_TILE / 2 * INTFA_MAX_DIMENSION];  // [key / 2][width]
  _Alignas(64) uint32_t query[INTFA_MAX_ROWS * INTFA_MAX_DIMENSION / 2];  // [row][channel / 2]
} pair_tile;
_Static_assert(sizeof(pair_tile) <= sizeof(float) * 2 * INTFA_MAX_TILE * INTFA_MAX_DIMENSION,
               "fits intfa_scratch_bytes");

typedef struct {
  _Alignas(64) uint32_t p[ROWS][INTFA_MAX_TILE / 2];
} pair_rows;

// Channels 32 * block ... of a row as 16 pairs of bfloat16.
INLINE __m512i load_pairs(const intfa_rows *rows, int64_t row, int32_t dimension, int32_t block) {
  if (rows->format == INTFA_BFLOAT16) {
    const int32_t left = dimension - 32 * block;
    const __mmask32 mask = left >= 32 ? ~0u : (1u << left) - 1;
    return _mm512_maskz_loadu_epi16(mask, (const uint16_t *)rows->base + row * rows->stride + 32 * block);
  }
  return (__m512i)_mm512_cvtne2ps_pbh(load_chunk(rows, row, dimension, 2 * block + 1),
                                      load_chunk(rows, row, dimension, 2 * block));
}

static void load_keys(const intfa_attend_running *a, int64_t begin, int64_t end, pair_tile *tile) {
  const int32_t d = a->head_dimension, count = (int32_t)(end - begin);
  for (int32_t first = 0; first < padded(count, KEYS); first += 16)
    for (int32_t block = 0; 32 * block < d; block++) {
      __m512i rows[16];
      for (int32_t i = 0; i < 16; i++) {
        int64_t row = begin + first + i;
        rows[i] = row < end ? load_pairs(&a->key, row, d, block) : _mm512_setzero_si512();
      }
      transpose16(rows);
      for (int32_t i = 0; i < 16 && 32 * block + 2 * i < d; i++)
        _mm512_store_si512(tile->key + (16 * block + i) * INTFA_MAX_TILE + first, rows[i]);
    }
}

INLINE __m512i load_value(const intfa_attend_running *a, int64_t row, int64_t end, int32_t chunk) {
  if (row >= end || 16 * chunk >= a->value_dimension) return _mm512_setzero_si512();
  __m256i x = (__m256i)_mm512_cvtneps_pbh(load_chunk(&a->value, row, a->value_dimension, chunk));
  return _mm512_cvtepu16_epi32(x);
}

static void load_values(const intfa_attend_running *a, int64_t begin, int64_t end, int32_t width,
                        pair_tile *tile) {
  for (int64_t row = begin; row < end; row += 2)
    for (int32_t chunk = 0; 16 * chunk < width; chunk++) {
      __m512i second = _mm512_slli_epi32(load_value(a, row + 1, end, chunk), 16);
      _mm512_store_si512(tile->value + (row - begin) / 2 * width + 16 * chunk,
                         _mm512_or_si512(load_value(a, row, end, chunk), second));
    }
}

// All rows of the call, once; rows of padding are zero.
static void load_queries(const intfa_attend_running *a, int32_t stride, pair_tile *tile) {
  const intfa_rows query = {a->query, a->head_dimension, INTFA_FLOAT32};
  for (int32_t r = 0; r < padded(a->rows, ROWS); r++)
    for (int32_t block = 0; 32 * block < a->head_dimension; block++) {
      __m512i pairs = _mm512_setzero_si512();
      if (r < a->rows) pairs = load_pairs(&query, r, a->head_dimension, block);
      _mm512_store_si512(tile->query + r * stride + 16 * block, pairs);
    }
}

INLINE void score_rows(const intfa_attend_running *a, row_group *g, const uint32_t *query,
                       int32_t stride, const pair_tile *tile, int64_t begin, int32_t offset,
                       int64_t end) {
  __m512 acc[ROWS][4];
  UNROLL for (int i = 0; i < ROWS; i++)
    UNROLL for (int j = 0; j < 4; j++) acc[i][j] = _mm512_setzero_ps();
  const uint32_t *k = tile->key + offset;
  KEEP_LOOP for (int32_t c = 0; 2 * c < a->head_dimension; c++, k += INTFA_MAX_TILE) {
    __m512bh k0 = (__m512bh)_mm512_load_si512(k), k1 = (__m512bh)_mm512_load_si512(k + 16);
    __m512bh k2 = (__m512bh)_mm512_load_si512(k + 32), k3 = (__m512bh)_mm512_load_si512(k + 48);
    UNROLL for (int i = 0; i < ROWS; i++) {
      __m512bh q = (__m512bh)_mm512_set1_epi32((int32_t)query[i * stride + c]);
      acc[i][0] = _mm512_dpbf16_ps(acc[i][0], k0, q);
      acc[i][1] = _mm512_dpbf16_ps(acc[i][1], k1, q);
      acc[i][2] = _mm512_dpbf16_ps(acc[i][2], k2, q);
      acc[i][3] = _mm512_dpbf16_ps(acc[i][3], k3, q);
    }
  }
  store_logits(a, g, acc, begin, offset, end);
}

// P is bfloat16 already, held as float32.
INLINE void pack_probabilities(const row_group *g, pair_rows *pairs, int32_t count) {
  for (int32_t i = 0; i < ROWS; i++)
    for (int32_t j = 0; j < count; j += 32)
      _mm512_store_si512(pairs->p[i] + j / 2,
                         (__m512i)_mm512_cvtne2ps_pbh(_mm512_load_ps(g->p[i] + j + 16),
                                                      _mm512_load_ps(g->p[i] + j)));
}

INLINE void add_rows(const intfa_attend_running *a, const row_group *g, const pair_rows *pairs,
                     const pair_tile *tile, int32_t row, int32_t rows, int32_t width, int32_t first,
                     int32_t last) {
  KEEP_LOOP for (int32_t c = 0; c < width; c += 64) {
    __m512 acc[ROWS][4];
    UNROLL for (int i = 0; i < ROWS; i++)
      UNROLL for (int j = 0; j < 4; j++) acc[i][j] = _mm512_setzero_ps();
    KEEP_LOOP for (int32_t pair = first / 2; 2 * pair < last; pair++) {
      const uint32_t *v = tile->value + (int64_t)pair * width + c;
      __m512bh v0 = (__m512bh)_mm512_load_si512(v), v1 = (__m512bh)_mm512_load_si512(v + 16);
      __m512bh v2 = (__m512bh)_mm512_load_si512(v + 32), v3 = (__m512bh)_mm512_load_si512(v + 48);
      UNROLL for (int i = 0; i < ROWS; i++) {
        __m512bh p = (__m512bh)_mm512_set1_epi32((int32_t)pairs->p[i][pair]);
        acc[i][0] = _mm512_dpbf16_ps(acc[i][0], v0, p);
        acc[i][1] = _mm512_dpbf16_ps(acc[i][1], v1, p);
        acc[i][2] = _mm512_dpbf16_ps(acc[i][2], v2, p);
        acc[i][3] = _mm512_dpbf16_ps(acc[i][3], v3, p);
      }
    }
    store_values(a, g, acc, row, rows, c);
  }
}

static void attend_bfloat16(const intfa_attend_running *a) {
  pair_tile *tile = a->scratch;
  row_group g;
  pair_rows pairs;
  const int32_t width = (int32_t)padded(a->value_dimension, 64);
  const int32_t stride = (int32_t)padded(a->head_dimension, 32) / 2;
  load_queries(a, stride, tile);
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
      for (int32_t i = 0; i < ROWS; i++) load_row_scales(a, row, i, &g);
      for (int32_t offset = 0; offset < count; offset += KEYS)
        score_rows(a, &g, tile->query + row * stride, stride, tile, begin, offset, end);
      softmax_rows(INTFA_P_BFLOAT16, a, &g, row, begin, end, count);
      pack_probabilities(&g, &pairs, count);
      add_rows(a, &g, &pairs, tile, row, rows, width, (int32_t)(first - begin), (int32_t)(last - begin));
    }
  }
}

void intfa_attend_running__avx512bf16(const intfa_attend_running *a) {
  const bool is_bfloat16 = a->score == INTFA_SCORE_FLOAT && a->key_round == INTFA_BFLOAT16 &&
                           a->value_round == INTFA_BFLOAT16 && a->probability == INTFA_P_BFLOAT16;
  if (is_bfloat16)
    attend_bfloat16(a);
  else
    intfa_attend_running__avx512vnni(a);
}
#pragma clang attribute pop
#endif
