/* Keys and values that are quantised once, as they come, and attention to them. */
#ifndef INT_FLASH_ATTENTION_KV_CACHE_H
#define INT_FLASH_ATTENTION_KV_CACHE_H

#include "attention.h"
#include "rotary.h"
#include "types.h"

INTFA_BEGIN_DECLARATIONS

/* Memory for the tokens of many sequences, in pages that sequences can share. */
typedef struct intfa_kv_pool intfa_kv_pool;

/* One sequence of tokens. What a token is stored as depends on the tokens before it only: a prefill
   in one piece, in chunks or token by token gives the same bits. For "int4" and "int4KeyValue" that
   holds for chunks that end at positions 64 + 128 n. */
typedef struct intfa_kv_cache intfa_kv_cache;

/* Sizes of a pool. */
typedef struct intfa_kv_pool_shape {
  uint32_t struct_size;
  uint32_t reserved;
  /* Hkv, D, Dv */
  int64_t key_value_head_count;
  int64_t head_dimension;
  int64_t value_dimension;
  /* Tokens of all sequences together; rounded up to whole pages. */
  int64_t capacity;
  /* Tokens per page, a positive multiple of 64. */
  int64_t page_length;
} intfa_kv_pool_shape;

/* Reserves memory. precision: "int8" (NULL), "int4", "int4KeyValue", "bfloat16" or "float32".
   backend: NULL, "cpu" or "reference". */
intfa_status intfa_kv_pool_create(const intfa_kv_pool_shape *shape, const char *precision,
                                  const intfa_backend *backend, intfa_kv_pool **pool);

/* What a pool is, and how full. */
typedef struct intfa_kv_pool_information {
  uint32_t struct_size;
  /* Threads that share the work of a call. */
  int32_t thread_count;
  int64_t page_count;
  int64_t free_page_count;
  int64_t page_length;
  /* Bytes that one token's key and value take per key/value head, scales included. */
  double bytes_per_token;
  /* Valid as long as the process. */
  const char *precision;
  const char *backend;
  const char *instruction_set;
} intfa_kv_pool_information;

/* Writes the members that the caller's struct has. */
intfa_status intfa_kv_pool_get_information(const intfa_kv_pool *pool,
                                           intfa_kv_pool_information *information);

/* The memory goes with the pool and the last of its caches. */
void intfa_kv_pool_destroy(intfa_kv_pool *pool);

/* An empty sequence. */
intfa_status intfa_kv_cache_create(intfa_kv_pool *pool, intfa_kv_cache **cache);

/* Appends n tokens: key [Hkv, n, D], value [Hkv, n, Dv], or with a leading dimension of 1; float32,
   float16 or bfloat16. After an error the cache is as it was. */
intfa_status intfa_kv_cache_append(intfa_kv_cache *cache, const intfa_tensor *key,
                                   const intfa_tensor *value);

/* As intfa_kv_cache_append, with keys that get their positions on the way: token i of the sequence
   stands at the first position + i. What is stored is what intfa_rotary_apply gives. */
intfa_status intfa_kv_cache_append_rotary(intfa_kv_cache *cache, const intfa_tensor *key,
                                          const intfa_tensor *value, const intfa_rotary *rotary);

/* Position of the first token, for rotary embeddings: 0, unless the cache begins in the middle of a
   text. What is in the cache stays as it is. */
intfa_status intfa_kv_cache_set_first_position(intfa_kv_cache *cache, int64_t position);
intfa_status intfa_kv_cache_get_first_position(const intfa_kv_cache *cache, int64_t *position);

/* Another sequence with the same tokens, which shares all pages until one of the two appends. */
intfa_status intfa_kv_cache_fork(const intfa_kv_cache *cache, intfa_kv_cache **fork);

/* Forgets all but the first `count` tokens. */
intfa_status intfa_kv_cache_truncate(intfa_kv_cache *cache, int64_t count);

/* Tokens in the cache. */
intfa_status intfa_kv_cache_count(const intfa_kv_cache *cache, int64_t *count);

/* Writes the tokens, exactly as they are stored, to a .safetensors file, which appears whole or not
   at all. path: UTF-8. Backend "cpu" only. */
intfa_status intfa_kv_cache_save(const intfa_kv_cache *cache, const char *path);

/* A sequence with the tokens of a file, whose bits are those of the cache that was saved, also
   after more tokens. The pool has the precision and sizes of the file; its page length and
   instruction set may be others. INTFA_FILE_FAILURE, INTFA_MALFORMED_FILE, INTFA_SHAPE_MISMATCH
   where the pool does not fit, or INTFA_OUT_OF_PAGES; then the pool is as it was. */
intfa_status intfa_kv_cache_load(intfa_kv_pool *pool, const char *path, intfa_kv_cache **cache);

/* Its pages go back to the pool. */
void intfa_kv_cache_destroy(intfa_kv_cache *cache);

/* The tensors of a call on caches: T queries of all sequences, one sequence after the other. */
typedef struct intfa_kv_operands {
  uint32_t struct_size;
  uint32_t reserved;
  /* [Hq, T, D], or with a leading dimension of 1. */
  const intfa_tensor *query;
  /* Written: [Hq, T, Dv], or with a leading dimension of 1. */
  const intfa_tensor *output;
  /* Written unless NULL: [Hq, T], float32. */
  const intfa_tensor *log_sum_exp;
  /* The sequences; one may occur several times. */
  const intfa_kv_cache *const *caches;
  int64_t cache_count;
  /* Sequence i has the queries offsets[i] to offsets[i + 1] - 1: cache_count + 1 numbers from 0 to
     T, none smaller than the one before. NULL, for one cache only: it has all. */
  const int64_t *offsets;
  /* Broadcast to [Hq, T, L], packed as the queries are: a row is a query, a column a token of its
     sequence, and L at least as many as the longest sequence has. Elements as in intfa_operands.
     NULL is none. */
  const intfa_tensor *mask;
  /* [Hq] or [cache_count, Hq], as in intfa_operands; NULL is none. */
  const intfa_tensor *alibi_slopes;
  const intfa_tensor *sinks;
  /* Turns queries by their positions, as intfa_kv_cache_append_rotary turns keys. NULL is none. */
  const intfa_rotary *rotary;
} intfa_kv_operands;

/* Attention of the last tokens of sequences, whose keys and values are in their caches. All caches
   are of this pool. options: NULL is causal with the other defaults. The bits of a row do not
   depend on what else is in the call.

   Blocks of the options count positions from the first token of a sequence: query block i has the
   positions from i * query_block_length on. There are lists for the positions of all queries; there
   may be more, of which none is read, and lists may name keys that are still to come. */
intfa_status intfa_kv_cache_run(const intfa_kv_pool *pool, const intfa_kv_operands *operands,
                                const intfa_options *options);

INTFA_END_DECLARATIONS

#endif
