// What both loops over integer tiles share, for blocks of rows and for few of them: four rows from
// integer sums to probabilities and gains. Included inside the target region of 512-bit kernels.
#pragma once
#include "key_mask.h"
#include "online_softmax.h"
#include "x86_avx512vnni.h"

// What four rows need from their scores to their values.
typedef struct {
  _Alignas(64) int32_t product[SUBS][ROWS][KEYS];
  _Alignas(64) float logit[SUBS][ROWS][KEYS];
  _Alignas(64) float top_lanes[SUBS][ROWS][16];  // row maxima, lane by lane
  _Alignas(64) uint8_t p[SUBS][ROWS][KEYS];      // in the order of p_offset
  _Alignas(64) uint8_t rest[SUBS][ROWS][KEYS];   // only where the extent has rests
  _Alignas(64) int32_t sum[ROWS][16];            // partial sums of p * n
  _Alignas(16) float top[ROWS], gain[ROWS], rest_gain[ROWS];
} group;

// Everything that a call keeps in its scratch memory.
typedef struct {
  group groups[2];
  _Alignas(64) uint16_t power[64];
  // Of the tile: scales, biases, and n_j in the order of p, or zeros where they are real.
  _Alignas(64) float key_scale[INTFA_MAX_TILE], bias[INTFA_MAX_TILE];
  _Alignas(64) int8_t weight[INTFA_MAX_TILE];
  _Alignas(64) int32_t start[INTFA_MAX_ROWS];
  _Alignas(64) float scale[INTFA_MAX_ROWS], shift[INTFA_MAX_ROWS];
  const int8_t *query;  // [rows][stride]: the caller's, or the next where D is no multiple of four
  _Alignas(64) int8_t padded_query[INTFA_MAX_ROWS * INTFA_MAX_DIMENSION];
  // Codes of a tile that is stored in four bits.
  _Alignas(64) uint8_t key[SUBS][KEYS * INTFA_MAX_DIMENSION];
  _Alignas(64) int8_t value[SUBS][KEYS * INTFA_MAX_DIMENSION];
} state;
_Static_assert(sizeof(state) <= INTFA_SCRATCH_BYTES, "fits the scratch memory");

// One tile of keys and values.
typedef struct {
  int64_t begin, end;
  int32_t stride, width;  // channels of a packed query row and key; of a packed value row
  // Per sub-tile: INT8 codes, and where arrays over keys hold it.
  const uint8_t *key[SUBS];
  const int8_t *value[SUBS];
  int64_t place[SUBS];
  // Stored sub-tiles of the next tile, fetched into the second-level cache piece by piece.
  int32_t next_subs;
  const char *next_key[SUBS], *next_value[SUBS];
  int32_t key_unit, value_unit;  // bytes of a stored sub-tile
  int32_t key_piece, value_piece;  // bytes of it that are fetched beside one group
} tile_operands;

// What the four rows of a group see of a tile.
typedef struct {
  int32_t subs, fours;  // sub-tiles and fours of keys up to the last one that any row sees
  bool is_whole;        // every row sees every key of these sub-tiles
  bool has_rests;       // P of some row has a rest
} extent;

// ---------------------------------------------------------------------------------- exponentials

// p = round(255 * 2^((logit - top) / 64)) for 64 keys of one row, in three parts that the scores
// interleave with their multiplies. A logit of -inf converts to INT_MIN, narrows to -32768 and shifts
// the table's value out.
INLINE __m512i exponent_steps(const float *logit, __m512 top) {
  __m512i low = _mm512_cvtps_epi32(_mm512_sub_ps(top, _mm512_load_ps(logit)));
  __m512i high = _mm512_cvtps_epi32(_mm512_sub_ps(top, _mm512_load_ps(logit + 16)));
  return _mm512_packs_epi32(low, high);
}
INLINE __m512i power_of_two(const uint16_t *table, __m512i steps) {
  __m512i mantissa = _mm512_permutex2var_epi16(_mm512_load_si512(table), steps,
                                               _mm512_load_si512(table + 32));
  return _mm512_srlv_epi16(mantissa, _mm512_srli_epi16(steps, 6));
}
INLINE void store_weights(__m512i first, __m512i second, const int8_t *n, uint8_t *p, int32_t *sum) {
  const __m512i half = _mm512_set1_epi16(128);
  first = _mm512_srli_epi16(_mm512_add_epi16(first, half), 8);
  second = _mm512_srli_epi16(_mm512_add_epi16(second, half), 8);
  __m512i bytes = _mm512_packus_epi16(first, second);
  _mm512_store_si512(p, bytes);
  _mm512_store_si512(sum, _mm512_dpbusd_epi32(_mm512_load_si512(sum), bytes, _mm512_load_si512(n)));
}
// A quarter of the exponentials of 64 keys of one row.
INLINE void exponential_unit(group *g, int32_t sub, int32_t row, int quarter, const state *s,
                             __m512i *first, __m512i *second) {
  const float *logit = g->logit[sub][row];
  const __m512 top = _mm512_set1_ps(g->top[row]);
  switch (quarter) {
    case 0: *first = exponent_steps(logit, top); break;
    case 1: *second = exponent_steps(logit + 32, top); break;
    case 2: *first = power_of_two(s->power, *first), *second = power_of_two(s->power, *second); break;
    default: store_weights(*first, *second, s->weight + sub * KEYS, g->p[sub][row], g->sum[row]);
  }
}
INLINE void exponentials(group *g, int32_t sub, int32_t rows, const state *s) {
  __m512i first, second;
  KEEP_LOOP for (int32_t row = 0; row < rows; row++)
    UNROLL for (int quarter = 0; quarter < 4; quarter++)
      exponential_unit(g, sub, row, quarter, s, &first, &second);
}

// Rests of the rows that have one, and their P without rounding; zeros for the others. Sums of p * n
// are taken anew, in 1/256.
static __attribute__((noinline)) void add_rests(const intfa_attend_tiles *a, const state *s, group *g,
                                                int32_t row, int32_t rows, const tile_operands *t,
                                                int32_t subs) {
  const __m512i byte = _mm512_set1_epi16(255);
  for (int32_t i = 0; i < rows; i++) {
    const bool has_rest = rests_in(a, row + i, row + i, t->begin);
    const __m512 top = _mm512_set1_ps(g->top[i]);
    __m512i sum = _mm512_setzero_si512(), rest_sum = _mm512_setzero_si512();
    g->rest_gain[i] = g->gain[i] * REST_UNIT;
    for (int32_t sub = 0; sub < subs; sub++) {
      const __m512i n = _mm512_load_si512(s->weight + sub * KEYS);
      __m512i rest = _mm512_setzero_si512();
      if (has_rest) {
        const float *logit = g->logit[sub][i];
        const __m512i first = power_of_two(s->power, exponent_steps(logit, top));
        const __m512i second = power_of_two(s->power, exponent_steps(logit + 32, top));
        _mm512_store_si512(g->p[sub][i], _mm512_packus_epi16(_mm512_srli_epi16(first, 8),
                                                             _mm512_srli_epi16(second, 8)));
        rest = _mm512_packus_epi16(_mm512_and_si512(first, byte), _mm512_and_si512(second, byte));
      }
      _mm512_store_si512(g->rest[sub][i], rest);
      sum = _mm512_dpbusd_epi32(sum, _mm512_load_si512(g->p[sub][i]), n);
      rest_sum = _mm512_dpbusd_epi32(rest_sum, rest, n);
    }
    _mm512_store_si512(g->sum[i], _mm512_add_epi32(_mm512_slli_epi32(sum, 8), rest_sum));
  }
}

// ---------------------------------------------------------------------------------- logits

// Logits of a quarter of 64 keys of one row, and the maximum over the quarters so far.
INLINE void logit_unit(const state *s, group *g, int32_t sub, int32_t row, int quarter,
                       const float *query_scale, __m512 *top) {
  const int32_t key = sub * KEYS + 16 * quarter;
  __m512 x = _mm512_cvtepi32_ps(_mm512_load_si512(g->product[sub][row] + 16 * quarter));
  x = _mm512_mul_ps(x, _mm512_load_ps(s->key_scale + key));
  x = _mm512_mul_ps(x, _mm512_set1_ps(query_scale[row]));
  x = _mm512_add_ps(x, _mm512_load_ps(s->bias + key));
  _mm512_store_ps(g->logit[sub][row] + 16 * quarter, x);
  *top = quarter == 0 ? x : _mm512_max_ps(*top, x);
  if (quarter == 3) _mm512_store_ps(g->top_lanes[sub][row], *top);
}
INLINE void logits(const state *s, group *g, int32_t sub, int32_t rows, const float *query_scale) {
  __m512 top;
  KEEP_LOOP for (int32_t row = 0; row < rows; row++)
    UNROLL for (int quarter = 0; quarter < 4; quarter++)
      logit_unit(s, g, sub, row, quarter, query_scale, &top);
}

// ---------------------------------------------------------------------------------- masks and caps

// Logits of keys that a row does not see become -inf; then the row maxima are taken anew.
static __attribute__((noinline)) void mask_logits(const intfa_attend_tiles *a, group *g, int32_t row,
                                                  const tile_operands *t, int32_t subs) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int32_t i = 0; i < ROWS; i++) {
    key_range seen = visible_keys(&a->visible, row + i, t->begin, t->end);
    const int32_t first = (int32_t)(seen.begin - t->begin);
    const int32_t last = seen.end > t->begin ? (int32_t)(seen.end - t->begin) : 0;
    for (int32_t sub = 0; sub < subs; sub++) {
      if (first <= sub * KEYS && last >= (sub + 1) * KEYS) continue;
      __m512 top = _mm512_set1_ps(-1e30f);
      for (int32_t j = 0; j < KEYS; j += 16) {
        float *logit = g->logit[sub][i] + j;
        __m512i key = _mm512_add_epi32(lanes, _mm512_set1_epi32(sub * KEYS + j));
        __mmask16 visible = _mm512_cmpge_epi32_mask(key, _mm512_set1_epi32(first)) &
                            _mm512_cmplt_epi32_mask(key, _mm512_set1_epi32(last));
        __m512 x = _mm512_mask_blend_ps(visible, _mm512_set1_ps(-__builtin_inff()),
                                        _mm512_load_ps(logit));
        _mm512_store_ps(logit, x);
        top = _mm512_max_ps(top, x);
      }
      _mm512_store_ps(g->top_lanes[sub][i], top);
    }
  }
}

static __attribute__((noinline)) void cap_logits(const intfa_attend_tiles *a, const state *s, group *g,
                                                 int32_t row, const tile_operands *t, int32_t subs) {
  for (int32_t sub = 0; sub < subs; sub++)
    for (int32_t i = 0; i < ROWS; i++) {
      float *logit = g->logit[sub][i];
      for (int32_t j = 0; j < KEYS; j++)
        logit[j] = soft_cap(logit[j] + s->shift[row + i], a->softcap) + a->fold[t->place[sub] + j];
      __m512 top = _mm512_load_ps(logit);
      for (int32_t j = 16; j < KEYS; j += 16) top = _mm512_max_ps(top, _mm512_load_ps(logit + j));
      _mm512_store_ps(g->top_lanes[sub][i], top);
    }
}

// Logits of the keys of the tile with what the mask adds to them, and their row maxima.
static __attribute__((noinline)) void add_mask(const intfa_attend_tiles *a, group *g, int32_t row,
                                               const tile_operands *t, int32_t subs) {
  for (int32_t i = 0; i < ROWS && row + i < a->rows; i++)
    for (int32_t sub = 0; sub < subs; sub++) {
      const int64_t first = t->begin + sub * KEYS;
      const int32_t count = (int32_t)(t->end - first < KEYS ? t->end - first : KEYS);
      float *logit = g->logit[sub][i];
      mask_row(a->mask, row + i, first, count, logit);
      __m512 top = _mm512_load_ps(logit);
      for (int32_t j = 16; j < KEYS; j += 16) top = _mm512_max_ps(top, _mm512_load_ps(logit + j));
      _mm512_store_ps(g->top_lanes[sub][i], top);
    }
}

// ---------------------------------------------------------------------------------- row sums, gains

// 255 * 2^(-i / 64), rounded to float32, for i = steps mod 64: two tables of 32 and bit 5.
INLINE __m512 real_power_of_two(__m512i steps) {
  const float *t = real_power_table;
  const __m512 low = _mm512_permutex2var_ps(_mm512_loadu_ps(t), steps, _mm512_loadu_ps(t + 16));
  const __m512 high = _mm512_permutex2var_ps(_mm512_loadu_ps(t + 32), steps, _mm512_loadu_ps(t + 48));
  const __mmask16 upper = _mm512_test_epi32_mask(steps, _mm512_set1_epi32(32));
  const __m512i exponent = _mm512_sub_epi32(_mm512_set1_epi32(127), _mm512_srli_epi32(steps, 6));
  return _mm512_mul_ps(_mm512_mask_blend_ps(upper, low, high),
                       _mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23)));
}

// Sums of p * n with real n, in lanes of key mod 16 as the portable kernel has them: P as it was
// rounded, or before. The weights of hidden keys are 0, and their n may be anything.
static __attribute__((noinline)) __m128 real_row_sums(const intfa_attend_tiles *a, const group *g,
                                                      const tile_operands *t, extent seen) {
  _Alignas(16) float sums[ROWS];
  const __m512 none = _mm512_set1_ps(-__builtin_inff());
  for (int32_t i = 0; i < ROWS; i++) {
    __m512 lanes = _mm512_setzero_ps();
    const __m512 top = _mm512_set1_ps(g->top[i]);
    for (int32_t sub = 0; sub < seen.subs; sub++) {
      _Alignas(64) uint8_t codes[KEYS], rests[KEYS];
      _mm512_store_si512(codes, _mm512_permutexvar_epi32(dword_order(), _mm512_load_si512(g->p[sub][i])));
      if (seen.has_rests)
        _mm512_store_si512(rests,
                           _mm512_permutexvar_epi32(dword_order(), _mm512_load_si512(g->rest[sub][i])));
      UNROLL for (int32_t j = 0; j < 4; j++) {
        const __m512 logit = _mm512_load_ps(g->logit[sub][i] + 16 * j);
        const __mmask16 is_seen = _mm512_cmp_ps_mask(logit, none, _CMP_NEQ_OQ);
        __m512 p = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_load_si128((__m128i *)codes + j)));
        if (seen.has_rests) {
          const __m512i rest = _mm512_cvtepu8_epi32(_mm_load_si128((__m128i *)rests + j));
          p = _mm512_add_ps(p, _mm512_mul_ps(_mm512_cvtepi32_ps(rest), _mm512_set1_ps(REST_UNIT)));
        }
        if (!a->sums_codes)
          p = real_power_of_two(_mm512_cvtps_epi32(
              _mm512_min_ps(_mm512_sub_ps(top, logit), _mm512_set1_ps(2047.0f))));
        const __m512 n = _mm512_maskz_loadu_ps(is_seen, a->real_weight + t->place[sub] + 16 * j);
        lanes = _mm512_mask_add_ps(lanes, is_seen, lanes, _mm512_mul_ps(p, n));
      }
    }
    sums[i] = sum_of_lanes(lanes);
  }
  return _mm_load_ps(sums);
}

static __attribute__((noinline)) void rescale(const intfa_attend_tiles *a, int32_t row,
                                              const float *factor) {
  for (int32_t i = 0; i < ROWS; i++) {
    __m512 f = _mm512_set1_ps(factor[i]);
    float *out = a->out + (row + i) * a->out_stride;
    a->total[row + i] *= factor[i];
    for (int64_t c = 0; c < a->out_stride; c += 16)
      _mm512_storeu_ps(out + c, _mm512_mul_ps(_mm512_loadu_ps(out + c), f));
  }
}

// tile_gain of four rows.
INLINE void choose_gain(const intfa_attend_tiles *a, group *g, int32_t row, int32_t subs) {
  __m512 tops[ROWS];
  UNROLL for (int i = 0; i < ROWS; i++) {
    tops[i] = _mm512_load_ps(g->top_lanes[0][i]);
    if (subs == 2) tops[i] = _mm512_max_ps(tops[i], _mm512_load_ps(g->top_lanes[1][i]));
  }
  __m128 top = _mm_max_ps(four_maxima(tops), _mm_set1_ps(-1e30f));
  __m128 reference = _mm_loadu_ps(a->reference + row), excess = _mm_sub_ps(top, reference);
  _mm_store_ps(g->top, top);
  __mmask8 jump = _mm_cmp_ps_mask(excess, _mm_set1_ps(REFERENCE_SLACK), _CMP_GT_OQ);
  __m128 steps = _mm_max_ps(excess, _mm_set1_ps(SMALLEST_GAIN));
  __m128 gain = exp2_x4(_mm_mul_ps(steps, _mm_set1_ps(1.0f / STEPS)));
  if (__builtin_expect(jump != 0, 0)) {
    _Alignas(16) float factor[ROWS];
    __m128 down = exp2_x4(_mm_mul_ps(_mm_sub_ps(_mm_setzero_ps(), excess), _mm_set1_ps(1.0f / STEPS)));
    _mm_store_ps(factor, _mm_mask_blend_ps(jump, _mm_set1_ps(1.0f), down));
    rescale(a, row, factor);
    _mm_storeu_ps(a->reference + row, _mm_mask_blend_ps(jump, reference, top));
    gain = _mm_mask_blend_ps(jump, gain, _mm_set1_ps(1.0f));
  }
  _mm_store_ps(g->gain, gain);
}

// total += gain * sum for the four rows of a group.
INLINE void add_totals(const intfa_attend_tiles *a, group *g, int32_t row, const tile_operands *t,
                       extent seen) {
  __m128 sum, gain = _mm_load_ps(g->gain);
  if (a->weight) {
    __m512i sums[ROWS];
    UNROLL for (int i = 0; i < ROWS; i++) {
      sums[i] = _mm512_load_si512(g->sum[i]);
      _mm512_store_si512(g->sum[i], _mm512_setzero_si512());
    }
    sum = _mm_cvtepi32_ps(four_sums(sums));
    if (seen.has_rests) gain = _mm_load_ps(g->rest_gain);
  } else {
    sum = real_row_sums(a, g, t, seen);
  }
  __m128 total = _mm_loadu_ps(a->total + row);
  _mm_storeu_ps(a->total + row, _mm_add_ps(total, _mm_mul_ps(gain, sum)));
}

// ---------------------------------------------------------------------------------- tiles

static inline extent extent_of(const intfa_attend_tiles *a, const tile_operands *t, int32_t row) {
  const int32_t last_row = row + ROWS < a->rows ? row + ROWS - 1 : a->rows - 1;
  const key_range first = visible_keys(&a->visible, row, t->begin, t->end);
  const key_range last = visible_keys(&a->visible, last_row, t->begin, t->end);
  if (first.begin >= last.end) return (extent){0};
  if (a->mask && !mask_shows(a->mask, row, last_row + 1, first.begin, last.end)) return (extent){0};
  const int32_t keys = (int32_t)(last.end - t->begin), subs = (keys + KEYS - 1) / KEYS;
  return (extent){subs, (keys + 3) / 4,
                  last.begin == t->begin && first.end == t->begin + subs * KEYS,
                  rests_in(a, row, last_row, t->begin)};
}

// From logits to gains: caps, masks, and the maxima of the rows.
INLINE void settle_logits(const intfa_attend_tiles *a, const state *s, group *g, int32_t row,
                          const tile_operands *t, extent seen) {
  if (a->softcap > 0) cap_logits(a, s, g, row, t, seen.subs);
  if (a->mask) add_mask(a, g, row, t, seen.subs);
  if (!seen.is_whole) mask_logits(a, g, row, t, seen.subs);
  choose_gain(a, g, row, seen.subs);
}

static inline tile_operands operands_of(const intfa_attend_tiles *a) {
  tile_operands t = {.stride = (int32_t)padded(a->head_dimension, 4),
                     .width = (int32_t)padded(a->value_dimension, 64)};
  t.key_unit = a->int4_key ? int4_key_unit_bytes(t.stride) : KEYS * t.stride;
  t.value_unit = a->int4_value ? int4_value_unit_bytes(t.width) : KEYS * t.width;
  return t;
}

// Where the sub-tiles of a tile and of the next one are stored.
static void find_tile(const intfa_attend_tiles *a, tile_operands *t) {
  for (int32_t sub = 0; t->begin + sub * KEYS < t->end; sub++) {
    t->place[sub] = unit_place(a->units, t->begin + sub * KEYS);
    t->key[sub] = (const uint8_t *)a->key + t->place[sub] / KEYS * t->key_unit;
    t->value[sub] = (const int8_t *)a->value + t->place[sub] / KEYS * t->value_unit;
  }
  t->next_subs = 0;
  const int64_t last = a->fetch_end > a->key_end ? a->fetch_end : a->key_end;
  for (int64_t key = t->end; key < t->end + SUBS * KEYS && key < last; key += KEYS) {
    const int64_t unit = unit_place(a->units, key) / KEYS;
    t->next_key[t->next_subs] = (const char *)a->key + unit * t->key_unit;
    t->next_value[t->next_subs++] = (const char *)a->value + unit * t->value_unit;
  }
}

// Four bits become INT8 codes in scratch memory.
static void unpack_keys(const intfa_attend_tiles *a, state *s, tile_operands *t) {
  for (int32_t sub = 0; a->int4_key && t->begin + sub * KEYS < t->end; sub++) {
    const char *ahead = sub < t->next_subs ? t->next_key[sub] : (const char *)t->key[sub];
    intfa_unpack_key_unit__avx512vnni(t->key[sub], t->stride, s->key[sub], ahead);
    t->key[sub] = s->key[sub];
  }
}
static void unpack_values(const intfa_attend_tiles *a, state *s, tile_operands *t) {
  for (int32_t sub = 0; a->int4_value && t->begin + sub * KEYS < t->end; sub++) {
    const char *ahead = sub < t->next_subs ? t->next_value[sub] : (const char *)t->value[sub];
    intfa_unpack_value_unit__avx512vnni((const uint8_t *)t->value[sub], t->width, s->value[sub], ahead);
    t->value[sub] = s->value[sub];
  }
}

// Scales, biases and weights of a tile: what every row reads stands at fixed places.
static void copy_arrays(const intfa_attend_tiles *a, state *s, const tile_operands *t) {
  for (int32_t sub = 0; t->begin + sub * KEYS < t->end; sub++) {
    memcpy(s->key_scale + sub * KEYS, a->key_scale + t->place[sub], sizeof(float) * KEYS);
    memcpy(s->bias + sub * KEYS, a->bias + t->place[sub], sizeof(float) * KEYS);
    if (a->weight)
      _mm512_store_si512(
          s->weight + sub * KEYS,
          _mm512_permutexvar_epi32(dword_order(), _mm512_loadu_si512(a->weight + t->place[sub])));
  }
}

// -128 * sum(q) of four rows.
INLINE __m128i starts(const int8_t *q, int32_t stride) {
  __m512i sums[ROWS];
  UNROLL for (int i = 0; i < ROWS; i++) {
    sums[i] = _mm512_setzero_si512();
    for (int32_t c = 0; c < stride; c += 64)
      sums[i] = _mm512_dpbusd_epi32(sums[i], _mm512_set1_epi8((char)128),
                                    _mm512_maskz_loadu_epi8(first_bytes(stride - c), q + i * stride + c));
  }
  return _mm_sub_epi32(_mm_setzero_si128(), four_sums(sums));
}

static void prepare(const intfa_attend_tiles *a, state *s, int32_t stride) {
  const int32_t d = a->head_dimension;
  s->query = a->query;
  if (stride != d) {
    s->query = s->padded_query;
    for (int32_t r = 0; r < a->rows; r++) {
      memset(s->padded_query + (r + 1) * stride - 4, 0, 4);
      memcpy(s->padded_query + r * stride, a->query + r * d, (size_t)d);
    }
  }
  memset(s->scale, 0, sizeof s->scale);
  memset(s->shift, 0, sizeof s->shift);
  memcpy(s->scale, a->query_scale, sizeof(float) * (size_t)a->rows);
  if (a->softcap > 0) memcpy(s->shift, a->row_shift, sizeof(float) * (size_t)a->rows);
  for (int32_t r = 0; r < a->rows; r += ROWS)
    _mm_store_si128((__m128i *)(s->start + r), starts(s->query + r * stride, stride));
  for (int32_t i = 0; i < 2; i++) memset(s->groups[i].sum, 0, sizeof s->groups[i].sum);
  memset(s->weight, 0, sizeof s->weight);
  memcpy(s->power, power_table, sizeof s->power);
}
