// Integer tile loop of 6 query rows x 16 keys or channels in 256-bit registers. Included inside the
// target region of an instruction set, after its units and
//   weights, weight_place, store_even, store_odd, row_sums    P of 6 rows x 16 keys, in units
//   value_buffer, load_values                               the values of a tile, in units
//
// Loop: key tile (64 or 128 keys) > 6 query rows. The exponentials of six rows are spread over the
// products of their neighbours: half of them run between the value columns of the six rows before,
// half between the scores of the six rows after, in portions that schedulers can hold.
// The float operations are those of portable_tiles.c one by one (no fused multiply-add), so all
// bits are equal.
#pragma once
#include "x86_avx2_softmax.h"

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

// Logits of sub-tile `sub`, and up to `count` portions of the six rows before.
INLINE void score(const score_operands *o, group *g, int32_t sub, group *earlier, int32_t count,
                  const int8_t *n) {
  __m256i acc[ROWS][2];
  UNROLL for (int i = 0; i < ROWS; i++) acc[i][0] = acc[i][1] = _mm256_set1_epi32(o->start[i]);
  int32_t step = 0;
  KEEP_LOOP for (; count > 0 && step + 2 * BURST <= o->steps; count--, step += 2 * BURST) {
    portion e = next_portion(earlier, n);
    UNROLL for (int i = 0; i < BURST; i++) score_step(o->query, o->key, step + i, acc);
    even_row(&e);
    PIN(acc);
    UNROLL for (int i = 0; i < BURST; i++) score_step(o->query, o->key, step + BURST + i, acc);
    odd_row(&e);
    PIN(acc);
  }
  KEEP_LOOP for (; step < o->steps; step++) score_step(o->query, o->key, step, acc);
  float(*tops)[LANES] = is_whole(g, sub) ? g->top : g->unused;
  UNROLL for (int i = 0; i < ROWS; i++) {
    __m256 scale = _mm256_broadcast_ss(o->query_scale + i), top = _mm256_load_ps(tops[i]);
    UNROLL for (int j = 0; j < 2; j++) {
      __m256 x = _mm256_cvtepi32_ps(acc[i][j]);
      x = _mm256_mul_ps(x, _mm256_loadu_ps(o->key_scale + LANES * j));
      x = _mm256_add_ps(_mm256_mul_ps(x, scale), _mm256_loadu_ps(o->bias + LANES * j));
      top = _mm256_max_ps(top, x);
      _mm256_store_ps(g->logit[sub][i] + LANES * j, x);
    }
    _mm256_store_ps(tops[i], top);
  }
}

// ---------------------------------------------------------------------------------- values

// The values of one column of a tile, and what multiplies them: p or rests.
typedef struct {
  const int8_t *value[BLOCKS];  // [BLOCK][UNITS][STEP_BYTES]
  const weights *p;
  const float *gain;
} value_operands;

INLINE void value_steps(const value_operands *o, int32_t sub, __m256i acc[ROWS][2]) {
  const int8_t *v = o->value[sub / BLOCK] + sub % BLOCK * UNITS * STEP_BYTES;
  const uint8_t *p = o->p[sub].bytes;
  UNROLL for (int t = 0; t < UNITS; t++) {
    const __m256i *channels = (const __m256i *)(v + t * STEP_BYTES);
    __m256i v0 = _mm256_load_si256(channels), v1 = _mm256_load_si256(channels + 1);
    UNROLL for (int i = 0; i < ROWS; i++) {
      int32_t unit;
      memcpy(&unit, p + 4 * weight_place(i, t), sizeof unit);
      acc[i][0] = multiply_add(acc[i][0], _mm256_set1_epi32(unit), v0);
      acc[i][1] = multiply_add(acc[i][1], _mm256_set1_epi32(unit), v1);
      PIN_ROW(acc[i]);
    }
    PIN(acc);
  }
}

// out += gain * (p x values) of sixteen channels, and up to `count` portions of the six rows after.
INLINE void value_column(const value_operands *o, const group *g, float *const out[ROWS],
                         group *next, int32_t count, const int8_t *n) {
  __m256i acc[ROWS][2];
  UNROLL for (int i = 0; i < ROWS; i++) acc[i][0] = acc[i][1] = _mm256_setzero_si256();
  int32_t sub = g->first_sub;
  KEEP_LOOP for (; count > 0 && sub + 2 <= g->end_sub; count--, sub += 2) {
    portion e = next_portion(next, n);
    value_steps(o, sub, acc);
    even_row(&e);
    PIN(acc);
    value_steps(o, sub + 1, acc);
    odd_row(&e);
    PIN(acc);
  }
  KEEP_LOOP for (; sub < g->end_sub; sub++) value_steps(o, sub, acc);
  UNROLL for (int i = 0; i < ROWS; i++) {
    __m256 gain = _mm256_broadcast_ss(o->gain + i);
    UNROLL for (int j = 0; j < 2; j++) {
      __m256 x = _mm256_mul_ps(_mm256_cvtepi32_ps(acc[i][j]), gain);
      float *target = out[i] + LANES * j;
      _mm256_storeu_ps(target, _mm256_add_ps(_mm256_loadu_ps(target), x));
    }
  }
}

// All of a group's sums, with the first half of the next group's exponentials in between.
INLINE void add_values(const intfa_attend_tiles *a, state *s, group *g, const tile_operands *t,
                       int64_t begin, group *next) {
  _Alignas(32) float sums[LANES] = {0};
  const float *gain = g->gain;
  if (g->has_rests) add_rests(a, g, s->n, begin);
  if (a->weight) {
    __m256i sum = row_sums(g->sum);
    if (g->has_rests) {
      sum = _mm256_add_epi32(_mm256_slli_epi32(sum, 8), row_sums(g->rest_sum));
      gain = g->rest_gain;
    }
    _mm256_store_ps(sums, _mm256_cvtepi32_ps(sum));
  } else {
    real_row_sums(a, t, g, begin, sums);
  }
  __m256 added = _mm256_mul_ps(_mm256_load_ps(gain), _mm256_load_ps(sums));
  float *total = s->total[g->index];
  _mm256_store_ps(total, _mm256_add_ps(_mm256_load_ps(total), added));

  const int32_t width = (int32_t)padded(a->value_dimension, KEYS), columns = width / KEYS;
  const int64_t column_bytes = BLOCK * UNITS * STEP_BYTES;
  const int32_t share = next ? (next->portions / 2 + columns - 1) / columns : 0;
  KEEP_LOOP for (int part = 0; part < (g->has_rests ? 2 : 1); part++) {
    value_operands v = {.p = part ? g->rest : g->p, .gain = part ? g->rest_gain : g->gain};
    memcpy(v.value, t->value, sizeof v.value);
    float *out[ROWS];
    for (int32_t i = 0; i < ROWS; i++)
      out[i] = i < g->rows ? a->out + (g->index * ROWS + i) * a->out_stride : s->sink;
    KEEP_LOOP for (int32_t column = 0; column < columns; column++) {
      value_column(&v, g, out, next, portions_left(next, share), s->n);
      UNROLL for (int i = 0; i < BLOCKS; i++) v.value[i] += column_bytes;
      UNROLL for (int i = 0; i < ROWS; i++) out[i] += KEYS;
    }
  }
}

// ---------------------------------------------------------------------------------- the loop

static tile_operands load_tile(const intfa_attend_tiles *a, state *s, int64_t begin, int64_t end) {
  tile_operands t = {0};
  for (int32_t unit = 0; begin + unit * INTFA_PACK_UNIT < end; unit++) {
    const int64_t place = unit_place(a->units, begin + unit * INTFA_PACK_UNIT);
    t.place[unit] = place;
    t.key[unit] = load_keys(a->key, a->int4_key, a->head_dimension, place, unit, &s->keys);
    t.value[unit] = load_values(a, place, unit, &s->values);
    if (a->weight) memcpy(s->n + unit * INTFA_PACK_UNIT, a->weight + place, INTFA_PACK_UNIT);
  }
  return t;
}

// All rows against the tile [begin, end).
static void attend_tile(const intfa_attend_tiles *a, state *s, int64_t begin, int64_t end) {
  const int32_t steps = steps_of(a->head_dimension);
  const tile_operands t = load_tile(a, s, begin, end);
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
      o.key = t.key[sub / BLOCK] + sub % BLOCK * steps * STEP_BYTES;
      o.key_scale = a->key_scale + place_of(&t, sub);
      o.bias = a->bias + place_of(&t, sub);
      score(&o, g, sub, earlier, portions_left(earlier, share), s->n);
    }
    if (earlier) rest_of_exponentials(earlier, s->n);
    if (a->softcap > 0) cap_logits(a, s, &t, g);
    if (a->mask) add_mask(a, g, begin, end);
    if (g->whole_sub > g->first_sub || g->whole_end < g->end_sub) mask_logits(a, g, begin, end);
    choose_gain(a, s, g);
    if (earlier) add_values(a, s, earlier, &t, begin, g);
    earlier = g;
    g = g == &s->groups[0] ? &s->groups[1] : &s->groups[0];
  }
  if (!earlier) return;
  rest_of_exponentials(earlier, s->n);
  add_values(a, s, earlier, &t, begin, NULL);
}

INLINE void attend_tiles(const intfa_attend_tiles *a) {
  state *s = a->scratch;
  prepare_rows(a, s);
  for (int64_t begin = a->key_begin, end; begin < a->key_end; begin = end) {
    end = tile_end(begin, a->key_end, a->first_tile, a->tile);
    attend_tile(a, s, begin, end);
  }
  store_totals(a, s);
}
