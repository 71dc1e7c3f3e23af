// Limits and small types that all arguments of the kernels are made of.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#pragma GCC visibility push(hidden)

enum {
  INTFA_MAX_DIMENSION = 256,
  INTFA_MAX_TILE = 128,
  INTFA_MAX_ROWS = 256,    // query rows of one call of attend_tiles or attend_running
  INTFA_KEY_GROUP = 32,    // tokens that share step and offset of one 4-bit key channel
  INTFA_VALUE_GROUP = 16,  // channels of one token that share step and offset of 4-bit values
  INTFA_PACK_UNIT = 64,    // tokens that are packed together
  INTFA_OUT_UNIT = 64,     // floats that rows of `out` are padded to
  INTFA_ROW_UNIT = 8,      // rows that buffers of rows are padded to
  INTFA_SUM_BLOCK = 256,   // rows that are summed one after the other before block sums are added
  INTFA_SCRATCH_BYTES = 320 * 1024  // what attend_tiles and attend_running may use, 64-aligned
};

// Storage of float rows, and the format that a value is rounded to before it is used. INT8 codes are
// an operand of attend_running only.
typedef enum { INTFA_FLOAT32, INTFA_FLOAT16, INTFA_BFLOAT16, INTFA_FLOAT8, INTFA_INT8 } intfa_format;

// Rows of a caller's tensor: `stride` elements apart, unit stride inside a row.
typedef struct {
  const void *base;
  int64_t stride;
  intfa_format format;  // never INTFA_FLOAT8 or INTFA_INT8
} intfa_rows;

// Keys that the rows of a query block see: with i = r / rows_per_step, row r sees
// [first + i * step, end + i * step), clipped, and every row at least up to least_end. Rows of several
// query heads that share keys and values come side by side, token by token.
typedef struct {
  int64_t first, end, step, least_end;
  int32_t rows_per_step;  // at least 1
} intfa_visible;

#pragma GCC visibility pop
