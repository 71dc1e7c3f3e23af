/* Attention in one call or by a plan, and putting partial results together. */
#ifndef INT_FLASH_ATTENTION_ATTENTION_H
#define INT_FLASH_ATTENTION_ATTENTION_H

#include "types.h"

INTFA_BEGIN_DECLARATIONS

/* Which keys a query sees. The last query stands at the last key: query row i stands at key
   position i + Nk - Nq. A row that sees no key gives zeros and log-sum-exp -infinity. */
typedef int32_t intfa_mask_kind;

enum {
  /* Every key. */
  INTFA_MASK_FULL = 0,
  /* The keys up to and with its own position. */
  INTFA_MASK_CAUSAL = 1,
  /* The keys from window_left before its own position to window_right after it, both included. */
  INTFA_MASK_SLIDING = 2,
  /* As causal, and every query sees the first `prefix` keys. */
  INTFA_MASK_PREFIX_CAUSAL = 3
};

/* Block-sparse attention: which blocks of queries see which blocks of keys, for all heads. Query
   row i is in query block i / query_block_length, key j in key block j / key_block_length. */
typedef struct intfa_visible_blocks {
  uint32_t struct_size;
  uint32_t reserved;
  int64_t query_block_length;
  int64_t key_block_length;
  /* Nq / query_block_length, rounded up; for caches see intfa_kv_cache_run. */
  int64_t query_block_count;
  /* Query block i sees the key blocks visible[offsets[i]] to visible[offsets[i + 1] - 1], in any
     order; offsets has query_block_count + 1 entries from 0, none smaller than the one before. */
  const int64_t *offsets;
  const int64_t *visible;
} intfa_visible_blocks;

/* What a call may choose besides its shape and precision. */
typedef struct intfa_options {
  uint32_t struct_size;
  intfa_mask_kind mask;
  /* Multiplies q . k; finite, of either sign. NULL is 1 / sqrt(D). */
  const float *softmax_scale;
  /* Caps logits: x becomes softcap * tanh(x / softcap). Positive and finite; NULL is none. */
  const float *softcap;
  /* Of INTFA_MASK_SLIDING: at least 0; NULL is unlimited. */
  const int64_t *window_left;
  const int64_t *window_right;
  /* Of INTFA_MASK_PREFIX_CAUSAL: at least 0. */
  int64_t prefix;
  /* Beside the mask: a key is seen where both let it. NULL is all. */
  const intfa_visible_blocks *blocks;
} intfa_options;

/* The tensors of a call: B batches, Hq query heads, Hkv key/value heads (Hq is a multiple of it),
   Nq queries, Nk keys, dimensions D and Dv of 1 to 256. A tensor of rank 3 is a batch of one.
   Query, key, value and output are float32, float16 or bfloat16, in any combination, with stride 1
   in the last dimension. An output shares memory with nothing else. */
typedef struct intfa_operands {
  uint32_t struct_size;
  uint32_t reserved;
  /* [B, Hq, Nq, D] */
  const intfa_tensor *query;
  /* [B, Hkv, Nk, D] */
  const intfa_tensor *key;
  /* [B, Hkv, Nk, Dv] */
  const intfa_tensor *value;
  /* Written: [B, Hq, Nq, Dv]. */
  const intfa_tensor *output;
  /* Written unless NULL: [B, Hq, Nq], or [Hq, Nq] for a batch of one; float32. The logarithm of the
     softmax denominator, -infinity for a row that sees no key. */
  const intfa_tensor *log_sum_exp;
  /* Broadcast to [B, Hq, Nq, Nk]: boolean, where false hides a key, or float32, float16 or
     bfloat16, which is added to the logits; -infinity hides a key. NULL is none. */
  const intfa_tensor *mask;
  /* [Hq] or [B, Hq]: slope * |distance of positions| is taken off the logits. NULL is none. */
  const intfa_tensor *alibi_slopes;
  /* [Hq] or [B, Hq]: the logit of a token without value (attention sink). NULL is none. */
  const intfa_tensor *sinks;
} intfa_operands;

/* softmax(scale * Q K^T) V in one call.

   precision: "int8" (NULL), "int8Paper", "int8QueryKey", "int8QueryKeyPaper", "int4",
   "int4KeyValue", "int4QueryKey" (backend "reference" only), "float8", "bfloat16", "float16" or
   "float32".

   options, backend: NULL is all defaults. */
intfa_status intfa_attention(const intfa_operands *operands, const char *precision,
                             const intfa_options *options, const intfa_backend *backend);

/* Counts and sizes of a call; lengths may be 0. */
typedef struct intfa_shape {
  uint32_t struct_size;
  uint32_t reserved;
  /* B, Hq, Hkv, Nq, Nk, D, Dv */
  int64_t batch_count;
  int64_t query_head_count;
  int64_t key_value_head_count;
  int64_t query_length;
  int64_t key_value_length;
  int64_t head_dimension;
  int64_t value_dimension;
} intfa_shape;

/* A validated choice of kernels for one shape; run it many times, in several threads at once. */
typedef struct intfa_plan intfa_plan;

/* Makes a plan; precision, options and backend as in intfa_attention. */
intfa_status intfa_plan_create(const intfa_shape *shape, const char *precision,
                               const intfa_options *options, const intfa_backend *backend,
                               intfa_plan **plan);

/* What was chosen, one choice per line; valid as long as the plan. */
intfa_status intfa_plan_summary(const intfa_plan *plan, const char **summary);

/* Computes attention; the operands have the plan's shape. */
intfa_status intfa_plan_run(const intfa_plan *plan, const intfa_operands *operands);

void intfa_plan_destroy(intfa_plan *plan);

/* Attention over all keys from attention over parts of them, which may come from caches, other
   machines, precisions or libraries. Sinks belong in exactly one part.

   outputs: part_count outputs, [B, H, Nq, Dv] each, in key order.

   log_sum_exps: as many, [B, H, Nq], float32; a row with -infinity saw no key.

   output, log_sum_exp: written, of these shapes; with no parts zeros and -infinity. They may be
   those of a part. Ranks 3 and 2 are a batch of one. */
intfa_status intfa_merge(const intfa_tensor *const *outputs,
                         const intfa_tensor *const *log_sum_exps, int64_t part_count,
                         const intfa_tensor *output, const intfa_tensor *log_sum_exp);

INTFA_END_DECLARATIONS

#endif
