// Arguments of the loop of the running maximum, whose operands kernels pack in an order of their own.
#pragma once

#include "attention_masks.h"
#include "attention_types.h"

#pragma GCC visibility push(hidden)

// What attend_running multiplies; kernels choose the order of packed operands by it.
typedef enum { INTFA_P_FLOAT32, INTFA_P_FLOAT16, INTFA_P_BFLOAT16, INTFA_P_FLOAT8, INTFA_P_INT8 }
    intfa_probability;
typedef struct {
  intfa_format score;             // of queries and keys: INT8 codes, or floats rounded to this
  intfa_format value;             // INT8 codes exactly where P is INTFA_P_INT8
  intfa_probability probability;
} intfa_running_formats;

// Tokens [begin, end) of one head into the order that attend_running of the same table reads.
// `begin` is a multiple of INTFA_PACK_UNIT, and so is `end` but for the last.
typedef struct {
  intfa_running_formats formats;
  intfa_rows rows;      // floats: the caller's rows of the head
  float multiplier;     // floats: applied before they are rounded
  const int8_t *codes;  // INT8: [token][dimension], row `begin` is the first
  int64_t begin, end;
  int32_t dimension;
  void *target;         // of the head: running_key_bytes or running_value_bytes, 64-aligned
} intfa_pack_running;

// One query block against keys [key_begin, key_end) with P relative to the running row maximum,
// which is rounded up to a whole number where P is float32 or bfloat16: then the bits of P do not
// depend on when the maximum moved, and tiles may be cut anywhere.
typedef struct {
  int32_t rows, head_dimension, value_dimension;
  int64_t key_begin, key_end;
  int32_t first_tile, tile;
  intfa_visible visible;
  const intfa_key_mask *mask;  // or NULL
  intfa_running_formats formats;
  const int8_t *query_codes;   // INT8 scores: [rows][D]
  intfa_rows query;            // float scores: the caller's rows, the first of the block first
  float query_multiplier;      // float scores: applied before they are rounded
  const float *query_scale;    // [rows] multiplies every product of the row; log2 units
  const void *key;             // as pack_running_keys left them
  const float *key_scale;      // INT8 scores: [key], readable to a multiple of INTFA_PACK_UNIT
  const float *bias;           // INT8 scores: [key] log2 units, readable as key_scale; or NULL
  const void *value;           // as pack_running_values left them
  float softcap;               // log2 units; 0 for none
  const float *row_shift;      // [rows] log2 units, added before the cap; or NULL
  float *out;                  // [rows][out_stride]
  int64_t out_stride;
  float *total;                // [rows]
  float *reference;            // [rows] running maximum in log2 units; -1e30 at first
  // Keys in pieces of whole units, a call each with one scratch memory: all but the first resume, all
  // but the last pause. Then tiles are parts of units too, so that the bits of a row do not depend on
  // where its keys are cut.
  bool in_units, resumes, pauses;
  void *scratch;               // INTFA_SCRATCH_BYTES
} intfa_attend_running;

#pragma GCC visibility pop
