// Storage of quantised keys and values for 512-bit vpdpbusd.
//
// Keys: per 64 tokens [D / 4][64 tokens][4 channels], code + 128. Values: [tokens / 4][Dv][4 tokens].
// D is padded to 4 channels, Dv to 64, tokens to 64, all with zeros. Four-bit operands are stored as the INT8 codes that they stand for: one call
// reads each tile once per 256 rows, and unpacking would cost more than the bytes.
#if defined(__x86_64__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c"))), \
                             apply_to = function)
#include "x86_avx512vnni.h"

int64_t intfa_key_bytes__avx512vnni(int64_t tokens, int32_t dimension, bool int4) {
  (void)int4;
  return padded(tokens, KEYS) * padded(dimension, 4);
}
int64_t intfa_value_bytes__avx512vnni(int64_t tokens, int32_t dimension, bool int4) {
  (void)int4;
  return padded(tokens, KEYS) * padded(dimension, 64);
}

void intfa_pack_keys__avx512vnni(const intfa_pack *a) {
  const int32_t d = a->dimension, stride = (int32_t)padded(d, 4);
  int8_t regrouped[KEYS * INTFA_MAX_DIMENSION];
  for (int64_t first = a->begin; first < a->end; first += KEYS) {
    const int32_t count = a->end - first < KEYS ? (int32_t)(a->end - first) : KEYS;
    const int8_t *codes = a->codes + (first - a->begin) * d;
    if (a->int4) {
      memcpy(regrouped, codes, (size_t)(count * d));
      for (int32_t t = 0; t < count; t += INTFA_KEY_GROUP)
        intfa_regroup_keys(regrouped + t * d,
                           count - t < INTFA_KEY_GROUP ? count - t : INTFA_KEY_GROUP, d);
      codes = regrouped;
    }
    uint8_t *target = (uint8_t *)a->target + first * stride;
    for (int32_t lane = 0; lane < KEYS; lane += 16)
      for (int32_t c = 0; c < d; c += 64) {
        __m512i rows[16];
        for (int32_t i = 0; i < 16; i++) {
          __mmask64 mask = lane + i < count ? first_bytes(d - c) : 0;
          rows[i] = _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, codes + (lane + i) * d + c),
                                     _mm512_set1_epi8(-128));
        }
        transpose16(rows);
        for (int32_t i = 0; i < 16 && c + 4 * i < d; i++)
          _mm512_store_si512(target + (c / 4 + i) * 4 * KEYS + 4 * lane, rows[i]);
      }
  }
}

void intfa_pack_values__avx512vnni(const intfa_pack *a) {
  const int32_t d = a->dimension, width = (int32_t)padded(d, 64);
  int8_t regrouped[KEYS * INTFA_MAX_DIMENSION];
  for (int64_t first = a->begin; first < a->end; first += KEYS) {
    const int32_t count = a->end - first < KEYS ? (int32_t)(a->end - first) : KEYS;
    const int8_t *codes = a->codes + (first - a->begin) * d;
    if (a->int4) {
      memcpy(regrouped, codes, (size_t)(count * d));
      for (int32_t t = 0; t < count; t++) intfa_regroup_values(regrouped + t * d, d);
      codes = regrouped;
    }
    int8_t *target = (int8_t *)a->target + first * width;
    for (int32_t position = 0; position < KEYS; position += 4)
      for (int32_t c = 0; c < width; c += 16) {
        __m128i row[4];
        for (int32_t i = 0; i < 4; i++) {
          const int32_t key = position + i;
          __mmask16 mask = key < count ? (__mmask16)first_bytes(d - c) : 0;
          row[i] = _mm_maskz_loadu_epi8(mask, codes + key * d + c);
        }
        __m128i ab = _mm_unpacklo_epi8(row[0], row[1]), AB = _mm_unpackhi_epi8(row[0], row[1]);
        __m128i cd = _mm_unpacklo_epi8(row[2], row[3]), CD = _mm_unpackhi_epi8(row[2], row[3]);
        __m128i *to = (__m128i *)(target + (int64_t)position * width + 4 * c);
        _mm_store_si128(to, _mm_unpacklo_epi16(ab, cd));
        _mm_store_si128(to + 1, _mm_unpackhi_epi16(ab, cd));
        _mm_store_si128(to + 2, _mm_unpacklo_epi16(AB, CD));
        _mm_store_si128(to + 3, _mm_unpackhi_epi16(AB, CD));
      }
  }
}
#pragma clang attribute pop
#endif
