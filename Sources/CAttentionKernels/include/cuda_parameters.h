// Arguments of the CUDA kernels, one struct per kernel.
//
// Swift fills them through the module, the kernels read them through the embedded text of this file,
// so both sides have one definition. A device address is a number; sizes and strides are in
// elements. "Head" counts over the batch: B * Hq query heads, B * Hkv key/value heads.
#pragma once

typedef unsigned long long intfa_address;

enum {
  INTFA_CUDA_SUM_BLOCK = 256,   // tokens that one block of the survey sums
  INTFA_CUDA_VALUE_BLOCK = 64,  // tokens that one block turns into value codes
  INTFA_CUDA_FIRST_TOKENS = 64,  // tokens of a cache that its statistics are taken from
  INTFA_CUDA_TABLE_LEAD = 64    // entries before a table's first, which a tile may read, not use
};

// Storage of float rows: the numbers of intfa_format.
enum { INTFA_CUDA_FLOAT32, INTFA_CUDA_FLOAT16, INTFA_CUDA_BFLOAT16 };

// Rows of a [B, H, N, D] tensor with neighbours in D side by side.
typedef struct {
  intfa_address base;
  long long batch_stride, head_stride, token_stride;
  int format;
  int batch_heads;  // H
  int heads;        // B * H
  int tokens;
  int dimension;
} intfa_cuda_rows;

// What the survey of the inputs found: the only thing that the host waits for.
typedef struct {
  unsigned long long first_bad[3];  // query, key, value: head * tokens + token, or all ones
  unsigned largest[3];              // bits of the largest magnitude
  unsigned unused;
} intfa_cuda_status;

// First pass over one tensor: sums for its mean, largest magnitudes, refused elements.
typedef struct {
  intfa_cuda_rows rows;
  float limit;           // a magnitude that must not be reached; NaN and infinity reach it
  int tensor;            // index into the status
  int rotation;          // of `maxima`: channels per block of the rotation, 1 for none
  int maxima_pitch;
  intfa_address status;
  intfa_address sums;    // float [head][block][dimension] over INTFA_CUDA_SUM_BLOCK tokens; or 0
  intfa_address maxima;  // float [head][maxima_pitch]: largest magnitude of each rotated row; or 0
} intfa_cuda_survey;

// Block sums to the mean of every head, as it is and rotated without normalisation.
typedef struct {
  int heads, tokens, dimension, rotation;
  intfa_address sums;
  intfa_address mean;          // float [head][dimension]
  intfa_address rotated_mean;  // float [head][dimension]; or 0
} intfa_cuda_mean;

// Rows of queries or keys to INT8 codes with one scale each; for keys also the bias of their logits.
typedef struct {
  intfa_cuda_rows rows;
  int rotation;
  int code_pitch;              // bytes of a row of codes, D padded with zeros
  int code_rows;               // rows of codes of a head
  int scale_pitch;             // entries of a head's scales
  int group;                   // query heads that share a key head; 0 for no biases
  int pack;                    // heads whose rows stand side by side, token by token: one head then
  float scale_factor;          // multiplies the stored scales
  float bias_factor;
  float shift_factor;
  int shift_group;             // queries: query heads that share a mean of the keys
  int pairs;                   // scales are stored as scale_pair has them, for sm_80
  intfa_address mean;          // float [head][dimension], taken out first; or 0
  intfa_address codes;         // s8 [head][token][code_pitch]
  intfa_address scales;        // float [head][scale_pitch]
  intfa_address fold;          // keys: float [head][scale_pitch], added to the bias
  intfa_address bias_means;    // keys: float [query head][dimension], rotated; or 0
  intfa_address biases;        // keys: float [query head][scale_pitch]
  intfa_address shift_means;   // queries: float [key head][dimension]; or 0
  intfa_address shifts;        // queries: float [head][token]: factor * (row . mean); with the means
} intfa_cuda_quantize;

// What the scales of a head of values came to.
typedef struct {
  float unit;  // value = code * unit / n_j
  int exact;   // the row sum takes P before it is rounded, and n_j is real
} intfa_cuda_value_head;

// The rule for the scales of the values, from the largest magnitude of every rotated row.
typedef struct {
  int heads, tokens, pitch;
  int folded;             // one scale per token, folded into the logits; else one per head
  intfa_address maxima;   // float [head][pitch]
  intfa_address results;  // intfa_cuda_value_head [head]
} intfa_cuda_value_scales;

// Rows of values to INT8 codes, and their scales to what the tile loop takes.
typedef struct {
  intfa_cuda_rows rows;
  int rotation, folded;
  int code_pitch;              // channels, padded
  int pitch;                   // of the tables: tokens, padded to a multiple of 128
  intfa_address maxima;        // float [head][pitch]
  intfa_address results;       // intfa_cuda_value_head [head]
  intfa_address codes;         // natural: s8 [head][token][code_pitch]
                               // transposed: s8 [head][code_pitch][pitch], see permuted_key
  intfa_address weights;       // u8 [head][pitch], n_j in the order of permuted_key
  intfa_address real_weights;  // float [head][pitch]
  intfa_address fold;          // float [head][pitch]: -log2(n_j)
} intfa_cuda_value_codes;

// New tokens of a cache, kept as they came: float [head][INTFA_CUDA_FIRST_TOKENS][dimension].
typedef struct {
  intfa_cuda_rows rows;
  int first;                   // position of the first row
  int unused;
  intfa_address target;
} intfa_cuda_keep;

// Rows of new values to the codes and tables of a cache, whose unit is fixed.
typedef struct {
  intfa_cuda_rows rows;
  int rotation;
  int code_pitch;
  int pitch;                   // of codes and tables: tokens that there is room for
  int first;                   // position of the first row
  intfa_address results;       // intfa_cuda_value_head [head]; `exact` is set for an outlier
  intfa_address codes;         // natural: s8 [head][position][code_pitch]
  intfa_address weights;       // u8 [head][pitch], n_j in the order of permuted_key
  intfa_address real_weights;  // float [head][pitch]
  intfa_address fold;          // float [head][pitch]: -log2(n_j)
} intfa_cuda_append;

// A row's keys: [first + s, end + s) with s = row / rows_per_step * step, clipped to those that there
// are.
typedef struct {
  int first, end, step, rows_per_step;
} intfa_cuda_visible;

// Where results go, for the tile loops and for the kernel that merges their splits.
typedef struct {
  intfa_cuda_rows rows;
  intfa_address log_sum_exp;  // float; or 0
  long long log_sum_exp_batch_stride, log_sum_exp_head_stride, log_sum_exp_token_stride;
  intfa_address shifts;       // float [head][token], added to the log-sum-exp; or 0
  intfa_address value_heads;  // intfa_cuda_value_head [key head]; or 0 for a factor of 1
  int group;                  // heads of the loop that share a key/value head
  int rotation;
  float log2_levels;          // log2 of what P = 1 counts in the row sum
  int splits;                 // parts of the keys that are computed apart
  intfa_address partials;     // splits > 1: float [split][head][token][partial_pitch]
  intfa_address references;   // splits > 1: float [split][head][token]: maximum of the logits
  intfa_address totals;       // splits > 1: float [split][head][token]: row sum
  int partial_pitch;
  int pack;                   // query heads that are one head of the loop, side by side in its rows
} intfa_cuda_output;

// The tile loop on INT8 codes.
typedef struct {
  intfa_cuda_output output;
  intfa_cuda_visible visible;
  int key_heads, key_tokens;
  int pitch;                   // of the tables over keys
  int split_tiles;             // tiles of a split
  int running_maximum;         // P is relative to the maximum so far, not to that of its tile
  int refines;                 // P of rows whose mask ends in a tile has rests there: see mask_ends
  int key_rows;                // rows of codes of a key head
  int unused;
  intfa_address query;         // s8 [head][token][D]
  intfa_address query_scales;  // float [head][token], logits in powers of two
  intfa_address key;           // s8 [key head][key][D]
  intfa_address key_scales;    // float [key head][pitch]; sm_80: pairs, see scale_pair
  intfa_address biases;        // float [head][pitch]
  intfa_address value;         // natural or transposed codes, as the kernel wants them
  intfa_address weights;       // u8 [key head][pitch] in the order of permuted_key
  intfa_address real_weights;  // float [key head][pitch]
} intfa_cuda_attention;

// Swift does not import types that are aligned to more than 16 bytes. A launch copies parameters to
// where they are aligned, with room up to the next multiple of 64.
#ifdef __cplusplus
#define INTFA_CUDA_ALIGNED __attribute__((aligned(64)))
#else
#define INTFA_CUDA_ALIGNED
#endif

// A tensor map as cuTensorMapEncodeTiled writes it.
typedef struct INTFA_CUDA_ALIGNED {
  unsigned long long words[16];
} intfa_cuda_tensor_map;

// The same with the copies of the codes described for the copy engine.
typedef struct {
  intfa_cuda_tensor_map query_map, key_map, value_map;
  intfa_cuda_attention attention;
} intfa_cuda_attention_sm90;

// Rows of any format to 16-bit rows of one length.
typedef struct {
  intfa_cuda_rows rows;
  int pitch;              // channels of a row of the result, D padded with zeros
  int format;
  intfa_address target;   // [head][token][pitch]
} intfa_cuda_convert;

// The tile loop on 16-bit floats.
typedef struct {
  intfa_cuda_output output;
  intfa_cuda_visible visible;
  int key_heads, key_tokens;
  int split_tiles;
  float scale;            // softmax scale times log2(e)
  intfa_address query, key, value;
} intfa_cuda_attention_16;
