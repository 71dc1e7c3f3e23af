// Integer tile loop with 512-bit vpdpbusd (u8 x s8 -> s32): both products of attention.
//
// Loop: key tile (64 or 128 keys) > 4 query rows. While the scores of four rows are multiplied, the
// exponentials of the four rows before them run beside; then those are multiplied with V. The float
// operations are those of portable_tiles.c one by one (no fused multiply-add), so all bits are equal.
//
// instruction                      where it runs on Zen 5, per cycle      here
// vpdpbusd, vmulps                 two multiply ports, 2                  512 + 36 per tile of 64, D 64
// vaddps vmaxps vcvtps2dq, shifts  the other two ports, 2                 in the multiplies' shadow
// vpermt2w vpackssdw               shared                                 2 + 2 per 64 keys and row
// loads and broadcasts             2 per cycle, one store                 4 + 4 per 16 vpdpbusd
//
// Registers: 16 sums (4 rows x 64 keys or channels), 4 keys or values, the rest exponentials.
// Keys are packed +128, so that they are the unsigned operand; a row's sums start at -128 * sum(q).
// Bounds: |sums| <= 256 * 255 * 127 = 8.3e6 while scoring, 128 * 255 * 127 = 4.2e6 for values.
#if defined(__x86_64__)
#include "online_softmax.h"

#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c"))), \
                             apply_to = function)
#include "x86_avx512vnni.h"

// What four rows need from their scores to their values.
typedef struct {
  _Alignas(64) float logit[SUBS][ROWS][KEYS];
  _Alignas(64) uint8_t p[SUBS][ROWS][KEYS];  // in the order of weight_position
  _Alignas(64) int32_t sum[ROWS][16];        // partial sums of p * n
  _Alignas(16) float top[ROWS], gain[ROWS];
} group;

// Everything that a call keeps in its scratch memory.
typedef struct {
  group groups[2];
  _Alignas(64) uint16_t power[64];
  _Alignas(64) int8_t no_weights[INTFA_MAX_TILE];  // stands for n_j where they are not integers
  _Alignas(64) int32_t start[INTFA_MAX_ROWS];
  _Alignas(64) float scale[INTFA_MAX_ROWS], shift[INTFA_MAX_ROWS];
  _Alignas(64) int8_t query[INTFA_MAX_ROWS * INTFA_MAX_DIMENSION];  // rows padded to four channels
} state;
_Static_assert(sizeof(state) <= sizeof(float) * 2 * INTFA_MAX_TILE * INTFA_MAX_DIMENSION,
               "fits intfa_scratch_bytes");

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
INLINE void store_weights(__m512i even, __m512i odd, const int8_t *n, uint8_t *p, int32_t *sum) {
  const __m512i half = _mm512_set1_epi16(128), high_bytes = _mm512_set1_epi16((short)0xFF00);
  even = _mm512_srli_epi16(_mm512_add_epi16(even, half), 8);
  odd = _mm512_add_epi16(odd, half);
  __m512i bytes = _mm512_ternarylogic_epi32(even, odd, high_bytes, 0xF8);  // even | (odd & high)
  _mm512_store_si512(p, bytes);
  _mm512_store_si512(sum, _mm512_dpbusd_epi32(_mm512_load_si512(sum), bytes, _mm512_load_si512(n)));
}
INLINE void exponentials(group *g, int32_t sub, const int8_t *n, const uint16_t *table) {
  UNROLL for (int r = 0; r < ROWS; r++) {
    const float *logit = g->logit[sub][r];
    __m512 top = _mm512_set1_ps(g->top[r]);
    store_weights(power_of_two(table, exponent_steps(logit, top)),
                  power_of_two(table, exponent_steps(logit + 32, top)), n, g->p[sub][r], g->sum[r]);
  }
}

// ---------------------------------------------------------------------------------- scores

// Four channels of 4 queries x 64 keys.
INLINE void score_step(const int8_t *q, int32_t stride, const uint8_t *key, int32_t step,
                       __m512i acc[ROWS][4]) {
  const uint8_t *k = key + (int64_t)step * 4 * KEYS;
  __m512i k0 = _mm512_load_si512(k), k1 = _mm512_load_si512(k + 64);
  __m512i k2 = _mm512_load_si512(k + 128), k3 = _mm512_load_si512(k + 192);
  UNROLL for (int i = 0; i < ROWS; i++) {
    int32_t four;
    memcpy(&four, q + i * stride + 4 * step, sizeof four);
    __m512i qi = _mm512_set1_epi32(four);
    acc[i][0] = _mm512_dpbusd_epi32(acc[i][0], k0, qi);
    acc[i][1] = _mm512_dpbusd_epi32(acc[i][1], k1, qi);
    acc[i][2] = _mm512_dpbusd_epi32(acc[i][2], k2, qi);
    acc[i][3] = _mm512_dpbusd_epi32(acc[i][3], k3, qi);
  }
}

// Where the scores of four rows and 64 keys come from.
typedef struct {
  const int8_t *query;  // [ROWS][stride]
  int32_t stride;       // channels, padded to four
  const int32_t *start;
  const float *query_scale;
  const uint8_t *key;
  const float *key_scale, *bias;
} score_operands;

// Logits of sub-tile `sub` into `g`; where asked, the exponentials of that sub-tile of the four rows
// before between the multiplies. D is the stride where the compiler shall know it, a multiple of 64,
// else 0. No branch may be left in here: the compiler would keep operands on the stack around it.
INLINE void score(const int32_t D, const bool with_earlier, const score_operands *o, group *g,
                  int32_t sub, __m512 top[ROWS], group *earlier, const int8_t *n,
                  const uint16_t *table) {
  const int8_t *q = o->query;
  const int32_t stride = D ? D : o->stride, part = D / 64;
  __m512i acc[ROWS][4], even, odd;
  __asm__ volatile("" : "+r"(q));  // else broadcasts may be hoisted out of the loop and spilled
  UNROLL for (int i = 0; i < ROWS; i++)
    UNROLL for (int j = 0; j < 4; j++) acc[i][j] = _mm512_set1_epi32(o->start[i]);
  if (D) {
    UNROLL for (int r = 0; r < ROWS; r++) {
      const float *logit = earlier->logit[sub][r];
      UNROLL for (int s = 0; s < part; s++) score_step(q, stride, o->key, 4 * r * part + s, acc);
      if (with_earlier) even = exponent_steps(logit, _mm512_set1_ps(earlier->top[r]));
      UNROLL for (int s = 0; s < part; s++) score_step(q, stride, o->key, (4 * r + 1) * part + s, acc);
      if (with_earlier) odd = exponent_steps(logit + 32, _mm512_set1_ps(earlier->top[r]));
      UNROLL for (int s = 0; s < part; s++) score_step(q, stride, o->key, (4 * r + 2) * part + s, acc);
      if (with_earlier) even = power_of_two(table, even), odd = power_of_two(table, odd);
      UNROLL for (int s = 0; s < part; s++) score_step(q, stride, o->key, (4 * r + 3) * part + s, acc);
      if (with_earlier) store_weights(even, odd, n, earlier->p[sub][r], earlier->sum[r]);
    }
  } else {
    KEEP_LOOP for (int32_t s = 0; s < stride / 4; s++) score_step(q, stride, o->key, s, acc);
    if (with_earlier) exponentials(earlier, sub, n, table);
  }
  UNROLL for (int j = 0; j < 4; j++) {
    __m512 ks = _mm512_loadu_ps(o->key_scale + 16 * j), b = _mm512_loadu_ps(o->bias + 16 * j);
    UNROLL for (int i = 0; i < ROWS; i++) {
      __m512 x = _mm512_mul_ps(_mm512_cvtepi32_ps(acc[i][j]), ks);
      x = _mm512_add_ps(_mm512_mul_ps(x, _mm512_set1_ps(o->query_scale[i])), b);
      top[i] = _mm512_max_ps(top[i], x);
      _mm512_store_ps(g->logit[sub][i] + 16 * j, x);
    }
  }
}

// ---------------------------------------------------------------------------------- masks and caps

// Logits of keys that a row does not see become -inf; then the row maxima are taken anew.
static __attribute__((noinline)) void mask_logits(const intfa_attend_tiles *a, group *g, int32_t row,
                                                  int64_t begin, int64_t end, int32_t subs,
                                                  __m512 top[ROWS]) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int32_t i = 0; i < ROWS; i++) {
    key_range seen = visible_keys(&a->visible, row + i, begin, end);
    __m512i first = _mm512_set1_epi32((int32_t)(seen.begin - begin));
    __m512i last = _mm512_set1_epi32((int32_t)(seen.end > begin ? seen.end - begin : 0));
    top[i] = _mm512_set1_ps(-1e30f);
    for (int32_t j = 0; j < subs * KEYS; j += 16) {
      float *logit = g->logit[j / KEYS][i] + j % KEYS;
      __m512i key = _mm512_add_epi32(lanes, _mm512_set1_epi32(j));
      __mmask16 visible = _mm512_cmpge_epi32_mask(key, first) & _mm512_cmplt_epi32_mask(key, last);
      __m512 x = _mm512_mask_blend_ps(visible, _mm512_set1_ps(-__builtin_inff()),
                                      _mm512_load_ps(logit));
      _mm512_store_ps(logit, x);
      top[i] = _mm512_max_ps(top[i], x);
    }
  }
}

static __attribute__((noinline)) void cap_logits(const intfa_attend_tiles *a, const state *s, group *g,
                                                 int32_t row, int64_t begin, int32_t subs,
                                                 __m512 top[ROWS]) {
  for (int32_t i = 0; i < ROWS; i++) {
    top[i] = _mm512_set1_ps(-1e30f);
    for (int32_t sub = 0; sub < subs; sub++) {
      float *logit = g->logit[sub][i];
      for (int32_t j = 0; j < KEYS; j++)
        logit[j] = soft_cap(logit[j] + s->shift[row + i], a->softcap) + a->fold[begin + sub * KEYS + j];
      for (int32_t j = 0; j < KEYS; j += 16)
        top[i] = _mm512_max_ps(top[i], _mm512_load_ps(logit + j));
    }
  }
}

// ---------------------------------------------------------------------------------- row sums, gains

// Sums of p * n with real n, in lanes of key mod 16 as the portable kernel has them.
static __attribute__((noinline)) __m128 real_row_sums(const intfa_attend_tiles *a, const group *g,
                                                      int64_t begin, int32_t subs) {
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
      __m512 n = _mm512_maskz_loadu_ps(seen, a->real_weight + begin + j);
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
INLINE void choose_gain(const intfa_attend_tiles *a, group *g, int32_t row, const __m512 tops[ROWS]) {
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

// out += gain * (p x values), total += gain * sum, for the four rows of a group.
INLINE void add_values(const intfa_attend_tiles *a, group *g, const int8_t *value, int32_t width,
                       int32_t row, int64_t begin, int32_t subs) {
  __m128 sum;
  if (a->weight) {
    __m512i sums[ROWS];
    UNROLL for (int i = 0; i < ROWS; i++) {
      sums[i] = _mm512_load_si512(g->sum[i]);
      _mm512_store_si512(g->sum[i], _mm512_setzero_si512());
    }
    sum = _mm_cvtepi32_ps(four_sums(sums));
  } else {
    sum = real_row_sums(a, g, begin, subs);
  }
  __m128 total = _mm_loadu_ps(a->total + row);
  _mm_storeu_ps(a->total + row, _mm_add_ps(total, _mm_mul_ps(_mm_load_ps(g->gain), sum)));

  KEEP_LOOP for (int32_t c = 0; c < width; c += 64) {
    __m512i acc[ROWS][4];
    UNROLL for (int i = 0; i < ROWS; i++)
      UNROLL for (int j = 0; j < 4; j++) acc[i][j] = _mm512_setzero_si512();
    KEEP_LOOP for (int32_t sub = 0; sub < subs; sub++) {
      const int8_t *v = value + (int64_t)sub * KEYS * width + c * 4;
      UNROLL for (int t = 0; t < KEYS / 4; t++) {
        const int8_t *four = v + (int64_t)t * width * 4;
        __m512i v0 = _mm512_load_si512(four), v1 = _mm512_load_si512(four + 64);
        __m512i v2 = _mm512_load_si512(four + 128), v3 = _mm512_load_si512(four + 192);
        UNROLL for (int i = 0; i < ROWS; i++) {
          int32_t weights;
          memcpy(&weights, g->p[sub][i] + 4 * t, sizeof weights);
          __m512i p = _mm512_set1_epi32(weights);
          acc[i][0] = _mm512_dpbusd_epi32(acc[i][0], p, v0);
          acc[i][1] = _mm512_dpbusd_epi32(acc[i][1], p, v1);
          acc[i][2] = _mm512_dpbusd_epi32(acc[i][2], p, v2);
          acc[i][3] = _mm512_dpbusd_epi32(acc[i][3], p, v3);
        }
      }
    }
    UNROLL for (int i = 0; i < ROWS; i++) {
      __m512 gain = _mm512_set1_ps(g->gain[i]);
      UNROLL for (int j = 0; j < 4; j++) {
        float *o = a->out + (row + i) * a->out_stride + c + 16 * j;
        __m512 x = _mm512_mul_ps(_mm512_cvtepi32_ps(acc[i][j]), gain);
        _mm512_store_ps(o, _mm512_add_ps(_mm512_load_ps(o), x));
      }
    }
  }
}

// ---------------------------------------------------------------------------------- the loop

// All rows against the tile [begin, end).
INLINE void attend_tile(const int32_t D, const intfa_attend_tiles *a, state *s, int64_t begin,
                        int64_t end) {
  const int32_t stride = D ? D : (int32_t)padded(a->head_dimension, 4);
  const int32_t width = (int32_t)padded(a->value_dimension, 64);
  const uint8_t *key = (const uint8_t *)a->key + begin * stride;
  const int8_t *value = (const int8_t *)a->value + begin * width;
  const int8_t *n = a->weight ? a->weight + begin : s->no_weights;
  group *g = &s->groups[0], *earlier = &s->groups[1];
  int32_t earlier_row = -1, earlier_subs = 0;
  for (int32_t row = 0; row < a->rows; row += ROWS) {
    int32_t last_row = row + ROWS < a->rows ? row + ROWS - 1 : a->rows - 1;
    int64_t first_key = visible_keys(&a->visible, row, begin, end).begin;
    int64_t last_key = visible_keys(&a->visible, last_row, begin, end).end;
    if (first_key >= last_key) continue;
    // Later rows see at least as many keys, so never fewer sub-tiles than the rows before.
    int32_t subs = (int32_t)((last_key - begin + KEYS - 1) / KEYS), sub = 0;
    score_operands o = {
        .query = s->query + (int64_t)row * stride,
        .stride = stride,
        .start = s->start + row,
        .query_scale = s->scale + row,
    };
    __m512 top[ROWS];
    UNROLL for (int i = 0; i < ROWS; i++) top[i] = _mm512_set1_ps(-1e30f);
    KEEP_LOOP for (; sub < subs; sub++) {
      o.key = key + (int64_t)sub * KEYS * stride;
      o.key_scale = a->key_scale + begin + sub * KEYS;
      o.bias = a->bias + begin + sub * KEYS;
      if (sub < earlier_subs)
        score(D, true, &o, g, sub, top, earlier, n + sub * KEYS, s->power);
      else
        score(D, false, &o, g, sub, top, earlier, n, s->power);
    }
    if (a->softcap > 0) cap_logits(a, s, g, row, begin, subs, top);
    int64_t common_end = visible_keys(&a->visible, row, begin, end).end;
    int64_t common_begin = visible_keys(&a->visible, last_row, begin, end).begin;
    if (common_begin > begin || common_end < begin + subs * KEYS)
      mask_logits(a, g, row, begin, end, subs, top);
    choose_gain(a, g, row, top);
    if (earlier_row >= 0) add_values(a, earlier, value, width, earlier_row, begin, earlier_subs);
    group *swap = g;
    g = earlier, earlier = swap, earlier_row = row, earlier_subs = subs;
  }
  if (earlier_row < 0) return;
  for (int32_t sub = 0; sub < earlier_subs; sub++)
    exponentials(earlier, sub, n + sub * KEYS, s->power);
  add_values(a, earlier, value, width, earlier_row, begin, earlier_subs);
}

static void prepare_rows(const intfa_attend_tiles *a, state *s, int32_t stride) {
  int32_t rows = (int32_t)padded(a->rows, ROWS);
  memset(s->query, 0, (size_t)(rows * stride));
  memset(s->start, 0, sizeof s->start);
  memset(s->scale, 0, sizeof s->scale);
  memset(s->shift, 0, sizeof s->shift);
  memset(s->groups, 0, sizeof s->groups);
  memset(s->no_weights, 0, sizeof s->no_weights);
  memcpy(s->power, power_table, sizeof s->power);
  for (int32_t r = 0; r < a->rows; r++) {
    const int8_t *q = a->query + (int64_t)r * a->head_dimension;
    int32_t sum = 0;
    for (int32_t c = 0; c < a->head_dimension; c++) sum += q[c];
    memcpy(s->query + (int64_t)r * stride, q, (size_t)a->head_dimension);
    s->start[r] = -128 * sum;
    s->scale[r] = a->query_scale[r];
    if (a->softcap > 0) s->shift[r] = a->row_shift[r];
  }
}

INLINE void attend_dimension(const int32_t D, const intfa_attend_tiles *a) {
  state *s = a->scratch;
  prepare_rows(a, s, D ? D : (int32_t)padded(a->head_dimension, 4));
  for (int64_t begin = a->key_begin, end; begin < a->key_end; begin = end) {
    end = tile_end(begin, a->key_end, a->first_tile, a->tile);
    attend_tile(D, a, s, begin, end);
  }
}

void intfa_attend_tiles__avx512vnni(const intfa_attend_tiles *a) {
  switch (a->head_dimension) {
    case 64: attend_dimension(64, a); return;
    case 128: attend_dimension(128, a); return;
    case 256: attend_dimension(256, a); return;
    default: attend_dimension(0, a); return;
  }
}
#pragma clang attribute pop
#endif
