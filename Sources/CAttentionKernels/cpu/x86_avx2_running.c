// Float tile loop with 256-bit fused multiply-add, and vpmaddwd for INT8 scores; its packed
// operands.
//
// Packed float keys: per 16 tokens [D][16]; INT8 keys as pack_keys has them. Packed values, floats
// or codes: float32, per 64 tokens [Dv / 16][64][16], zeros where there are no tokens or channels.
// Bounds and error: x86_avx2_running.h; INT8 scores: x86_avx2.c.
#if defined(__x86_64__)
#include "kernels.h"

#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#include "x86_avx2_units.h"

#include "x86_avx2_running.h"

int64_t intfa_running_key_bytes__avx2(const intfa_running_formats *formats, int64_t tokens,
                                      int32_t dimension) {
  if (formats->score == INTFA_INT8) return intfa_key_bytes__avx2(tokens, dimension, false);
  return padded(tokens, INTFA_PACK_UNIT) * dimension * (int64_t)sizeof(float);
}
int64_t intfa_running_value_bytes__avx2(const intfa_running_formats *formats, int64_t tokens,
                                        int32_t dimension) {
  (void)formats;
  return padded(tokens, INTFA_PACK_UNIT) * padded(dimension, KEYS) * (int64_t)sizeof(float);
}

INLINE __m256 code_lanes(const int8_t *codes, int32_t left) {
  int64_t eight = 0;
  memcpy(&eight, codes, (size_t)(left < LANES ? left : LANES));
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(eight)));
}
// Channels c ... c + 7 of a token as they multiply.
INLINE __m256 operand_lanes(const intfa_pack_running *a, intfa_format format, int64_t token,
                            int32_t c) {
  if (token >= a->end || c >= a->dimension) return _mm256_setzero_ps();
  if (format == INTFA_INT8)
    return code_lanes(a->codes + (token - a->begin) * a->dimension + c, a->dimension - c);
  __m256 x = load_lanes(&a->rows, token, c, a->dimension);
  return round_x8(_mm256_mul_ps(x, _mm256_set1_ps(a->multiplier)), format);
}

void intfa_pack_running_keys__avx2(const intfa_pack_running *a) {
  const int32_t d = a->dimension;
  if (a->formats.score == INTFA_INT8) {
    const intfa_pack codes = {.codes = a->codes, .begin = a->begin, .end = a->end, .dimension = d,
                              .target = a->target};
    intfa_pack_keys__avx2(&codes);
    return;
  }
  for (int64_t first = a->begin; first < padded(a->end, INTFA_PACK_UNIT); first += LANES) {
    float *target = (float *)a->target + first / KEYS * KEYS * d + first % KEYS;
    for (int32_t c = 0; c < d; c += LANES) {
      __m256 rows[LANES];
      for (int32_t i = 0; i < LANES; i++)
        rows[i] = operand_lanes(a, a->formats.score, first + i, c);
      transpose8(rows);
      for (int32_t i = 0; i < LANES && c + i < d; i++)
        _mm256_store_ps(target + (c + i) * KEYS, rows[i]);
    }
  }
}

void intfa_pack_running_values__avx2(const intfa_pack_running *a) {
  const int32_t width = (int32_t)padded(a->dimension, KEYS);
  for (int64_t token = a->begin; token < padded(a->end, INTFA_PACK_UNIT); token++) {
    const int64_t unit = token / INTFA_PACK_UNIT * INTFA_PACK_UNIT;
    float *target = (float *)a->target + unit * width + (token - unit) * KEYS;
    for (int32_t c = 0; c < width; c += LANES)
      _mm256_store_ps(target + c / KEYS * KEYS * INTFA_PACK_UNIT + c % KEYS,
                      operand_lanes(a, a->formats.value, token, c));
  }
}

void intfa_attend_running__avx2(const intfa_attend_running *a) { attend_running(a); }
#pragma clang attribute pop
#endif
