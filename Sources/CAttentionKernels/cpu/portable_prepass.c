// Portable pre-pass: survey (means, magnitudes, non-finite), rotation, quantisation, packing.
//
// Every sum has a fixed order, so that any instruction set can give the same bits: rows are added
// one after the other inside blocks of INTFA_SUM_BLOCK; inner products use sixteen partial sums; the
// transform goes through strides 1, 2, 4, ... No fused multiply-add anywhere.
#include "portable.h"
#include "rotary.h"

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
    if (sums) {
      if (i > a->begin && i % INTFA_SUM_BLOCK == 0) sums += a->dimension;
      if (i % INTFA_SUM_BLOCK == 0)
        memcpy(sums, x, sizeof(float) * a->dimension);
      else
        for (int32_t c = 0; c < a->dimension; c++) sums[c] += x[c];
    }
    if (a->row_maxima) {
      if (a->rotates) intfa_rotate(x, a->dimension);
      a->row_maxima[i - a->begin] = largest_magnitude(x, a->dimension);
    }
  }
  if (a->largest) *a->largest = largest;
  *a->first_bad = first_bad;
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
    for (int32_t h = 0; h < a->bias_count; h++) {
      const float dot = intfa_dot(a->bias_means + h * a->bias_mean_stride, x, a->dimension);
      const float addend = a->bias_addend ? a->bias_addend[i] : 0;
      a->biases[h * a->bias_stride + i] = a->bias_factor * dot + addend;
    }
  }
}

void intfa_load_rotary__portable(const intfa_load_rotary *a) { load_rotary(a); }
