// Integer tile loop of 6 query rows x 16 keys or channels in 256-bit registers. Included inside the
// target region of an instruction set, which first says what a unit of 32 bits is:
//   UNIT             codes in it: 4 of 8 bits, or 2 of 16
//   multiply_add     sums + products of eight unsigned and eight signed units
//   query_unit       one unit of a query row
//   unit_place, store_even, store_odd, row_sums      P of 6 rows x 16 keys, in units
//   tile_buffer, load_tile                           a tile's keys and values, in units
//
// Loop: key tile (64 or 128 keys) > 6 query rows. The exponentials of six rows are spread over the
// products of their neighbours: half of them run between the value columns of the six rows before,
// half between the scores of the six rows after, in portions that schedulers can hold.
// The float operations are those of portable_tiles.c one by one (no fused multiply-add), so all bits
// are equal.
#pragma once
#include "online_softmax.h"
#include "x86_avx2.h"

enum {
  STEP_BYTES = 4 * KEYS,  // one unit of 16 keys or channels
  UNITS = KEYS / UNIT,    // units of 16 tokens
  PAIRS = ROWS / 2,
  GROUPS = (INTFA_MAX_ROWS + ROWS - 1) / ROWS,
  LANES = 8
};

// What six rows need from their scores to their values.
typedef struct {
  _Alignas(64) float logit[SUBS][ROWS][KEYS];
  _Alignas(64) weights p[SUBS];
  _Alignas(32) float top[ROWS][LANES];    // maxima of the lanes
  _Alignas(32) int32_t sum[ROWS][LANES];  // partial sums of p * n, as store_odd leaves them
  _Alignas(32) float row_top[LANES], gain[LANES];
  int32_t index, rows;              // of the group; rows that exist
  int32_t first_sub, end_sub;       // sub-tiles of the tile that some row sees
  int32_t done, portions;           // exponentials of two rows and one sub-tile each
} group;

// Everything that a call keeps in its scratch memory.
typedef struct {
  group groups[2];
  _Alignas(32) float total[GROUPS][LANES], reference[GROUPS][LANES];
  _Alignas(32) float scale[GROUPS][LANES], shift[GROUPS][LANES];
  int32_t start[GROUPS][LANES];              // -128 * sum(q)
  _Alignas(32) float sink[INTFA_MAX_DIMENSION];           // output of rows that do not exist
  int8_t no_weights[INTFA_MAX_TILE];         // stands for n_j where they are not integers
  int32_t query[GROUPS * ROWS * INTFA_MAX_DIMENSION / UNIT];  // [group][step][ROWS]
  tile_buffer buffer;
} state;
_Static_assert(sizeof(state) <= INTFA_SCRATCH_BYTES, "fits the scratch memory of a call");

// ---------------------------------------------------------------------------------- exponentials

// round(255 * 2^((logit - top) / 64)) of eight keys: 255 * 2^-(i/64) as the product of two tables of
// eight entries, for bits 3...5 and 0...2 of i, and a power of two. Rounded to integers the products
// are the portable kernel's for every i. `coarse` entry c has c added to its exponent's last three
// bits' place, bit 20, so that one subtraction takes c and the power of two away together.
INLINE __m256i powers(const float *logit, __m256 top) {
  const __m256i coarse = _mm256_setr_epi32(0x437F0000, 0x4379D606, 0x43766DB8, 0x4374A1C3,
                                           0x43744FEE, 0x437558D8, 0x43779FB8, 0x437B0A2C);
  const __m256 fine = _mm256_setr_ps(1.0f, 0.98922801f, 0.978572071f, 0.96803087f, 0.957603276f,
                                     0.947287977f, 0.93708384f, 0.926989555f);
  __m256 distance = _mm256_min_ps(_mm256_sub_ps(top, _mm256_load_ps(logit)), _mm256_set1_ps(2047.0f));
  __m256i steps = _mm256_cvtps_epi32(distance), eighths = _mm256_srli_epi32(steps, 3);
  __m256i power = _mm256_sub_epi32(_mm256_permutevar8x32_epi32(coarse, eighths),
                                   _mm256_slli_epi32(eighths, 20));
  return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_castsi256_ps(power), _mm256_permutevar8x32_ps(fine, steps)));
}

// Keeps twelve sums in registers and everything on its side of this line. Else the compiler mixes
// multiplies and exponentials by its own model, runs out of registers, and the sums live on the stack.
#define PIN(acc)                                                                                     \
  __asm__ volatile(""                                                                                \
                   : "+x"(acc[0][0]), "+x"(acc[0][1]), "+x"(acc[1][0]), "+x"(acc[1][1]),             \
                     "+x"(acc[2][0]), "+x"(acc[2][1]), "+x"(acc[3][0]), "+x"(acc[3][1]),             \
                     "+x"(acc[4][0]), "+x"(acc[4][1]), "+x"(acc[5][0]), "+x"(acc[5][1])::"memory")

// P of two rows and one sub-tile, the unit in which exponentials are spread over the multiplies.
typedef struct {
  const float (*logit)[KEYS];
  const float *top;
  const int8_t *n;
  weights *p;
  int32_t (*sum)[LANES];
  int32_t pair;
} portion;

INLINE portion next_portion(group *g, const int8_t *n) {
  const int32_t sub = g->first_sub + g->done / PAIRS, pair = g->done % PAIRS;
  g->done++;
  return (portion){g->logit[sub] + 2 * pair, g->row_top + 2 * pair, n + sub * KEYS, &g->p[sub], g->sum, pair};
}
INLINE __m256i row_powers(const portion *o, int32_t row) {
  __m256 top = _mm256_broadcast_ss(o->top + row);
  __m256i low = powers(o->logit[row], top);
  __asm__ volatile("" : "+x"(low));  // one after the other: four registers are free
  return _mm256_packs_epi32(low, powers(o->logit[row] + LANES, top));
}
INLINE void even_row(const portion *o) { store_even(row_powers(o, 0), o->n, o->pair, o->p, o->sum); }
INLINE void odd_row(const portion *o) { store_odd(row_powers(o, 1), o->n, o->pair, o->p, o->sum); }

// What the multiplies left.
INLINE void rest_of_exponentials(group *g, const int8_t *n) {
  KEEP_LOOP while (g->done < g->portions) {
    portion o = next_portion(g, n);
    even_row(&o);
    odd_row(&o);
  }
}

// At most `count` of the portions that are left.
INLINE int32_t portions_left(const group *g, int32_t count) {
  const int32_t left = g ? g->portions - g->done : 0;
  return count < left ? count : left;
}

// ---------------------------------------------------------------------------------- scores

// Where the scores of six rows and sixteen keys come from.
typedef struct {
  const int32_t *query;  // [steps][ROWS]
  int32_t steps;
  const int32_t *start;
  const float *query_scale;
  const uint8_t *key;  // [steps][STEP_BYTES]
  const float *key_scale, *bias;
} score_operands;

enum { BURST = 4 };  // steps between two rows' exponentials

INLINE void score_step(const score_operands *o, int32_t step, __m256i acc[ROWS][2]) {
  const int32_t *q = o->query + step * ROWS;
  const __m256i *k = (const __m256i *)(o->key + step * STEP_BYTES);
  __m256i k0 = _mm256_load_si256(k), k1 = _mm256_load_si256(k + 1);
  UNROLL for (int i = 0; i < ROWS; i++) {
    __m256i unit = _mm256_set1_epi32(q[i]);
    acc[i][0] = multiply_add(acc[i][0], k0, unit);
    acc[i][1] = multiply_add(acc[i][1], k1, unit);
  }
  PIN(acc);
}

// Logits of sub-tile `sub`, and up to `count` portions of the six rows before.
INLINE void score(const score_operands *o, group *g, int32_t sub, group *earlier, int32_t count,
                  const int8_t *n) {
  __m256i acc[ROWS][2];
  UNROLL for (int i = 0; i < ROWS; i++) acc[i][0] = acc[i][1] = _mm256_set1_epi32(o->start[i]);
  int32_t step = 0;
  KEEP_LOOP for (; count > 0 && step + 2 * BURST <= o->steps; count--, step += 2 * BURST) {
    portion e = next_portion(earlier, n);
    UNROLL for (int i = 0; i < BURST; i++) score_step(o, step + i, acc);
    even_row(&e);
    PIN(acc);
    UNROLL for (int i = 0; i < BURST; i++) score_step(o, step + BURST + i, acc);
    odd_row(&e);
    PIN(acc);
  }
  KEEP_LOOP for (; step < o->steps; step++) score_step(o, step, acc);
  UNROLL for (int i = 0; i < ROWS; i++) {
    __m256 scale = _mm256_broadcast_ss(o->query_scale + i), top = _mm256_load_ps(g->top[i]);
    UNROLL for (int j = 0; j < 2; j++) {
      __m256 x = _mm256_mul_ps(_mm256_cvtepi32_ps(acc[i][j]), _mm256_loadu_ps(o->key_scale + 8 * j));
      x = _mm256_add_ps(_mm256_mul_ps(x, scale), _mm256_loadu_ps(o->bias + 8 * j));
      top = _mm256_max_ps(top, x);
      _mm256_store_ps(g->logit[sub][i] + 8 * j, x);
    }
    _mm256_store_ps(g->top[i], top);
  }
}

// ---------------------------------------------------------------------------------- masks and caps

// Logits of keys that a row does not see become -inf; then the row maxima are taken anew.
static __attribute__((noinline)) void mask_logits(const intfa_attend_tiles *a, group *g, int64_t begin,
                                                  int64_t end) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  for (int32_t i = 0; i < ROWS; i++) {
    key_range seen = visible_keys(&a->visible, g->index * ROWS + i, begin, end);
    __m256i first = _mm256_set1_epi32((int32_t)(seen.begin - begin));
    __m256i last = _mm256_set1_epi32((int32_t)(seen.end > begin ? seen.end - begin : 0));
    __m256 top = _mm256_set1_ps(-1e30f);
    for (int32_t j = g->first_sub * KEYS; j < g->end_sub * KEYS; j += LANES) {
      float *logit = g->logit[j / KEYS][i] + j % KEYS;
      __m256i key = _mm256_add_epi32(lanes, _mm256_set1_epi32(j));
      __m256i visible = _mm256_andnot_si256(_mm256_cmpgt_epi32(first, key), _mm256_cmpgt_epi32(last, key));
      __m256 x = _mm256_blendv_ps(_mm256_set1_ps(-__builtin_inff()), _mm256_load_ps(logit),
                                  _mm256_castsi256_ps(visible));
      _mm256_store_ps(logit, x);
      top = _mm256_max_ps(top, x);
    }
    _mm256_store_ps(g->top[i], top);
  }
}

static __attribute__((noinline)) void cap_logits(const intfa_attend_tiles *a, const state *s, group *g,
                                                 int64_t begin) {
  for (int32_t i = 0; i < ROWS; i++) {
    const float shift = s->shift[g->index][i];
    __m256 top = _mm256_set1_ps(-1e30f);
    for (int32_t sub = g->first_sub; sub < g->end_sub; sub++) {
      float *logit = g->logit[sub][i];
      for (int32_t j = 0; j < KEYS; j++)
        logit[j] = soft_cap(logit[j] + shift, a->softcap) + a->fold[begin + sub * KEYS + j];
      for (int32_t j = 0; j < KEYS; j += LANES) top = _mm256_max_ps(top, _mm256_load_ps(logit + j));
    }
    _mm256_store_ps(g->top[i], top);
  }
}

// ---------------------------------------------------------------------------------- row sums, gains

// Sums of p * n with real n, in lanes of key mod 16 as the portable kernel has them.
static __attribute__((noinline)) void real_row_sums(const intfa_attend_tiles *a, const group *g,
                                                    int64_t begin, float sums[LANES]) {
  const __m256 none = _mm256_set1_ps(-__builtin_inff());
  for (int32_t i = 0; i < ROWS; i++) {
    __m256 lanes[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()}, top = _mm256_set1_ps(g->row_top[i]);
    for (int32_t j = g->first_sub * KEYS; j < g->end_sub * KEYS; j += LANES) {
      __m256 logit = _mm256_load_ps(g->logit[j / KEYS][i] + j % KEYS);
      __m256i steps = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_sub_ps(top, logit), _mm256_set1_ps(2047.0f)));
      __m256i index = _mm256_and_si256(steps, _mm256_set1_epi32(63)), shift = _mm256_srli_epi32(steps, 6);
      __m256i exponent = _mm256_slli_epi32(_mm256_sub_epi32(_mm256_set1_epi32(127), shift), 23);
      __m256 p = a->sums_codes ? _mm256_cvtepi32_ps(powers(g->logit[j / KEYS][i] + j % KEYS, top))
                               : _mm256_mul_ps(_mm256_i32gather_ps(real_power_table, index, 4),
                                               _mm256_castsi256_ps(exponent));
      __m256 product = _mm256_mul_ps(p, _mm256_loadu_ps(a->real_weight + begin + j));
      __m256 seen = _mm256_cmp_ps(logit, none, _CMP_NEQ_OQ);
      __m256 *lane = &lanes[j % KEYS / LANES];
      *lane = _mm256_add_ps(*lane, _mm256_and_ps(product, seen));
    }
    sums[i] = sum_of_lanes(lanes[0], lanes[1]);
  }
}

static __attribute__((noinline)) void rescale(const intfa_attend_tiles *a, state *s, const group *g,
                                              const float *factor) {
  for (int32_t i = 0; i < g->rows; i++) {
    __m256 f = _mm256_set1_ps(factor[i]);
    float *out = a->out + (g->index * ROWS + i) * a->out_stride;
    s->total[g->index][i] *= factor[i];
    for (int64_t c = 0; c < a->out_stride; c += LANES)
      _mm256_storeu_ps(out + c, _mm256_mul_ps(_mm256_loadu_ps(out + c), f));
  }
}

// tile_gain of six rows.
INLINE void choose_gain(const intfa_attend_tiles *a, state *s, group *g) {
  __m256 tops[ROWS];
  UNROLL for (int i = 0; i < ROWS; i++) tops[i] = _mm256_load_ps(g->top[i]);
  __m256 top = _mm256_max_ps(six_maxima(tops), _mm256_set1_ps(-1e30f));
  __m256 reference = _mm256_load_ps(s->reference[g->index]), excess = _mm256_sub_ps(top, reference);
  _mm256_store_ps(g->row_top, top);
  __m256 jump = _mm256_cmp_ps(excess, _mm256_set1_ps(REFERENCE_SLACK), _CMP_GT_OQ);
  __m256 steps = _mm256_max_ps(excess, _mm256_set1_ps(SMALLEST_GAIN));
  __m256 gain = exp2_x8(_mm256_mul_ps(steps, _mm256_set1_ps(1.0f / STEPS)));
  if (__builtin_expect(_mm256_movemask_ps(jump) != 0, 0)) {
    _Alignas(32) float factor[LANES];
    const __m256 one = _mm256_set1_ps(1.0f);
    __m256 down = exp2_x8(_mm256_mul_ps(_mm256_sub_ps(_mm256_setzero_ps(), excess), _mm256_set1_ps(1.0f / STEPS)));
    _mm256_store_ps(factor, _mm256_blendv_ps(one, down, jump));
    rescale(a, s, g, factor);
    _mm256_store_ps(s->reference[g->index], _mm256_blendv_ps(reference, top, jump));
    gain = _mm256_blendv_ps(gain, one, jump);
  }
  _mm256_store_ps(g->gain, gain);
}

// ---------------------------------------------------------------------------------- values

// The values of one column of a tile.
typedef struct {
  const int8_t *value;   // [sub-tile / BLOCK] `block_bytes` apart, [BLOCK][UNITS][STEP_BYTES]
  int64_t block_bytes;
} value_operands;

INLINE void value_steps(const value_operands *o, const group *g, int32_t sub, __m256i acc[ROWS][2]) {
  const int8_t *v = o->value + sub / BLOCK * o->block_bytes + sub % BLOCK * UNITS * STEP_BYTES;
  const uint8_t *p = g->p[sub].bytes;
  UNROLL for (int t = 0; t < UNITS; t++) {
    const __m256i *channels = (const __m256i *)(v + t * STEP_BYTES);
    __m256i v0 = _mm256_load_si256(channels), v1 = _mm256_load_si256(channels + 1);
    UNROLL for (int i = 0; i < ROWS; i++) {
      int32_t unit;
      memcpy(&unit, p + 4 * unit_place(i, t), sizeof unit);
      acc[i][0] = multiply_add(acc[i][0], _mm256_set1_epi32(unit), v0);
      acc[i][1] = multiply_add(acc[i][1], _mm256_set1_epi32(unit), v1);
    }
    PIN(acc);
  }
}

// out += gain * (p x values) of sixteen channels, and up to `count` portions of the six rows after.
INLINE void value_column(const value_operands *o, const group *g, float *const out[ROWS], group *next,
                         int32_t count, const int8_t *n) {
  __m256i acc[ROWS][2];
  UNROLL for (int i = 0; i < ROWS; i++) acc[i][0] = acc[i][1] = _mm256_setzero_si256();
  int32_t sub = g->first_sub;
  KEEP_LOOP for (; count > 0 && sub + 2 <= g->end_sub; count--, sub += 2) {
    portion e = next_portion(next, n);
    value_steps(o, g, sub, acc);
    even_row(&e);
    PIN(acc);
    value_steps(o, g, sub + 1, acc);
    odd_row(&e);
    PIN(acc);
  }
  KEEP_LOOP for (; sub < g->end_sub; sub++) value_steps(o, g, sub, acc);
  UNROLL for (int i = 0; i < ROWS; i++) {
    __m256 gain = _mm256_broadcast_ss(g->gain + i);
    UNROLL for (int j = 0; j < 2; j++) {
      __m256 x = _mm256_mul_ps(_mm256_cvtepi32_ps(acc[i][j]), gain);
      _mm256_storeu_ps(out[i] + 8 * j, _mm256_add_ps(_mm256_loadu_ps(out[i] + 8 * j), x));
    }
  }
}

// All of a group's sums, with the first half of the next group's exponentials in between.
INLINE void add_values(const intfa_attend_tiles *a, state *s, group *g, const tile_operands *tile,
                       const int8_t *n, int64_t begin, group *next) {
  _Alignas(32) float sums[LANES] = {0};
  if (a->weight)
    _mm256_store_ps(sums, _mm256_cvtepi32_ps(row_sums(g->sum)));
  else
    real_row_sums(a, g, begin, sums);
  __m256 added = _mm256_mul_ps(_mm256_load_ps(g->gain), _mm256_load_ps(sums));
  float *total = s->total[g->index];
  _mm256_store_ps(total, _mm256_add_ps(_mm256_load_ps(total), added));

  float *out[ROWS];
  for (int32_t i = 0; i < ROWS; i++)
    out[i] = i < g->rows ? a->out + (g->index * ROWS + i) * a->out_stride : s->sink;
  const int32_t width = (int32_t)padded(a->value_dimension, KEYS), columns = width / KEYS;
  const int64_t column_bytes = BLOCK * UNITS * STEP_BYTES;
  value_operands v = {tile->value, columns * column_bytes};
  const int32_t share = next ? (next->portions / 2 + columns - 1) / columns : 0;
  KEEP_LOOP for (int32_t column = 0; column < columns; column++, v.value += column_bytes) {
    value_column(&v, g, out, next, portions_left(next, share), n);
    UNROLL for (int i = 0; i < ROWS; i++) out[i] += KEYS;
  }
}

// ---------------------------------------------------------------------------------- the loop

// The rows of group `index` that see keys of [begin, end); false where there are none.
static bool begin_group(const intfa_attend_tiles *a, int32_t index, int64_t begin, int64_t end, group *g) {
  const int32_t row = index * ROWS, left = a->rows - row;
  g->index = index;
  g->rows = left < ROWS ? left : ROWS;
  int64_t first_key = visible_keys(&a->visible, row, begin, end).begin;
  int64_t end_key = visible_keys(&a->visible, row + g->rows - 1, begin, end).end;
  if (first_key >= end_key) return false;
  g->first_sub = (int32_t)(first_key - begin) / KEYS;
  g->end_sub = (int32_t)(end_key - begin + KEYS - 1) / KEYS;
  g->done = 0;
  g->portions = (g->end_sub - g->first_sub) * PAIRS;
  for (int32_t i = 0; i < ROWS; i++) _mm256_store_ps(g->top[i], _mm256_set1_ps(-1e30f));
  return true;
}

// All rows against the tile [begin, end).
static void attend_tile(const intfa_attend_tiles *a, state *s, int64_t begin, int64_t end) {
  const int32_t steps = (int32_t)padded(a->head_dimension, 4) / UNIT;
  const tile_operands tile = load_tile(a, begin, end, &s->buffer);
  const int8_t *n = a->weight ? a->weight + begin : s->no_weights;
  group *g = &s->groups[0], *earlier = NULL;
  for (int32_t index = 0; index * ROWS < a->rows; index++) {
    if (!begin_group(a, index, begin, end, g)) continue;
    score_operands o = {
        .query = s->query + (int64_t)index * steps * ROWS,
        .steps = steps,
        .start = s->start[index],
        .query_scale = s->scale[index],
    };
    const int32_t left = earlier ? earlier->portions - earlier->done : 0;
    const int32_t subs = g->end_sub - g->first_sub, share = (left + subs - 1) / subs;
    KEEP_LOOP for (int32_t sub = g->first_sub; sub < g->end_sub; sub++) {
      o.key = tile.key + (int64_t)sub * steps * STEP_BYTES;
      o.key_scale = a->key_scale + begin + sub * KEYS;
      o.bias = a->bias + begin + sub * KEYS;
      score(&o, g, sub, earlier, portions_left(earlier, share), n);
    }
    if (earlier) rest_of_exponentials(earlier, n);
    if (a->softcap > 0) cap_logits(a, s, g, begin);
    const int64_t common_begin = visible_keys(&a->visible, index * ROWS + g->rows - 1, begin, end).begin;
    const int64_t common_end = visible_keys(&a->visible, index * ROWS, begin, end).end;
    if (common_begin > begin + g->first_sub * KEYS || common_end < begin + g->end_sub * KEYS)
      mask_logits(a, g, begin, end);
    choose_gain(a, s, g);
    if (earlier) add_values(a, s, earlier, &tile, n, begin, g);
    earlier = g;
    g = g == &s->groups[0] ? &s->groups[1] : &s->groups[0];
  }
  if (!earlier) return;
  rest_of_exponentials(earlier, n);
  add_values(a, s, earlier, &tile, n, begin, NULL);
}

static void prepare_rows(const intfa_attend_tiles *a, state *s) {
  const int32_t d = a->head_dimension, steps = (int32_t)padded(d, 4) / UNIT;
  const int32_t groups = (a->rows + ROWS - 1) / ROWS;
  memset(s, 0, offsetof(state, query));
  for (int32_t r = 0; r < groups * ROWS; r++) {
    const int32_t index = r / ROWS, i = r % ROWS;
    _Alignas(32) int8_t q[INTFA_MAX_DIMENSION] = {0};
    int32_t *units = s->query + (int64_t)index * steps * ROWS + i;
    if (r < a->rows) {
      int32_t sum = 0;
      memcpy(q, a->query + (int64_t)r * d, (size_t)d);
      for (int32_t c = 0; c < d; c++) sum += q[c];
      s->start[index][i] = -128 * sum;
      s->scale[index][i] = a->query_scale[r];
      s->total[index][i] = a->total[r];
      s->reference[index][i] = a->reference[r];
      if (a->softcap > 0) s->shift[index][i] = a->row_shift[r];
    }
    for (int32_t step = 0; step < steps; step++) units[step * ROWS] = query_unit(q, step);
  }
}

INLINE void attend_tiles(const intfa_attend_tiles *a) {
  state *s = a->scratch;
  prepare_rows(a, s);
  for (int64_t begin = a->key_begin, end; begin < a->key_end; begin = end) {
    end = tile_end(begin, a->key_end, a->first_tile, a->tile);
    attend_tile(a, s, begin, end);
  }
  for (int32_t r = 0; r < a->rows; r++) {
    a->total[r] = s->total[r / ROWS][r % ROWS];
    a->reference[r] = s->reference[r / ROWS][r % ROWS];
  }
}
