// Pre-pass and epilogue with 512-bit registers: survey, rotation, quantisation, normalisation.
//
// Rows are taken sixteen at a time and transposed into a panel, one register per channel: then the
// rotation is additions between registers, and row maxima, scales and inner products have one lane
// per row; only the transposition shuffles (64 for 16 x 16 floats). Every sum and butterfly is that
// of portable_prepass.c, in its order and without fused multiply-add, so all bits are equal.
// Per row of 64 channels about 16 loads, 16 shuffles, 28 adds, 12 multiplies and conversions. Fewer
// rows than sixteen are padded with zeros, and so are channels beyond the last whole sixteen.
#if defined(__x86_64__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c"))), \
                             apply_to = function)
#include "x86_avx512vnni.h"
#include "rotary.h"

enum { PANEL = 16 };  // rows of a panel, and channels of a chunk of it

typedef struct {
  _Alignas(64) float at[INTFA_MAX_DIMENSION][PANEL];  // [channel][row]
} panel;

INLINE __m512i magnitude_of(__m512 x) {
  return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7FFFFFFF));
}

// ---------------------------------------------------------------------------------- panels

// Sixteen channels of up to sixteen rows, transposed; `is_whole` where there are sixteen. The next
// sixteen rows are fetched: hardware does not follow the stride.
INLINE void load_transposed(const bool is_whole, const intfa_rows *rows, int64_t row, int32_t count,
                            int32_t dimension, int32_t chunk, __m512i *x) {
  const __mmask16 mask = lanes_of(dimension, chunk);
  const int64_t at = row * rows->stride + PANEL * chunk, stride = rows->stride;
  if (rows->format == INTFA_FLOAT32) {
    const float *base = (const float *)rows->base + at;
    UNROLL for (int32_t i = 0; i < PANEL; i++) {
      const bool exists = is_whole || i < count;
      x[i] = _mm512_maskz_loadu_epi32(exists ? mask : 0, base + (exists ? i : 0) * stride);
      _mm_prefetch((const char *)(base + (i + PANEL) * stride), _MM_HINT_T0);
    }
  } else {
    const uint16_t *base = (const uint16_t *)rows->base + at;
    const bool is_float16 = rows->format == INTFA_FLOAT16;
    UNROLL for (int32_t i = 0; i < PANEL; i++) {
      const bool exists = is_whole || i < count;
      const __m256i half = _mm256_maskz_loadu_epi16(exists ? mask : 0, base + (exists ? i : 0) * stride);
      x[i] = is_float16 ? _mm512_castps_si512(_mm512_cvtph_ps(half))
                        : _mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
      _mm_prefetch((const char *)(base + (i + PANEL) * stride), _MM_HINT_T0);
    }
  }
  transpose16(x);
}

INLINE void butterfly(__m512 *a, __m512 *b) {
  const __m512 sum = _mm512_add_ps(*a, *b);
  *b = _mm512_sub_ps(*a, *b);
  *a = sum;
}

// Butterflies of strides 1, 2, 4, 8 inside sixteen channels, as far as blocks of `block` go. Channels
// beyond the row are zero and stay zero: a block is whole, and the padding has blocks of its own.
INLINE void rotate_chunk(__m512 *x, int32_t block) {
  UNROLL for (int32_t step = 1; step < PANEL; step *= 2)
    if (step < block)
      UNROLL for (int32_t i = 0; i < PANEL; i++)
        if (!(i & step)) butterfly(&x[i], &x[i + step]);
}
// Butterflies of strides 16, 32, ... between chunks, two strides at a time where two are left.
static void rotate_across(panel *p, int32_t chunks, int32_t block) {
  int32_t step = 1;
  for (; 2 * PANEL * step < block; step *= 4)
    for (int32_t chunk = 0; chunk < chunks; chunk++) {
      if (chunk & (3 * step)) continue;
      float(*at)[PANEL] = p->at + PANEL * chunk;
      const int32_t stride = PANEL * step;
      UNROLL for (int32_t i = 0; i < PANEL; i++) {
        __m512 x[4];
        UNROLL for (int32_t k = 0; k < 4; k++) x[k] = _mm512_load_ps(at[i + k * stride]);
        butterfly(&x[0], &x[1]);
        butterfly(&x[2], &x[3]);
        butterfly(&x[0], &x[2]);
        butterfly(&x[1], &x[3]);
        UNROLL for (int32_t k = 0; k < 4; k++) _mm512_store_ps(at[i + k * stride], x[k]);
      }
    }
  if (PANEL * step >= block) return;
  for (int32_t chunk = 0; chunk < chunks; chunk++) {
    if (chunk & step) continue;
    float(*at)[PANEL] = p->at + PANEL * chunk;
    UNROLL for (int32_t i = 0; i < PANEL; i++) {
      __m512 x = _mm512_load_ps(at[i]), y = _mm512_load_ps(at[i + PANEL * step]);
      butterfly(&x, &y);
      _mm512_store_ps(at[i], x);
      _mm512_store_ps(at[i + PANEL * step], y);
    }
  }
}

INLINE int32_t chunk_count(int32_t dimension) { return (dimension + PANEL - 1) / PANEL; }

// Rows less `mean`, rotated where asked, zeros up to 64 channels; the largest magnitudes as given, where asked.
INLINE __m512i load_panel(const bool with_largest, const intfa_rows *rows, int64_t row, int32_t count,
                          int32_t dimension, const float *mean, bool rotates, panel *p) {
  const int32_t chunks = chunk_count(dimension), block = rotates ? dimension & -dimension : 1;
  __m512i largest = _mm512_setzero_si512();
  for (int32_t chunk = 0; chunk < chunks; chunk++) {
    __m512i loaded[PANEL];
    __m512 x[PANEL];
    if (count == PANEL)
      load_transposed(true, rows, row, count, dimension, chunk, loaded);
    else
      load_transposed(false, rows, row, count, dimension, chunk, loaded);
    UNROLL for (int32_t i = 0; i < PANEL; i++) {
      x[i] = _mm512_castsi512_ps(loaded[i]);
      if (with_largest) largest = _mm512_max_epu32(largest, magnitude_of(x[i]));
    }
    if (mean) {
      float padded_mean[PANEL];
      _mm512_storeu_ps(padded_mean, _mm512_maskz_loadu_ps(lanes_of(dimension, chunk), mean + PANEL * chunk));
      UNROLL for (int32_t i = 0; i < PANEL; i++)
        x[i] = _mm512_sub_ps(x[i], _mm512_set1_ps(padded_mean[i]));
    }
    rotate_chunk(x, block);
    UNROLL for (int32_t i = 0; i < PANEL; i++) _mm512_store_ps(p->at[PANEL * chunk + i], x[i]);
  }
  rotate_across(p, chunks, block);
  for (int32_t c = PANEL * chunks; c % 64 != 0; c++) _mm512_store_ps(p->at[c], _mm512_setzero_ps());
  return largest;
}

// The largest magnitudes of the rows of a panel. By bits, so that NaN counts as the largest.
static __m512i panel_maxima(const panel *p, int32_t dimension) {
  __m512i largest[4];
  UNROLL for (int32_t i = 0; i < 4; i++) largest[i] = _mm512_setzero_si512();
  for (int32_t c = 0; c < PANEL * chunk_count(dimension); c += 4)
    UNROLL for (int32_t i = 0; i < 4; i++)
      largest[i] = _mm512_max_epu32(largest[i], magnitude_of(_mm512_load_ps(p->at[c + i])));
  return _mm512_max_epu32(_mm512_max_epu32(largest[0], largest[1]),
                          _mm512_max_epu32(largest[2], largest[3]));
}

// ---------------------------------------------------------------------------------- survey

// Rows [begin, end): row maxima after rotation, and what the plain survey finds but the sums.
static void survey_rotated(const intfa_survey *a) {
  const __m512i limit = _mm512_set1_epi32((int32_t)bits_of(a->limit));
  __m512i largest = _mm512_setzero_si512();
  panel p;
  *a->first_bad = -1;
  for (int64_t row = a->begin; row < a->end; row += PANEL) {
    const int32_t count = a->end - row < PANEL ? (int32_t)(a->end - row) : PANEL;
    const __m512i given = load_panel(true, &a->rows, row, count, a->dimension, NULL, a->rotates, &p);
    const __mmask16 bad = _mm512_cmpge_epu32_mask(given, limit);
    if (__builtin_expect(bad != 0, 0) && *a->first_bad < 0) *a->first_bad = row + __builtin_ctz(bad);
    largest = _mm512_max_epu32(largest, given);
    _mm512_mask_storeu_epi32(a->row_maxima + (row - a->begin), (__mmask16)((1u << count) - 1),
                             panel_maxima(&p, a->dimension));
  }
  if (a->largest) *a->largest = float_of((uint32_t)_mm512_reduce_max_epu32(largest));
}

INLINE __m512 load_as(const intfa_format format, const intfa_rows *rows, int64_t at, __mmask16 mask) {
  if (format == INTFA_FLOAT32) return _mm512_maskz_loadu_ps(mask, (const float *)rows->base + at);
  const __m256i half = _mm256_maskz_loadu_epi16(mask, (const uint16_t *)rows->base + at);
  if (format == INTFA_FLOAT16) return _mm512_cvtph_ps(half);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// Sums and magnitudes of up to 64 channels from `c` of rows [begin, end), at most a sum block.
INLINE __m512i survey_block(const intfa_format format, const intfa_survey *a, int64_t begin, int64_t end,
                            int32_t c, float *sums_target) {
  __mmask16 mask[4];
  __m512 sums[4];
  __m512i largest[4];
  UNROLL for (int32_t i = 0; i < 4; i++) {
    mask[i] = lanes_of(a->dimension - c, i);
    sums[i] = load_as(format, &a->rows, begin * a->rows.stride + c + 16 * i, mask[i]);
    largest[i] = magnitude_of(sums[i]);
  }
  for (int64_t row = begin + 1; row < end; row++)
    UNROLL for (int32_t i = 0; i < 4; i++) {
      const __m512 x = load_as(format, &a->rows, row * a->rows.stride + c + 16 * i, mask[i]);
      sums[i] = _mm512_add_ps(sums[i], x);
      largest[i] = _mm512_max_epu32(largest[i], magnitude_of(x));
    }
  if (sums_target)
    UNROLL for (int32_t i = 0; i < 4; i++)
      _mm512_mask_storeu_ps(sums_target + c + 16 * i, mask[i], sums[i]);
  return _mm512_max_epu32(_mm512_max_epu32(largest[0], largest[1]),
                          _mm512_max_epu32(largest[2], largest[3]));
}

// The first row of [begin, end) with an element that reaches the limit; there is one.
static int64_t first_bad_row(const intfa_survey *a, int64_t begin, int64_t end) {
  const __m512i limit = _mm512_set1_epi32((int32_t)bits_of(a->limit));
  for (int64_t row = begin; row < end; row++)
    for (int32_t chunk = 0; 16 * chunk < a->dimension; chunk++)
      if (_mm512_cmpge_epu32_mask(magnitude_of(load_chunk(&a->rows, row, a->dimension, chunk)), limit))
        return row;
  return -1;
}

// The plain survey: rows as they lie.
INLINE void survey(const intfa_format format, const intfa_survey *a) {
  uint32_t largest = 0;
  *a->first_bad = -1;
  for (int64_t block = a->begin; block < a->end; block += INTFA_SUM_BLOCK) {
    const int64_t end = block + INTFA_SUM_BLOCK < a->end ? block + INTFA_SUM_BLOCK : a->end;
    float *sums = a->block_sums;
    if (sums) sums += (block - a->begin) / INTFA_SUM_BLOCK * a->dimension;
    __m512i in_block = _mm512_setzero_si512();
    for (int32_t c = 0; c < a->dimension; c += 64)
      in_block = _mm512_max_epu32(in_block, survey_block(format, a, block, end, c, sums));
    const uint32_t block_largest = (uint32_t)_mm512_reduce_max_epu32(in_block);
    if (block_largest >= bits_of(a->limit) && *a->first_bad < 0)
      *a->first_bad = first_bad_row(a, block, end);
    largest = block_largest > largest ? block_largest : largest;
  }
  if (a->largest) *a->largest = float_of(largest);
}

// ---------------------------------------------------------------------------------- codes

// bias[h][row] = factor * (mean_h . x) + addend for the rows of a panel. intfa_dot adds sixteen
// partial sums by halves: visited in this order, equal partners meet on a stack of four.
static void store_biases(const intfa_quantize *a, int64_t row, int32_t count, const panel *p) {
  static const uint8_t order[PANEL] = {0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15};
  const __mmask16 mask = (__mmask16)((1u << count) - 1);
  const __m512 addend = a->bias_addend ? _mm512_maskz_loadu_ps(mask, a->bias_addend + row)
                                       : _mm512_setzero_ps();
  for (int32_t h = 0; h < a->bias_count; h++) {
    const float *mean = a->bias_means + h * a->bias_mean_stride;
    __m512 stack[5];
    UNROLL for (int32_t visit = 0; visit < PANEL; visit++) {
      __m512 sum = _mm512_setzero_ps();
      for (int32_t c = order[visit]; c < a->dimension; c += PANEL)
        sum = _mm512_add_ps(sum, _mm512_mul_ps(_mm512_set1_ps(mean[c]), _mm512_load_ps(p->at[c])));
      const int32_t depth = __builtin_popcount((unsigned)visit), merges = __builtin_ctz(~(unsigned)visit);
      UNROLL for (int32_t m = 0; m < merges; m++) sum = _mm512_add_ps(stack[depth - 1 - m], sum);
      stack[depth - merges] = sum;
    }
    _mm512_mask_storeu_ps(a->biases + h * a->bias_stride + row, mask,
                          _mm512_add_ps(_mm512_mul_ps(_mm512_set1_ps(a->bias_factor), stack[0]), addend));
  }
}

// Codes of 64 channels of the rows of a panel: rounded, narrowed, and transposed back four channels
// at a time.
INLINE void store_codes(const panel *p, int32_t c, __m512 multiplier, int32_t count, int32_t dimension,
                        int8_t *codes) {
  const __m512i bytes_of_rows =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  const __m512i smallest = _mm512_set1_epi8(-127);
  __m512i step[16];
  UNROLL for (int32_t s = 0; s < 16; s++) {
    __m512i x[4];
    UNROLL for (int32_t i = 0; i < 4; i++) {
      const int32_t channel = c + 4 * s + i;
      x[i] = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_load_ps(p->at[channel]), multiplier));
    }
    const __m512i words = _mm512_packs_epi16(_mm512_packs_epi32(x[0], x[1]), _mm512_packs_epi32(x[2], x[3]));
    step[s] = _mm512_max_epi8(_mm512_shuffle_epi8(words, bytes_of_rows), smallest);
  }
  transpose16(step);
  const __mmask64 mask = first_bytes(dimension - c);
  UNROLL for (int32_t i = 0; i < PANEL; i++)
    if (i < count) _mm512_mask_storeu_epi8(codes + i * dimension + c, mask, step[i]);
}

void intfa_quantize__avx512vnni(const intfa_quantize *a) {
  panel p;
  for (int64_t row = a->begin; row < a->end; row += PANEL) {
    const int32_t count = a->end - row < PANEL ? (int32_t)(a->end - row) : PANEL;
    const __mmask16 mask = (__mmask16)((1u << count) - 1);
    load_panel(false, &a->rows, row, count, a->dimension, a->mean, a->rotates, &p);
    __m512 multiplier;
    if (a->multipliers) {
      multiplier = _mm512_maskz_loadu_ps(mask, a->multipliers + row);
    } else {
      const __m512 largest = _mm512_max_ps(_mm512_castsi512_ps(panel_maxima(&p, a->dimension)),
                                           _mm512_set1_ps(SMALLEST_MAXIMUM));
      multiplier = _mm512_div_ps(_mm512_set1_ps(127.0f), largest);
      _mm512_mask_storeu_ps(a->scales + (row - a->begin), mask,
                            _mm512_div_ps(largest, _mm512_set1_ps(127.0f)));
    }
    int8_t *codes = a->codes + (row - a->begin) * a->dimension;
    for (int32_t c = 0; c < a->dimension; c += 64)
      store_codes(&p, c, multiplier, count, a->dimension, codes);
    if (a->bias_count > 0) store_biases(a, row, count, &p);
  }
}

// ---------------------------------------------------------------------------------- epilogue

// Butterflies of a row in registers, where sixteen rows at a time would have to be transposed back.
INLINE void rotate_row(const int32_t chunks, __m512 *x, int32_t block) {
  const __m512 sign1 = _mm512_setr_ps(1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1);
  const __m512 sign2 = _mm512_setr_ps(1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1);
  const __m512 sign4 = _mm512_setr_ps(1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1);
  const __m512 sign8 = _mm512_setr_ps(1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1, -1);
  // A multiplication by +-1 is exact, so these fused ones round once as an addition does.
  UNROLL for (int32_t i = 0; i < chunks; i++) {
    if (block > 1) x[i] = _mm512_fmadd_ps(x[i], sign1, _mm512_permute_ps(x[i], 0xB1));
    if (block > 2) x[i] = _mm512_fmadd_ps(x[i], sign2, _mm512_permute_ps(x[i], 0x4E));
    if (block > 4) x[i] = _mm512_fmadd_ps(x[i], sign4, _mm512_shuffle_f32x4(x[i], x[i], 0xB1));
    if (block > 8) x[i] = _mm512_fmadd_ps(x[i], sign8, _mm512_shuffle_f32x4(x[i], x[i], 0x4E));
  }
  UNROLL for (int32_t step = 1; step < chunks; step *= 2)
    if (16 * step < block)
      UNROLL for (int32_t i = 0; i < chunks; i++)
        if (!(i & step) && i + step < chunks) butterfly(&x[i], &x[i + step]);
}

INLINE void store_as(const intfa_format format, void *target, int64_t at, __mmask16 mask, __m512 x) {
  if (format == INTFA_FLOAT32) {
    _mm512_mask_storeu_ps((float *)target + at, mask, x);
    return;
  }
  __m256i half;
  if (format == INTFA_FLOAT16) {
    half = _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  } else {  // nearest, ties to even; the output is finite
    __m512i bits = _mm512_castps_si512(x), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    half = _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16));
  }
  _mm256_mask_storeu_epi16((uint16_t *)target + at, mask, half);
}

INLINE void normalize(const int32_t chunks, const intfa_format format, const intfa_finish *a) {
  const int32_t d = a->value_dimension, block = a->rotates ? d & -d : 1;
  __m512 x[MAX_CHUNKS];
  __mmask16 mask[MAX_CHUNKS];
  UNROLL for (int32_t i = 0; i < chunks; i++) mask[i] = lanes_of(d, i);
  for (int32_t r = 0; r < a->rows; r++) {
    const float *out = a->out + r * a->out_stride;
    const float factor = a->total[r] > 0 ? a->factor / a->total[r] : 0;
    UNROLL for (int32_t i = 0; i < chunks; i++) x[i] = _mm512_maskz_loadu_ps(mask[i], out + 16 * i);
    rotate_row(chunks, x, block);
    UNROLL for (int32_t i = 0; i < chunks; i++)
      store_as(format, a->target, r * a->target_stride + 16 * i, mask[i],
               _mm512_mul_ps(x[i], _mm512_set1_ps(factor)));
  }
}

void intfa_merge__avx512vnni(const intfa_merge *a) {
  const float per_step = 1.0f / a->steps;
  for (int32_t r = 0; r < a->rows; r++) {
    if (!(a->from_total[r] > 0)) continue;
    float *out = a->into_out + r * a->out_stride;
    const float *from = a->from_out + r * a->out_stride;
    const float into = a->into_reference[r], other = a->from_reference[r];
    const float reference = into > other ? into : other;
    const float keep = exp2_fast((into - reference) * per_step), add = exp2_fast((other - reference) * per_step);
    a->into_total[r] = a->into_total[r] * keep + a->from_total[r] * add;
    for (int32_t c = 0; c < a->value_dimension; c += 16) {
      const __m512 kept = _mm512_mul_ps(_mm512_load_ps(out + c), _mm512_set1_ps(keep));
      const __m512 added = _mm512_mul_ps(_mm512_load_ps(from + c), _mm512_set1_ps(add));
      _mm512_store_ps(out + c, _mm512_add_ps(kept, added));
    }
    a->into_reference[r] = reference;
  }
}

// ---------------------------------------------------------------------------------- entries

// One copy of the code for the usual dimensions; others take the next larger number of registers,
// whose upper ones are masked to zero.
#define FOR_CHUNKS(dimension, call)                    \
  switch (((dimension) + 15) / 16) {                   \
    case 1: { enum { CHUNKS = 1 }; call; break; }      \
    case 2: { enum { CHUNKS = 2 }; call; break; }      \
    case 3:                                            \
    case 4: { enum { CHUNKS = 4 }; call; break; }      \
    case 5:                                            \
    case 6:                                            \
    case 7:                                            \
    case 8: { enum { CHUNKS = 8 }; call; break; }      \
    default: { enum { CHUNKS = 16 }; call; break; }    \
  }

void intfa_survey__avx512vnni(const intfa_survey *a) {
  if (a->row_maxima) {
    survey_rotated(a);
    return;
  }
  switch (a->rows.format) {
    case INTFA_FLOAT16: survey(INTFA_FLOAT16, a); return;
    case INTFA_BFLOAT16: survey(INTFA_BFLOAT16, a); return;
    default: survey(INTFA_FLOAT32, a);
  }
}
void intfa_finish__avx512vnni(const intfa_finish *a) {
  switch (a->target_format) {
    case INTFA_FLOAT16: FOR_CHUNKS(a->value_dimension, normalize(CHUNKS, INTFA_FLOAT16, a)) break;
    case INTFA_BFLOAT16: FOR_CHUNKS(a->value_dimension, normalize(CHUNKS, INTFA_BFLOAT16, a)) break;
    default: FOR_CHUNKS(a->value_dimension, normalize(CHUNKS, INTFA_FLOAT32, a))
  }
  intfa_finish_log_sum_exp(a);
}
void intfa_load_rotary__avx512vnni(const intfa_load_rotary *a) { load_rotary(a); }
#pragma clang attribute pop
#endif
