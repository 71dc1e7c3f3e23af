// Portable pre-pass: survey (means, magnitudes, non-finite), rotation, quantisation, packing.
//
// Every sum has a fixed order, so that any instruction set can give the same bits: rows are added
// one after the other inside blocks of INTFA_SUM_BLOCK; inner products use sixteen partial sums; the
// transform goes through strides 1, 2, 4, ... No fused multiply-add anywhere.
#include "portable.h"

#pragma STDC FP_CONTRACT OFF

enum { LANES = 16 };

float intfa_dot(const float *a, const float *b, int32_t count) {
  float lane[LANES] = {0};
  int32_t c = 0;
  for (; c + LANES <= count; c += LANES)
    for (int32_t l = 0; l < LANES; l++) lane[l] += a[c + l] * b[c + l];
  for (int32_t l = 0; c + l < count; l++) lane[l] += a[c + l] * b[c + l];
  for (int32_t half = LANES / 2; half > 0; half /= 2)
    for (int32_t l = 0; l < half; l++) lane[l] += lane[l + half];
  return lane[0];
}

int32_t intfa_rotate(float *row, int32_t dimension) {
  int32_t block = dimension & -dimension;
  for (int32_t stride = 1; stride < block; stride *= 2)
    for (int32_t c = 0; c < dimension; c += 2 * stride)
      for (int32_t i = c; i < c + stride; i++) {
        float a = row[i], b = row[i + stride];
        row[i] = a + b;
        row[i + stride] = a - b;
      }
  return block;
}

void intfa_load_rows(const intfa_rows *rows, int64_t begin, int64_t end, int32_t dimension,
                     float multiplier, intfa_format round, float *target) {
  for (int64_t i = begin; i < end; i++, target += dimension) {
    load_row(rows, i, dimension, target);
    for (int32_t c = 0; c < dimension; c++)
      target[c] = round_to_format(target[c] * multiplier, round);
  }
}

static float largest_magnitude(const float *x, int32_t dimension) {
  uint32_t largest = 0;  // magnitudes order like their bits, and NaN counts as the largest
  for (int32_t c = 0; c < dimension; c++) {
    uint32_t bits = bits_of(x[c]) & 0x7FFFFFFFu;
    largest = bits > largest ? bits : largest;
  }
  return float_of(largest);
}

void intfa_survey__portable(const intfa_survey *a) {
  float x[INTFA_MAX_DIMENSION], largest = 0;
  int64_t first_bad = -1;
  float *sums = a->block_sums;
  for (int64_t i = a->begin; i < a->end; i++) {
    load_row(&a->rows, i, a->dimension, x);
    float magnitude = largest_magnitude(x, a->dimension);
    if (!(magnitude < a->limit) && first_bad < 0) first_bad = i;
    largest = magnitude > largest ? magnitude : largest;
    if (!sums) continue;
    if (i > a->begin && i % INTFA_SUM_BLOCK == 0) sums += a->dimension;
    if (i % INTFA_SUM_BLOCK == 0)
      memcpy(sums, x, sizeof(float) * a->dimension);
    else
      for (int32_t c = 0; c < a->dimension; c++) sums[c] += x[c];
  }
  if (a->largest) *a->largest = largest;
  *a->first_bad = first_bad;
}

void intfa_rotated_maxima__portable(const intfa_rows *rows, int64_t begin, int64_t end,
                                    int32_t dimension, bool rotates, float *largest) {
  float x[INTFA_MAX_DIMENSION];
  for (int64_t i = begin; i < end; i++) {
    load_row(rows, i, dimension, x);
    if (rotates) intfa_rotate(x, dimension);
    *largest++ = largest_magnitude(x, dimension);
  }
}

void intfa_quantize__portable(const intfa_quantize *a) {
  float x[INTFA_MAX_DIMENSION];
  int8_t *codes = a->codes;
  float *scales = a->scales;
  for (int64_t i = a->begin; i < a->end; i++, codes += a->dimension) {
    load_row(&a->rows, i, a->dimension, x);
    if (a->mean)
      for (int32_t c = 0; c < a->dimension; c++) x[c] -= a->mean[c];
    if (a->rotates) intfa_rotate(x, a->dimension);
    float multiplier;
    if (a->multipliers) {
      multiplier = a->multipliers[i];
    } else {
      float largest = largest_magnitude(x, a->dimension);
      largest = largest > SMALLEST_MAXIMUM ? largest : SMALLEST_MAXIMUM;
      multiplier = 127.0f / largest;
      *scales++ = largest / 127.0f;
    }
    for (int32_t c = 0; c < a->dimension; c++) {
      float code = round_to_step(x[c] * multiplier, 12582912.0f);
      code = code > 127.0f ? 127.0f : code < -127.0f ? -127.0f : code;
      codes[c] = (int8_t)code;
    }
    for (int32_t h = 0; h < a->bias_count; h++)
      a->biases[h * a->bias_stride + i] =
          a->bias_factor * intfa_dot(a->bias_means + h * a->bias_mean_stride, x, a->dimension);
  }
}

// ---------------------------------------------------------------------------------- four bits

typedef struct {
  int32_t low, step;
} regrouping;

static regrouping regroup(int32_t low, int32_t high) {
  int32_t step = (high - low + 14) / 15;
  return (regrouping){low, step > 1 ? step : 1};
}
// Nearest, ties to even, of (code - low) / step; 0...15 by the choice of the step.
static int32_t four_bits(int32_t code, regrouping g) {
  float q = round_to_step((float)(code - g.low) / (float)g.step, 12582912.0f);
  return (int32_t)(q > 15.0f ? 15.0f : q);
}

void intfa_pack_int4_keys(const int8_t *codes, int32_t count, int32_t dimension, uint8_t *target) {
  uint8_t *steps = target + (int64_t)dimension * INTFA_KEY_GROUP / 2, *offsets = steps + dimension;
  memset(target, 0, (size_t)dimension * INTFA_KEY_GROUP / 2);
  for (int32_t c = 0; c < dimension; c++) {
    int32_t low = 127, high = -127;
    for (int32_t t = 0; t < count; t++) {
      int32_t code = codes[t * dimension + c];
      low = code < low ? code : low;
      high = code > high ? code : high;
    }
    regrouping g = regroup(low, high);
    steps[c] = (uint8_t)g.step;
    offsets[c] = (uint8_t)(int8_t)g.low;
    for (int32_t t = 0; t < count; t++)
      target[c * (INTFA_KEY_GROUP / 2) + t / 2] |=
          (uint8_t)(four_bits(codes[t * dimension + c], g) << (t % 2 * 4));
  }
}

static int32_t value_groups(int32_t dimension) {
  return (dimension + INTFA_VALUE_GROUP - 1) / INTFA_VALUE_GROUP;
}
int64_t intfa_int4_value_bytes(int32_t dimension) {
  return (dimension + 1) / 2 + 2 * value_groups(dimension);
}

void intfa_pack_int4_values(const int8_t *codes, int32_t dimension, uint8_t *target) {
  int32_t groups = value_groups(dimension);
  uint8_t *steps = target + (dimension + 1) / 2, *offsets = steps + groups;
  memset(target, 0, (size_t)(dimension + 1) / 2);
  for (int32_t group = 0; group < groups; group++) {
    int32_t begin = group * INTFA_VALUE_GROUP, end = begin + INTFA_VALUE_GROUP;
    end = end < dimension ? end : dimension;
    int32_t low = 127, high = -127;
    for (int32_t c = begin; c < end; c++) {
      low = codes[c] < low ? codes[c] : low;
      high = codes[c] > high ? codes[c] : high;
    }
    regrouping g = regroup(low, high);
    steps[group] = (uint8_t)g.step;
    offsets[group] = (uint8_t)(int8_t)g.low;
    for (int32_t c = begin; c < end; c++)
      target[c / 2] |= (uint8_t)(four_bits(codes[c], g) << (c % 2 * 4));
  }
}

static int8_t decoded(int32_t code, int32_t step, int32_t offset) {
  int32_t x = code * step + offset;
  return (int8_t)(x > 127 ? 127 : x < -127 ? -127 : x);
}

void intfa_unpack_int4_keys(const intfa_int4 *packed, int64_t begin, int64_t end, int32_t dimension,
                            int8_t *codes) {
  for (int64_t first = begin; first < end; first += INTFA_KEY_GROUP) {
    const uint8_t *group = packed->keys + first / INTFA_KEY_GROUP * packed->key_group_bytes;
    const uint8_t *steps = group + (int64_t)dimension * INTFA_KEY_GROUP / 2;
    const int8_t *offsets = (const int8_t *)(steps + dimension);
    int64_t count = end - first < INTFA_KEY_GROUP ? end - first : INTFA_KEY_GROUP;
    for (int64_t t = 0; t < count; t++, codes += dimension)
      for (int32_t c = 0; c < dimension; c++)
        codes[c] = decoded(group[c * (INTFA_KEY_GROUP / 2) + t / 2] >> (t % 2 * 4) & 15, steps[c],
                           offsets[c]);
  }
}

void intfa_unpack_int4_values(const intfa_int4 *packed, int64_t begin, int64_t end,
                              int32_t dimension, int8_t *codes) {
  for (int64_t t = begin; t < end; t++, codes += dimension) {
    const uint8_t *token = packed->values + t * packed->value_token_bytes;
    const uint8_t *steps = token + (dimension + 1) / 2;
    const int8_t *offsets = (const int8_t *)(steps + value_groups(dimension));
    for (int32_t c = 0; c < dimension; c++)
      codes[c] = decoded(token[c / 2] >> (c % 2 * 4) & 15, steps[c / INTFA_VALUE_GROUP],
                         offsets[c / INTFA_VALUE_GROUP]);
  }
}
