// Integer tile loop for few query rows, as in decoding: bound by the bytes of keys and values.
//
// One to sixteen rows, four at a time against the same tile. There is little to overlap, so the steps
// of x86_avx512vnni.c simply follow each other, and every loaded line asks for the line that stands
// at its place in the next tile. Four bits are decoded in registers, right before they are multiplied.
// The results are those of the other loop, bit for bit.
//
// Per tile of 128 keys, D = 64 and one row: 256 loads, 256 fetches, 256 vpdpbusd, about 250 other
// instructions; 16 KiB. Registers: 16 sums or fewer (two sets where the chains of one would wait for
// each other), a key or value, a broadcast.
#if defined(__x86_64__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c"))), \
                             apply_to = function)
#include "x86_avx512vnni_int4.h"
#include "x86_avx512vnni_tiles.h"

enum { SETS = 2 };  // of sums, where one row has too few of them to keep the multipliers busy

// Rows that decode four bits as they multiply: up to eight, who do it once for each four; more would
// do it too often, and have codes in scratch memory.
static bool decodes(const intfa_attend_tiles *a) { return a->rows <= 2 * ROWS; }

// Codes of 64 keys and four channels from `step` on, and what stands at their place in `ahead`.
INLINE void load_keys(const bool int4, const uint8_t *unit, int32_t stride, int32_t step,
                      const char *ahead, __m512i *k) {
  if (int4) {
    decode_keys(unit + 128 * step, unit + KEYS / 2 * stride + 4 * step, stride, k);
    UNROLL for (int j = 0; j < 2; j++) _mm_prefetch(ahead + 128 * step + 64 * j, _MM_HINT_NTA);
    if (step % 4 == 0) _mm_prefetch(ahead + KEYS / 2 * stride + 16 * step, _MM_HINT_NTA);
    return;
  }
  UNROLL for (int j = 0; j < 4; j++) {
    k[j] = _mm512_loadu_si512(unit + 4 * KEYS * step + 64 * j);
    _mm_prefetch(ahead + 4 * KEYS * step + 64 * j, _MM_HINT_NTA);
  }
}

// Products of `rows` rows from `row` with sub-tile `sub`.
INLINE void score_few(const int rows, const bool int4, const state *s, const tile_operands *t, int32_t row,
                      int32_t sub, const char *ahead, group *g) {
  const int sets = rows == 1 ? SETS : 1;
  const int32_t stride = t->stride;
  const int8_t *q = s->query + (int64_t)row * stride;
  const uint8_t *key = t->key[sub];
  __m512i acc[SETS][ROWS][4];
  UNROLL for (int i = 0; i < rows; i++)
    UNROLL for (int j = 0; j < 4; j++) {
      acc[0][i][j] = _mm512_set1_epi32(s->start[row + i]);
      if (sets == SETS) acc[1][i][j] = _mm512_setzero_si512();
    }
  const int32_t steps = stride / 4;
  int32_t step = 0;
  KEEP_LOOP for (; step + sets <= steps; step += sets)
    UNROLL for (int set = 0; set < sets; set++, q += 4) {
      __m512i k[4];
      load_keys(int4, key, stride, step + set, ahead, k);
      UNROLL for (int j = 0; j < 4; j++)
        UNROLL for (int i = 0; i < rows; i++)
          acc[set][i][j] = _mm512_dpbusd_epi32(acc[set][i][j], k[j], four_bytes(q + i * stride));
    }
  for (; step < steps; step++, q += 4) {
    __m512i k[4];
    load_keys(int4, key, stride, step, ahead, k);
    UNROLL for (int j = 0; j < 4; j++)
      UNROLL for (int i = 0; i < rows; i++)
        acc[0][i][j] = _mm512_dpbusd_epi32(acc[0][i][j], k[j], four_bytes(q + i * stride));
  }
  UNROLL for (int i = 0; i < rows; i++)
    UNROLL for (int j = 0; j < 4; j++) {
      const __m512i sum = sets == SETS ? _mm512_add_epi32(acc[0][i][j], acc[1][i][j]) : acc[0][i][j];
      _mm512_store_si512(g->product[sub][i] + 16 * j, sum);
    }
}

// Codes of four tokens and 64 channels from `c`, and what stands at their place in `ahead`.
INLINE void load_values(const bool int4, const int8_t *unit, int32_t width, int32_t c, int32_t four,
                        const char *ahead, __m512i *v) {
  if (int4) {
    const int32_t at = c / 64 * UNITS + four;
    const uint8_t *steps = (const uint8_t *)unit + KEYS / 2 * width + 16 * at;
    decode_values((const uint8_t *)unit + 128 * at, steps, steps + KEYS / 16 * width, v);
    UNROLL for (int j = 0; j < 2; j++) _mm_prefetch(ahead + 128 * at + 64 * j, _MM_HINT_NTA);
    if (four % 2 == 0) _mm_prefetch(ahead + KEYS / 2 * width + 32 * at, _MM_HINT_NTA);
    return;
  }
  UNROLL for (int j = 0; j < 4; j++) {
    const int32_t at = c * KEYS + 4 * KEYS * four + 64 * j;
    v[j] = _mm512_loadu_si512(unit + at);
    _mm_prefetch(ahead + at, _MM_HINT_NTA);
  }
}

// out += gain * (p x values) for `rows` rows and 64 channels from `c`; p may be rests.
INLINE void values_few(const int rows, const bool int4, const intfa_attend_tiles *a, const tile_operands *t,
                       const uint8_t (*p)[ROWS][KEYS], const float *gains, int32_t row, int32_t fours,
                       int32_t c, const char *const *ahead) {
  const int sets = rows == 1 ? SETS : 1;
  __m512i acc[SETS][ROWS][4];
  UNROLL for (int set = 0; set < sets; set++)
    UNROLL for (int i = 0; i < rows; i++)
      UNROLL for (int j = 0; j < 4; j++) acc[set][i][j] = _mm512_setzero_si512();
  for (int32_t first = 0; first < fours; first += UNITS) {
    const int32_t sub = first / UNITS;
    // Weights of keys that nobody sees are zero, so an odd number of fours does not matter.
    const int32_t count = fours - first < UNITS ? (fours - first + 1) / 2 * 2 : UNITS;
    KEEP_LOOP for (int32_t four = 0; four < count; four += 2)
      UNROLL for (int k = 0; k < 2; k++) {
        __m512i v[4];
        load_values(int4, t->value[sub], t->width, c, four + k, ahead[sub], v);
        const uint8_t *weights = p[sub][0] + p_offset(four + k);
        UNROLL for (int j = 0; j < 4; j++)
          UNROLL for (int i = 0; i < rows; i++)
            acc[k % sets][i][j] =
                _mm512_dpbusd_epi32(acc[k % sets][i][j], four_bytes(weights + i * KEYS), v[j]);
      }
  }
  UNROLL for (int i = 0; i < rows; i++) {
    const __m512 gain = _mm512_set1_ps(gains[i]);
    UNROLL for (int j = 0; j < 4; j++) {
      const __m512i sum = sets == SETS ? _mm512_add_epi32(acc[0][i][j], acc[1][i][j]) : acc[0][i][j];
      float *o = a->out + (row + i) * a->out_stride + c + 16 * j;
      _mm512_store_ps(o, _mm512_add_ps(_mm512_load_ps(o), _mm512_mul_ps(_mm512_cvtepi32_ps(sum), gain)));
    }
  }
}

// What is fetched beside each stored sub-tile, about 16 KiB ahead so that the first-level cache holds it:
// its place in the next tile, or where tiles are that large already, the sub-tile after it.
static void find_ahead(const tile_operands *t, const char *const *here, const char *const *next,
                       const char **ahead) {
  const int32_t subs = t->end - t->begin > KEYS ? 2 : 1;
  const bool is_large = t->key_unit + t->value_unit > 208 * KEYS;
  for (int32_t sub = 0; sub < subs; sub++) {
    const int32_t after = is_large ? sub + 1 - subs : sub;
    ahead[sub] = after < 0 ? here[sub + 1] : after < t->next_subs ? next[after] : here[0];
  }
}

// `rows` rows from `row` against a tile.
INLINE void attend_few(const int rows, const intfa_attend_tiles *a, state *s, const tile_operands *t,
                       int32_t row, const char *const *next_key, const char *const *next_value) {
  const extent seen = extent_of(a, t, row);
  group *g = &s->groups[0];
  if (!seen.subs) return;
  for (int32_t sub = 0; sub < seen.subs; sub++) {
    if (a->int4_key && decodes(a))
      score_few(rows, true, s, t, row, sub, next_key[sub], g);
    else
      score_few(rows, false, s, t, row, sub, next_key[sub], g);
    logits(s, g, sub, rows, s->scale + row);
  }
  settle_logits(a, s, g, row, t, seen);
  for (int32_t sub = 0; sub < seen.subs; sub++) exponentials(g, sub, rows, s);
  if (seen.has_rests) add_rests(a, s, g, row, rows, t, seen.subs);
  add_totals(a, g, row, t, seen);
  KEEP_LOOP for (int part = 0; part < (seen.has_rests ? 2 : 1); part++) {
    const uint8_t(*p)[ROWS][KEYS] = part ? g->rest : g->p;
    const float *gains = part ? g->rest_gain : g->gain;
    for (int32_t c = 0; c < t->width; c += 64)
      if (a->int4_value && decodes(a))
        values_few(rows, true, a, t, p, gains, row, seen.fours, c, next_value);
      else
        values_few(rows, false, a, t, p, gains, row, seen.fours, c, next_value);
  }
}

void intfa_attend_few__avx512vnni(const intfa_attend_tiles *a) {
  state *s = a->scratch;
  tile_operands t = operands_of(a);
  prepare(a, s, t.stride);
  memset(&s->groups[0], 0, sizeof s->groups[0]);
  for (t.begin = a->key_begin; t.begin < a->key_end; t.begin = t.end) {
    const char *next_key[SUBS], *next_value[SUBS];
    t.end = tile_end(t.begin, a->key_end, a->first_tile, a->tile);
    find_tile(a, &t);
    find_ahead(&t, (const char *const *)t.key, t.next_key, next_key);
    find_ahead(&t, (const char *const *)t.value, t.next_value, next_value);
    if (!decodes(a)) {
      unpack_keys(a, s, &t);
      unpack_values(a, s, &t);
      // What was unpacked has been fetched ahead on the way.
      for (int32_t sub = 0; sub < SUBS; sub++) {
        if (a->int4_key) next_key[sub] = (const char *)s->key[sub];
        if (a->int4_value) next_value[sub] = (const char *)s->value[sub];
      }
    }
    copy_arrays(a, s, &t);
    for (int32_t row = 0; row < a->rows; row += ROWS)
      switch (a->rows - row) {
        case 1: attend_few(1, a, s, &t, row, next_key, next_value); break;
        case 2: attend_few(2, a, s, &t, row, next_key, next_value); break;
        default: attend_few(ROWS, a, s, &t, row, next_key, next_value);
      }
  }
}
#pragma clang attribute pop
#endif
