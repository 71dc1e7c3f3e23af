// Masks beyond an interval of keys per row: what single keys add to the logits of a row, and which
// keys it does not see.
#pragma once

#include <stdint.h>

#pragma GCC visibility push(hidden)

// At this and below an addend hides its key, as -inf does: softmax would leave nothing of it, and the
// largest negative number of a format, which many programs write for -inf, must not overflow.
#define INTFA_HIDDEN -0x1p80f

// Elements of a mask: floats are added to logits; of booleans 0 hides the key.
typedef enum {
  INTFA_MASK_FLOAT32,
  INTFA_MASK_FLOAT16,
  INTFA_MASK_BFLOAT16,
  INTFA_MASK_BOOLEAN
} intfa_mask_element;

// Of one query block; each of the three parts may be absent. Keys of a mask count from the sequence's
// first, those of a call from `first_key` of the sequence.
typedef struct {
  int64_t first_key;
  const void *const *elements;   // [rows] the element of key 0 of each row; or NULL
  int64_t stride;                // elements between neighbouring keys
  intfa_mask_element element;
  float unit;                    // logit units per natural unit of the elements
  const uint8_t *const *blocks;  // [rows] one byte for `block_length` keys, 0 hides them; or NULL
  int32_t block_length;
  const float *slopes;           // [rows] -slope * |key - position| is added; logit units; or NULL
  const int32_t *positions;      // [rows] with slopes
} intfa_key_mask;

// One pass over the elements of some rows of a mask.
typedef struct {
  const void *elements;  // of row 0, key 0
  int64_t row_stride, key_stride;
  intfa_mask_element element;
  int64_t rows, keys;
  uint8_t *shown;     // [keys / INTFA_PACK_UNIT, rounded up] whether any row sees any key of the unit
  int64_t first_bad;  // result: row * keys + key of the first NaN or number of at least 2^80, or -1
} intfa_mask_survey;

void intfa_survey_mask(intfa_mask_survey *survey);

#pragma GCC visibility pop
