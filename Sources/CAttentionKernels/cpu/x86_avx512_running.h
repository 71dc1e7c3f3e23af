// The loop of the running maximum in 512-bit registers, for three kinds of products. Included inside
// a target region; a file that multiplies bfloat16 defines RUNNING_BFLOAT16 first.
#pragma once
#include "x86_avx512_formats.h"

// What a 32-bit lane of a packed operand holds: a float32, two bfloat16, or four codes.
typedef enum { FLOATS = 1, PAIRS = 2, QUADS = 4 } lane_kind;

enum {
  GROUP = 8,        // query rows of a group
  SUB = 32,         // keys of a register tile of scores: 8 rows x 32 keys fill 16 registers
  MAX_PARTS = INTFA_MAX_TILE / SUB,
  CACHED_BYTES = 64 << 10  // keys and values of a tile, beside which the first-level cache has room
};

// What eight rows need from their scores to their values.
typedef struct {
  _Alignas(64) float logit[MAX_PARTS][GROUP][SUB];
  _Alignas(16) float top[GROUP], reference[GROUP];
} running_group;

// Everything that a call keeps in its scratch memory.
typedef struct {
  running_group groups[2];
  _Alignas(64) uint32_t p[GROUP][INTFA_MAX_TILE];  // lanes of P, the keys of a tile in order
  _Alignas(64) float sum[INTFA_MAX_ROWS][16];      // partial row sums, by key number modulo 16
  _Alignas(64) float scale[INTFA_MAX_ROWS], shift[INTFA_MAX_ROWS];
  int32_t start[INTFA_MAX_ROWS];                   // QUADS: -128 * the sum of a row's codes
  _Alignas(64) uint32_t query[INTFA_MAX_ROWS * INTFA_MAX_DIMENSION];  // [row / 8][lane][8 rows]
} running_state;
_Static_assert(sizeof(running_state) <= INTFA_SCRATCH_BYTES, "fits the scratch memory");

// What the compiler knows of a loop: it makes one copy per combination.
typedef struct {
  lane_kind score, value;
  intfa_probability probability;
} running_kind;

// Lanes of a packed row of queries or keys: an equal share for each of the eight rows whose exponentials
// run between.
INLINE int32_t query_lanes(int32_t dimension, lane_kind kind) {
  return (int32_t)padded(dimension, GROUP * kind) / kind;
}

// acc + the products of the lanes of `vector` and one lane of a row.
INLINE __m512 multiply(const lane_kind kind, const bool vector_is_unsigned, __m512 acc, __m512i vector,
                       __m512i lane) {
  __m512i bits = _mm512_castps_si512(acc);
  switch (kind) {
    case FLOATS: return _mm512_fmadd_ps(_mm512_castsi512_ps(vector), _mm512_castsi512_ps(lane), acc);
    case PAIRS:
#ifdef RUNNING_BFLOAT16
      return _mm512_dpbf16_ps(acc, (__m512bh)vector, (__m512bh)lane);
#else
      return acc;
#endif
    case QUADS:
      bits = vector_is_unsigned ? _mm512_dpbusd_epi32(bits, vector, lane)
                                : _mm512_dpbusd_epi32(bits, lane, vector);
      return _mm512_castsi512_ps(bits);
  }
  return acc;
}

// ---------------------------------------------------------------------------------- packing

// Keys lie as [key / 32][lane][32 keys]: 16 rows of 16 lanes from `key` into their columns.
INLINE void store_key_lanes(void *target, int64_t key, int32_t lanes, int32_t chunk, __m512i rows[16]) {
  transpose16(rows);
  uint32_t *to = (uint32_t *)target + key / SUB * SUB * lanes + key % SUB;
  for (int32_t i = 0; i < 16 && 16 * chunk + i < lanes; i++)
    _mm512_store_si512(to + (16 * chunk + i) * SUB, rows[i]);
}
// The second half of the last 32 keys where there is none.
INLINE void clear_key_padding(void *target, int64_t end, int32_t lanes) {
  const int64_t key = padded(end, 16);
  if (key % SUB == 0) return;
  uint32_t *to = (uint32_t *)target + key / SUB * SUB * lanes + key % SUB;
  for (int32_t i = 0; i < lanes; i++) _mm512_store_si512(to + i * SUB, _mm512_setzero_si512());
}

// Queries lie as [row / 8][lane][8 rows]: 16 rows of 16 lanes from `row`.
INLINE void store_query_lanes(uint32_t *query, int32_t row, int32_t lanes, int32_t chunk, __m512i rows[16]) {
  transpose16(rows);
  uint32_t *to = query + row * lanes + 16 * chunk * GROUP;
  for (int32_t i = 0; i < 16 && 16 * chunk + i < lanes; i++) {
    _mm256_store_si256((__m256i *)(to + i * GROUP), _mm512_castsi512_si256(rows[i]));
    _mm256_store_si256((__m256i *)(to + (lanes + i) * GROUP), _mm512_extracti32x8_epi32(rows[i], 1));
  }
}

// Values lie as [lane of tokens][width]: channel by channel, two tokens side by side.
INLINE void store_value_pairs(uint32_t *to, __m512i even, __m512i odd) {
  __m512i low = _mm512_unpacklo_epi16(even, odd), high = _mm512_unpackhi_epi16(even, odd);
  const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
  const __m512i second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
  _mm512_store_si512(to, _mm512_permutex2var_epi64(low, first, high));
  _mm512_store_si512(to + 16, _mm512_permutex2var_epi64(low, second, high));
}

// 64 codes of a row; what lies beyond `dimension` is zero.
INLINE __m512i load_codes(const int8_t *codes, int32_t dimension, int32_t chunk) {
  const int32_t left = dimension - 64 * chunk;
  __mmask64 mask = left >= 64 ? ~0ull : left > 0 ? (1ull << left) - 1 : 0;
  return _mm512_maskz_loadu_epi8(mask, codes + 64 * chunk);
}

// The softmax scale is never negative in the loop, as the largest product is that of the largest logit:
// its sign goes into float queries. A scale of zero turns them to zeros.
INLINE float query_sign(const intfa_attend_running *a) {
  return a->query_scale[0] > 0 ? 1.0f : a->query_scale[0] < 0 ? -1.0f : 0.0f;
}

static void prepare_running_rows(const intfa_attend_running *a) {
  running_state *s = a->scratch;
  const int32_t rows = (int32_t)padded(a->rows, GROUP);
  memset(s->sum, 0, sizeof s->sum[0] * (size_t)rows);
  for (int32_t r = 0; r < rows; r++) {
    float scale = r < a->rows ? a->query_scale[r] : 0;
    s->scale[r] = a->formats.score == INTFA_INT8 ? scale : scale == 0 ? 1 : __builtin_fabsf(scale);
    s->shift[r] = r < a->rows && a->row_shift ? a->row_shift[r] : 0;
    s->start[r] = 0;
  }
}

static void pack_code_queries(const intfa_attend_running *a) {
  running_state *s = a->scratch;
  const int32_t d = a->head_dimension, lanes = query_lanes(d, QUADS);
  for (int32_t row = 0; row < a->rows; row += 16)
    for (int32_t chunk = 0; 16 * chunk < lanes; chunk++) {
      __m512i rows[16];
      for (int32_t i = 0; i < 16; i++)
        rows[i] = load_codes(a->query_codes + (int64_t)(row + i) * d, row + i < a->rows ? d : 0, chunk);
      store_query_lanes(s->query, row, lanes, chunk, rows);
    }
  for (int32_t r = 0; r < a->rows; r++) {
    __m512i sum = _mm512_setzero_si512();
    for (int32_t chunk = 0; 64 * chunk < d; chunk++)
      sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), load_codes(a->query_codes + (int64_t)r * d, d, chunk));
    s->start[r] = -128 * _mm512_reduce_add_epi32(sum);
  }
}

// ---------------------------------------------------------------------------------- exponentials

// P of 32 keys of row i from logits, and their sum onto the row's. Where scores are integers the logits
// are complete, else the row's scale is still to be applied.
INLINE void exponentials(const running_kind K, const running_group *g, running_state *s, int32_t row,
                         int32_t part, int32_t i) {
  const bool precise = K.value == FLOATS;
  __m512 reference = _mm512_set1_ps(g->reference[i]), p[2];
  UNROLL for (int j = 0; j < 2; j++) {
    __m512 x = _mm512_load_ps(g->logit[part][i] + 16 * j);
    x = K.score == QUADS ? _mm512_sub_ps(x, reference)
                         : _mm512_fmsub_ps(x, _mm512_set1_ps(s->scale[row + i]), reference);
    p[j] = precise ? exp2_precise_x16(x) : exp2_short_x16(x);
  }
  float *sum = s->sum[row + i];
  _mm512_store_ps(sum, _mm512_add_ps(_mm512_load_ps(sum), _mm512_add_ps(p[0], p[1])));
  uint32_t *to = s->p[i] + part * SUB / K.value;
  switch (K.value) {
    case FLOATS:
      _mm512_store_ps(to, round_probability_x16(p[0], K.probability));
      _mm512_store_ps(to + 16, round_probability_x16(p[1], K.probability));
      return;
    case PAIRS:
#ifdef RUNNING_BFLOAT16
      _mm512_store_si512(to, (__m512i)_mm512_cvtne2ps_pbh(p[1], p[0]));
#endif
      return;
    case QUADS:
      UNROLL for (int j = 0; j < 2; j++) {
        __m512i code = _mm512_cvtps_epi32(_mm512_mul_ps(p[j], _mm512_set1_ps(127.0f)));
        _mm_store_si128((__m128i *)to + j, _mm512_cvtepi32_epi8(code));
      }
      return;
  }
}

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
                  running_group *g, const running_group *earlier, int32_t earlier_row) {
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
    KEEP_LOOP for (int32_t t = 0; t < share; t++, q += GROUP, key += SUB) score_step(K, q, key, acc);
    if (with_earlier) exponentials(K, earlier, s, earlier_row, part, i);
  }
  if (K.score == QUADS) {
    UNROLL for (int j = 0; j < 2; j++) {
      const int64_t at = first_key + part * SUB + 16 * j;
      __m512 ks = _mm512_loadu_ps(a->key_scale + at);
      __m512 bias = a->bias ? _mm512_loadu_ps(a->bias + at) : _mm512_setzero_ps();
      UNROLL for (int i = 0; i < GROUP; i++) {
        __m512 x = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_castps_si512(acc[i][j])), ks);
        acc[i][j] = _mm512_fmadd_ps(x, _mm512_set1_ps(s->scale[row + i]), bias);
      }
    }
  }
  UNROLL for (int i = 0; i < GROUP; i++) {
    _mm512_store_ps(g->logit[part][i], acc[i][0]);
    _mm512_store_ps(g->logit[part][i] + 16, acc[i][1]);
  }
}

// The largest logits of eight rows. A pass of its own: at the end of score() it would delay the next one.
INLINE void find_tops(running_group *g, int32_t parts) {
  __m512 tops[GROUP];
  UNROLL for (int i = 0; i < GROUP; i++) tops[i] = _mm512_set1_ps(-__builtin_inff());
  KEEP_LOOP for (int32_t part = 0; part < parts; part++)
    UNROLL for (int i = 0; i < GROUP; i++) {
      tops[i] = _mm512_max_ps(tops[i], _mm512_load_ps(g->logit[part][i]));
      tops[i] = _mm512_max_ps(tops[i], _mm512_load_ps(g->logit[part][i] + 16));
    }
  _mm_store_ps(g->top, four_maxima(tops));
  _mm_store_ps(g->top + ROWS, four_maxima(tops + ROWS));
}

// Caps logits and hides keys that a row does not see.
static __attribute__((noinline)) void cap_and_mask(const intfa_attend_running *a, running_state *s,
                                                   bool is_complete, int32_t row, int64_t begin,
                                                   int64_t end, int64_t first_key, int32_t parts,
                                                   running_group *g) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int32_t i = 0; i < GROUP; i++) {
    key_range seen = visible_keys(&a->visible, row + i, begin, end);
    __m512i first = _mm512_set1_epi32((int32_t)(seen.begin - first_key));
    __m512i last = _mm512_set1_epi32((int32_t)(seen.end > first_key ? seen.end - first_key : 0));
    for (int32_t j = 0; j < parts * SUB; j += 16) {
      float *logit = g->logit[j / SUB][i] + j % SUB;
      if (a->softcap > 0)
        for (int32_t k = 0; k < 16; k++) {
          float scale = is_complete ? 1 : s->scale[row + i];
          logit[k] = soft_cap(logit[k] * scale + s->shift[row + i], a->softcap) / scale;
        }
      __m512i key = _mm512_add_epi32(lanes, _mm512_set1_epi32(j));
      __mmask16 visible = _mm512_cmpge_epi32_mask(key, first) & _mm512_cmplt_epi32_mask(key, last);
      __m512 x = _mm512_mask_blend_ps(visible, _mm512_set1_ps(-__builtin_inff()), _mm512_load_ps(logit));
      _mm512_store_ps(logit, x);
    }
  }
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
    if (K.score != QUADS) top = _mm_mul_ps(top, _mm_load_ps(s->scale + row + half));
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
            __m512i lane = _mm512_set1_epi32((int32_t)p[i * INTFA_MAX_TILE]);
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

// Keys [begin, end) of the tile that begins at `begin`: those of the recipe where the reference follows
// its tiles, else as many as the first-level cache holds.
INLINE int64_t running_tile_end(const running_kind K, const intfa_attend_running *a, int64_t begin,
                                int32_t steps, int32_t width) {
  if (!has_whole_reference(K.probability)) return tile_end(begin, a->key_end, a->first_tile, a->tile);
  int32_t bytes = 4 * steps + 4 * width / K.value, keys = CACHED_BYTES / bytes / SUB * SUB;
  keys = keys < SUB ? SUB : keys > INTFA_MAX_TILE ? INTFA_MAX_TILE : keys;
  int64_t end = begin / keys * keys + keys;
  return end < a->key_end ? end : a->key_end;
}

// Rows `row` ... of the group against the tile [begin, end).
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
      const int32_t parts = (int32_t)((seen_end - first_key + SUB - 1) / SUB);
      int32_t part = 0;
      KEEP_LOOP for (; part < parts; part++)
        if (part < before.parts)
          score(K, true, a, s, steps, row, first_key, part, g, before.group, before.row);
        else
          score(K, false, a, s, steps, row, first_key, part, g, before.group, before.row);
      const int64_t common_begin = visible_keys(&a->visible, last_row, begin, end).begin;
      const int64_t common_end = visible_keys(&a->visible, row, begin, end).end;
      if (common_begin > first_key || common_end < first_key + parts * SUB || a->softcap > 0)
        cap_and_mask(a, s, K.score == QUADS, row, begin, end, first_key, parts, g);
      find_tops(g, parts);
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
  for (int32_t r = 0; r < a->rows; r++) a->total[r] += sum_of_lanes(_mm512_load_ps(s->sum[r]));
}
