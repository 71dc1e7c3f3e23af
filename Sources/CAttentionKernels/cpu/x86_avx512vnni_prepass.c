// Pre-pass and epilogue with 512-bit registers: survey, rotation, quantisation, normalisation.
//
// A row of up to 256 channels lies in up to 16 registers from load to store; the last one is padded
// with zeros by masked loads. Every sum and butterfly is that of portable_prepass.c, in its order and
// without fused multiply-add, so all bits are equal. Bound by the adds of the rotation, log2(D) per
// element; the multiply by +-1 inside a register is exact.
#if defined(__x86_64__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c"))), \
                             apply_to = function)
#include "x86_avx512vnni.h"

INLINE void load_chunks(const int32_t chunks, const intfa_rows *rows, int64_t row, int32_t dimension,
                        __m512 *x) {
  UNROLL for (int32_t i = 0; i < chunks; i++) x[i] = load_chunk(rows, row, dimension, i);
}

// Butterflies of strides 1, 2, 4, ... below `block`. Lanes beyond the row hold zeros and stay zero:
// a block is whole, and the padding has blocks of its own.
INLINE void rotate_chunks(const int32_t chunks, __m512 *x, int32_t block) {
  const __m512 sign1 = _mm512_setr_ps(1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1);
  const __m512 sign2 = _mm512_setr_ps(1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1);
  const __m512 sign4 = _mm512_setr_ps(1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1);
  const __m512 sign8 = _mm512_setr_ps(1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1, -1);
  UNROLL for (int32_t i = 0; i < chunks; i++) {
    if (block > 1) x[i] = _mm512_fmadd_ps(x[i], sign1, _mm512_permute_ps(x[i], 0xB1));
    if (block > 2) x[i] = _mm512_fmadd_ps(x[i], sign2, _mm512_permute_ps(x[i], 0x4E));
    if (block > 4) x[i] = _mm512_fmadd_ps(x[i], sign4, _mm512_shuffle_f32x4(x[i], x[i], 0xB1));
    if (block > 8) x[i] = _mm512_fmadd_ps(x[i], sign8, _mm512_shuffle_f32x4(x[i], x[i], 0x4E));
  }
  UNROLL for (int32_t step = 1; step < chunks; step *= 2)
    if (16 * step < block)
      UNROLL for (int32_t i = 0; i < chunks; i++)
        if (!(i & step) && i + step < chunks) {
          __m512 a = x[i], b = x[i + step];
          x[i] = _mm512_add_ps(a, b);
          x[i + step] = _mm512_sub_ps(a, b);
        }
}

// The largest magnitude by bits, so that NaN counts as the largest.
INLINE float largest_of(const int32_t chunks, const __m512 *x) {
  const __m512i magnitude = _mm512_set1_epi32(0x7FFFFFFF);
  __m512i largest = _mm512_and_si512(_mm512_castps_si512(x[0]), magnitude);
  UNROLL for (int32_t i = 1; i < chunks; i++)
    largest = _mm512_max_epu32(largest, _mm512_and_si512(_mm512_castps_si512(x[i]), magnitude));
  return float_of((uint32_t)_mm512_reduce_max_epu32(largest));
}

// ---------------------------------------------------------------------------------- survey

INLINE void survey(const int32_t chunks, const intfa_survey *a) {
  const __m512i magnitude = _mm512_set1_epi32(0x7FFFFFFF);
  const __m512i limit = _mm512_set1_epi32((int32_t)bits_of(a->limit));
  __m512i largest = _mm512_setzero_si512();
  __m512 x[MAX_CHUNKS], sums[MAX_CHUNKS];
  int64_t first_bad = -1;
  for (int64_t block = a->begin; block < a->end; block += INTFA_SUM_BLOCK) {
    int64_t end = block + INTFA_SUM_BLOCK < a->end ? block + INTFA_SUM_BLOCK : a->end;
    for (int64_t row = block; row < end; row++) {
      load_chunks(chunks, &a->rows, row, a->dimension, x);
      __m512i row_largest = _mm512_setzero_si512();
      UNROLL for (int32_t i = 0; i < chunks; i++) {
        row_largest = _mm512_max_epu32(row_largest, _mm512_and_si512(_mm512_castps_si512(x[i]), magnitude));
        sums[i] = row == block ? x[i] : _mm512_add_ps(sums[i], x[i]);
      }
      largest = _mm512_max_epu32(largest, row_largest);
      if (__builtin_expect(_mm512_cmpge_epu32_mask(row_largest, limit) != 0, 0) && first_bad < 0)
        first_bad = row;
    }
    if (!a->block_sums) continue;
    float *target = a->block_sums + (block - a->begin) / INTFA_SUM_BLOCK * a->dimension;
    UNROLL for (int32_t i = 0; i < chunks; i++)
      _mm512_mask_storeu_ps(target + 16 * i, lanes_of(a->dimension, i), sums[i]);
  }
  if (a->largest) *a->largest = float_of((uint32_t)_mm512_reduce_max_epu32(largest));
  *a->first_bad = first_bad;
}

// ---------------------------------------------------------------------------------- maxima, codes

INLINE void rotated_maxima(const int32_t chunks, const intfa_rows *rows, int64_t begin, int64_t end,
                           int32_t dimension, bool rotates, float *largest) {
  const int32_t block = rotates ? dimension & -dimension : 1;
  __m512 x[MAX_CHUNKS];
  for (int64_t row = begin; row < end; row++) {
    load_chunks(chunks, rows, row, dimension, x);
    rotate_chunks(chunks, x, block);
    *largest++ = largest_of(chunks, x);
  }
}

INLINE void quantize(const int32_t chunks, const intfa_quantize *a) {
  const int32_t d = a->dimension, block = a->rotates ? d & -d : 1;
  const __m512i bound = _mm512_set1_epi32(127), minus = _mm512_set1_epi32(-127);
  int8_t *codes = a->codes;
  float *scales = a->scales;
  __m512 x[MAX_CHUNKS];
  for (int64_t row = a->begin; row < a->end; row++, codes += d) {
    load_chunks(chunks, &a->rows, row, d, x);
    if (a->mean)
      UNROLL for (int32_t i = 0; i < chunks; i++)
        x[i] = _mm512_sub_ps(x[i], _mm512_maskz_loadu_ps(lanes_of(d, i), a->mean + 16 * i));
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
    UNROLL for (int32_t i = 0; i < chunks; i++) {
      __m512i code = _mm512_cvtps_epi32(_mm512_mul_ps(x[i], _mm512_set1_ps(multiplier)));
      code = _mm512_max_epi32(_mm512_min_epi32(code, bound), minus);
      _mm_mask_storeu_epi8(codes + 16 * i, lanes_of(d, i), _mm512_cvtepi32_epi8(code));
    }
    for (int32_t h = 0; h < a->bias_count; h++) {
      const float *mean = a->bias_means + h * a->bias_mean_stride;
      __m512 sum = _mm512_setzero_ps();
      UNROLL for (int32_t i = 0; i < chunks; i++)
        sum = _mm512_add_ps(sum, _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes_of(d, i), mean + 16 * i), x[i]));
      a->biases[h * a->bias_stride + row] = a->bias_factor * sum_of_lanes(sum);
    }
  }
}

// ---------------------------------------------------------------------------------- epilogue

INLINE void store_chunk(void *target, int64_t at, __mmask16 mask, __m512 x, intfa_format format) {
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

INLINE void normalize(const int32_t chunks, const intfa_finish *a) {
  const int32_t d = a->value_dimension, block = a->rotates ? d & -d : 1;
  __m512 x[MAX_CHUNKS];
  for (int32_t r = 0; r < a->rows; r++) {
    const float *out = a->out + r * a->out_stride;
    __m512 factor = _mm512_set1_ps(a->total[r] > 0 ? a->factor / a->total[r] : 0);
    UNROLL for (int32_t i = 0; i < chunks; i++)
      x[i] = _mm512_maskz_loadu_ps(lanes_of(d, i), out + 16 * i);
    rotate_chunks(chunks, x, block);
    UNROLL for (int32_t i = 0; i < chunks; i++)
      store_chunk(a->target, r * a->target_stride + 16 * i, lanes_of(d, i),
                  _mm512_mul_ps(x[i], factor), a->target_format);
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
  FOR_CHUNKS(a->dimension, survey(CHUNKS, a))
}
void intfa_rotated_maxima__avx512vnni(const intfa_rows *rows, int64_t begin, int64_t end,
                                      int32_t dimension, bool rotates, float *largest) {
  FOR_CHUNKS(dimension, rotated_maxima(CHUNKS, rows, begin, end, dimension, rotates, largest))
}
void intfa_quantize__avx512vnni(const intfa_quantize *a) {
  FOR_CHUNKS(a->dimension, quantize(CHUNKS, a))
}
void intfa_finish__avx512vnni(const intfa_finish *a) {
  FOR_CHUNKS(a->value_dimension, normalize(CHUNKS, a))
  intfa_finish_log_sum_exp(a);
}
#pragma clang attribute pop
#endif
