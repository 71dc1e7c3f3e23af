// From logits to P in the 256-bit integer tile loop. Included by x86_avx2_tiles.h.
#pragma once
#include "x86_avx2_group.h"

// ---------------------------------------------------------------------------------- exponentials

// Rounded distances of eight keys from the row's maximum.
INLINE __m256i steps_below(__m256 top, const float *logit) {
  __m256 distance = _mm256_sub_ps(top, _mm256_load_ps(logit));
  return _mm256_cvtps_epi32(_mm256_min_ps(distance, _mm256_set1_ps(2047.0f)));
}
// 255 * 2^(-i / 64) of eight i: the product of two tables of eight entries, by bits 3...5 and 0...2
// of i, and a power of two. Entry c of `coarse` carries c << 20, so that subtracting (i >> 3) << 20
// takes that and i >> 6 from the exponent.
INLINE __m256 real_powers(__m256i steps) {
  const __m256i coarse = _mm256_setr_epi32(0x437F0000, 0x4379D606, 0x43766DB8, 0x4374A1C3,
                                           0x43744FEE, 0x437558D8, 0x43779FB8, 0x437B0A2C);
  const __m256 fine = _mm256_setr_ps(1.0f, 0.98922801f, 0.978572071f, 0.96803087f, 0.957603276f,
                                     0.947287977f, 0.93708384f, 0.926989555f);
  __m256i eighths = _mm256_srli_epi32(steps, 3);
  __m256i power = _mm256_sub_epi32(_mm256_permutevar8x32_epi32(coarse, eighths),
                                   _mm256_slli_epi32(eighths, 20));
  return _mm256_mul_ps(_mm256_castsi256_ps(power), _mm256_permutevar8x32_ps(fine, steps));
}
// P of eight keys. Rounded, the power is the portable kernel's integer for every i.
INLINE __m256i powers(const float *logit, __m256 top) {
  return _mm256_cvtps_epi32(real_powers(steps_below(top, logit)));
}
// 256 p + rest. For i below 64 the power, rounded, is the table's entry.
INLINE __m256i powers_with_rests(const float *logit, __m256 top) {
  const __m256i steps = steps_below(top, logit);
  __m256 entry = real_powers(_mm256_and_si256(steps, _mm256_set1_epi32(63)));
  __m256i bits = _mm256_cvtps_epi32(_mm256_mul_ps(entry, _mm256_set1_ps(256.0f)));
  return _mm256_srlv_epi32(bits, _mm256_srli_epi32(steps, 6));
}

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
  return (portion){
      g->logit[sub] + 2 * pair, g->row_top + 2 * pair, n + sub * KEYS, &g->p[sub], g->sum, pair};
}
INLINE __m256i row_powers(const portion *o, int32_t row) {
  __m256 top = _mm256_broadcast_ss(o->top + row);
  __m256i low = powers(o->logit[row], top);
  __asm__ volatile("" : "+x"(low));  // one after the other: four registers are free
  return _mm256_packs_epi32(low, powers(o->logit[row] + LANES, top));
}
INLINE void even_row(const portion *o) {
  store_even(row_powers(o, 0), o->n, o->pair, o->p, o->sum);
}
INLINE void odd_row(const portion *o) { store_odd(row_powers(o, 1), o->n, o->pair, o->p, o->sum); }

// What the multiplies left.
INLINE void rest_of_exponentials(group *g, const int8_t *n) {
  KEEP_LOOP while (g->done < g->portions) {
    portion o = next_portion(g, n);
    even_row(&o);
    odd_row(&o);
  }
}

// P and the rests of the rows that have them, sums of p * n and rest * n; all anew, also for the other
// rows, whose rests are zeros.
static __attribute__((noinline)) void add_rests(const intfa_attend_tiles *a, group *g,
                                                const int8_t *n, int64_t begin) {
  const __m256i half = _mm256_set1_epi32(128), byte = _mm256_set1_epi32(255);
  memset(g->sum, 0, sizeof g->sum);
  memset(g->rest_sum, 0, sizeof g->rest_sum);
  _mm256_store_ps(g->rest_gain,
                  _mm256_mul_ps(_mm256_load_ps(g->gain), _mm256_set1_ps(REST_UNIT)));
  for (int32_t sub = g->first_sub; sub < g->end_sub; sub++)
    for (int32_t pair = 0; pair < PAIRS; pair++) {
      __m256i p[2], rest[2];
      for (int32_t i = 0; i < 2; i++) {
        const int32_t row = 2 * pair + i, index = g->index * ROWS + row;
        const __m256 top = _mm256_set1_ps(g->row_top[row]);
        const float *logit = g->logit[sub][row];
        __m256i low = powers_with_rests(logit, top), high = powers_with_rests(logit + LANES, top);
        if (!rests_in(a, index, index, begin)) {
          low = _mm256_andnot_si256(byte, _mm256_add_epi32(low, half));
          high = _mm256_andnot_si256(byte, _mm256_add_epi32(high, half));
        }
        p[i] = _mm256_packs_epi32(_mm256_srli_epi32(low, 8), _mm256_srli_epi32(high, 8));
        rest[i] = _mm256_packs_epi32(_mm256_and_si256(low, byte), _mm256_and_si256(high, byte));
      }
      store_even(p[0], n + sub * KEYS, pair, &g->p[sub], g->sum);
      store_odd(p[1], n + sub * KEYS, pair, &g->p[sub], g->sum);
      store_even(rest[0], n + sub * KEYS, pair, &g->rest[sub], g->rest_sum);
      store_odd(rest[1], n + sub * KEYS, pair, &g->rest[sub], g->rest_sum);
    }
}

// At most `count` of the portions that are left.
INLINE int32_t portions_left(const group *g, int32_t count) {
  const int32_t left = g ? g->portions - g->done : 0;
  return count < left ? count : left;
}

// ---------------------------------------------------------------------------------- masks and caps

// Logits of keys that a row does not see become -inf, in the sub-tiles that have some.
static __attribute__((noinline)) void mask_logits(const intfa_attend_tiles *a, group *g,
                                                  int64_t begin, int64_t end) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  __m256i first[ROWS], last[ROWS];
  for (int32_t i = 0; i < ROWS; i++) {
    key_range seen = visible_keys(&a->visible, g->index * ROWS + i, begin, end);
    first[i] = _mm256_set1_epi32((int32_t)(seen.begin - begin));
    last[i] = _mm256_set1_epi32((int32_t)(seen.end > begin ? seen.end - begin : 0));
  }
  for (int32_t sub = g->first_sub; sub < g->end_sub; sub++) {
    if (is_whole(g, sub)) continue;
    for (int32_t i = 0; i < ROWS; i++)
      for (int32_t j = 0; j < KEYS; j += LANES) {
        float *logit = g->logit[sub][i] + j;
        __m256i key = _mm256_add_epi32(lanes, _mm256_set1_epi32(sub * KEYS + j));
        __m256 x = masked(_mm256_load_ps(logit), key, first[i], last[i]);
        _mm256_store_ps(logit, x);
        _mm256_store_ps(g->top[i], _mm256_max_ps(_mm256_load_ps(g->top[i]), x));
      }
  }
}

static __attribute__((noinline)) void cap_logits(const intfa_attend_tiles *a, const state *s,
                                                 const tile_operands *t, group *g) {
  for (int32_t i = 0; i < ROWS; i++) {
    const float shift = s->shift[g->index][i];
    __m256 top = _mm256_set1_ps(-1e30f);
    for (int32_t sub = g->first_sub; sub < g->end_sub; sub++) {
      float *logit = g->logit[sub][i];
      const float *fold = a->fold + place_of(t, sub);
      for (int32_t j = 0; j < KEYS; j++)
        logit[j] = soft_cap(logit[j] + shift, a->softcap) + fold[j];
      if (!is_whole(g, sub)) continue;
      for (int32_t j = 0; j < KEYS; j += LANES) top = _mm256_max_ps(top, _mm256_load_ps(logit + j));
    }
    _mm256_store_ps(g->top[i], top);
  }
}

// Logits with what the mask adds to them, and the maxima of whole sub-tiles.
static __attribute__((noinline)) void add_mask(const intfa_attend_tiles *a, group *g, int64_t begin,
                                               int64_t end) {
  for (int32_t i = 0; i < g->rows; i++) {
    __m256 top = _mm256_set1_ps(-1e30f);
    for (int32_t sub = g->first_sub; sub < g->end_sub; sub++) {
      const int64_t first = begin + sub * KEYS;
      float *logit = g->logit[sub][i];
      mask_row(a->mask, g->index * ROWS + i, first, (int32_t)(end - first < KEYS ? end - first : KEYS),
               logit);
      if (!is_whole(g, sub)) continue;
      for (int32_t j = 0; j < KEYS; j += LANES) top = _mm256_max_ps(top, _mm256_load_ps(logit + j));
    }
    _mm256_store_ps(g->top[i], top);
  }
}

// --------------------------------------------------------------------------------- row sums, gains

// Sums of p * n with real n, in lanes of key mod 16 as the portable kernel has them.
static __attribute__((noinline)) void real_row_sums(const intfa_attend_tiles *a,
                                                    const tile_operands *t, const group *g,
                                                    int64_t begin, float sums[LANES]) {
  const __m256 none = _mm256_set1_ps(-__builtin_inff());
  for (int32_t i = 0; i < ROWS; i++) {
    const int32_t row = g->index * ROWS + i;
    const bool has_rest = rests_in(a, row, row, begin);
    const __m256 top = _mm256_set1_ps(g->row_top[i]);
    __m256 lanes[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int32_t j = g->first_sub * KEYS; j < g->end_sub * KEYS; j += LANES) {
      const float *logit = g->logit[j / KEYS][i] + j % KEYS;
      __m256i steps = steps_below(top, logit);
      __m256i index = _mm256_and_si256(steps, _mm256_set1_epi32(63));
      __m256i shift = _mm256_srli_epi32(steps, 6);
      __m256i exponent = _mm256_slli_epi32(_mm256_sub_epi32(_mm256_set1_epi32(127), shift), 23);
      __m256 p = !a->sums_codes ? _mm256_mul_ps(_mm256_i32gather_ps(real_power_table, index, 4),
                                                _mm256_castsi256_ps(exponent))
                 : has_rest ? _mm256_mul_ps(_mm256_cvtepi32_ps(powers_with_rests(logit, top)),
                                            _mm256_set1_ps(REST_UNIT))
                            : _mm256_cvtepi32_ps(powers(logit, top));
      const float *n = a->real_weight + place_of(t, j / KEYS) + j % KEYS;
      __m256 product = _mm256_mul_ps(p, _mm256_loadu_ps(n));
      __m256 seen = _mm256_cmp_ps(_mm256_load_ps(logit), none, _CMP_NEQ_OQ);
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
    // Sums of a row that has seen nothing are zero.
    const __m256 none = _mm256_set1_ps(-__builtin_inff()), one = _mm256_set1_ps(1.0f);
    if (_mm256_movemask_ps(_mm256_and_ps(jump, _mm256_cmp_ps(reference, none, _CMP_GT_OQ)))) {
      _Alignas(32) float factor[LANES];
      __m256 rise =
          _mm256_mul_ps(_mm256_sub_ps(_mm256_setzero_ps(), excess), _mm256_set1_ps(1.0f / STEPS));
      _mm256_store_ps(factor, _mm256_blendv_ps(one, exp2_x8(rise), jump));
      rescale(a, s, g, factor);
    }
    _mm256_store_ps(s->reference[g->index], _mm256_blendv_ps(reference, top, jump));
    gain = _mm256_blendv_ps(gain, one, jump);
  }
  _mm256_store_ps(g->gain, gain);
}
