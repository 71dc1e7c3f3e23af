// The exponent reference of one row: accumulators hold sums relative to 2^reference.
#pragma once
#include "fast_exp.h"

enum { STEPS = 64 };        // logit units per power of two on the integer path
#define REST_UNIT 0x1p-8f  // of the second byte of P

// The reference moves only where a tile exceeds it by 2^60, so that the usual tile costs no
// multiplication of the accumulators; float32 has the range for it.
#define REFERENCE_SLACK (60.0f * STEPS)
// Below this a tile adds nothing to a float32 sum; the clamp avoids denormals.
#define SMALLEST_GAIN (-100.0f * STEPS)

// The factor of a tile with row maximum `top`; rescales the row's sums where the reference moves.
static inline float tile_gain(float top, float *reference, float *total, float *out,
                              int32_t dimension) {
  float excess = top - *reference;
  if (excess > REFERENCE_SLACK) {
    float factor = exp2_fast(-excess * (1.0f / STEPS));
    *total *= factor;
    for (int32_t c = 0; c < dimension; c++) out[c] *= factor;
    *reference = top;
    return 1.0f;
  }
  excess = excess > SMALLEST_GAIN ? excess : SMALLEST_GAIN;
  return exp2_fast(excess * (1.0f / STEPS));
}
