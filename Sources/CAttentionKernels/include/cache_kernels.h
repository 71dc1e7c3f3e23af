// Kernels of key/value caches that all instruction sets share: little work per token.
#pragma once

#include "attention_kernels.h"

#pragma GCC visibility push(hidden)

// Scales of values against a unit that was fixed before they were known: f_j = unit / n_j. n_j is an
// integer in 1...127, but real and below 1 where unit / 1 would be too small for a token.
typedef struct {
  const float *maxima;     // [count] largest magnitude of each rotated row
  int64_t count;
  float unit;
  float *multipliers;      // [count] n_j / unit
  int8_t *weights;         // [count] n_j, 1 where it is real
  float *real_weights;     // [count] n_j
  float *logarithms;       // [count] 64 * log2(1 / n_j)
  int64_t first_outlier;   // result: the first row far larger than those the unit is from, or -1
} intfa_fold_fixed;
void intfa_fold_fixed_values(intfa_fold_fixed *fold);

// Elements of tokens [token, token + count) of one packed unit: places[t * dimension + c] is where the
// unit has channel c of token t, counted in elements of `size` bytes. Elements of one byte are INT8
// codes, stored with the bits `flip` inverted; two bytes are bfloat16 and four float32.
typedef struct {
  const int32_t *places;
  int32_t size, token, count, dimension;
  uint8_t flip;
} intfa_unit_part;
// Rows [count][dimension] of codes or float32 into the unit; bfloat16 rows have been rounded.
void intfa_scatter(const intfa_unit_part *part, const void *rows, void *unit);
// Rows out of it: codes, or float32.
void intfa_gather(const intfa_unit_part *part, const void *unit, void *rows);

// Codes of 64 tokens [token][dimension] that were decoded from four bits, in four bits again and in the
// order of the portable kernels, with steps that give every code back: what a saved cache has. Keys take
// key_bytes, values value_bytes of the portable table for 64 tokens.
void intfa_four_bit_keys(const int8_t *codes, int32_t dimension, uint8_t *unit);
void intfa_four_bit_values(const int8_t *codes, int32_t dimension, uint8_t *unit);

// Attention in float32 over the few tokens that a cache keeps as they came.
typedef struct {
  int32_t rows, head_dimension, value_dimension;
  int64_t keys;            // at most INTFA_PACK_UNIT
  intfa_visible visible;
  const intfa_key_mask *mask;  // or NULL; in log2 units
  const float *query;      // [rows][D]
  const float *key;        // [keys][D]
  const float *value;      // [keys][Dv]
  float scale;             // log2 units per unit of q.k
  float softcap;           // log2 units; 0 for none
  float *out;              // [rows][out_stride] sum of p * v
  int64_t out_stride;
  float *total;            // [rows] sum of p
  float *reference;        // [rows] log2 units
} intfa_attend_exact;
void intfa_attend_exactly(const intfa_attend_exact *a);

// Reads `bytes` bytes once, 64 at a time; the result depends on all of them. `bytes` is a multiple of
// 512: the plain read that decoding is measured against.
uint64_t intfa_read_bytes(const void *base, int64_t bytes);

#pragma GCC visibility pop
