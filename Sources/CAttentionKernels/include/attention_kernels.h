// The kernels of int-flash-attention behind one table of functions per instruction set.
//
// Rules that every kernel keeps: it never allocates, never starts a thread, never fails, and writes
// nothing but what its arguments name. Swift validates, allocates and schedules; see CPUBackend.
//
// Letters: D head dimension, Dv value dimension (both 1...256), i query row, j key, c channel.
// Logits are in units of 1/64 of a power of two ("steps") on the integer path and of one power of
// two on the float path: p = 2^(logit - reference).
#pragma once

#include "attention_masks.h"
#include "attention_running.h"
#include "attention_types.h"

#pragma GCC visibility push(hidden)

// ---------------------------------------------------------------------------------- pre-pass

// What one pass over rows [begin, end) finds. `begin` is a multiple of INTFA_SUM_BLOCK.
typedef struct {
  intfa_rows rows;
  int64_t begin, end;
  int32_t dimension;
  float limit;          // a magnitude that must not be reached; NaN and infinity reach it
  float *block_sums;    // [blocks][dimension] sums per INTFA_SUM_BLOCK rows, in row order; or NULL,
                        // and NULL where row_maxima is not
  float *largest;       // [1] largest magnitude; or NULL
  int64_t *first_bad;   // [1] first row with an element that reaches `limit`, or -1
  bool rotates;         // for row_maxima
  float *row_maxima;    // [row] largest magnitude of each rotated row; row `begin` is the first; or NULL
} intfa_survey;

// Scales of the values of one head from the row maxima of its survey: f_j = unit / n_j with n_j at
// most 127, and the rule that selects the row sum. Swift's FoldedValueScales defines it.
typedef struct {
  const float *maxima;   // [count]
  int64_t count;
  bool integers;         // whether n_j shall be integers where there is no outlier
  float *multipliers;    // [count] n_j / unit: what a row is multiplied by before it is rounded
  int8_t *weights;       // [count] n_j where they are integers
  float *real_weights;   // [count] n_j where they are not
  float *logarithms;     // [count] 64 * log2(1 / n_j): what f_j adds to a logit, in steps
  float unit;            // result
  bool has_outlier;      // result: one row is far larger than the others
  bool has_integers;     // result: `weights` was written, not `real_weights`
} intfa_fold;

// Rows [begin, end) as float32 with their positions turned into angles (rotary embedding). Pair p of a
// row at position t: x, y become x cos - y sin, y cos + x sin with the angle [t][p] of the tables; each
// product is rounded, then the sum, without fused multiply-add. Channels beyond the pairs stay.
typedef struct {
  intfa_rows rows;
  int64_t begin, end;
  int32_t dimension;
  int32_t pairs;               // at most dimension / 2
  bool interleaved;            // pair p is channels 2p and 2p + 1, else p and pairs + p
  const float *cosines, *sines;  // [position][pairs]
  int64_t position;            // of row `begin`
  int64_t step;                // from a row's position to the next row's: 1, or 0 for heads of a token
  float *target;               // [end - begin][dimension]
} intfa_load_rotary;

// Codes of rows [begin, end): x = (row - mean) rotated without normalisation, code = rnd(x * m).
// m is multipliers[i] where given, else 127 / max|x|, and then scale[i] = max|x| / 127.
typedef struct {
  intfa_rows rows;
  int64_t begin, end;
  int32_t dimension;
  bool rotates;
  const float *mean;         // [dimension] or NULL
  const float *multipliers;  // [row] or NULL
  int8_t *codes;             // [row][dimension]; row `begin` is the first
  float *scales;             // [row] or NULL; row `begin` is the first
  int32_t bias_count;        // query heads whose mean returns as a bias per key
  const float *bias_means;   // [bias_count][bias_mean_stride], rotated without normalisation
  int64_t bias_mean_stride;
  float bias_factor;         // bias[h][i] = factor * (bias_means[h] . x)
  const float *bias_addend;  // [row] added to every bias; row 0 is row 0 of the tensor; or NULL
  float *biases;             // [bias_count][bias_stride]; column 0 is row 0 of the tensor
  int64_t bias_stride;
} intfa_quantize;

// INT8 codes [row][dimension] of tokens [begin, end) of one head into the order that attend_tiles of
// the same table reads. `begin` is a multiple of INTFA_PACK_UNIT, and so is `end` but for the last.
typedef struct {
  const int8_t *codes;    // row `begin` is the first
  int64_t begin, end;
  int32_t dimension;
  bool int4;              // progressive four-bit storage
  const uint8_t *four_bits;  // instead of codes: whole units as intfa_four_bit_keys or _values have them
  void *target;           // of the head: keys_bytes or values_bytes
} intfa_pack;

// ---------------------------------------------------------------------------------- tile loop

// One query block against the keys [key_begin, key_end) of one key/value head, all in `int8` codes.
// Rows of `query` are readable up to a multiple of INTFA_ROW_UNIT, arrays over keys up to one of
// INTFA_PACK_UNIT.
typedef struct {
  int32_t rows, head_dimension, value_dimension;
  int64_t key_begin, key_end;  // key_begin is a tile boundary
  int64_t fetch_end;           // keys from key_end up to here come next and may be fetched; or 0
  int32_t first_tile, tile;    // tile lengths: [0, first), [first, first + tile), ...
  intfa_visible visible;
  bool refines;                // P of a row's last tile has sixteen bits: see rests_in
  const intfa_key_mask *mask;  // or NULL
  // Where keys lie: tokens 64 * u ... 64 * u + 63 are the units[u]th of `key`, `value` and every array
  // over keys; NULL where they lie in order.
  const int32_t *units;
  const int8_t *query;         // [rows][D]
  const float *query_scale;    // [rows] scale of the row times steps per unit of q.k
  const void *key;             // as pack_keys left them
  const float *key_scale;      // [key]
  const float *bias;           // [key] in steps
  const void *value;           // as pack_values left them
  bool int4_key, int4_value;   // stored in four bits
  const int8_t *weight;        // [key] n_j where they are integers, else NULL
  const float *real_weight;    // [key] n_j where weight is NULL
  bool sums_codes;             // the row sum takes P as it was rounded; integer weights imply it
  float softcap;               // in steps; 0 for none
  const float *row_shift;      // [rows] in steps, added before the cap; only with softcap
  const float *fold;           // [key] in steps, added after the cap; only with softcap
  float *out;                  // [rows][out_stride] sum of gain * p * v
  int64_t out_stride;          // at least Dv, a multiple of INTFA_OUT_UNIT
  float *total;                // [rows] sum of gain * p * n
  float *reference;            // [rows] exponent reference of both, in steps; -inf at first
  void *scratch;               // INTFA_SCRATCH_BYTES
} intfa_attend_tiles;

// Adds the partial result `from` to `into`: both keep their own exponent reference.
typedef struct {
  int32_t rows, value_dimension;
  int64_t out_stride;
  float steps;  // logit units per power of two: 64 or 1
  float *into_out, *into_total, *into_reference;
  const float *from_out, *from_total, *from_reference;
} intfa_merge;

// Normalises: out * factor / total, rotated where asked, stored in the caller's format.
typedef struct {
  int32_t rows, value_dimension;
  bool rotates;
  float factor;
  float steps;
  float total_unit;         // total / total_unit is the sum of exponentials
  float *out;               // [rows][out_stride]; overwritten
  int64_t out_stride;
  const float *total, *reference;
  const float *row_shift;   // [rows] natural units, added to the log-sum-exp; or NULL
  void *target;             // first row of the caller's output
  int64_t target_stride;    // elements
  intfa_format target_format;
  float *log_sum_exp;       // first entry, or NULL
  int64_t log_sum_exp_stride;
} intfa_finish;

// ---------------------------------------------------------------------------------- the peak

// The instruction that a tile loop is made of: what its speed is measured against.
typedef enum { INTFA_PEAK_INT8, INTFA_PEAK_BFLOAT16, INTFA_PEAK_FLOAT } intfa_peak_kind;

// ---------------------------------------------------------------------------------- the table

typedef struct {
  const char *name;
  void (*survey)(const intfa_survey *);
  void (*load_rotary)(const intfa_load_rotary *);
  void (*quantize)(const intfa_quantize *);
  int64_t (*key_bytes)(int64_t tokens, int32_t dimension, bool int4);
  int64_t (*value_bytes)(int64_t tokens, int32_t dimension, bool int4);
  void (*pack_keys)(const intfa_pack *);
  void (*pack_values)(const intfa_pack *);
  // 64 tokens in four bits as they would be packed in INT8.
  void (*open_key_unit)(const void *int4_unit, int32_t dimension, void *unit);
  void (*open_value_unit)(const void *int4_unit, int32_t dimension, void *unit);
  void (*attend_tiles)(const intfa_attend_tiles *);
  int64_t (*running_key_bytes)(const intfa_running_formats *, int64_t tokens, int32_t dimension);
  int64_t (*running_value_bytes)(const intfa_running_formats *, int64_t tokens, int32_t dimension);
  void (*pack_running_keys)(const intfa_pack_running *);
  void (*pack_running_values)(const intfa_pack_running *);
  void (*attend_running)(const intfa_attend_running *);
  void (*merge)(const intfa_merge *);
  void (*finish)(const intfa_finish *);
  // Issues the instruction `rounds` times 64, independently; returns the multiplications and additions
  // that this is, 0 where the processor lacks it. NULL where the set has no such instruction.
  int64_t (*peak)(intfa_peak_kind, int64_t rounds);
} intfa_cpu_kernels;

typedef enum {
  INTFA_PORTABLE,
  INTFA_AVX2,
  INTFA_AVX_VNNI,
  INTFA_AVX512_VNNI,
  INTFA_NEON_DOTPROD,
  INTFA_NEON_I8MM
} intfa_isa;

// The kernels of an instruction set, or NULL where this build or this machine does not have it.
const intfa_cpu_kernels *intfa_cpu_kernels_for(intfa_isa isa);

// Rows converted to float32, multiplied, and rounded to a format.
void intfa_load_rows(const intfa_rows *rows, int64_t begin, int64_t end, int32_t dimension,
                     float multiplier, intfa_format round, float *target);

// The inner product in the fixed order that every instruction set keeps: sixteen partial sums.
float intfa_dot(const float *a, const float *b, int32_t count);
// Fills the results and the arrays of `fold`.
void intfa_fold_values(intfa_fold *fold);
// In-place Walsh-Hadamard transform of blocks of the largest power of two that divides `dimension`,
// without normalisation. Returns that power of two.
int32_t intfa_rotate(float *row, int32_t dimension);

#pragma GCC visibility pop
