// Storage of quantised keys and values for the 256-bit tile loops, with and without vpdpbusd, in
// units of 64 tokens.
//
// INT8 keys: [4][D / 4][16 tokens][4 channels], code + 128. INT8 values: [Dv / 16][16][16 channels]
// [4 tokens]. D is padded to 4 channels, Dv to 16, tokens to 64, all with zeros. Four bits:
// x86_avx2_int4.h.
#if defined(__x86_64__)
#include "kernels.h"

#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#include "x86_avx2_int4.h"

int64_t intfa_key_bytes__avx2(int64_t tokens, int32_t dimension, bool int4) {
  const int32_t stride = (int32_t)padded(dimension, 4);
  const int64_t units = padded(tokens, INTFA_PACK_UNIT) / INTFA_PACK_UNIT;
  return units * (int4 ? int4_key_bytes(stride) : INTFA_PACK_UNIT * stride);
}
int64_t intfa_value_bytes__avx2(int64_t tokens, int32_t dimension, bool int4) {
  const int32_t width = (int32_t)padded(dimension, KEYS);
  const int64_t units = padded(tokens, INTFA_PACK_UNIT) / INTFA_PACK_UNIT;
  return units * (int4 ? int4_value_bytes(width) : INTFA_PACK_UNIT * width);
}

// Sixty-four tokens, padded with zeros to whole registers.
typedef struct {
  _Alignas(32) int8_t codes[INTFA_PACK_UNIT][INTFA_MAX_DIMENSION];
  _Alignas(32) uint8_t nibbles[INTFA_PACK_UNIT * INTFA_MAX_DIMENSION];  // in the order of INT8
} token_unit;

// Returns how many of them exist.
static int32_t load_unit(const intfa_pack *a, int64_t first, token_unit *u) {
  const int32_t d = a->dimension;
  if (a->four_bits) {
    memset(u->codes, 0, sizeof u->codes);
    return INTFA_PACK_UNIT;
  }
  const int32_t count =
      a->end - first < INTFA_PACK_UNIT ? (int32_t)(a->end - first) : INTFA_PACK_UNIT;
  memset(u->codes, 0, sizeof u->codes);
  for (int32_t t = 0; t < count; t++)
    memcpy(u->codes[t], a->codes + (first - a->begin + t) * d, (size_t)d);
  return count;
}

// ---------------------------------------------------------------------------------- keys

static void pack_key_unit(const token_unit *u, int32_t d, uint8_t added, uint8_t *target) {
  const int32_t stride = (int32_t)padded(d, 4);
  const __m256 flip = _mm256_castsi256_ps(_mm256_set1_epi8((char)added));
  for (int32_t token = 0; token < INTFA_PACK_UNIT; token += LANES) {
    uint8_t *sub = target + token / KEYS * KEYS * stride + token % KEYS * 4;
    for (int32_t c = 0; c < d; c += 4 * LANES) {
      __m256 rows[LANES];
      UNROLL for (int i = 0; i < LANES; i++) {
        const float *quads = (const float *)(u->codes[token + i] + c);
        rows[i] = _mm256_xor_ps(_mm256_load_ps(quads), flip);
      }
      transpose8(rows);
      for (int32_t i = 0; i < LANES && c + 4 * i < d; i++)
        _mm256_store_ps((float *)(sub + (c / 4 + i) * SUB_BYTES), rows[i]);
    }
  }
}

// Codes become four bits; their steps and offsets go to where they are stored.
static void regroup_keys(token_unit *u, int32_t count, int32_t d, int32_t stride, uint8_t *steps) {
  for (int32_t first = 0; first < INTFA_PACK_UNIT; first += INTFA_KEY_GROUP, steps += 2 * stride) {
    const int32_t left = count - first, tokens = left < INTFA_KEY_GROUP ? left : INTFA_KEY_GROUP;
    memset(steps, 0, (size_t)stride);
    memset(steps + stride, 128, (size_t)stride);
    for (int32_t c = 0; c < d && tokens > 0; c++) {
      const intfa_regrouping g = intfa_regroup(&u->codes[first][c], tokens, INTFA_MAX_DIMENSION);
      steps[c] = (uint8_t)g.step;
      steps[stride + c] = (uint8_t)(g.low + 128);
      for (int32_t t = first; t < first + tokens; t++)
        u->codes[t][c] = (int8_t)intfa_four_bits(u->codes[t][c], g);
    }
  }
}

// The same of what is in four bits already.
static void take_keys(token_unit *u, const uint8_t *unit, int32_t d, int32_t stride, uint8_t *steps) {
  uint8_t given_steps[2 * INTFA_MAX_DIMENSION];
  int8_t offsets[2 * INTFA_MAX_DIMENSION];
  intfa_four_bit_key_parts(unit, d, INTFA_MAX_DIMENSION, (uint8_t *)u->codes, given_steps, offsets);
  for (int32_t group = 0; group < 2; group++, steps += 2 * stride) {
    memset(steps, 0, (size_t)stride);
    memset(steps + stride, 128, (size_t)stride);
    for (int32_t c = 0; c < d; c++) {
      steps[c] = given_steps[group * d + c];
      steps[stride + c] = (uint8_t)(offsets[group * d + c] + 128);
    }
  }
}

// Bytes `apart` from each other into halves of one, as far as `count` bytes reach.
static void pair_nibbles(const uint8_t *from, int32_t apart, int32_t count, uint8_t *target) {
  for (int32_t i = 0; i < count; i++) target[i] = (uint8_t)(from[i] | from[i + apart] << 4);
}

void intfa_open_key_unit__avx2(const void *int4_unit, int32_t dimension, void *unit) {
  unpack_key_unit(int4_unit, (int32_t)padded(dimension, 4), unit);
}
void intfa_open_value_unit__avx2(const void *int4_unit, int32_t dimension, void *unit) {
  unpack_value_unit(int4_unit, (int32_t)padded(dimension, 16), unit);
}

void intfa_pack_keys__avx2(const intfa_pack *a) {
  const int32_t d = a->dimension, stride = (int32_t)padded(d, 4),
                half = INTFA_PACK_UNIT / 2 * stride;
  token_unit u;
  for (int64_t first = a->begin; first < a->end; first += INTFA_PACK_UNIT) {
    const int32_t count = load_unit(a, first, &u);
    if (!a->int4) {
      pack_key_unit(&u, d, 128, (uint8_t *)a->target + first * stride);
      continue;
    }
    uint8_t *target = (uint8_t *)a->target + first / INTFA_PACK_UNIT * int4_key_bytes(stride);
    if (a->four_bits)
      take_keys(&u, a->four_bits + (first - a->begin) / INTFA_PACK_UNIT * intfa_four_bit_key_bytes(d), d,
                stride, target + half);
    else
      regroup_keys(&u, count, d, stride, target + half);
    pack_key_unit(&u, d, 0, u.nibbles);
    pair_nibbles(u.nibbles, half, half, target);
  }
}

// ---------------------------------------------------------------------------------- values

// Byte i of four tokens is token order[i].
INLINE void pack_value_unit(const int32_t order[4], const token_unit *u, int32_t width,
                            uint8_t *target) {
  for (int32_t c = 0; c < width; c += KEYS)
    for (int32_t token = 0; token < INTFA_PACK_UNIT; token += 4, target += SUB_BYTES) {
      __m128i row[4];
      UNROLL for (int i = 0; i < 4; i++)
        row[i] = _mm_load_si128((const __m128i *)(u->codes[token + order[i]] + c));
      __m128i ab = _mm_unpacklo_epi8(row[0], row[1]), AB = _mm_unpackhi_epi8(row[0], row[1]);
      __m128i cd = _mm_unpacklo_epi8(row[2], row[3]), CD = _mm_unpackhi_epi8(row[2], row[3]);
      __m128i *to = (__m128i *)target;
      _mm_storeu_si128(to, _mm_unpacklo_epi16(ab, cd));
      _mm_storeu_si128(to + 1, _mm_unpackhi_epi16(ab, cd));
      _mm_storeu_si128(to + 2, _mm_unpacklo_epi16(AB, CD));
      _mm_storeu_si128(to + 3, _mm_unpackhi_epi16(AB, CD));
    }
}

// As regroup_keys; steps and offsets are in the order of the bytes.
INLINE void regroup_values(const int32_t order[4], token_unit *u, int32_t count, int32_t d,
                           int32_t width, uint8_t *steps) {
  for (int32_t c = 0; c < width; c += KEYS, steps += 2 * INTFA_PACK_UNIT) {
    const int32_t channels = d - c < INTFA_VALUE_GROUP ? d - c : INTFA_VALUE_GROUP;
    memset(steps, 0, INTFA_PACK_UNIT);
    memset(steps + INTFA_PACK_UNIT, 128, INTFA_PACK_UNIT);
    for (int32_t place = 0; place < INTFA_PACK_UNIT; place++) {
      const int32_t token = place / 4 * 4 + order[place % 4];
      if (token >= count) continue;
      int8_t *codes = &u->codes[token][c];
      const intfa_regrouping g = intfa_regroup(codes, channels, 1);
      steps[place] = (uint8_t)g.step;
      steps[INTFA_PACK_UNIT + place] = (uint8_t)(g.low + 128);
      for (int32_t i = 0; i < channels; i++) codes[i] = (int8_t)intfa_four_bits(codes[i], g);
    }
  }
}

// The same of what is in four bits already.
INLINE void take_values(const int32_t order[4], token_unit *u, const uint8_t *unit, int32_t d,
                        int32_t width, uint8_t *steps) {
  enum { GROUPS = INTFA_MAX_DIMENSION / INTFA_VALUE_GROUP };
  uint8_t given_steps[INTFA_PACK_UNIT * GROUPS];
  int8_t offsets[INTFA_PACK_UNIT * GROUPS];
  intfa_four_bit_value_parts(unit, d, INTFA_MAX_DIMENSION, (uint8_t *)u->codes, given_steps, offsets);
  const int32_t groups = width / KEYS;
  for (int32_t group = 0; group < groups; group++, steps += 2 * INTFA_PACK_UNIT)
    for (int32_t place = 0; place < INTFA_PACK_UNIT; place++) {
      const int32_t at = (place / 4 * 4 + order[place % 4]) * groups + group;
      steps[place] = given_steps[at];
      steps[INTFA_PACK_UNIT + place] = (uint8_t)(offsets[at] + 128);
    }
}

INLINE void pack_values(const int32_t order[4], const intfa_pack *a) {
  const int32_t d = a->dimension, width = (int32_t)padded(d, KEYS);
  const int32_t column = KEYS * INTFA_PACK_UNIT;
  token_unit u;
  for (int64_t first = a->begin; first < a->end; first += INTFA_PACK_UNIT) {
    const int32_t count = load_unit(a, first, &u);
    if (!a->int4) {
      pack_value_unit(order, &u, width, (uint8_t *)a->target + first * width);
      continue;
    }
    uint8_t *target = (uint8_t *)a->target + first / INTFA_PACK_UNIT * int4_value_bytes(width);
    uint8_t *steps = target + INTFA_PACK_UNIT / 2 * width;
    if (a->four_bits)
      take_values(order, &u, a->four_bits + (first - a->begin) / INTFA_PACK_UNIT * intfa_four_bit_value_bytes(d),
                  d, width, steps);
    else
      regroup_values(order, &u, count, d, width, steps);
    pack_value_unit(order, &u, width, u.nibbles);
    for (int32_t c = 0; c < width / KEYS; c++)
      pair_nibbles(u.nibbles + c * column, column / 2, column / 2, target + c * column / 2);
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
