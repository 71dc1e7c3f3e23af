// Rounding of float32 to narrower formats by bits, so that no instruction set extension is needed.
#pragma once
// Before any function: the inline ones below and in other headers must not fuse multiply and add
// where the target could, or instruction sets would differ.
#pragma STDC FP_CONTRACT OFF

#include <string.h>

#include "attention_kernels.h"

static inline uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
static inline float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// Nearest, ties to even. In, e.g., drop = 13 bits of mantissa go.
static inline float drop_mantissa(float x, int drop) {
  uint32_t bits = bits_of(x);
  bits += (1u << (drop - 1)) - 1 + (bits >> drop & 1);
  return float_of(bits >> drop << drop);
}
// Nearest multiple of 2^-n for |x| < 2^(22 - n): adding 1.5 * 2^(23 - n) leaves no smaller bits.
static inline float round_to_step(float x, float magic) { return (x + magic) - magic; }

static inline float round_bfloat16(float x) { return drop_mantissa(x, 16); }
// Binary16 for |x| <= 65504, which every caller has checked or knows.
static inline float round_float16(float x) {
  float normal = drop_mantissa(x, 13), subnormal = round_to_step(x, 0.75f);
  return (bits_of(x) & 0x7FFFFFFFu) < 0x38800000u ? subnormal : normal;  // 2^-14
}
// E4M3, saturating at 448.
static inline float round_float8(float x) {
  x = x > 448 ? 448 : x < -448 ? -448 : x;
  float normal = drop_mantissa(x, 20), subnormal = round_to_step(x, 24576.0f);  // 1.5 * 2^14
  return (bits_of(x) & 0x7FFFFFFFu) < 0x3C800000u ? subnormal : normal;  // 2^-6
}
static inline float round_to_format(float x, intfa_format format) {
  switch (format) {
    case INTFA_FLOAT32: return x;
    case INTFA_FLOAT16: return round_float16(x);
    case INTFA_BFLOAT16: return round_bfloat16(x);
    case INTFA_FLOAT8: return round_float8(x);
    case INTFA_INT8: return x;
  }
  return x;
}

static inline float float_from_half(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7FFF;
  if (rest < 0x0400) return float_of(bits_of((float)rest * 0x1p-24f) | sign);
  return float_of(sign | (rest >= 0x7C00 ? 0x7F800000u | (rest & 0x3FF) << 13 : (rest << 13) + 0x38000000u));
}
static inline uint16_t half_from_float(float x) {
  uint32_t sign = bits_of(x) >> 16 & 0x8000, magnitude = bits_of(x) & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return (uint16_t)(sign | 0x7E00);
  if (magnitude >= 0x477FF000u) return (uint16_t)(sign | 0x7C00);  // 65520 rounds to infinity
  if (magnitude < 0x38800000u)
    return (uint16_t)(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3F000000u));
  magnitude += 0xFFF + (magnitude >> 13 & 1);
  return (uint16_t)(sign | ((magnitude >> 13) - (112 << 10)));
}
static inline uint16_t bfloat16_from_float(float x) {
  uint32_t bits = bits_of(x);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return (uint16_t)(bits >> 16 | 0x40);
  return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// One row of a caller's tensor as float32.
static inline void load_row(const intfa_rows *rows, int64_t row, int32_t dimension, float *x) {
  switch (rows->format) {
    case INTFA_FLOAT32:
      memcpy(x, (const float *)rows->base + row * rows->stride, sizeof(float) * dimension);
      return;
    case INTFA_BFLOAT16: {
      const uint16_t *source = (const uint16_t *)rows->base + row * rows->stride;
      for (int32_t c = 0; c < dimension; c++) x[c] = float_of((uint32_t)source[c] << 16);
      return;
    }
    case INTFA_FLOAT16: {
      const uint16_t *source = (const uint16_t *)rows->base + row * rows->stride;
      for (int32_t c = 0; c < dimension; c++) x[c] = float_from_half(source[c]);
      return;
    }
    case INTFA_FLOAT8:
    case INTFA_INT8: return;
  }
}

// Element i of a caller's tensor, rounded to its format.
static inline void store_element(void *target, int64_t i, float x, intfa_format format) {
  switch (format) {
    case INTFA_FLOAT32: ((float *)target)[i] = x; return;
    case INTFA_FLOAT16: ((uint16_t *)target)[i] = half_from_float(x); return;
    case INTFA_BFLOAT16: ((uint16_t *)target)[i] = bfloat16_from_float(x); return;
    case INTFA_FLOAT8:
    case INTFA_INT8: return;
  }
}
