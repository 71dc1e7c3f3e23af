// Four bits to INT8 codes in 512-bit registers. Included inside their target region.
//
// A 128-bit quarter of a register has 4 x 4 codes. dpbusd wants four channels of a key side by side, or
// four tokens of a value channel; steps belong to channels, or to tokens. So the quarters are stored
// transposed: then the two bytes of a word have one step, one 16-bit multiplication makes both products
// (at most 15 * 17 = 255, so none reaches its neighbour), and a byte shuffle transposes them back.
// Instructions for 64 codes: and (for half of them after a shift), vpmullw, vpshufb, vpaddusb; steps
// take a vpshufb for 64 codes of values, or 128 of keys.
#pragma once
#include "x86_avx512vnni.h"

// 4 x 4 bytes of every quarter, rows to columns and back.
INLINE __m512i transpose_bytes(__m512i x) {
  return _mm512_shuffle_epi8(
      x, _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)));
}
INLINE __m512i four_bytes(const void *bytes) {
  int32_t four;
  memcpy(&four, bytes, sizeof four);
  return _mm512_set1_epi32(four);
}
// Four steps as the words of a quarter: each one for two words.
INLINE __m512i step_words(const uint8_t *steps) {
  return _mm512_shuffle_epi8(four_bytes(steps), _mm512_broadcast_i32x4(_mm_setr_epi8(
      0, -1, 0, -1, 1, -1, 1, -1, 2, -1, 2, -1, 3, -1, 3, -1)));
}
INLINE __m512i low_halves(__m512i x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
INLINE __m512i high_halves(__m512i x) { return low_halves(_mm512_srli_epi16(x, 4)); }
// Codes + 128: at most 127 + 128, where the saturating addition stops.
INLINE __m512i decode(__m512i four_bits, __m512i steps, __m512i offsets) {
  return _mm512_adds_epu8(transpose_bytes(_mm512_mullo_epi16(four_bits, steps)), offsets);
}

// Codes + 128 of 64 keys and four channels: `unit` has their 128 bytes, `steps` the steps of the
// channels for tokens 0 ... 31, those for tokens 32 ... 63 are `stride` further on, and the offsets
// likewise after 2 * stride.
INLINE void decode_keys(const uint8_t *unit, const uint8_t *steps, int32_t stride, __m512i *k) {
  const __m512i first = step_words(steps), second = step_words(steps + stride);
  const __m512i first_low = four_bytes(steps + 2 * stride), second_low = four_bytes(steps + 3 * stride);
  UNROLL for (int half = 0; half < 2; half++) {
    const __m512i both = _mm512_loadu_si512(unit + 64 * half);
    k[half] = decode(low_halves(both), first, first_low);
    k[half + 2] = decode(high_halves(both), second, second_low);
  }
}
// Codes of four tokens and 64 channels: `unit` has their 128 bytes, `steps` and `offsets` 16 each.
INLINE void decode_values(const uint8_t *unit, const uint8_t *steps, const uint8_t *offsets, __m512i *v) {
  const __m512i sign = _mm512_set1_epi8(-128);
  UNROLL for (int half = 0; half < 2; half++) {
    const __m512i both = _mm512_loadu_si512(unit + 64 * half);
    const int group = 8 * half;
    v[2 * half] = decode(low_halves(both), step_words(steps + group), four_bytes(offsets + group));
    v[2 * half + 1] =
        decode(high_halves(both), step_words(steps + group + 4), four_bytes(offsets + group + 4));
  }
  UNROLL for (int j = 0; j < 4; j++) v[j] = _mm512_xor_si512(v[j], sign);
}
