/* Several threads at once: a plan and a pool are shared, messages are not. */
#include <pthread.h>

#include "test.h"

enum { THREADS = 8, ROUNDS = 40 };

static intfa_plan *plan;
static intfa_kv_pool *pool;
static array query, key, value, expected, cached;

/* What a thread found wrong; the counter of the checks is not for several threads. */
static void *work(void *argument) {
  intptr_t number = (intptr_t)argument, wrong = 0;
  char name[32], message[64];
  if (*intfa_last_error()) ++wrong;
  array output = make4(INTFA_FLOAT32, 1, 4, 100, 64);
  intfa_operands operands = {.struct_size = sizeof operands,
                             .query = &query.tensor,
                             .key = &key.tensor,
                             .value = &value.tensor,
                             .output = view(&output)};
  snprintf(name, sizeof name, "int%d", (int)number + 100);
  snprintf(message, sizeof message, "precision is '%s'", name);
  for (int round = 0; round < ROUNDS; ++round) {
    if (intfa_plan_run(plan, &operands) || !same(&output, &expected)) ++wrong;
    if (intfa_attention(&operands, name, NULL, NULL) != INTFA_INVALID_ARGUMENT) ++wrong;
    intfa_kv_cache *cache = NULL;
    if (intfa_kv_cache_create(pool, &cache)) ++wrong;
    if (intfa_kv_cache_append(cache, &key.tensor, &value.tensor)) ++wrong;
    intfa_kv_operands on_cache = {.struct_size = sizeof on_cache,
                                  .query = &query.tensor,
                                  .output = &output.tensor,
                                  .caches = (const intfa_kv_cache *const *)&cache,
                                  .cache_count = 1};
    if (intfa_kv_cache_run(pool, &on_cache, NULL) || !same(&output, &cached)) ++wrong;
    intfa_kv_cache_destroy(cache);
    if (!strstr(intfa_last_error(), message)) ++wrong;
  }
  drop(&output);
  return (void *)wrong;
}

void test_threads(void) {
  query = make4(INTFA_FLOAT32, 1, 4, 100, 64);
  key = make4(INTFA_FLOAT32, 1, 2, 100, 64);
  value = make4(INTFA_FLOAT32, 1, 2, 100, 64);
  expected = make4(INTFA_FLOAT32, 1, 4, 100, 64);
  cached = make4(INTFA_FLOAT32, 1, 4, 100, 64);
  fill(&query, 1), fill(&key, 2), fill(&value, 3);
  intfa_operands operands = {.struct_size = sizeof operands,
                             .query = view(&query),
                             .key = view(&key),
                             .value = view(&value),
                             .output = view(&expected)};
  intfa_shape shape = {sizeof shape, 0, 1, 4, 2, 100, 100, 64, 64};
  OK(intfa_plan_create(&shape, NULL, NULL, NULL, &plan));
  OK(intfa_plan_run(plan, &operands));
  intfa_kv_pool_shape sizes = {sizeof sizes, 0, 2, 64, 64, (THREADS + 1) * 128, 64};
  OK(intfa_kv_pool_create(&sizes, NULL, NULL, &pool));
  intfa_kv_cache *cache = NULL;
  OK(intfa_kv_cache_create(pool, &cache));
  OK(intfa_kv_cache_append(cache, view(&key), view(&value)));
  intfa_kv_operands on_cache = {.struct_size = sizeof on_cache,
                                .query = view(&query),
                                .output = view(&cached),
                                .caches = (const intfa_kv_cache *const *)&cache,
                                .cache_count = 1};
  OK(intfa_kv_cache_run(pool, &on_cache, NULL));
  intfa_kv_cache_destroy(cache);

  pthread_t threads[THREADS];
  for (intptr_t i = 0; i < THREADS; ++i) pthread_create(&threads[i], NULL, work, (void *)i);
  for (int i = 0; i < THREADS; ++i) {
    void *wrong = NULL;
    pthread_join(threads[i], &wrong);
    CHECK(!wrong, "thread %d: %d things", i, (int)(intptr_t)wrong);
  }
  intfa_plan_destroy(plan);
  intfa_kv_pool_destroy(pool);
  drop(&query), drop(&key), drop(&value), drop(&expected), drop(&cached);
}
