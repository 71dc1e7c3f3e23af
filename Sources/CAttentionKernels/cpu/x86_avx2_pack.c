// Storage of quantised keys and values for the 256-bit tile loops, with and without vpdpbusd.
//
// Keys: per 16 tokens [D / 4][16 tokens][4 channels], code + 128. Values: per 64 tokens
// [Dv / 16][16][16 channels][4 tokens]. D is padded to 4 channels, Dv to 16, tokens to 64, all with
// zeros. Four-bit operands are stored as the INT8 codes that they stand for: one call reads each
// tile once per 256 rows, and unpacking would cost more than the bytes.
#if defined(__x86_64__)
#include "kernels.h"

#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#include "x86_avx2.h"

int64_t intfa_key_bytes__avx2(int64_t tokens, int32_t dimension, bool int4) {
  (void)int4;
  return padded(tokens, INTFA_PACK_UNIT) * padded(dimension, 4);
}
int64_t intfa_value_bytes__avx2(int64_t tokens, int32_t dimension, bool int4) {
  (void)int4;
  return padded(tokens, INTFA_PACK_UNIT) * padded(dimension, KEYS);
}

// Sixty-four tokens, padded with zeros to whole registers.
typedef struct {
  _Alignas(32) int8_t codes[INTFA_PACK_UNIT][INTFA_MAX_DIMENSION];
} token_block;

// The code that four bits stand for.
static int8_t regrouped(int8_t code, intfa_regrouping g) {
  const int32_t x = intfa_four_bits(code, g) * g.step + g.low;
  return (int8_t)(x > 127 ? 127 : x < -127 ? -127 : x);
}
static void regroup_keys(token_block *b, int32_t count, int32_t dimension) {
  for (int32_t first = 0; first < count; first += INTFA_KEY_GROUP)
    for (int32_t c = 0; c < dimension; c++) {
      const int32_t end = first + INTFA_KEY_GROUP < count ? first + INTFA_KEY_GROUP : count;
      const intfa_regrouping g =
          intfa_regroup(&b->codes[first][c], end - first, INTFA_MAX_DIMENSION);
      for (int32_t t = first; t < end; t++) b->codes[t][c] = regrouped(b->codes[t][c], g);
    }
}
static void regroup_values(token_block *b, int32_t count, int32_t dimension) {
  for (int32_t t = 0; t < count; t++)
    for (int32_t first = 0; first < dimension; first += INTFA_VALUE_GROUP) {
      const int32_t end =
          first + INTFA_VALUE_GROUP < dimension ? first + INTFA_VALUE_GROUP : dimension;
      const intfa_regrouping g = intfa_regroup(&b->codes[t][first], end - first, 1);
      for (int32_t c = first; c < end; c++) b->codes[t][c] = regrouped(b->codes[t][c], g);
    }
}

// Returns how many of them exist.
static int32_t load_block(const intfa_pack *a, int64_t first, token_block *b) {
  const int32_t d = a->dimension;
  const int32_t count =
      a->end - first < INTFA_PACK_UNIT ? (int32_t)(a->end - first) : INTFA_PACK_UNIT;
  memset(b->codes, 0, sizeof b->codes);
  for (int32_t t = 0; t < count; t++)
    memcpy(b->codes[t], a->codes + (first - a->begin + t) * d, (size_t)d);
  return count;
}

void intfa_pack_keys__avx2(const intfa_pack *a) {
  const int32_t d = a->dimension, stride = (int32_t)padded(d, 4);
  const __m256 flip = _mm256_castsi256_ps(_mm256_set1_epi8(-128));
  token_block block;
  for (int64_t first = a->begin; first < a->end; first += INTFA_PACK_UNIT) {
    const int32_t count = load_block(a, first, &block);
    if (a->int4) regroup_keys(&block, count, d);
    uint8_t *target = (uint8_t *)a->target + first * stride;
    for (int32_t token = 0; token < INTFA_PACK_UNIT; token += 8) {
      uint8_t *sub = target + token / KEYS * KEYS * stride + token % KEYS * 4;
      for (int32_t c = 0; c < d; c += 32) {
        __m256 rows[8];
        UNROLL for (int i = 0; i < 8; i++)
          rows[i] =
              _mm256_xor_ps(_mm256_load_ps((const float *)(block.codes[token + i] + c)), flip);
        transpose8(rows);
        for (int32_t i = 0; i < 8 && c + 4 * i < d; i++)
          _mm256_store_ps((float *)(sub + (c / 4 + i) * 4 * KEYS), rows[i]);
      }
    }
  }
}

// Byte i of a quad is its token order[i].
INLINE void pack_values(const int32_t order[4], const intfa_pack *a) {
  const int32_t d = a->dimension, width = (int32_t)padded(d, KEYS);
  token_block block;
  for (int64_t first = a->begin; first < a->end; first += INTFA_PACK_UNIT) {
    const int32_t count = load_block(a, first, &block);
    if (a->int4) regroup_values(&block, count, d);
    int8_t *target = (int8_t *)a->target + first * width;
    for (int32_t c = 0; c < width; c += KEYS)
      for (int32_t token = 0; token < INTFA_PACK_UNIT; token += 4, target += 4 * KEYS) {
        __m128i row[4];
        UNROLL for (int i = 0; i < 4; i++)
          row[i] = _mm_load_si128((const __m128i *)(block.codes[token + order[i]] + c));
        __m128i ab = _mm_unpacklo_epi8(row[0], row[1]), AB = _mm_unpackhi_epi8(row[0], row[1]);
        __m128i cd = _mm_unpacklo_epi8(row[2], row[3]), CD = _mm_unpackhi_epi8(row[2], row[3]);
        __m128i *to = (__m128i *)target;
        _mm_store_si128(to, _mm_unpacklo_epi16(ab, cd));
        _mm_store_si128(to + 1, _mm_unpackhi_epi16(ab, cd));
        _mm_store_si128(to + 2, _mm_unpacklo_epi16(AB, CD));
        _mm_store_si128(to + 3, _mm_unpackhi_epi16(AB, CD));
      }
  }
}

void intfa_pack_values__avxvnni(const intfa_pack *a) {
  static const int32_t order[4] = {0, 1, 2, 3};
  pack_values(order, a);
}
// The even and the odd bytes of a quad become two pairs of 16-bit numbers.
void intfa_pack_values__avx2(const intfa_pack *a) {
  static const int32_t order[4] = {0, 2, 1, 3};
  pack_values(order, a);
}
#pragma clang attribute pop
#endif
