// Integer tile loop with 512-bit vpdpbusd (u8 x s8 -> s32): both products of attention.
//
// Loop: key tile (64 or 128 keys) > 4 query rows, a "group". The multiplies of one group carry the
// rest of the work of its neighbours in their shadow, 16 multiplies and one unit of it at a time:
//
//   scores, sub-tile 0 of group g    exponentials, sub-tile 0 of g - 1
//   scores, sub-tile 1 of group g    exponentials, sub-tile 1 of g - 1; logits, sub-tile 0 of g
//   values of group g - 1            logits, sub-tile 1 of g
//
// so integer sums go through memory once before they become logits, which costs a store and hides
// the latency of four dependent operations. The float operations are those of portable_tiles.c one
// by one (no fused multiply-add), so all bits are equal.
//
// instruction                      where it runs on Zen 5, per cycle    per 4 x 128 scores, D = 64
// vpdpbusd, vmulps                 two multiply ports, 2                1032 + 80
// vaddps vmaxps vcvt*, shifts      the other two ports, 2               250, in the shadow
// vpermt2w vpack*                  shared                               16 + 24
// loads, broadcasts; stores        2; 1                                 700; 110
//
// Registers: 16 sums (4 rows x 64 keys or channels), 4 keys or values, a broadcast; the rest for the
// work in the shadow. Keys are packed +128, so that they are the unsigned operand; a row's sums start
// at -128 * sum(q). Bounds: |sums| <= 256 * 255 * 127 = 8.3e6 while scoring, 128 * 255 * 127 = 4.2e6
// for values.
#if defined(__x86_64__)
#include "online_softmax.h"

#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c"))), \
                             apply_to = function)
#include "x86_avx512vnni.h"

// What four rows need from their scores to their values.
typedef struct {
  _Alignas(64) int32_t product[SUBS][ROWS][KEYS];
  _Alignas(64) float logit[SUBS][ROWS][KEYS];
  _Alignas(64) float top_lanes[SUBS][ROWS][16];  // row maxima, lane by lane
  _Alignas(64) uint8_t p[SUBS][ROWS][KEYS];      // in the order of p_offset
  _Alignas(64) int32_t sum[ROWS][16];            // partial sums of p * n
  _Alignas(16) float top[ROWS], gain[ROWS];
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
_Static_assert(sizeof(state) <= sizeof(float) * 2 * INTFA_MAX_TILE * INTFA_MAX_DIMENSION,
               "fits intfa_scratch_bytes");

// One tile of keys and values.
typedef struct {
  int64_t begin, end;
  int32_t stride, width;  // channels of a packed query row and key; of a packed value row
  // Per sub-tile: INT8 codes, and where arrays over keys hold it.
  const uint8_t *key[SUBS];
  const int8_t *value[SUBS];
  int64_t place[SUBS];
} tile_operands;

// Keeps the order of the multiplies and of the work between them as written, at no instruction.
#define IN_ORDER(a)                                                                                \
  __asm__ volatile("" : "+v"(a[0][0]), "+v"(a[0][1]), "+v"(a[0][2]), "+v"(a[0][3]), "+v"(a[1][0]), \
                   "+v"(a[1][1]), "+v"(a[1][2]), "+v"(a[1][3]), "+v"(a[2][0]), "+v"(a[2][1]),      \
                   "+v"(a[2][2]), "+v"(a[2][3]), "+v"(a[3][0]), "+v"(a[3][1]), "+v"(a[3][2]),      \
                   "+v"(a[3][3])::"memory")

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
INLINE void exponentials(group *g, int32_t sub, const state *s) {
  __m512i first, second;
  KEEP_LOOP for (int32_t row = 0; row < ROWS; row++)
    UNROLL for (int quarter = 0; quarter < 4; quarter++)
      exponential_unit(g, sub, row, quarter, s, &first, &second);
}

// ---------------------------------------------------------------------------------- scores

// Four channels of 4 queries x 16 * columns keys.
INLINE void score_step(const int columns, const int8_t *q, int32_t stride, const uint8_t *key,
                       __m512i acc[ROWS][4]) {
  __m512i k[4];
  UNROLL for (int j = 0; j < columns; j++) k[j] = _mm512_load_si512(key + 64 * j);
  UNROLL for (int i = 0; i < ROWS; i++) {
    int32_t four;
    memcpy(&four, q + i * stride, sizeof four);
    const __m512i qi = _mm512_set1_epi32(four);
    UNROLL for (int j = 0; j < columns; j++) acc[i][j] = _mm512_dpbusd_epi32(acc[i][j], k[j], qi);
  }
}

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
INLINE void logits(const state *s, group *g, int32_t sub, const float *query_scale) {
  __m512 top;
  KEEP_LOOP for (int32_t row = 0; row < ROWS; row++)
    UNROLL for (int quarter = 0; quarter < 4; quarter++)
      logit_unit(s, g, sub, row, quarter, query_scale, &top);
}

// Products of sub-tile `sub` of the four rows from `row` into `g`. In their shadow, where asked, the
// exponentials of the same sub-tile of `earlier` and the logits of sub-tile 0 of `g`. D is the stride
// where the compiler shall know it, else 0. No branch may stand between multiplies: the compiler
// would keep operands on the stack around it.
INLINE void score(const int32_t D, const int columns, const bool with_earlier, const bool with_logits,
                  const intfa_attend_tiles *a, const state *s, const tile_operands *t, int32_t row,
                  int32_t sub, group *g, group *earlier) {
  const int32_t stride = D ? D : t->stride;
  const int8_t *q = s->query + (int64_t)row * stride;
  const uint8_t *key = t->key[sub];
  __m512i acc[ROWS][4], first, second;
  __m512 top;
  UNROLL for (int i = 0; i < ROWS; i++)
    UNROLL for (int j = 0; j < 4; j++) acc[i][j] = _mm512_set1_epi32(s->start[row + i]);
  KEEP_LOOP for (int32_t r = 0; r < ROWS; r++)
    UNROLL for (int quarter = 0; quarter < 4; quarter++) {
      if (D) {
        UNROLL for (int step = 0; step < D / 64; step++, q += 4, key += 4 * KEYS)
          score_step(columns, q, stride, key, acc);
      } else {
        const int8_t *last = s->query + (int64_t)row * stride + stride * (4 * r + quarter + 1) / UNITS / 4 * 4;
        KEEP_LOOP for (; q < last; q += 4, key += 4 * KEYS) score_step(columns, q, stride, key, acc);
      }
      IN_ORDER(acc);
      if (with_earlier) exponential_unit(earlier, sub, r, quarter, s, &first, &second);
      if (with_logits) logit_unit(s, g, 0, r, quarter, s->scale + row, &top);
    }
  UNROLL for (int i = 0; i < ROWS; i++)
    UNROLL for (int j = 0; j < columns; j++)
      _mm512_store_si512(g->product[sub][i] + 16 * j, acc[i][j]);
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

// ---------------------------------------------------------------------------------- row sums, gains

// Sums of p * n with real n, in lanes of key mod 16 as the portable kernel has them.
static __attribute__((noinline)) __m128 real_row_sums(const intfa_attend_tiles *a, const group *g,
                                                      const tile_operands *t, int32_t subs) {
  _Alignas(16) float sums[ROWS];
  const __m512 none = _mm512_set1_ps(-__builtin_inff());
  for (int32_t i = 0; i < ROWS; i++) {
    __m512 lanes = _mm512_setzero_ps(), top = _mm512_set1_ps(g->top[i]);
    for (int32_t j = 0; j < subs * KEYS; j += 16) {
      __m512 logit = _mm512_load_ps(g->logit[j / KEYS][i] + j % KEYS);
      __m512 distance = _mm512_min_ps(_mm512_sub_ps(top, logit), _mm512_set1_ps(2047.0f));
      __m512i steps = _mm512_cvtps_epi32(distance);
      __m512i index = _mm512_and_si512(steps, _mm512_set1_epi32(63)), shift = _mm512_srli_epi32(steps, 6);
      __m512 p;
      if (a->sums_codes) {
        __m512i power = _mm512_and_si512(_mm512_i32gather_epi32(index, power_table, 2),
                                         _mm512_set1_epi32(0xFFFF));
        power = _mm512_add_epi32(_mm512_srlv_epi32(power, shift), _mm512_set1_epi32(128));
        p = _mm512_cvtepi32_ps(_mm512_srli_epi32(power, 8));
      } else {
        __m512i exponent = _mm512_slli_epi32(_mm512_sub_epi32(_mm512_set1_epi32(127), shift), 23);
        p = _mm512_mul_ps(_mm512_i32gather_ps(index, real_power_table, 4), _mm512_castsi512_ps(exponent));
      }
      __mmask16 seen = _mm512_cmp_ps_mask(logit, none, _CMP_NEQ_OQ);
      __m512 n = _mm512_maskz_loadu_ps(seen, a->real_weight + t->place[j / KEYS] + j % KEYS);
      lanes = _mm512_mask_add_ps(lanes, seen, lanes, _mm512_mul_ps(p, n));
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

// ---------------------------------------------------------------------------------- values

// total += gain * sum for the four rows of a group.
INLINE void add_totals(const intfa_attend_tiles *a, group *g, int32_t row, const tile_operands *t,
                       int32_t subs) {
  __m128 sum;
  if (a->weight) {
    __m512i sums[ROWS];
    UNROLL for (int i = 0; i < ROWS; i++) {
      sums[i] = _mm512_load_si512(g->sum[i]);
      _mm512_store_si512(g->sum[i], _mm512_setzero_si512());
    }
    sum = _mm_cvtepi32_ps(four_sums(sums));
  } else {
    sum = real_row_sums(a, g, t, subs);
  }
  __m128 total = _mm_loadu_ps(a->total + row);
  _mm_storeu_ps(a->total + row, _mm_add_ps(total, _mm_mul_ps(_mm_load_ps(g->gain), sum)));
}

// Four keys of 4 rows x 64 channels; p holds the four weights of the first row.
INLINE void value_step(const uint8_t *p, const int8_t *v, __m512i acc[ROWS][4]) {
  const __m512i v0 = _mm512_load_si512(v), v1 = _mm512_load_si512(v + 64);
  const __m512i v2 = _mm512_load_si512(v + 128), v3 = _mm512_load_si512(v + 192);
  UNROLL for (int i = 0; i < ROWS; i++) {
    int32_t four;
    memcpy(&four, p + i * KEYS, sizeof four);
    const __m512i weights = _mm512_set1_epi32(four);
    acc[i][0] = _mm512_dpbusd_epi32(acc[i][0], weights, v0);
    acc[i][1] = _mm512_dpbusd_epi32(acc[i][1], weights, v1);
    acc[i][2] = _mm512_dpbusd_epi32(acc[i][2], weights, v2);
    acc[i][3] = _mm512_dpbusd_epi32(acc[i][3], weights, v3);
  }
}
INLINE void clear_sums(__m512i acc[ROWS][4]) {
  UNROLL for (int i = 0; i < ROWS; i++)
    UNROLL for (int j = 0; j < 4; j++) acc[i][j] = _mm512_setzero_si512();
}
// out += gain * acc for 64 channels.
INLINE void drain(const group *g, __m512i acc[ROWS][4], float *out, int64_t stride) {
  UNROLL for (int i = 0; i < ROWS; i++) {
    const __m512 gain = _mm512_set1_ps(g->gain[i]);
    UNROLL for (int j = 0; j < 4; j++) {
      float *o = out + i * stride + 16 * j;
      __m512 x = _mm512_mul_ps(_mm512_cvtepi32_ps(acc[i][j]), gain);
      _mm512_store_ps(o, _mm512_add_ps(_mm512_load_ps(o), x));
    }
  }
}

// 64 channels of the values of a group that sees `subs` whole sub-tiles. In their shadow the logits
// of the last sub-tile of the `next` group, at its row `next_row`; then its gain.
INLINE void values_beside_logits(const int32_t subs, const intfa_attend_tiles *a, const state *s,
                                 const tile_operands *t, const group *g, int32_t row, group *next,
                                 int32_t next_row) {
  __m512i acc[ROWS][4];
  __m512 top;
  const int64_t step = 4 * t->width;
  clear_sums(acc);
  const int8_t *v = NULL;
  UNROLL for (int slot = 0; slot < subs * UNITS; slot++, v += step) {
    const int sub = slot / UNITS, four = slot % UNITS;
    if (four == 0) v = t->value[sub];
    value_step(g->p[sub][0] + p_offset(four), v, acc);
    IN_ORDER(acc);
    // Two units every three slots leave time for the products' stores and for the gain.
    const int unit = subs == 1 ? slot : (slot - 2) / 3 * 2 + (slot - 2) % 3;
    if (subs == 1 || (slot >= 2 && (slot - 2) % 3 != 2 && unit < UNITS))
      logit_unit(s, next, subs - 1, unit / 4, unit % 4, s->scale + next_row, &top);
  }
  choose_gain(a, next, next_row, subs);
  drain(g, acc, a->out + row * a->out_stride, a->out_stride);
}

// Channels from `first_channel` of the values of a group that sees `fours` times four keys.
INLINE void values(const intfa_attend_tiles *a, const tile_operands *t, const group *g, int32_t row,
                   int32_t fours, int32_t first_channel) {
  const int64_t step = 4 * t->width;
  KEEP_LOOP for (int32_t c = first_channel; c < t->width; c += 64) {
    __m512i acc[ROWS][4];
    clear_sums(acc);
    const int32_t whole = fours / UNITS;
    KEEP_LOOP for (int32_t sub = 0; sub < whole; sub++) {
      const int8_t *v = t->value[sub] + 4 * c;
      UNROLL for (int32_t four = 0; four < UNITS; four++, v += step)
        value_step(g->p[sub][0] + p_offset(four), v, acc);
    }
    const int8_t *v = t->value[whole % SUBS] + 4 * c;
    KEEP_LOOP for (int32_t four = 0; four < fours % UNITS; four++, v += step)
      value_step(g->p[whole][0] + p_offset(four), v, acc);
    drain(g, acc, a->out + row * a->out_stride + c, a->out_stride);
  }
}

// ---------------------------------------------------------------------------------- the loop

// What the four rows of a group see of a tile.
typedef struct {
  int32_t subs, fours;  // sub-tiles and fours of keys up to the last one that any row sees
  bool is_whole;        // every row sees every key of these sub-tiles
} extent;

static inline extent extent_of(const intfa_attend_tiles *a, const tile_operands *t, int32_t row) {
  const int32_t last_row = row + ROWS < a->rows ? row + ROWS - 1 : a->rows - 1;
  const key_range first = visible_keys(&a->visible, row, t->begin, t->end);
  const key_range last = visible_keys(&a->visible, last_row, t->begin, t->end);
  if (first.begin >= last.end) return (extent){0};
  const int32_t keys = (int32_t)(last.end - t->begin), subs = (keys + KEYS - 1) / KEYS;
  return (extent){subs, (keys + 3) / 4,
                  last.begin == t->begin && first.end == t->begin + subs * KEYS};
}

// score() with the numbers of the moment: half the columns where only the first 32 keys are seen.
INLINE void score_sub_tile(const int32_t D, const bool with_logits, const intfa_attend_tiles *a,
                           const state *s, const tile_operands *t, int32_t row, extent seen, int32_t sub,
                           group *g, int32_t earlier_subs, group *earlier) {
  const bool is_half = seen.fours - sub * UNITS <= UNITS / 2;
  if (is_half && sub < earlier_subs)
    score(D, 2, true, with_logits, a, s, t, row, sub, g, earlier);
  else if (is_half)
    score(D, 2, false, with_logits, a, s, t, row, sub, g, earlier);
  else if (sub < earlier_subs)
    score(D, 4, true, with_logits, a, s, t, row, sub, g, earlier);
  else
    score(D, 4, false, with_logits, a, s, t, row, sub, g, earlier);
}

// The four rows from `row` against a tile, and what was left to do for the group before them. Later
// rows see at least as many keys, so the group before has no more sub-tiles.
INLINE void attend_group(const int32_t D, const intfa_attend_tiles *a, const state *s,
                         const tile_operands *t, int32_t row, extent seen, group *g,
                         int32_t earlier_row, extent earlier_seen, group *earlier) {
  const int32_t last = seen.subs - 1;
  score_sub_tile(D, false, a, s, t, row, seen, 0, g, earlier_seen.subs, earlier);
  if (last) score_sub_tile(D, true, a, s, t, row, seen, 1, g, earlier_seen.subs, earlier);
  if (earlier_seen.subs) add_totals(a, earlier, earlier_row, t, earlier_seen.subs);
  if (seen.is_whole && earlier_seen.is_whole && earlier_seen.subs == seen.subs && a->softcap == 0) {
    if (last)
      values_beside_logits(2, a, s, t, earlier, earlier_row, g, row);
    else
      values_beside_logits(1, a, s, t, earlier, earlier_row, g, row);
    values(a, t, earlier, earlier_row, earlier_seen.fours, 64);
    return;
  }
  logits(s, g, last, s->scale + row);
  if (a->softcap > 0) cap_logits(a, s, g, row, t, seen.subs);
  if (!seen.is_whole) mask_logits(a, g, row, t, seen.subs);
  choose_gain(a, g, row, seen.subs);
  if (earlier_seen.subs) values(a, t, earlier, earlier_row, earlier_seen.fours, 0);
}

// The INT8 codes of a tile, where they lie or unpacked, and a copy of its scales, biases and weights:
// what every row reads stands at fixed places.
static void find_tile(const intfa_attend_tiles *a, state *s, tile_operands *t) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const int64_t key_unit = a->int4_key ? int4_key_unit_bytes(t->stride) : KEYS * t->stride;
  const int64_t value_unit = a->int4_value ? int4_value_unit_bytes(t->width) : KEYS * t->width;
  for (int32_t sub = 0; t->begin + sub * KEYS < t->end; sub++) {
    const int64_t place = unit_place(a->units, t->begin + sub * KEYS);
    const uint8_t *key = (const uint8_t *)a->key + place / KEYS * key_unit;
    const uint8_t *value = (const uint8_t *)a->value + place / KEYS * value_unit;
    t->place[sub] = place;
    t->key[sub] = key;
    t->value[sub] = (const int8_t *)value;
    if (a->int4_key) {
      t->key[sub] = s->key[sub];
      intfa_unpack_key_unit__avx512vnni(key, t->stride, s->key[sub]);
    }
    if (a->int4_value) {
      t->value[sub] = s->value[sub];
      intfa_unpack_value_unit__avx512vnni(value, t->width, s->value[sub]);
    }
    memcpy(s->key_scale + sub * KEYS, a->key_scale + place, sizeof(float) * KEYS);
    memcpy(s->bias + sub * KEYS, a->bias + place, sizeof(float) * KEYS);
    if (a->weight)
      _mm512_store_si512(s->weight + sub * KEYS,
                         _mm512_permutexvar_epi32(order, _mm512_loadu_si512(a->weight + place)));
  }
}

// All rows against a tile.
INLINE void attend_tile(const int32_t D, const intfa_attend_tiles *a, state *s,
                        const tile_operands *t) {
  group *g = &s->groups[0], *earlier = &s->groups[1];
  int32_t earlier_row = 0;
  extent earlier_seen = {0};
  for (int32_t row = 0; row < a->rows; row += ROWS) {
    const extent seen = extent_of(a, t, row);
    if (!seen.subs) continue;
    attend_group(D, a, s, t, row, seen, g, earlier_row, earlier_seen, earlier);
    group *swap = g;
    g = earlier, earlier = swap, earlier_row = row, earlier_seen = seen;
  }
  if (!earlier_seen.subs) return;
  for (int32_t sub = 0; sub < earlier_seen.subs; sub++) exponentials(earlier, sub, s);
  add_totals(a, earlier, earlier_row, t, earlier_seen.subs);
  values(a, t, earlier, earlier_row, earlier_seen.fours, 0);
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

INLINE void attend(const int32_t D, const intfa_attend_tiles *a) {
  state *s = a->scratch;
  tile_operands t = {.stride = D ? D : (int32_t)padded(a->head_dimension, 4),
                     .width = (int32_t)padded(a->value_dimension, 64)};
  prepare(a, s, t.stride);
  for (t.begin = a->key_begin; t.begin < a->key_end; t.begin = t.end) {
    t.end = tile_end(t.begin, a->key_end, a->first_tile, a->tile);
    find_tile(a, s, &t);
    attend_tile(D, a, s, &t);
  }
}

void intfa_attend_tiles__avx512vnni(const intfa_attend_tiles *a) {
  switch (a->head_dimension) {
    case 64: attend(64, a); return;
    case 128: attend(128, a); return;
    case 256: attend(256, a); return;
    default: attend(0, a); return;
  }
}
#pragma clang attribute pop
#endif
