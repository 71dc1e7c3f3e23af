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
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c"))), \
                             apply_to = function)
#include "x86_avx512vnni_tiles.h"

// Keeps the order of the multiplies and of the work between them as written, at no instruction.
#define IN_ORDER(a)                                                                                \
  __asm__ volatile("" : "+v"(a[0][0]), "+v"(a[0][1]), "+v"(a[0][2]), "+v"(a[0][3]), "+v"(a[1][0]), \
                   "+v"(a[1][1]), "+v"(a[1][2]), "+v"(a[1][3]), "+v"(a[2][0]), "+v"(a[2][1]),      \
                   "+v"(a[2][2]), "+v"(a[2][3]), "+v"(a[3][0]), "+v"(a[3][1]), "+v"(a[3][2]),      \
                   "+v"(a[3][3])::"memory")

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

// Products of sub-tile `sub` of the four rows from `row` into `g`. In their shadow, where asked, the
// exponentials of the same sub-tile of `earlier` and the logits of sub-tile 0 of `g`. D is the stride
// where the compiler shall know it, else 0. No branch may stand between multiplies: the compiler
// would keep operands on the stack around it.
INLINE void score(const int32_t D, const int columns, const bool with_earlier, const bool with_logits,
                  const state *s, const tile_operands *t, int32_t row, int32_t sub, group *g,
                  group *earlier) {
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

// ---------------------------------------------------------------------------------- values

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
INLINE void drain(const float *gains, __m512i acc[ROWS][4], float *out, int64_t stride) {
  UNROLL for (int i = 0; i < ROWS; i++) {
    const __m512 gain = _mm512_set1_ps(gains[i]);
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
  clear_sums(acc);
  const int8_t *v = NULL;
  UNROLL for (int slot = 0; slot < subs * UNITS; slot++, v += 4 * KEYS) {
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
  drain(g->gain, acc, a->out + row * a->out_stride, a->out_stride);
}

// Channels from `first_channel` of the values of four rows that see `fours` times four keys: p or rests.
INLINE void values(const intfa_attend_tiles *a, const tile_operands *t, const uint8_t (*p)[ROWS][KEYS],
                   const float *gains, int32_t row, int32_t fours, int32_t first_channel) {
  KEEP_LOOP for (int32_t c = first_channel; c < t->width; c += 64) {
    __m512i acc[ROWS][4];
    clear_sums(acc);
    const int32_t whole = fours / UNITS;
    KEEP_LOOP for (int32_t sub = 0; sub < whole; sub++) {
      const int8_t *v = t->value[sub] + c * KEYS;
      UNROLL for (int32_t four = 0; four < UNITS; four++, v += 4 * KEYS)
        value_step(p[sub][0] + p_offset(four), v, acc);
    }
    const int8_t *v = t->value[whole % SUBS] + c * KEYS;
    KEEP_LOOP for (int32_t four = 0; four < fours % UNITS; four++, v += 4 * KEYS)
      value_step(p[whole][0] + p_offset(four), v, acc);
    drain(gains, acc, a->out + row * a->out_stride + c, a->out_stride);
  }
}
static __attribute__((noinline)) void rest_values(const intfa_attend_tiles *a, const tile_operands *t,
                                                  const group *g, int32_t row, int32_t fours) {
  values(a, t, g->rest, g->rest_gain, row, fours, 0);
}

// ---------------------------------------------------------------------------------- the loop

// score() with the numbers of the moment: half the columns where only the first 32 keys are seen.
INLINE void score_sub_tile(const int32_t D, const bool with_logits, const state *s,
                           const tile_operands *t, int32_t row, extent seen, int32_t sub, group *g,
                           int32_t earlier_subs, group *earlier) {
  const bool is_half = seen.fours - sub * UNITS <= UNITS / 2;
  if (is_half && sub < earlier_subs)
    score(D, 2, true, with_logits, s, t, row, sub, g, earlier);
  else if (is_half)
    score(D, 2, false, with_logits, s, t, row, sub, g, earlier);
  else if (sub < earlier_subs)
    score(D, 4, true, with_logits, s, t, row, sub, g, earlier);
  else
    score(D, 4, false, with_logits, s, t, row, sub, g, earlier);
}

// The four rows from `row` against a tile, and what was left to do for the group before them. Later
// rows see at least as many keys, so the group before has no more sub-tiles.
INLINE void attend_group(const int32_t D, const intfa_attend_tiles *a, const state *s,
                         const tile_operands *t, int32_t row, extent seen, group *g,
                         int32_t earlier_row, extent earlier_seen, group *earlier) {
  const int32_t last = seen.subs - 1;
  score_sub_tile(D, false, s, t, row, seen, 0, g, earlier_seen.subs, earlier);
  if (last) score_sub_tile(D, true, s, t, row, seen, 1, g, earlier_seen.subs, earlier);
  if (earlier_seen.has_rests) add_rests(a, s, earlier, earlier_row, ROWS, t, earlier_seen.subs);
  if (earlier_seen.subs) add_totals(a, earlier, earlier_row, t, earlier_seen);
  // Without rests: a call of rest_values after both ways takes a twentieth of the speed of D = 128.
  if (seen.is_whole && earlier_seen.is_whole && earlier_seen.subs == seen.subs && a->softcap == 0 &&
      !a->mask && !earlier_seen.has_rests) {
    if (last)
      values_beside_logits(2, a, s, t, earlier, earlier_row, g, row);
    else
      values_beside_logits(1, a, s, t, earlier, earlier_row, g, row);
    values(a, t, earlier->p, earlier->gain, earlier_row, earlier_seen.fours, 64);
  } else {
    logits(s, g, last, ROWS, s->scale + row);
    settle_logits(a, s, g, row, t, seen);
    if (earlier_seen.subs)
      values(a, t, earlier->p, earlier->gain, earlier_row, earlier_seen.fours, 0);
    if (earlier_seen.has_rests) rest_values(a, t, earlier, earlier_row, earlier_seen.fours);
  }
}

// The piece of the next tile that falls to the group at `row`.
INLINE void fetch_ahead(const tile_operands *t, int32_t row) {
  const int32_t key = row / ROWS * t->key_piece, value = row / ROWS * t->value_piece;
  for (int32_t sub = 0; sub < t->next_subs; sub++) {
    for (int32_t i = key; i < key + t->key_piece && i < t->key_unit; i += 64)
      _mm_prefetch(t->next_key[sub] + i, _MM_HINT_T1);
    for (int32_t i = value; i < value + t->value_piece && i < t->value_unit; i += 64)
      _mm_prefetch(t->next_value[sub] + i, _MM_HINT_T1);
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
    fetch_ahead(t, row);
    attend_group(D, a, s, t, row, seen, g, earlier_row, earlier_seen, earlier);
    group *swap = g;
    g = earlier, earlier = swap, earlier_row = row, earlier_seen = seen;
  }
  if (!earlier_seen.subs) return;
  for (int32_t sub = 0; sub < earlier_seen.subs; sub++) exponentials(earlier, sub, ROWS, s);
  if (earlier_seen.has_rests) add_rests(a, s, earlier, earlier_row, ROWS, t, earlier_seen.subs);
  add_totals(a, earlier, earlier_row, t, earlier_seen);
  values(a, t, earlier->p, earlier->gain, earlier_row, earlier_seen.fours, 0);
  if (earlier_seen.has_rests) rest_values(a, t, earlier, earlier_row, earlier_seen.fours);
}

INLINE void attend(const int32_t D, const intfa_attend_tiles *a) {
  state *s = a->scratch;
  tile_operands t = operands_of(a);
  const int32_t groups = (a->rows + ROWS - 1) / ROWS;
  t.key_piece = (int32_t)padded((t.key_unit + groups - 1) / groups, 64);
  t.value_piece = (int32_t)padded((t.value_unit + groups - 1) / groups, 64);
  prepare(a, s, t.stride);
  for (t.begin = a->key_begin; t.begin < a->key_end; t.begin = t.end) {
    t.end = tile_end(t.begin, a->key_end, a->first_tile, a->tile);
    find_tile(a, &t);
    unpack_keys(a, s, &t);
    unpack_values(a, s, &t);
    copy_arrays(a, s, &t);
    attend_tile(D, a, s, &t);
  }
}

void intfa_attend_tiles__avx512vnni(const intfa_attend_tiles *a) {
  if (a->rows <= FEW_ROWS) {
    intfa_attend_few__avx512vnni(a);
    return;
  }
  switch (a->head_dimension) {
    case 64: attend(64, a); return;
    case 128: attend(128, a); return;
    case 256: attend(256, a); return;
    default: attend(0, a); return;
  }
}
#pragma clang attribute pop
#endif
