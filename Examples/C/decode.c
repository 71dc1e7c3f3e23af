/* A key/value cache: a prompt that two sequences share, then one token of each at a time, both in
   one call. */
#include <int_flash_attention.h>
#include <stdio.h>
#include <stdlib.h>

enum { HEADS = 8, KV_HEADS = 2, D = 64, PROMPT = 200, STEPS = 32, SEQUENCES = 2 };

static void require(intfa_status status) {
  if (status == INTFA_OK) return;
  fprintf(stderr, "%s: %s\n", intfa_status_name(status), intfa_last_error());
  exit(1);
}

/* What a model would compute from the tokens. */
static void project(float *x, int count) {
  static unsigned state = 1;
  for (int i = 0; i < count; ++i)
    x[i] = (float)((state = state * 1664525u + 1013904223u) >> 8) / 0x1p23f - 1;
}

static intfa_tensor tensor(float *data, const int64_t *shape) {
  intfa_tensor tensor = {.struct_size = sizeof tensor,
                         .element_type = INTFA_FLOAT32,
                         .data = data,
                         .rank = 3,
                         .shape = shape};
  return tensor;
}

int main(void) {
  intfa_kv_pool_shape shape = {.struct_size = sizeof shape,
                               .key_value_head_count = KV_HEADS,
                               .head_dimension = D,
                               .value_dimension = D,
                               .capacity = 1024,
                               .page_length = 64};
  intfa_kv_pool *pool;
  intfa_kv_cache *caches[SEQUENCES];
  require(intfa_kv_pool_create(&shape, "int8", NULL, &pool));
  require(intfa_kv_cache_create(pool, &caches[0]));

  static float k[KV_HEADS * PROMPT * D], v[KV_HEADS * PROMPT * D];
  static float q[HEADS * SEQUENCES * D], o[HEADS * SEQUENCES * D];
  project(k, KV_HEADS * PROMPT * D);
  project(v, KV_HEADS * PROMPT * D);
  const int64_t prompt_shape[] = {KV_HEADS, PROMPT, D};
  intfa_tensor key = tensor(k, prompt_shape), value = tensor(v, prompt_shape);
  require(intfa_kv_cache_append(caches[0], &key, &value));
  /* The second sequence has the same prompt, in the same memory. */
  require(intfa_kv_cache_fork(caches[0], &caches[1]));

  const int64_t token_shape[] = {KV_HEADS, 1, D}, query_shape[] = {HEADS, SEQUENCES, D};
  const int64_t offsets[] = {0, 1, 2};
  key.shape = value.shape = token_shape;
  intfa_tensor query = tensor(q, query_shape), output = tensor(o, query_shape);
  intfa_kv_operands operands = {.struct_size = sizeof operands,
                                .query = &query,
                                .output = &output,
                                .caches = (const intfa_kv_cache *const *)caches,
                                .cache_count = SEQUENCES,
                                .offsets = offsets};
  for (int step = 0; step < STEPS; ++step) {
    for (int i = 0; i < SEQUENCES; ++i) {
      project(k, KV_HEADS * D);
      project(v, KV_HEADS * D);
      require(intfa_kv_cache_append(caches[i], &key, &value));
    }
    project(q, HEADS * SEQUENCES * D);
    require(intfa_kv_cache_run(pool, &operands, NULL));
  }

  intfa_kv_pool_information information = {.struct_size = sizeof information};
  int64_t count;
  require(intfa_kv_pool_get_information(pool, &information));
  require(intfa_kv_cache_count(caches[0], &count));
  printf("%d sequences of %d tokens, %.0f bytes per token and head, %d of %d pages free\n",
         SEQUENCES, (int)count, information.bytes_per_token, (int)information.free_page_count,
         (int)information.page_count);
  printf("the last output begins with %g\n", (double)o[(SEQUENCES - 1) * D]);
  for (int i = 0; i < SEQUENCES; ++i) intfa_kv_cache_destroy(caches[i]);
  intfa_kv_pool_destroy(pool);
  return 0;
}
