// Pre-pass and epilogue with 256-bit registers: survey, rotation, quantisation, normalisation.
//
// A row of up to 256 channels is up to 32 vectors, of which sixteen have registers at a time; the
// last one is padded with zeros. Every sum and butterfly is that of portable_prepass.c, in its
// order; the multiply by +-1 that is fused with the add of a butterfly inside a register is exact,
// so all bits are equal. Bound by the adds of the rotation, log2(D) per element.
#if defined(__x86_64__)
#include "kernels.h"

#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#include "x86_avx2_float.h"
#include "rotary.h"

enum { MAX_CHUNKS = INTFA_MAX_DIMENSION / LANES };

// Butterflies of strides 1, 2, 4, ... below `block`. Lanes beyond the row hold zeros and stay zero:
// a block is whole, and the padding has blocks of its own.
INLINE void rotate_chunks(const int32_t chunks, __m256 *x, int32_t block) {
  const __m256 sign1 = _mm256_setr_ps(1, -1, 1, -1, 1, -1, 1, -1);
  const __m256 sign2 = _mm256_setr_ps(1, 1, -1, -1, 1, 1, -1, -1);
  const __m256 sign4 = _mm256_setr_ps(1, 1, 1, 1, -1, -1, -1, -1);
  UNROLL for (int32_t i = 0; i < chunks; i++) {
    if (block > 1) x[i] = _mm256_fmadd_ps(x[i], sign1, _mm256_permute_ps(x[i], 0xB1));
    if (block > 2) x[i] = _mm256_fmadd_ps(x[i], sign2, _mm256_permute_ps(x[i], 0x4E));
    if (block > 4) x[i] = _mm256_fmadd_ps(x[i], sign4, _mm256_permute2f128_ps(x[i], x[i], 1));
  }
  UNROLL for (int32_t step = 1; step < chunks; step *= 2)
    if (LANES * step < block)
      UNROLL for (int32_t i = 0; i < chunks; i++)
        if (!(i & step) && i + step < chunks) {
          __m256 a = x[i], b = x[i + step];
          x[i] = _mm256_add_ps(a, b);
          x[i + step] = _mm256_sub_ps(a, b);
        }
}

INLINE void load_chunks(const int32_t chunks, const intfa_rows *rows, int64_t row,
                        int32_t dimension, __m256 *x) {
  UNROLL for (int32_t i = 0; i < chunks; i++) x[i] = load_lanes(rows, row, LANES * i, dimension);
}
INLINE __m256i magnitude_bits(__m256 x) {
  return _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7FFFFFFF));
}
// The largest of eight magnitudes by bits, so that NaN counts as the largest.
INLINE float largest_of_lanes(__m256i bits) {
  __m128i x = _mm_max_epu32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
  x = _mm_max_epu32(x, _mm_shuffle_epi32(x, 0x4E));
  x = _mm_max_epu32(x, _mm_shuffle_epi32(x, 0xB1));
  return float_of((uint32_t)_mm_cvtsi128_si32(x));
}
INLINE float largest_of(const int32_t chunks, const __m256 *x) {
  __m256i largest = magnitude_bits(x[0]);
  UNROLL for (int32_t i = 1; i < chunks; i++)
    largest = _mm256_max_epu32(largest, magnitude_bits(x[i]));
  return largest_of_lanes(largest);
}

// The first `left` of eight channels.
INLINE void store_lanes(void *target, int64_t at, int32_t left, __m256 x, intfa_format format) {
  if (format == INTFA_FLOAT32) {
    if (left >= LANES)
      _mm256_storeu_ps((float *)target + at, x);
    else if (left > 0)
      _mm256_maskstore_ps((float *)target + at, first_lanes(left), x);
    return;
  }
  __m128i half;
  if (format == INTFA_FLOAT16) {
    half = _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  } else {  // nearest, ties to even; the output is finite
    __m256i bits = _mm256_srli_epi32(_mm256_castps_si256(drop_mantissa_x8(x, 16)), 16);
    half = _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
  }
  if (left >= LANES)
    _mm_storeu_si128((__m128i *)((uint16_t *)target + at), half);
  else if (left > 0)
    memcpy((uint16_t *)target + at, &half, sizeof(uint16_t) * (size_t)left);
}

// ---------------------------------------------------------------------------------- survey

INLINE void survey(const int32_t chunks, const intfa_survey *a) {
  const int32_t rotated = a->rotates ? a->dimension & -a->dimension : 1;
  const __m256i below = _mm256_set1_epi32((int32_t)bits_of(a->limit) - 1);
  __m256i largest = _mm256_setzero_si256();
  __m256 x[MAX_CHUNKS], sums[MAX_CHUNKS];
  int64_t first_bad = -1;
  for (int64_t block = a->begin; block < a->end; block += INTFA_SUM_BLOCK) {
    const int64_t end = block + INTFA_SUM_BLOCK < a->end ? block + INTFA_SUM_BLOCK : a->end;
    for (int64_t row = block; row < end; row++) {
      load_chunks(chunks, &a->rows, row, a->dimension, x);
      __m256i row_largest = _mm256_setzero_si256();
      UNROLL for (int32_t i = 0; i < chunks; i++) {
        row_largest = _mm256_max_epu32(row_largest, magnitude_bits(x[i]));
        sums[i] = row == block ? x[i] : _mm256_add_ps(sums[i], x[i]);
      }
      largest = _mm256_max_epu32(largest, row_largest);
      const int bad = _mm256_movemask_epi8(_mm256_cmpgt_epi32(row_largest, below));
      if (__builtin_expect(bad != 0, 0) && first_bad < 0) first_bad = row;
      if (!a->row_maxima) continue;
      rotate_chunks(chunks, x, rotated);
      a->row_maxima[row - a->begin] = largest_of(chunks, x);
    }
    if (!a->block_sums) continue;
    float *target = a->block_sums + (block - a->begin) / INTFA_SUM_BLOCK * a->dimension;
    UNROLL for (int32_t i = 0; i < chunks; i++)
      store_lanes(target, LANES * i, a->dimension - LANES * i, sums[i], INTFA_FLOAT32);
  }
  if (a->largest) *a->largest = largest_of_lanes(largest);
  *a->first_bad = first_bad;
}

// ---------------------------------------------------------------------------------- codes

// The codes of 32 channels, of which `left` exist. Magnitudes are at most 127 times the rounding of
// the multiplier, so narrowing saturates what exceeds 127, and -128 becomes -127.
INLINE void store_codes(int8_t *codes, int32_t left, const __m256 x[4], __m256 multiplier) {
  __m256i code[4];
  UNROLL for (int i = 0; i < 4; i++) code[i] = _mm256_cvtps_epi32(_mm256_mul_ps(x[i], multiplier));
  __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(code[0], code[1]),
                                     _mm256_packs_epi32(code[2], code[3]));
  bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  bytes = _mm256_max_epi8(bytes, _mm256_set1_epi8(-127));
  if (left >= 32)
    _mm256_storeu_si256((__m256i *)codes, bytes);
  else if (left > 0)
    memcpy(codes, &bytes, (size_t)left);
}

INLINE void quantize(const int32_t chunks, const intfa_quantize *a) {
  const int32_t d = a->dimension, block = a->rotates ? d & -d : 1;
  int8_t *codes = a->codes;
  float *scales = a->scales;
  __m256 x[MAX_CHUNKS];
  for (int64_t row = a->begin; row < a->end; row++, codes += d) {
    load_chunks(chunks, &a->rows, row, d, x);
    if (a->mean) {
      const intfa_rows mean = {a->mean, 0, INTFA_FLOAT32};
      UNROLL for (int32_t i = 0; i < chunks; i++)
        x[i] = _mm256_sub_ps(x[i], load_lanes(&mean, 0, LANES * i, d));
    }
    rotate_chunks(chunks, x, block);
    float multiplier;
    if (a->multipliers) {
      multiplier = a->multipliers[row];
    } else {
      float largest = largest_of(chunks, x);
      largest = largest > SMALLEST_MAXIMUM ? largest : SMALLEST_MAXIMUM;
      multiplier = 127.0f / largest;
      *scales++ = largest / 127.0f;
    }
    UNROLL for (int32_t i = 0; i < chunks; i += 4)
      store_codes(codes + LANES * i, d - LANES * i, x + i, _mm256_set1_ps(multiplier));
    for (int32_t h = 0; h < a->bias_count; h++) {
      const intfa_rows mean = {a->bias_means + h * a->bias_mean_stride, 0, INTFA_FLOAT32};
      __m256 sum[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
      UNROLL for (int32_t i = 0; i < chunks; i++)
        sum[i % 2] =
            _mm256_add_ps(sum[i % 2], _mm256_mul_ps(load_lanes(&mean, 0, LANES * i, d), x[i]));
      const float bias = a->bias_factor * sum_of_lanes(sum[0], sum[1]);
      a->biases[h * a->bias_stride + row] = a->bias_addend ? bias + a->bias_addend[row] : bias;
    }
  }
}

// ---------------------------------------------------------------------------------- epilogue

INLINE void normalize(const int32_t chunks, const intfa_finish *a) {
  const int32_t d = a->value_dimension, block = a->rotates ? d & -d : 1;
  __m256 x[MAX_CHUNKS];
  for (int32_t r = 0; r < a->rows; r++) {
    const float *out = a->out + r * a->out_stride;
    __m256 factor = _mm256_set1_ps(a->total[r] > 0 ? a->factor / a->total[r] : 0);
    const intfa_rows row = {out, 0, INTFA_FLOAT32};
    UNROLL for (int32_t i = 0; i < chunks; i++) x[i] = load_lanes(&row, 0, LANES * i, d);
    rotate_chunks(chunks, x, block);
    UNROLL for (int32_t i = 0; i < chunks; i++)
      store_lanes(a->target, r * a->target_stride + LANES * i, d - LANES * i,
                  _mm256_mul_ps(x[i], factor), a->target_format);
  }
}

// ---------------------------------------------------------------------------------- entries

// One copy of the code for the usual dimensions; others take the next larger number of vectors, the
// upper ones of which are zero.
#define FOR_CHUNKS(dimension, call)      \
  do {                                   \
    if ((dimension) <= 32) {             \
      enum { CHUNKS = 4 };               \
      call;                              \
    } else if ((dimension) <= 64) {      \
      enum { CHUNKS = 8 };               \
      call;                              \
    } else if ((dimension) <= 128) {     \
      enum { CHUNKS = 16 };              \
      call;                              \
    } else {                             \
      enum { CHUNKS = 32 };              \
      call;                              \
    }                                    \
  } while (0)

void intfa_survey__avx2(const intfa_survey *a) { FOR_CHUNKS(a->dimension, survey(CHUNKS, a)); }
void intfa_quantize__avx2(const intfa_quantize *a) {
  FOR_CHUNKS(a->dimension, quantize(CHUNKS, a));
}
void intfa_finish__avx2(const intfa_finish *a) {
  FOR_CHUNKS(a->value_dimension, normalize(CHUNKS, a));
  intfa_finish_log_sum_exp(a);
}
void intfa_load_rotary__avx2(const intfa_load_rotary *a) { load_rotary(a); }
#pragma clang attribute pop
#endif
