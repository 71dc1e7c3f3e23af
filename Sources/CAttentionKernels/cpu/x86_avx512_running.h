// What the loops of the running maximum in 512-bit registers share: types, products, packing,
// exponentials, masks. Included inside a target region; a file that multiplies bfloat16 defines
// RUNNING_BFLOAT16 first.
#pragma once
#include "key_mask.h"
#include "x86_avx512_formats.h"

// What a 32-bit lane of a packed operand holds: a float32, two bfloat16, or four codes.
typedef enum { FLOATS = 1, PAIRS = 2, QUADS = 4 } lane_kind;

enum {
  GROUP = 8,        // query rows of a group
  SUB = 32,         // keys of a register tile of scores: 8 rows x 32 keys fill 16 registers
  MAX_KEYS = INTFA_MAX_TILE + SUB,  // tiles of any length may begin inside 32 keys
  // Keys and values of a tile. More than the first-level cache holds: longer tiles are worth some
  // loads from the second.
  CACHED_BYTES = 64 << 10
};

// What eight rows need from their scores to their values.
typedef struct {
  _Alignas(64) float logit[MAX_KEYS / SUB][GROUP][SUB];
  _Alignas(16) float top[GROUP], reference[GROUP];
} running_group;

// Everything that a call keeps in its scratch memory.
typedef struct {
  running_group groups[2];
  _Alignas(64) uint32_t p[GROUP][MAX_KEYS];  // lanes of P, the keys of a tile in order
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
  bool is_complete;  // score() leaves logits, else the row's scale is still to be applied
} running_kind;

// Lanes of a packed row of queries or keys: an equal share for each of the eight rows whose
// exponentials run between.
INLINE int32_t query_lanes(int32_t dimension, lane_kind kind) {
  return (int32_t)padded(dimension, GROUP * kind) / kind;
}

// acc + the products of the lanes of `vector` and one lane of a row.
INLINE __m512 multiply(const lane_kind kind, const bool vector_is_unsigned, __m512 acc,
                       __m512i vector, __m512i lane) {
  __m512i bits = _mm512_castps_si512(acc);
  switch (kind) {
    case FLOATS:
      return _mm512_fmadd_ps(_mm512_castsi512_ps(vector), _mm512_castsi512_ps(lane), acc);
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

// The rows lie far away and few at a time are read, which the processor's own prefetching does not see.
INLINE void prefetch_row(const intfa_rows *rows, int64_t row, int64_t end, int32_t dimension) {
  const int32_t size = rows->format == INTFA_FLOAT32 ? 4 : 2;
  if (row >= end) return;
  const char *base = (const char *)rows->base + row * rows->stride * size;
  for (int32_t at = 0; at < dimension * size; at += 64) _mm_prefetch(base + at, _MM_HINT_T0);
}

// Keys lie as [key / 32][lane][32 keys]: 16 rows of 16 lanes from `key` into their columns.
INLINE void store_key_lanes(void *target, int64_t key, int32_t lanes, int32_t chunk,
                            __m512i rows[16]) {
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
INLINE void store_query_lanes(uint32_t *query, int32_t row, int32_t lanes, int32_t chunk,
                              __m512i rows[16]) {
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

// A scale that is left for later is never negative, so that the largest product is that of the largest
// logit: its sign goes into float queries. A scale of zero turns them to zeros.
INLINE float query_sign(const intfa_attend_running *a) {
  return a->query_scale[0] > 0 ? 1.0f : a->query_scale[0] < 0 ? -1.0f : 0.0f;
}

static void prepare_running_rows(const intfa_attend_running *a) {
  running_state *s = a->scratch;
  const int32_t rows = (int32_t)padded(a->rows, GROUP);
  memset(s->sum, 0, sizeof s->sum[0] * (size_t)rows);
  for (int32_t r = 0; r < rows; r++) {
    float scale = r < a->rows ? a->query_scale[r] : 1;
    if (a->formats.score != INTFA_INT8) scale = scale == 0 ? 1 : __builtin_fabsf(scale);
    s->scale[r] = scale;
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
        rows[i] = load_codes(a->query_codes + (int64_t)(row + i) * d, row + i < a->rows ? d : 0,
                             chunk);
      store_query_lanes(s->query, row, lanes, chunk, rows);
    }
  for (int32_t r = 0; r < a->rows; r++) {
    __m512i sum = _mm512_setzero_si512();
    for (int32_t chunk = 0; 64 * chunk < d; chunk++) {
      __m512i codes = load_codes(a->query_codes + (int64_t)r * d, d, chunk);
      sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), codes);
    }
    s->start[r] = -128 * _mm512_reduce_add_epi32(sum);
  }
}

// ---------------------------------------------------------------------------------- exponentials

// P of 32 keys of row i from scores, and their sum onto the row's; in units of 1/127 where P is a code.
INLINE void exponentials(const running_kind K, const running_group *g, running_state *s, int32_t row,
                         int32_t part, int32_t i) {
  __m512 reference = _mm512_set1_ps(g->reference[i]), p[2];
  UNROLL for (int j = 0; j < 2; j++) {
    __m512 x = _mm512_load_ps(g->logit[part][i] + 16 * j);
    x = K.is_complete ? _mm512_sub_ps(x, reference)
                      : _mm512_fmsub_ps(x, _mm512_set1_ps(s->scale[row + i]), reference);
    p[j] = K.value == FLOATS ? exp2_x16(x) : exp2_short_x16(x, K.value == QUADS ? 127.0f : 1.0f);
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
        _mm_store_si128((__m128i *)to + j, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(p[j])));
      }
      return;
  }
}

// ---------------------------------------------------------------------------------- masks and caps

// Sixteen logits capped, in the units that they are stored in.
static void cap_logits(float *logit, float scale, float shift, float softcap) {
  for (int32_t k = 0; k < 16; k++) logit[k] = soft_cap(logit[k] * scale + shift, softcap) / scale;
}

// What the mask does to the logits of keys [begin, end) of row i, in the units that they are stored in.
static void add_mask(const intfa_attend_running *a, int32_t row, int32_t i, float scale, int64_t begin,
                     int64_t end, int64_t first_key, int32_t parts, running_group *g) {
  const float inverse = 1 / scale;
  for (int32_t part = 0; part < parts; part++) {
    const int64_t first = first_key + part * SUB, stop = first + SUB < end ? first + SUB : end;
    const int32_t skipped = first < begin ? (int32_t)(begin - first) : 0;
    float *logit = g->logit[part][i];
    for (int32_t k = 0; k < SUB; k++) logit[k] *= scale;
    mask_row(a->mask, row + i, first + skipped, (int32_t)(stop - first) - skipped, logit + skipped);
    for (int32_t k = 0; k < SUB; k++) logit[k] *= inverse;
  }
}

// Caps and masks logits and hides keys that a row does not see; then the tops are taken anew.
static __attribute__((noinline)) void cap_and_mask(const intfa_attend_running *a,
                                                   const running_state *s, bool is_complete,
                                                   int32_t row, int64_t begin, int64_t end,
                                                   int64_t first_key, int32_t parts,
                                                   running_group *g) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512 hidden = _mm512_set1_ps(-__builtin_inff());
  for (int32_t i = 0; i < GROUP; i++) {
    const key_range seen = visible_keys(&a->visible, row + i, begin, end);
    const float scale = is_complete ? 1 : s->scale[row + i];
    __m512i first = _mm512_set1_epi32((int32_t)(seen.begin - first_key));
    __m512i last = _mm512_set1_epi32((int32_t)(seen.end > first_key ? seen.end - first_key : 0));
    __m512 top = hidden;
    for (int32_t j = 0; a->softcap > 0 && j < parts * SUB; j += 16)
      cap_logits(g->logit[j / SUB][i] + j % SUB, scale, s->shift[row + i], a->softcap);
    if (a->mask && row + i < a->rows) add_mask(a, row, i, scale, begin, end, first_key, parts, g);
    for (int32_t j = 0; j < parts * SUB; j += 16) {
      float *logit = g->logit[j / SUB][i] + j % SUB;
      __m512i key = _mm512_add_epi32(lanes, _mm512_set1_epi32(j));
      __mmask16 visible = _mm512_cmpge_epi32_mask(key, first) & _mm512_cmplt_epi32_mask(key, last);
      __m512 x = _mm512_mask_blend_ps(visible, hidden, _mm512_load_ps(logit));
      _mm512_store_ps(logit, x);
      top = _mm512_max_ps(top, x);
    }
    g->top[i] = _mm512_reduce_max_ps(top);
  }
}
