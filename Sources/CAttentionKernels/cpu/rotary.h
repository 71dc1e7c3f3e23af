// Rotary embedding while rows are loaded. Included by the pre-pass of every instruction set, inside its
// target region: plain loops over contiguous floats, which the compiler turns into the set's own
// instructions, and IEEE multiplications and additions in a fixed order, so that all bits are equal.
#pragma once
#include "number_formats.h"

static inline void turn_halves(float *restrict x, float *restrict y, const float *restrict cosine,
                               const float *restrict sine, int32_t pairs) {
  for (int32_t p = 0; p < pairs; p++) {
    const float a = x[p], b = y[p];
    x[p] = a * cosine[p] - b * sine[p];
    y[p] = b * cosine[p] + a * sine[p];
  }
}
static inline void turn_neighbours(float *restrict x, const float *restrict cosine,
                                   const float *restrict sine, int32_t pairs) {
  for (int32_t p = 0; p < pairs; p++) {
    const float a = x[2 * p], b = x[2 * p + 1];
    x[2 * p] = a * cosine[p] - b * sine[p];
    x[2 * p + 1] = b * cosine[p] + a * sine[p];
  }
}

static inline void load_rotary(const intfa_load_rotary *a) {
  int64_t position = a->position;
  float *x = a->target;
  for (int64_t i = a->begin; i < a->end; i++, x += a->dimension, position += a->step) {
    const float *cosine = a->cosines + position * a->pairs, *sine = a->sines + position * a->pairs;
    load_row(&a->rows, i, a->dimension, x);
    if (a->interleaved)
      turn_neighbours(x, cosine, sine, a->pairs);
    else
      turn_halves(x, x + a->pairs, cosine, sine, a->pairs);
  }
}
