// Storage of quantised keys and values for 512-bit vpdpbusd, in units of 64 tokens.
//
// INT8 keys: [D / 4][64 tokens][4 channels], code + 128. INT8 values: [16 fours of tokens][Dv][4].
// D is padded to 4 channels, Dv to 64, tokens to 64, all with zeros.
//
// Four-bit keys: [D / 4][2][64]: byte b of half h has channel b % 4 of token 16 h + b / 4 in its low
// half and of the token 32 later in its high half; then steps [2][D] of the two groups of 32 tokens,
// then offsets + 128 likewise. Four-bit values: [16][Dv / 32][64]: byte b has channel b / 4 of token
// b % 4 of the four, and in its high half the channel 16 later; then steps [16][Dv / 16][4 tokens],
// then offsets + 128 likewise. A code stands for min(code * step + offset, 127), in bytes exactly:
// code * step <= 15 * 17 = 255, and a saturating addition to offset + 128 stops at 127 + 128.
//
// Rows that do not exist are read from the first row's place with an empty mask: an empty mask on a
// page that was never touched would take a microcode assist, hundreds of cycles a load.
#if defined(__x86_64__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c"))), \
                             apply_to = function)
#include "x86_avx512vnni.h"

int64_t intfa_key_bytes__avx512vnni(int64_t tokens, int32_t dimension, bool int4) {
  const int32_t stride = (int32_t)padded(dimension, 4);
  return padded(tokens, KEYS) / KEYS * (int4 ? int4_key_unit_bytes(stride) : KEYS * stride);
}
int64_t intfa_value_bytes__avx512vnni(int64_t tokens, int32_t dimension, bool int4) {
  const int32_t width = (int32_t)padded(dimension, 64);
  return padded(tokens, KEYS) / KEYS * (int4 ? int4_value_unit_bytes(width) : KEYS * width);
}

// ---------------------------------------------------------------------------------- INT8

static void pack_key_unit(const int8_t *codes, int32_t count, int32_t d, uint8_t *target) {
  for (int32_t lane = 0; lane < KEYS; lane += 16)
    for (int32_t c = 0; c < d; c += 64) {
      __m512i rows[16];
      for (int32_t i = 0; i < 16; i++) {
        const bool exists = lane + i < count;
        const __mmask64 mask = exists ? first_bytes(d - c) : 0;
        const int8_t *row = codes + (exists ? (lane + i) * d + c : 0);
        rows[i] = _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, row), _mm512_set1_epi8(-128));
      }
      transpose16(rows);
      for (int32_t i = 0; i < 16 && c + 4 * i < d; i++)
        _mm512_store_si512(target + (c / 4 + i) * 4 * KEYS + 4 * lane, rows[i]);
    }
}

static void pack_value_unit(const int8_t *codes, int32_t count, int32_t d, int32_t width,
                            int8_t *target) {
  for (int32_t token = 0; token < KEYS; token += 4)
    for (int32_t c = 0; c < width; c += 16) {
      __m128i row[4];
      for (int32_t i = 0; i < 4; i++) {
        const bool exists = token + i < count;
        const __mmask16 mask = exists ? (__mmask16)first_bytes(d - c) : 0;
        row[i] = _mm_maskz_loadu_epi8(mask, codes + (exists ? (token + i) * d + c : 0));
      }
      __m128i ab = _mm_unpacklo_epi8(row[0], row[1]), AB = _mm_unpackhi_epi8(row[0], row[1]);
      __m128i cd = _mm_unpacklo_epi8(row[2], row[3]), CD = _mm_unpackhi_epi8(row[2], row[3]);
      __m128i *to = (__m128i *)(target + (int64_t)token * width + 4 * c);
      _mm_store_si128(to, _mm_unpacklo_epi16(ab, cd));
      _mm_store_si128(to + 1, _mm_unpackhi_epi16(ab, cd));
      _mm_store_si128(to + 2, _mm_unpacklo_epi16(AB, CD));
      _mm_store_si128(to + 3, _mm_unpackhi_epi16(AB, CD));
    }
}

// ---------------------------------------------------------------------------------- four bits

static void pack_int4_key_unit(const int8_t *codes, int32_t count, int32_t d, uint8_t *target) {
  const int32_t stride = (int32_t)padded(d, 4);
  uint8_t *steps = target + stride * KEYS / 2, *offsets = steps + 2 * stride;
  memset(target, 0, (size_t)int4_key_unit_bytes(stride));
  for (int32_t group = 0; group * INTFA_KEY_GROUP < count; group++) {
    const int32_t first = group * INTFA_KEY_GROUP;
    const int32_t tokens = count - first < INTFA_KEY_GROUP ? count - first : INTFA_KEY_GROUP;
    for (int32_t c = 0; c < d; c++) {
      const intfa_regrouping g = intfa_regroup(codes + first * d + c, tokens, d);
      steps[group * stride + c] = (uint8_t)g.step;
      offsets[group * stride + c] = (uint8_t)(g.low + 128);
      for (int32_t t = 0; t < tokens; t++)
        target[(c / 4) * 128 + t / 16 * 64 + t % 16 * 4 + c % 4] |=
            (uint8_t)(intfa_four_bits(codes[(first + t) * d + c], g) << (4 * group));
    }
  }
}

static void pack_int4_value_unit(const int8_t *codes, int32_t count, int32_t d, int32_t width,
                                 uint8_t *target) {
  uint8_t *steps = target + width * KEYS / 2, *offsets = steps + width / 16 * KEYS;
  memset(target, 0, (size_t)width * KEYS / 2);
  memset(steps, 0, (size_t)width / 16 * KEYS);
  memset(offsets, 128, (size_t)width / 16 * KEYS);
  for (int32_t t = 0; t < count; t++)
    for (int32_t c = 0; c < d; c += INTFA_VALUE_GROUP) {
      const int32_t channels = d - c < INTFA_VALUE_GROUP ? d - c : INTFA_VALUE_GROUP;
      const int8_t *row = codes + t * d + c;
      const intfa_regrouping g = intfa_regroup(row, channels, 1);
      const int32_t place = (t / 4 * (width / 16) + c / 16) * 4 + t % 4;
      steps[place] = (uint8_t)g.step;
      offsets[place] = (uint8_t)(g.low + 128);
      uint8_t *to = target + (t / 4 * (width / 32) + c / 32) * 64 + t % 4;
      for (int32_t i = 0; i < channels; i++)
        to[4 * i] |= (uint8_t)(intfa_four_bits(row[i], g) << (c / 16 % 2 * 4));
    }
}

// 64 codes times their steps plus offset + 128; both repeat every four bytes.
INLINE __m512i decode(__m512i codes, const uint8_t *steps, const uint8_t *offsets) {
  int32_t four_steps, four_offsets;
  memcpy(&four_steps, steps, sizeof four_steps);
  memcpy(&four_offsets, offsets, sizeof four_offsets);
  const __m512i step = _mm512_set1_epi32(four_steps);
  const __m512i even = _mm512_maddubs_epi16(codes, _mm512_and_si512(step, _mm512_set1_epi16(0x00FF)));
  const __m512i odd = _mm512_maddubs_epi16(codes, _mm512_andnot_si512(_mm512_set1_epi16(0x00FF), step));
  const __m512i product = _mm512_or_si512(even, _mm512_slli_epi16(odd, 8));
  return _mm512_adds_epu8(product, _mm512_set1_epi32(four_offsets));
}
INLINE __m512i low_halves(__m512i x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
INLINE __m512i high_halves(__m512i x) { return low_halves(_mm512_srli_epi16(x, 4)); }

void intfa_unpack_key_unit__avx512vnni(const uint8_t *unit, int32_t stride, uint8_t *codes) {
  const uint8_t *steps = unit + stride * KEYS / 2, *offsets = steps + 2 * stride;
  for (int32_t c = 0; c < stride; c += 4, unit += 128, codes += 4 * KEYS)
    UNROLL for (int32_t half = 0; half < 2; half++) {
      const __m512i both = _mm512_loadu_si512(unit + 64 * half);
      _mm512_store_si512(codes + 64 * half, decode(low_halves(both), steps + c, offsets + c));
      _mm512_store_si512(codes + 64 * half + 128,
                         decode(high_halves(both), steps + stride + c, offsets + stride + c));
    }
}

void intfa_unpack_value_unit__avx512vnni(const uint8_t *unit, int32_t width, int8_t *codes) {
  const uint8_t *steps = unit + width * KEYS / 2, *offsets = steps + width / 16 * KEYS;
  const __m512i sign = _mm512_set1_epi8(-128);
  for (int32_t i = 0; i < width * KEYS / 128; i++, unit += 64, codes += 128, steps += 8, offsets += 8) {
    const __m512i both = _mm512_loadu_si512(unit);
    _mm512_store_si512(codes, _mm512_xor_si512(decode(low_halves(both), steps, offsets), sign));
    _mm512_store_si512(codes + 64,
                       _mm512_xor_si512(decode(high_halves(both), steps + 4, offsets + 4), sign));
  }
}

// ---------------------------------------------------------------------------------- entries

void intfa_pack_keys__avx512vnni(const intfa_pack *a) {
  const int32_t d = a->dimension, stride = (int32_t)padded(d, 4);
  for (int64_t first = a->begin; first < a->end; first += KEYS) {
    const int32_t count = a->end - first < KEYS ? (int32_t)(a->end - first) : KEYS;
    const int8_t *codes = a->codes + (first - a->begin) * d;
    if (a->int4)
      pack_int4_key_unit(codes, count, d, (uint8_t *)a->target + first / KEYS * int4_key_unit_bytes(stride));
    else
      pack_key_unit(codes, count, d, (uint8_t *)a->target + first * stride);
  }
}

void intfa_pack_values__avx512vnni(const intfa_pack *a) {
  const int32_t d = a->dimension, width = (int32_t)padded(d, 64);
  for (int64_t first = a->begin; first < a->end; first += KEYS) {
    const int32_t count = a->end - first < KEYS ? (int32_t)(a->end - first) : KEYS;
    const int8_t *codes = a->codes + (first - a->begin) * d;
    if (a->int4)
      pack_int4_value_unit(codes, count, d, width,
                           (uint8_t *)a->target + first / KEYS * int4_value_unit_bytes(width));
    else
      pack_value_unit(codes, count, d, width, (int8_t *)a->target + first * width);
  }
}
#pragma clang attribute pop
#endif
