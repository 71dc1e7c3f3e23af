// The loop of the running maximum in 512-bit registers, for three kinds of products.
//
// Loop: key tile > 8 query rows > 32 keys. A register tile of scores is 8 rows x 32 keys, one of values
// 4 rows x 64 channels. While the scores of eight rows are multiplied, the exponentials of the eight
// rows before them run beside, two registers after every eighth of the channels; then those rows are
// multiplied with V, and then the references of the new rows are raised.
//
// instruction                            where it runs on Zen 5, per cycle     per 16 scores, D 64
// vfmadd, vdpbf16ps, vpdpbusd            two multiply ports, 2                 128, 64, 32
// vfmsub, vfmadd of 2^x                  the same                              4, float32: 6
// vreduceps vscalefps                    one of the other two ports, 1         2
// vaddps vmaxps vcvtps2dq                the other two ports, 2                3
// loads and broadcasts                   2, one store                          10 per 16 products
//
// Registers: 16 sums, 2 keys or 4 values, 1 broadcast, the rest exponentials.
// Sums are float32. QUADS are exact: |scores| <= 256 * 255 * 127 = 8.3e6 and P.V of a tile
// <= 128 * 127 * 127 = 2.1e6. Error against the portable loop: the order of float32 sums, about 1e-6,
// and where P is rounded to 8 bits 1.1e-4 of each P before it is rounded.
#pragma once
#include "x86_avx512_running.h"

// ---------------------------------------------------------------------------------- scores

// One lane of 8 queries x 32 keys.
INLINE void score_step(const running_kind K, const uint32_t *q, const uint32_t *key,
                       __m512 acc[GROUP][2]) {
  __m512i k0 = _mm512_load_si512(key), k1 = _mm512_load_si512(key + 16);
  UNROLL for (int i = 0; i < GROUP; i++) {
    __m512i lane = _mm512_set1_epi32((int32_t)q[i]);
    acc[i][0] = multiply(K.score, true, acc[i][0], k0, lane);
    acc[i][1] = multiply(K.score, true, acc[i][1], k1, lane);
  }
}

// Scores of 8 rows and 32 keys into part `part` of `g`; where asked, the exponentials of that part of
// the eight rows before between the multiplies. No branch may be left in here: the compiler would keep
// operands on the stack around it.
INLINE void score(const running_kind K, const bool with_earlier, const intfa_attend_running *a,
                  running_state *s, int32_t steps, int32_t row, int64_t first_key, int32_t part,
                  running_group *g, const running_group *earlier, int32_t earlier_row,
                  __m128 top[2]) {
  const uint32_t *q = s->query + (int64_t)row * steps;
  const uint32_t *key = (const uint32_t *)a->key + (first_key + part * SUB) * steps;
  const int32_t share = steps / GROUP;
  __m512 acc[GROUP][2];
  __asm__ volatile("" : "+r"(q));  // else broadcasts may be hoisted out of the loop and spilled
  UNROLL for (int i = 0; i < GROUP; i++)
    UNROLL for (int j = 0; j < 2; j++)
      acc[i][j] = K.score == QUADS ? _mm512_castsi512_ps(_mm512_set1_epi32(s->start[row + i]))
                                   : _mm512_setzero_ps();
  UNROLL for (int i = 0; i < GROUP; i++) {
    KEEP_LOOP for (int32_t t = 0; t < share; t++, q += GROUP, key += SUB)
      score_step(K, q, key, acc);
    if (with_earlier) exponentials(K, earlier, s, earlier_row, part, i);
  }
  if (K.score == QUADS) {
    UNROLL for (int j = 0; j < 2; j++) {
      const int64_t at = first_key + part * SUB + 16 * j;
      __m512 ks = _mm512_loadu_ps(a->key_scale + at);
      __m512 bias = a->bias ? _mm512_loadu_ps(a->bias + at) : _mm512_setzero_ps();
      UNROLL for (int i = 0; i < GROUP; i++) {
        __m512 x = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_castps_si512(acc[i][j])), ks);
        __m512 scale = _mm512_set1_ps(s->scale[row + i]);
        acc[i][j] = K.is_complete ? _mm512_fmadd_ps(x, scale, bias) : x;
      }
    }
  }
  __m512 tops[GROUP];
  UNROLL for (int i = 0; i < GROUP; i++) {
    _mm512_store_ps(g->logit[part][i], acc[i][0]);
    _mm512_store_ps(g->logit[part][i] + 16, acc[i][1]);
    tops[i] = _mm512_max_ps(acc[i][0], acc[i][1]);
  }
  top[0] = _mm_max_ps(top[0], four_maxima(tops));
  top[1] = _mm_max_ps(top[1], four_maxima(tops + ROWS));
}

// ---------------------------------------------------------------------------------- the reference

static __attribute__((noinline)) void rescale(const intfa_attend_running *a, running_state *s,
                                              int32_t row, float factor) {
  float *out = a->out + row * a->out_stride;
  __m512 f = _mm512_set1_ps(factor);
  a->total[row] *= factor;
  _mm512_store_ps(s->sum[row], _mm512_mul_ps(_mm512_load_ps(s->sum[row]), f));
  for (int64_t c = 0; c < a->out_stride; c += 16)
    _mm512_store_ps(out + c, _mm512_mul_ps(_mm512_load_ps(out + c), f));
}

// Raises the references of eight rows where their tops exceed them.
INLINE void choose_references(const running_kind K, const intfa_attend_running *a, running_state *s,
                              running_group *g, int32_t row) {
  UNROLL for (int half = 0; half < GROUP; half += ROWS) {
    __m128 top = _mm_load_ps(g->top + half), before = _mm_loadu_ps(a->reference + row + half);
    if (!K.is_complete) top = _mm_mul_ps(top, _mm_load_ps(s->scale + row + half));
    if (has_whole_reference(K.probability)) top = _mm_ceil_ps(top);
    top = _mm_max_ps(top, before);
    _mm_storeu_ps(g->reference + half, top);
    _mm_storeu_ps(a->reference + row + half, top);
    if (__builtin_expect(_mm_cmp_ps_mask(top, before, _CMP_GT_OQ) != 0, 0)) {
      _Alignas(16) float factor[ROWS];
      _mm_store_ps(factor, exp2_x4(_mm_sub_ps(before, top)));
      for (int i = 0; i < ROWS; i++)
        if (factor[i] != 1) rescale(a, s, row + half + i, factor[i]);
    }
  }
}

// ---------------------------------------------------------------------------------- values

// out += p x values for the eight rows from `row`, over lanes [first, last) of the keys of a tile.
INLINE void add_values(const running_kind K, const intfa_attend_running *a, const running_state *s,
                       int32_t row, const uint32_t *value, int32_t width, int32_t first,
                       int32_t last) {
  KEEP_LOOP for (int32_t c = 0; c < width; c += 64)
    KEEP_LOOP for (int32_t half = 0; half < GROUP; half += ROWS) {
      float *out = a->out + (row + half) * a->out_stride + c;
      const uint32_t *v = value + (int64_t)first * width + c, *p = s->p[half] + first;
      __m512 acc[ROWS][4];
      UNROLL for (int i = 0; i < ROWS; i++)
        UNROLL for (int j = 0; j < 4; j++)
          acc[i][j] = K.value == QUADS ? _mm512_setzero_ps()
                                       : _mm512_load_ps(out + i * a->out_stride + 16 * j);
      KEEP_LOOP for (int32_t t = first; t < last; t += 4)
        UNROLL for (int u = 0; u < 4; u++, v += width, p++) {
          __m512i v0 = _mm512_load_si512(v), v1 = _mm512_load_si512(v + 16);
          __m512i v2 = _mm512_load_si512(v + 32), v3 = _mm512_load_si512(v + 48);
          UNROLL for (int i = 0; i < ROWS; i++) {
            __m512i lane = _mm512_set1_epi32((int32_t)p[i * MAX_KEYS]);
            acc[i][0] = multiply(K.value, false, acc[i][0], v0, lane);
            acc[i][1] = multiply(K.value, false, acc[i][1], v1, lane);
            acc[i][2] = multiply(K.value, false, acc[i][2], v2, lane);
            acc[i][3] = multiply(K.value, false, acc[i][3], v3, lane);
          }
        }
      UNROLL for (int i = 0; i < ROWS; i++)
        UNROLL for (int j = 0; j < 4; j++) {
          float *to = out + i * a->out_stride + 16 * j;
          if (K.value == QUADS)
            acc[i][j] = _mm512_add_ps(_mm512_load_ps(to),
                                      _mm512_cvtepi32_ps(_mm512_castps_si512(acc[i][j])));
          _mm512_store_ps(to, acc[i][j]);
        }
    }
}

// ---------------------------------------------------------------------------------- the loop

// The rows whose exponentials and values are still to come.
typedef struct {
  running_group *group;
  int32_t row, parts, first, last;  // lanes [first, last) of P are seen
  const uint32_t *value;
} pending_rows;

INLINE void finish_pending(const running_kind K, const intfa_attend_running *a, running_state *s,
                           const pending_rows *w, int32_t width, int32_t parts_done) {
  for (int32_t part = parts_done; part < w->parts; part++)
    UNROLL for (int i = 0; i < GROUP; i++) exponentials(K, w->group, s, w->row, part, i);
  add_values(K, a, s, w->row, w->value, width, w->first, w->last);
}

// The end of the tile that begins at `begin`: that of the recipe where the reference follows its tiles,
// else after CACHED_BYTES.
INLINE int64_t running_tile_end(const running_kind K, const intfa_attend_running *a, int64_t begin,
                                int32_t steps, int32_t width) {
  if (!has_whole_reference(K.probability))
    return tile_end(begin, a->key_end, a->first_tile, a->tile);
  int32_t bytes = 4 * steps + 4 * width / K.value, keys = CACHED_BYTES / bytes / SUB * SUB;
  const int32_t most = a->in_units ? INTFA_PACK_UNIT : INTFA_MAX_TILE;
  keys = keys < SUB ? SUB : keys > most ? most : keys;
  int64_t end = begin / keys * keys + keys;
  return end < a->key_end ? end : a->key_end;
}

INLINE void attend_running(const running_kind K, const intfa_attend_running *a) {
  running_state *s = a->scratch;
  const int32_t steps = query_lanes(a->head_dimension, K.score);
  const int32_t width = (int32_t)padded(a->value_dimension, 64);
  pending_rows before = {.group = NULL};
  running_group *g = &s->groups[0];
  for (int64_t begin = a->key_begin, end; begin < a->key_end; begin = end) {
    end = running_tile_end(K, a, begin, steps, width);
    const int64_t first_key = begin / SUB * SUB;
    const uint32_t *value = (const uint32_t *)a->value + first_key / K.value * width;
    for (int32_t row = 0; row < a->rows; row += GROUP) {
      const int32_t last_row = row + GROUP < a->rows ? row + GROUP - 1 : a->rows - 1;
      const int64_t seen_begin = visible_keys(&a->visible, row, begin, end).begin;
      const int64_t seen_end = visible_keys(&a->visible, last_row, begin, end).end;
      if (seen_begin >= seen_end) continue;
      if (a->mask && !mask_shows(a->mask, row, last_row + 1, seen_begin, seen_end)) continue;
      const int32_t parts = (int32_t)((seen_end - first_key + SUB - 1) / SUB);
      __m128 top[2] = {_mm_set1_ps(-__builtin_inff()), _mm_set1_ps(-__builtin_inff())};
      int32_t part = 0;
      KEEP_LOOP for (; part < parts; part++)
        if (part < before.parts)
          score(K, true, a, s, steps, row, first_key, part, g, before.group, before.row, top);
        else
          score(K, false, a, s, steps, row, first_key, part, g, before.group, before.row, top);
      _mm_store_ps(g->top, top[0]);
      _mm_store_ps(g->top + ROWS, top[1]);
      const int64_t common_begin = visible_keys(&a->visible, last_row, begin, end).begin;
      const int64_t common_end = visible_keys(&a->visible, row, begin, end).end;
      if (common_begin > first_key || common_end < first_key + parts * SUB || a->softcap > 0 ||
          a->mask)
        cap_and_mask(a, s, K.is_complete, row, begin, end, first_key, parts, g);
      if (before.parts) finish_pending(K, a, s, &before, width, parts);
      choose_references(K, a, s, g, row);
      before = (pending_rows){
          .group = g,
          .row = row,
          .parts = parts,
          .first = (int32_t)((seen_begin - first_key) / (4 * K.value) * 4),
          .last = (int32_t)((seen_end - first_key + 4 * K.value - 1) / (4 * K.value) * 4),
          .value = value,
      };
      g = g == &s->groups[0] ? &s->groups[1] : &s->groups[0];
    }
  }
  if (before.parts) finish_pending(K, a, s, &before, width, 0);
  if (a->pauses) return;
  const float unit = K.value == QUADS ? 1.0f / 127 : 1.0f;
  for (int32_t r = 0; r < a->rows; r++)
    a->total[r] += sum_of_lanes(_mm512_load_ps(s->sum[r])) * unit;
}
