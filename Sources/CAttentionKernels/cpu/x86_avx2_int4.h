// Progressive four bits of 64 tokens, and how they become the INT8 codes that they stand for.
// Included inside the target region of an instruction set.
//
// Keys: [2][D / 4][64]: half h has the bytes of sub-tile h, [16 tokens][4 channels], in the low
// nibbles and those of sub-tile h + 2 in the high ones; then for each of the two groups of 32
// tokens steps [D] and offsets + 128 [D]. Values: [Dv / 16][8][64]: the bytes of four t, [16
// channels] [4 tokens], in the low nibbles and those of four t + 8 in the high ones; then for each
// column steps [64 tokens] and offsets + 128 [64 tokens]. A code is min(nibble * step + offset,
// 127). In bytes exactly: nibble * step <= 15 * 17 = 255, and a saturating addition to offset + 128
// stops at 127 + 128.
#pragma once
#include "x86_avx2.h"

enum {
  SUB_BYTES = 4 * KEYS
};  // of four channels of sixteen keys, or four tokens of as many values

INLINE int64_t int4_key_bytes(int32_t stride) {
  return (INTFA_PACK_UNIT / 2 + 4) * (int64_t)stride;
}
INLINE int64_t int4_value_bytes(int32_t width) {
  return (INTFA_PACK_UNIT / 2 + 2 * INTFA_PACK_UNIT / KEYS) * (int64_t)width;
}

// Codes + 128 of 32 nibbles in the low halves of their bytes; steps and offsets of a dword repeat.
INLINE __m256i decoded(__m256i nibbles, const uint8_t *steps, const uint8_t *offsets) {
  int32_t step, offset;
  memcpy(&step, steps, sizeof step);
  memcpy(&offset, offsets, sizeof offset);
  const __m256i s = _mm256_set1_epi32(step), low = _mm256_set1_epi16(0xFF);
  __m256i even = _mm256_mullo_epi16(_mm256_and_si256(nibbles, low), _mm256_and_si256(s, low));
  __m256i odd = _mm256_mullo_epi16(_mm256_srli_epi16(nibbles, 8), _mm256_srli_epi16(s, 8));
  __m256i products = _mm256_or_si256(even, _mm256_slli_epi16(odd, 8));
  return _mm256_adds_epu8(products, _mm256_set1_epi32(offset));
}
// 64 bytes of nibble pairs into the bytes of the low ones and of the high ones.
INLINE void unpack_pairs(const uint8_t *from, const uint8_t *steps, const uint8_t *high_steps,
                         const uint8_t *offsets, const uint8_t *high_offsets, __m256i flip,
                         uint8_t *low, uint8_t *high) {
  const __m256i nibble = _mm256_set1_epi8(15);
  UNROLL for (int i = 0; i < SUB_BYTES; i += 32) {
    __m256i pairs = _mm256_loadu_si256((const __m256i *)(from + i));
    __m256i first = decoded(_mm256_and_si256(pairs, nibble), steps, offsets);
    __m256i second =
        decoded(_mm256_and_si256(_mm256_srli_epi16(pairs, 4), nibble), high_steps, high_offsets);
    _mm256_store_si256((__m256i *)(low + i), _mm256_xor_si256(first, flip));
    _mm256_store_si256((__m256i *)(high + i), _mm256_xor_si256(second, flip));
  }
}

// One unit of keys as pack_keys has them in INT8, [BLOCK][D / 4][SUB_BYTES].
static inline void unpack_key_unit(const uint8_t *unit, int32_t stride, uint8_t *target) {
  const uint8_t *steps = unit + INTFA_PACK_UNIT / 2 * stride;
  for (int32_t half = 0; half < 2; half++)
    for (int32_t c = 0; c < stride; c += 4)
      unpack_pairs(unit + half * KEYS * stride + c * KEYS, steps + c, steps + 2 * stride + c,
                   steps + stride + c, steps + 3 * stride + c, _mm256_setzero_si256(),
                   target + half * KEYS * stride + c * KEYS,
                   target + (half + 2) * KEYS * stride + c * KEYS);
}

// One unit of values as pack_values has them in INT8, [Dv / 16][16][SUB_BYTES].
static inline void unpack_value_unit(const uint8_t *unit, int32_t width, int8_t *target) {
  const uint8_t *steps = unit + INTFA_PACK_UNIT / 2 * width;
  for (int32_t c = 0; c < width; c += KEYS, steps += 2 * INTFA_PACK_UNIT)
    for (int32_t four = 0; four < 8; four++) {
      uint8_t *low = (uint8_t *)target + c * INTFA_PACK_UNIT + four * SUB_BYTES;
      unpack_pairs(unit + c * INTFA_PACK_UNIT / 2 + four * SUB_BYTES, steps + 4 * four,
                   steps + 32 + 4 * four, steps + INTFA_PACK_UNIT + 4 * four,
                   steps + INTFA_PACK_UNIT + 32 + 4 * four, _mm256_set1_epi8(-128), low,
                   low + 8 * SUB_BYTES);
    }
}
