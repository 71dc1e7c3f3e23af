// Storage of quantised keys and values for 512-bit vpdpbusd, in units of 64 tokens.
//
// INT8 keys: [D / 4][64 tokens][4 channels], code + 128. INT8 values: [Dv / 64][16 fours][64][4 tokens].
// D is padded to 4 channels, Dv to 64, tokens to 64, all with zeros.
//
// Four-bit keys: [D / 4][2][64]: sixteen bytes q of half h are [4 channels][4 tokens from 16 h + 4 q],
// in their low halves, and the tokens 32 later in their high halves; then steps [2][D] of the two groups
// of 32 tokens, then offsets + 128 likewise. Four-bit values: [Dv / 64][16 fours][2][64]: sixteen bytes q
// of half h are [4 tokens][4 channels from 32 h + 4 q], and in their high halves the channels 16 later;
// then steps [Dv / 64][16][4 groups][4 tokens], then offsets + 128 likewise. A code stands for
// min(code * step + offset, 127); see x86_avx512vnni_int4.h.
//
// Rows that do not exist are read from the first row's place with an empty mask: an empty mask on a
// page that was never touched would take a microcode assist, hundreds of cycles a load.
#if defined(__x86_64__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c"))), \
                             apply_to = function)
#include "x86_avx512vnni_int4.h"

int64_t intfa_key_bytes__avx512vnni(int64_t tokens, int32_t dimension, bool int4) {
  const int32_t stride = (int32_t)padded(dimension, 4);
  return padded(tokens, KEYS) / KEYS * (int64_t)(int4 ? int4_key_unit_bytes(stride) : KEYS * stride);
}
int64_t intfa_value_bytes__avx512vnni(int64_t tokens, int32_t dimension, bool int4) {
  const int32_t width = (int32_t)padded(dimension, 64);
  return padded(tokens, KEYS) / KEYS * (int64_t)(int4 ? int4_value_unit_bytes(width) : KEYS * width);
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
      __m128i *to = (__m128i *)(target + c / 64 * 64 * KEYS + token * 64 + c % 64 * 4);
      _mm_store_si128(to, _mm_unpacklo_epi16(ab, cd));
      _mm_store_si128(to + 1, _mm_unpackhi_epi16(ab, cd));
      _mm_store_si128(to + 2, _mm_unpacklo_epi16(AB, CD));
      _mm_store_si128(to + 3, _mm_unpackhi_epi16(AB, CD));
    }
}

// ---------------------------------------------------------------------------------- four bits

// The step of a group, in 16-bit lanes: max((high - low + 14) / 15, 1); 4370 / 2^16 divides by 15
// exactly up to 269.
INLINE __m512i steps_of(__m512i low, __m512i high) {
  const __m512i range = _mm512_add_epi16(_mm512_sub_epi16(high, low), _mm512_set1_epi16(14));
  return _mm512_max_epi16(_mm512_mulhi_epu16(range, _mm512_set1_epi16(4370)), _mm512_set1_epi16(1));
}
// ceil(2^16 / (2 step)): multiplying by it and taking the upper half divides up to 2 * 254 + 17 by
// 2 step exactly.
INLINE __m512i reciprocals_of(__m512i step) {
  const __m512i doubled = _mm512_slli_epi16(step, 1);
  const __m512i one = _mm512_set1_epi32(1), all = _mm512_set1_epi32(65535);
  const __m512i even = _mm512_and_si512(doubled, all), odd = _mm512_srli_epi32(doubled, 16);
  // (65535 + 2 step) / (2 step) by float division, exact for these sizes after truncation.
  const __m512i low = _mm512_cvttps_epi32(_mm512_div_ps(
      _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_sub_epi32(even, one), _mm512_set1_epi32(65536))),
      _mm512_cvtepi32_ps(even)));
  const __m512i high = _mm512_cvttps_epi32(_mm512_div_ps(
      _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_sub_epi32(odd, one), _mm512_set1_epi32(65536))),
      _mm512_cvtepi32_ps(odd)));
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}
// Nearest, ties to even, of (code - low) / step: (2 x + step) / (2 step), less one for an odd tie.
INLINE __m512i four_bits(__m512i code, __m512i low, __m512i step, __m512i reciprocal) {
  const __m512i x = _mm512_sub_epi16(code, low), doubled = _mm512_slli_epi16(step, 1);
  const __m512i numerator = _mm512_add_epi16(_mm512_slli_epi16(x, 1), step);
  const __m512i q = _mm512_mulhi_epu16(numerator, reciprocal);
  const __mmask32 tie = _mm512_cmpeq_epi16_mask(_mm512_mullo_epi16(q, doubled), numerator);
  const __mmask32 odd = _mm512_test_epi16_mask(q, _mm512_set1_epi16(1));
  return _mm512_mask_sub_epi16(q, tie & odd, q, _mm512_set1_epi16(1));
}

// Codes of up to 32 tokens and 32 channels from `c`; steps and offsets of the channels.
static void regroup_keys(const int8_t *codes, int32_t tokens, int32_t d, int32_t c, uint8_t *steps,
                         uint8_t *offsets, uint8_t (*four)[INTFA_MAX_DIMENSION]) {
  const __mmask32 mask = (__mmask32)first_bytes(d - c);
  __m512i low = _mm512_set1_epi16(127), high = _mm512_set1_epi16(-127);
  for (int32_t t = 0; t < tokens; t++) {
    const __m512i x = _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(mask, codes + t * d + c));
    low = _mm512_min_epi16(low, x);
    high = _mm512_max_epi16(high, x);
  }
  const __m512i step = steps_of(low, high), reciprocal = reciprocals_of(step);
  const __mmask32 stored = (__mmask32)first_bytes((int32_t)padded(d, 4) - c);
  _mm256_mask_storeu_epi8(steps + c, stored, _mm512_cvtepi16_epi8(step));
  _mm256_mask_storeu_epi8(offsets + c, stored,
                          _mm512_cvtepi16_epi8(_mm512_add_epi16(low, _mm512_set1_epi16(128))));
  for (int32_t t = 0; t < tokens; t++) {
    const __m512i x = _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(mask, codes + t * d + c));
    _mm256_store_si256((__m256i *)(four[t] + c),
                       _mm512_cvtepi16_epi8(four_bits(x, low, step, reciprocal)));
  }
}

// Four bits of 64 tokens in the order of dpbusd.
static void pair_keys(uint8_t (*four)[INTFA_MAX_DIMENSION], int32_t d, uint8_t *target) {
  for (int32_t half = 0; half < 2; half++)
    for (int32_t c = 0; c < d; c += 64) {
      __m512i rows[16];
      for (int32_t i = 0; i < 16; i++) {
        const __m512i low = _mm512_load_si512(four[16 * half + i] + c);
        const __m512i high = _mm512_load_si512(four[16 * half + i + 32] + c);
        rows[i] = _mm512_or_si512(low, _mm512_slli_epi16(high, 4));
      }
      transpose16(rows);
      for (int32_t i = 0; i < 16 && c + 4 * i < d; i++)
        _mm512_storeu_si512(target + (c / 4 + i) * 128 + 64 * half, transpose_bytes(rows[i]));
    }
}

static void pack_int4_key_unit(const int8_t *codes, int32_t count, int32_t d, uint8_t *target) {
  const int32_t stride = (int32_t)padded(d, 4);
  uint8_t *steps = target + stride * KEYS / 2, *offsets = steps + 2 * stride;
  _Alignas(64) uint8_t four[KEYS][INTFA_MAX_DIMENSION];
  memset(steps, 0, (size_t)(4 * stride));
  if (count < KEYS) memset(four[count], 0, (size_t)(KEYS - count) * INTFA_MAX_DIMENSION);
  for (int32_t group = 0; group * INTFA_KEY_GROUP < count; group++) {
    const int32_t first = group * INTFA_KEY_GROUP;
    const int32_t tokens = count - first < INTFA_KEY_GROUP ? count - first : INTFA_KEY_GROUP;
    for (int32_t c = 0; c < d; c += 32)
      regroup_keys(codes + first * d, tokens, d, c, steps + group * stride, offsets + group * stride,
                   four + first);
  }
  pair_keys(four, d, target);
}

// What is in four bits already. Channels that do not exist have step 1 and code 0.
static void take_key_unit(const uint8_t *unit, int32_t d, uint8_t *target) {
  const int32_t stride = (int32_t)padded(d, 4);
  uint8_t *steps = target + stride * KEYS / 2, *offsets = steps + 2 * stride;
  uint8_t given_steps[2 * INTFA_MAX_DIMENSION];
  int8_t given_offsets[2 * INTFA_MAX_DIMENSION];
  _Alignas(64) uint8_t four[KEYS][INTFA_MAX_DIMENSION];
  memset(four, 0, sizeof four);
  intfa_four_bit_key_parts(unit, d, INTFA_MAX_DIMENSION, four[0], given_steps, given_offsets);
  memset(steps, 1, (size_t)(2 * stride));
  memset(offsets, 128, (size_t)(2 * stride));
  for (int32_t i = 0; i < 2 * d; i++) {
    steps[i / d * stride + i % d] = given_steps[i];
    offsets[i / d * stride + i % d] = (uint8_t)(given_offsets[i] + 128);
  }
  pair_keys(four, d, target);
}

// The smallest or largest, byte by byte, of sixteen dwords, in all of them.
INLINE __m512i smallest_of_dwords(__m512i x) {
  x = _mm512_min_epi8(x, _mm512_shuffle_i64x2(x, x, 0x4E));
  x = _mm512_min_epi8(x, _mm512_shuffle_i64x2(x, x, 0xB1));
  x = _mm512_min_epi8(x, _mm512_shuffle_epi32(x, 0x4E));
  return _mm512_min_epi8(x, _mm512_shuffle_epi32(x, 0xB1));
}
INLINE __m512i largest_of_dwords(__m512i x) {
  x = _mm512_max_epi8(x, _mm512_shuffle_i64x2(x, x, 0x4E));
  x = _mm512_max_epi8(x, _mm512_shuffle_i64x2(x, x, 0xB1));
  x = _mm512_max_epi8(x, _mm512_shuffle_epi32(x, 0x4E));
  return _mm512_max_epi8(x, _mm512_shuffle_epi32(x, 0xB1));
}

// Four bits of 16 channels x 4 tokens, one group a token; `place` gets the tokens' steps and offsets.
INLINE __m512i regroup_values(__m512i x, int32_t channels, uint8_t *steps, uint8_t *offsets) {
  const __mmask16 real = channels >= 16 ? 0xFFFF : (__mmask16)((1u << channels) - 1);
  x = _mm512_mask_blend_epi32(real, _mm512_broadcastd_epi32(_mm512_castsi512_si128(x)), x);
  const __m256i low_bytes = _mm512_castsi512_si256(smallest_of_dwords(x));
  const __m512i low = _mm512_cvtepi8_epi16(low_bytes);
  const __m512i high = _mm512_cvtepi8_epi16(_mm512_castsi512_si256(largest_of_dwords(x)));
  const __m512i step = steps_of(low, high), reciprocal = reciprocals_of(step);
  const __m256i step_bytes = _mm512_cvtepi16_epi8(step);
  _mm_storeu_si32(steps, _mm256_castsi256_si128(step_bytes));
  _mm_storeu_si32(offsets, _mm_xor_si128(_mm256_castsi256_si128(low_bytes), _mm_set1_epi8(-128)));
  const __m512i first = _mm512_cvtepi8_epi16(_mm512_castsi512_si256(x));
  const __m512i second = _mm512_cvtepi8_epi16(_mm512_extracti64x4_epi64(x, 1));
  const __m256i a = _mm512_cvtepi16_epi8(four_bits(first, low, step, reciprocal));
  const __m256i b = _mm512_cvtepi16_epi8(four_bits(second, low, step, reciprocal));
  return _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
}

static void pack_int4_value_unit(const int8_t *codes, int32_t count, int32_t d, int32_t width,
                                 uint8_t *target) {
  uint8_t *steps = target + width * KEYS / 2, *offsets = steps + width / 16 * KEYS;
  _Alignas(64) int8_t unit[KEYS * INTFA_MAX_DIMENSION];
  pack_value_unit(codes, count, d, width, unit);
  for (int32_t i = 0; i < width * KEYS / 128; i++, target += 64, steps += 8, offsets += 8) {
    const int32_t left = d - i / (KEYS / 2) * 64 - i % 2 * 32;  // real channels from these on
    const int8_t *from = unit + 128 * i;
    const __m512i low = regroup_values(_mm512_load_si512(from), left > 0 ? left : 1, steps, offsets);
    const __m512i high = regroup_values(_mm512_load_si512(from + 64), left > 16 ? left - 16 : 1,
                                        steps + 4, offsets + 4);
    _mm512_storeu_si512(target, transpose_bytes(_mm512_or_si512(low, _mm512_slli_epi16(high, 4))));
  }
}

// What is in four bits already. A group's missing channels repeat its first one; missing groups have step
// 1 and code 0.
static void take_value_unit(const uint8_t *given, int32_t d, int32_t width, uint8_t *target) {
  enum { GROUPS = INTFA_MAX_DIMENSION / INTFA_VALUE_GROUP };
  uint8_t *steps = target + width * KEYS / 2, *offsets = steps + width / 16 * KEYS;
  uint8_t given_steps[KEYS * GROUPS], four[KEYS * INTFA_MAX_DIMENSION];
  int8_t given_offsets[KEYS * GROUPS];
  _Alignas(64) int8_t unit[KEYS * INTFA_MAX_DIMENSION];
  const int32_t stride = (int32_t)padded(d, INTFA_VALUE_GROUP), groups = stride / INTFA_VALUE_GROUP;
  intfa_four_bit_value_parts(given, d, stride, four, given_steps, given_offsets);
  for (int32_t t = 0; t < KEYS; t++)
    for (int32_t c = d; c < stride; c++) four[t * stride + c] = four[t * stride + stride - INTFA_VALUE_GROUP];
  pack_value_unit((const int8_t *)four, KEYS, stride, width, unit);
  for (int32_t i = 0; i < width / 16 * KEYS; i++) {
    const int32_t group = i / (16 * UNITS) * 4 + i / 4 % 4, token = i / 16 % UNITS * 4 + i % 4;
    steps[i] = group < groups ? given_steps[token * groups + group] : 1;
    offsets[i] = group < groups ? (uint8_t)(given_offsets[token * groups + group] + 128) : 128;
  }
  for (int32_t i = 0; i < width * KEYS / 128; i++) {
    const __m512i low = _mm512_load_si512(unit + 128 * i), high = _mm512_load_si512(unit + 128 * i + 64);
    _mm512_storeu_si512(target + 64 * i, transpose_bytes(_mm512_or_si512(low, _mm512_slli_epi16(high, 4))));
  }
}

void intfa_unpack_key_unit__avx512vnni(const uint8_t *unit, int32_t stride, uint8_t *codes,
                                       const char *ahead) {
  const uint8_t *steps = unit + stride * KEYS / 2;
  for (int32_t c = 0; c < stride; c += 4, unit += 128, codes += 4 * KEYS, ahead += 128) {
    __m512i k[4];
    decode_keys(unit, steps + c, stride, k);
    UNROLL for (int j = 0; j < 4; j++) _mm512_store_si512(codes + 64 * j, k[j]);
    UNROLL for (int j = 0; j < 2; j++) _mm_prefetch(ahead + 64 * j, _MM_HINT_T0);
  }
}

void intfa_unpack_value_unit__avx512vnni(const uint8_t *unit, int32_t width, int8_t *codes,
                                         const char *ahead) {
  const uint8_t *steps = unit + width * KEYS / 2, *offsets = steps + width / 16 * KEYS;
  for (int32_t i = 0; i < width * KEYS / 256; i++, unit += 128, codes += 256, ahead += 128) {
    __m512i v[4];
    decode_values(unit, steps + 16 * i, offsets + 16 * i, v);
    UNROLL for (int j = 0; j < 4; j++) _mm512_store_si512(codes + 64 * j, v[j]);
    UNROLL for (int j = 0; j < 2; j++) _mm_prefetch(ahead + 64 * j, _MM_HINT_T0);
  }
}

// ---------------------------------------------------------------------------------- entries

void intfa_open_key_unit__avx512vnni(const void *int4_unit, int32_t dimension, void *unit) {
  intfa_unpack_key_unit__avx512vnni(int4_unit, (int32_t)padded(dimension, 4), unit, int4_unit);
}
void intfa_open_value_unit__avx512vnni(const void *int4_unit, int32_t dimension, void *unit) {
  intfa_unpack_value_unit__avx512vnni(int4_unit, (int32_t)padded(dimension, 64), unit,
                                      int4_unit);
}

void intfa_pack_keys__avx512vnni(const intfa_pack *a) {
  const int32_t d = a->dimension, stride = (int32_t)padded(d, 4);
  for (int64_t first = a->begin; first < a->end; first += KEYS) {
    const int32_t count = a->end - first < KEYS ? (int32_t)(a->end - first) : KEYS;
    const int8_t *codes = a->codes + (first - a->begin) * d;
    uint8_t *target = (uint8_t *)a->target + first / KEYS * int4_key_unit_bytes(stride);
    if (a->four_bits)
      take_key_unit(a->four_bits + (first - a->begin) / KEYS * intfa_four_bit_key_bytes(d), d, target);
    else if (a->int4)
      pack_int4_key_unit(codes, count, d, target);
    else
      pack_key_unit(codes, count, d, (uint8_t *)a->target + first * stride);
  }
}

void intfa_pack_values__avx512vnni(const intfa_pack *a) {
  const int32_t d = a->dimension, width = (int32_t)padded(d, 64);
  for (int64_t first = a->begin; first < a->end; first += KEYS) {
    const int32_t count = a->end - first < KEYS ? (int32_t)(a->end - first) : KEYS;
    const int8_t *codes = a->codes + (first - a->begin) * d;
    uint8_t *target = (uint8_t *)a->target + first / KEYS * int4_value_unit_bytes(width);
    if (a->four_bits)
      take_value_unit(a->four_bits + (first - a->begin) / KEYS * intfa_four_bit_value_bytes(d), d, width,
                      target);
    else if (a->int4)
      pack_int4_value_unit(codes, count, d, width, target);
    else
      pack_value_unit(codes, count, d, width, (int8_t *)a->target + first * width);
  }
}
#pragma clang attribute pop
#endif
