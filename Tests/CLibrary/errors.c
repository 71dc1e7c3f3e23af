/* Every entry point with null pointers, wrong sizes and absurd shapes: a status, never a crash. */
#include <math.h>

#include "test.h"

/* Operands of a call that works. */
typedef struct {
  array query, key, value, output, sums, mask, slopes, sinks;
  intfa_operands operands;
} call;

static void open_call(call *c) {
  c->query = make4(INTFA_FLOAT32, 1, 4, 10, 32);
  c->key = make4(INTFA_FLOAT32, 1, 2, 20, 32);
  c->value = make4(INTFA_FLOAT32, 1, 2, 20, 32);
  c->output = make4(INTFA_FLOAT32, 1, 4, 10, 32);
  c->sums = make3(INTFA_FLOAT32, 1, 4, 10);
  c->mask = make4(INTFA_BOOL, 1, 1, 10, 20);
  c->slopes = make(INTFA_FLOAT32, ROW_MAJOR, 1, (int64_t[]){4});
  c->sinks = make(INTFA_FLOAT32, ROW_MAJOR, 1, (int64_t[]){4});
  c->operands = (intfa_operands){sizeof c->operands, 0,
                                 view(&c->query),    view(&c->key),
                                 view(&c->value),    view(&c->output),
                                 view(&c->sums),     view(&c->mask),
                                 view(&c->slopes),   view(&c->sinks)};
}

static void close_call(call *c) {
  drop(&c->query), drop(&c->key), drop(&c->value), drop(&c->output), drop(&c->sums);
  drop(&c->mask), drop(&c->slopes), drop(&c->sinks);
}

static intfa_status run(const call *c) {
  return intfa_attention(&c->operands, "float32", NULL, NULL);
}

/* NULL, and handles that are not there. */
static void test_null(void) {
  call c;
  open_call(&c);
  OK(run(&c));
  const intfa_tensor **required[] = {&c.operands.query, &c.operands.key, &c.operands.value,
                                     &c.operands.output};
  static const char *const messages[] = {"query is NULL", "key is NULL", "value is NULL",
                                         "output is NULL"};
  for (int i = 0; i < 4; ++i) {
    const intfa_tensor *kept = *required[i];
    *required[i] = NULL;
    EXPECT(INTFA_INVALID_ARGUMENT, messages[i], run(&c));
    *required[i] = kept;
  }
  EXPECT(INTFA_INVALID_ARGUMENT, "operands is NULL", intfa_attention(NULL, NULL, NULL, NULL));

  intfa_plan *plan = NULL;
  intfa_shape shape = {sizeof shape, 0, 1, 4, 2, 10, 20, 32, 32};
  EXPECT(INTFA_INVALID_ARGUMENT, "shape is NULL", intfa_plan_create(NULL, NULL, NULL, NULL, &plan));
  EXPECT(INTFA_INVALID_ARGUMENT, "plan is NULL", intfa_plan_create(&shape, NULL, NULL, NULL, NULL));
  OK(intfa_plan_create(&shape, NULL, NULL, NULL, &plan));
  const char *text = NULL;
  EXPECT(INTFA_INVALID_ARGUMENT, "plan is NULL", intfa_plan_summary(NULL, &text));
  EXPECT(INTFA_INVALID_ARGUMENT, "summary is NULL", intfa_plan_summary(plan, NULL));
  EXPECT(INTFA_INVALID_ARGUMENT, "plan is NULL", intfa_plan_run(NULL, &c.operands));
  EXPECT(INTFA_INVALID_ARGUMENT, "operands is NULL", intfa_plan_run(plan, NULL));
  intfa_plan_destroy(plan);
  intfa_plan_destroy(NULL);

  const intfa_tensor *none = NULL;
  const intfa_tensor *part = view(&c.query), *sums = view(&c.sums);
  array output = make4(INTFA_FLOAT32, 1, 4, 10, 32), output_sums = make3(INTFA_FLOAT32, 1, 4, 10);
  const intfa_tensor *o = view(&output), *s = view(&output_sums);
  EXPECT(INTFA_INVALID_ARGUMENT, "outputs is NULL", intfa_merge(NULL, &sums, 1, o, s));
  EXPECT(INTFA_INVALID_ARGUMENT, "log_sum_exps is NULL", intfa_merge(&part, NULL, 1, o, s));
  EXPECT(INTFA_INVALID_ARGUMENT, "outputs[0] is NULL", intfa_merge(&none, &sums, 1, o, s));
  EXPECT(INTFA_INVALID_ARGUMENT, "log_sum_exps[0] is NULL", intfa_merge(&part, &none, 1, o, s));
  EXPECT(INTFA_INVALID_ARGUMENT, "output is NULL", intfa_merge(&part, &sums, 1, NULL, s));
  EXPECT(INTFA_INVALID_ARGUMENT, "log_sum_exp is NULL", intfa_merge(&part, &sums, 1, o, NULL));
  EXPECT(INTFA_INVALID_ARGUMENT, "part_count is -1", intfa_merge(&part, &sums, -1, o, s));
  EXPECT(INTFA_INVALID_ARGUMENT, "part_count", intfa_merge(&part, &sums, INT64_MAX, o, s));
  drop(&output), drop(&output_sums);

  intfa_kv_pool *pool = NULL;
  intfa_kv_cache *cache = NULL;
  intfa_kv_pool_shape sizes = {sizeof sizes, 0, 2, 32, 32, 64, 64};
  int64_t count = 0;
  EXPECT(INTFA_INVALID_ARGUMENT, "shape is NULL", intfa_kv_pool_create(NULL, NULL, NULL, &pool));
  EXPECT(INTFA_INVALID_ARGUMENT, "pool is NULL", intfa_kv_pool_create(&sizes, NULL, NULL, NULL));
  OK(intfa_kv_pool_create(&sizes, NULL, NULL, &pool));
  intfa_kv_pool_information pool_information = {.struct_size = sizeof pool_information};
  EXPECT(INTFA_INVALID_ARGUMENT, "pool is NULL",
         intfa_kv_pool_get_information(NULL, &pool_information));
  EXPECT(INTFA_INVALID_ARGUMENT, "information is NULL", intfa_kv_pool_get_information(pool, NULL));
  EXPECT(INTFA_INVALID_ARGUMENT, "pool is NULL", intfa_kv_cache_create(NULL, &cache));
  EXPECT(INTFA_INVALID_ARGUMENT, "cache is NULL", intfa_kv_cache_create(pool, NULL));
  OK(intfa_kv_cache_create(pool, &cache));
  const intfa_tensor *k = view(&c.key), *v = view(&c.value);
  EXPECT(INTFA_INVALID_ARGUMENT, "cache is NULL", intfa_kv_cache_append(NULL, k, v));
  EXPECT(INTFA_INVALID_ARGUMENT, "key is NULL", intfa_kv_cache_append(cache, NULL, v));
  EXPECT(INTFA_INVALID_ARGUMENT, "value is NULL", intfa_kv_cache_append(cache, k, NULL));
  intfa_kv_cache *fork = NULL;
  EXPECT(INTFA_INVALID_ARGUMENT, "cache is NULL", intfa_kv_cache_fork(NULL, &fork));
  EXPECT(INTFA_INVALID_ARGUMENT, "fork is NULL", intfa_kv_cache_fork(cache, NULL));
  EXPECT(INTFA_INVALID_ARGUMENT, "cache is NULL", intfa_kv_cache_truncate(NULL, 0));
  EXPECT(INTFA_INVALID_ARGUMENT, "cache is NULL", intfa_kv_cache_count(NULL, &count));
  EXPECT(INTFA_INVALID_ARGUMENT, "count is NULL", intfa_kv_cache_count(cache, NULL));
  intfa_kv_operands kv = {.struct_size = sizeof kv, .query = view(&c.query), .cache_count = 1};
  EXPECT(INTFA_INVALID_ARGUMENT, "pool is NULL", intfa_kv_cache_run(NULL, &kv, NULL));
  EXPECT(INTFA_INVALID_ARGUMENT, "operands is NULL", intfa_kv_cache_run(pool, NULL, NULL));
  EXPECT(INTFA_INVALID_ARGUMENT, "output is NULL", intfa_kv_cache_run(pool, &kv, NULL));
  kv.output = view(&c.output);
  EXPECT(INTFA_INVALID_ARGUMENT, "caches is NULL", intfa_kv_cache_run(pool, &kv, NULL));
  kv.query = NULL;
  EXPECT(INTFA_INVALID_ARGUMENT, "query is NULL", intfa_kv_cache_run(pool, &kv, NULL));
  intfa_kv_cache_destroy(cache);
  intfa_kv_cache_destroy(NULL);
  intfa_kv_pool_destroy(pool);
  intfa_kv_pool_destroy(NULL);

  intfa_quantized *quantized = NULL;
  EXPECT(INTFA_INVALID_ARGUMENT, "tensor is NULL",
         intfa_quantize(NULL, NULL, INTFA_KEY, &quantized));
  EXPECT(INTFA_INVALID_ARGUMENT, "quantized is NULL", intfa_quantize(k, NULL, INTFA_KEY, NULL));
  OK(intfa_quantize(k, NULL, INTFA_KEY, &quantized));
  intfa_tensor tensor = {.struct_size = sizeof tensor};
  int32_t is_rotated = 0;
  EXPECT(INTFA_INVALID_ARGUMENT, "quantized is NULL",
         intfa_quantized_get(NULL, INTFA_CODES, &tensor));
  EXPECT(INTFA_INVALID_ARGUMENT, "tensor is NULL",
         intfa_quantized_get(quantized, INTFA_CODES, NULL));
  EXPECT(INTFA_INVALID_ARGUMENT, "part is 5", intfa_quantized_get(quantized, 5, &tensor));
  EXPECT(INTFA_INVALID_ARGUMENT, "part is -1", intfa_quantized_get(quantized, -1, &tensor));
  EXPECT(INTFA_INVALID_ARGUMENT, "quantized is NULL",
         intfa_quantized_is_rotated(NULL, &is_rotated));
  EXPECT(INTFA_INVALID_ARGUMENT, "is_rotated is NULL", intfa_quantized_is_rotated(quantized, NULL));
  EXPECT(INTFA_INVALID_ARGUMENT, "quantized is NULL", intfa_dequantize(NULL, k));
  EXPECT(INTFA_INVALID_ARGUMENT, "output is NULL", intfa_dequantize(quantized, NULL));
  intfa_quantized_destroy(quantized);
  intfa_quantized_destroy(NULL);
  close_call(&c);
}

static void test_struct_sizes(void) {
  call c;
  open_call(&c);
  static const uint32_t sizes[] = {0,       1,         4, 7, 12, 20, sizeof(intfa_operands) + 8,
                                   1 << 20, UINT32_MAX};
  intfa_options options = {0};
  intfa_backend backend = {0};
  intfa_shape shape = {0};
  intfa_kv_pool_shape pool_shape = {0};
  intfa_information information = {0};
  intfa_plan *plan = NULL;
  intfa_kv_pool *pool = NULL;
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; ++i) {
    options.struct_size = backend.struct_size = shape.struct_size = sizes[i];
    pool_shape.struct_size = information.struct_size = sizes[i];
    EXPECT(INTFA_INVALID_ARGUMENT, "options: struct_size",
           intfa_attention(&c.operands, NULL, &options, NULL));
    EXPECT(INTFA_INVALID_ARGUMENT, "backend: struct_size",
           intfa_attention(&c.operands, NULL, NULL, &backend));
    EXPECT(INTFA_INVALID_ARGUMENT, "shape: struct_size",
           intfa_plan_create(&shape, NULL, NULL, NULL, &plan));
    EXPECT(INTFA_INVALID_ARGUMENT, "shape: struct_size",
           intfa_kv_pool_create(&pool_shape, NULL, NULL, &pool));
    EXPECT(INTFA_INVALID_ARGUMENT, "information: struct_size", intfa_get_information(&information));
    c.operands.struct_size = sizes[i];
    EXPECT(INTFA_INVALID_ARGUMENT, "operands: struct_size", run(&c));
    c.operands.struct_size = sizeof c.operands;
    c.key.tensor.struct_size = sizes[i];
    EXPECT(INTFA_INVALID_ARGUMENT, "key: struct_size", run(&c));
    c.key.tensor.struct_size = sizeof(intfa_tensor);
  }
  c.operands.struct_size = 16;
  EXPECT(INTFA_INVALID_ARGUMENT, "key is NULL", run(&c));
  close_call(&c);
}

static void test_tensors(void) {
  call c;
  open_call(&c);
  array *arrays[] = {&c.query, &c.key, &c.value, &c.output, &c.sums, &c.mask, &c.slopes, &c.sinks};
  static const int64_t numbers[] = {
      0, -1, 5, 100, INT64_MAX, INT64_MIN, INT32_MAX, INT32_MIN, INT64_MAX / 4, (int64_t)1 << 46};
  for (size_t i = 0; i < sizeof arrays / sizeof *arrays; ++i) {
    array *a = arrays[i], kept = *a;
    for (size_t n = 0; n < sizeof numbers / sizeof *numbers; ++n) {
      if (numbers[n] < 1 || numbers[n] > 4) {
        a->tensor.rank = numbers[n];
        EXPECT(INTFA_INVALID_ARGUMENT, "rank", run(&c));
        a->tensor.rank = kept.tensor.rank;
      }
      for (int64_t axis = 0; axis < kept.tensor.rank; ++axis) {
        a->shape[axis] = numbers[n];
        CHECK(run(&c) != INTFA_OK, "shape %d of %d", (int)axis, (int)i);
        a->shape[axis] = kept.shape[axis];
        /* A stride along one element may be anything, another one nothing that leads out of memory.
         */
        a->strides[axis] = numbers[n];
        if (kept.shape[axis] == 1)
          OK(run(&c));
        else if (numbers[n] < INT32_MIN || numbers[n] > INT32_MAX)
          CHECK(run(&c) != INTFA_OK, "stride %d of %d", (int)axis, (int)i);
        a->strides[axis] = kept.strides[axis];
      }
    }
    a->tensor.data = NULL;
    EXPECT(INTFA_INVALID_ARGUMENT, "data is NULL", run(&c));
    a->tensor.data = kept.tensor.data;
    a->tensor.shape = NULL;
    EXPECT(INTFA_INVALID_ARGUMENT, "shape is NULL", run(&c));
    view(a);
    a->tensor.element_type = 0;
    EXPECT(INTFA_UNSUPPORTED_ELEMENT_TYPE, "element_type is 0", run(&c));
    a->tensor.element_type = -7;
    EXPECT(INTFA_UNSUPPORTED_ELEMENT_TYPE, "element_type is -7", run(&c));
    a->tensor.element_type = INTFA_INT4;
    EXPECT(INTFA_UNSUPPORTED_ELEMENT_TYPE, "int4", run(&c));
    if (kept.tensor.element_type != INTFA_BOOL) {
      a->tensor.element_type = INTFA_BOOL;
      EXPECT(INTFA_UNSUPPORTED_ELEMENT_TYPE, "int8", run(&c));
      a->tensor.element_type = INTFA_FLOAT32;
      a->tensor.data = (char *)kept.tensor.data + 1;
      EXPECT(INTFA_INVALID_ARGUMENT, "aligned", run(&c));
    }
    a->tensor = kept.tensor;
    view(a);
  }
  c.operands.output = c.operands.query;
  EXPECT(INTFA_OVERLAPPING_OUTPUT, "query", run(&c));
  c.operands.output = view(&c.output);
  c.output.strides[2] = 1;
  EXPECT(INTFA_OVERLAPPING_OUTPUT, "output", run(&c));
  c.output.strides[2] = 32;
  set(&c.value, 77, NAN);
  EXPECT(INTFA_NON_FINITE_INPUT, "value at batch 0, head 0, token 2", run(&c));
  set(&c.value, 77, 1e30);
  EXPECT(INTFA_VALUE_OUT_OF_RANGE, "value at batch 0, head 0, token 2", run(&c));
  set(&c.value, 77, 1);
  OK(run(&c));
  close_call(&c);

  /* No keys, no queries: nothing is read, whatever the pointers. */
  array q = make3(INTFA_FLOAT32, 2, 3, 8), o = make3(INTFA_FLOAT32, 2, 3, 8),
        k = make3(INTFA_FLOAT32, 2, 0, 8);
  k.tensor.data = NULL;
  k.strides[0] = INT64_MIN, k.strides[1] = INT64_MAX;
  set(&o, 3, 5);
  intfa_operands operands = {.struct_size = sizeof operands,
                             .query = view(&q),
                             .key = view(&k),
                             .value = view(&k),
                             .output = view(&o)};
  OK(intfa_attention(&operands, NULL, NULL, NULL));
  CHECK(get(&o, 3) == 0, "no keys give %g", get(&o, 3));
  operands.query = operands.output = view(&k);
  OK(intfa_attention(&operands, NULL, NULL, NULL));
  intfa_quantized *quantized = NULL;
  OK(intfa_quantize(view(&k), NULL, INTFA_KEY, &quantized));
  OK(intfa_dequantize(quantized, view(&k)));
  intfa_quantized_destroy(quantized);
  drop(&q), drop(&o), drop(&k);
}

/* Sizes whose products overflow, and the largest that do not. */
static void test_shapes(void) {
  static const int64_t numbers[] = {
      0, 1, -1, 3, 257, INT32_MAX, INT64_MAX, INT64_MIN, (int64_t)1 << 31, (int64_t)1 << 40};
  static const char *const precisions[] = {"int8", "int4KeyValue", "float32"};
  const int n = sizeof numbers / sizeof *numbers;
  for (int a = 0; a < n; ++a)
    for (int b = 0; b < n; ++b)
      for (int first = 0; first < 7; ++first)
        for (int second = first + 1; second < 7; ++second) {
          intfa_shape shape = {sizeof shape, 0, 1, 2, 1, 5, 5, 64, 64};
          int64_t *sizes = &shape.batch_count;
          sizes[first] = numbers[a];
          sizes[second] = numbers[b];
          for (int p = 0; p < 3; ++p) {
            intfa_plan *plan = NULL;
            intfa_status status = intfa_plan_create(&shape, precisions[p], NULL, NULL, &plan);
            CHECK((status == INTFA_OK) == (plan != NULL), "a plan despite an error");
            intfa_plan_destroy(plan);
          }
        }
}

static void test_options(void) {
  call c;
  open_call(&c);
  const int64_t minus = -1, largest = INT64_MAX, least = INT64_MIN;
  const float infinity = INFINITY, zero = 0, nan = NAN;
  intfa_options options[] = {
      {.mask = 4},
      {.mask = -1},
      {.softmax_scale = &nan},
      {.softmax_scale = &infinity},
      {.softcap = &zero},
      {.softcap = &nan},
      {.mask = INTFA_MASK_SLIDING, .window_left = &minus},
      {.mask = INTFA_MASK_SLIDING, .window_right = &least},
      {.window_left = &largest},
      {.mask = INTFA_MASK_CAUSAL, .window_right = &largest},
      {.prefix = 1},
      {.mask = INTFA_MASK_PREFIX_CAUSAL, .prefix = -1},
      {.mask = INTFA_MASK_PREFIX_CAUSAL, .prefix = INT64_MIN},
  };
  for (size_t i = 0; i < sizeof options / sizeof *options; ++i) {
    options[i].struct_size = sizeof *options;
    EXPECT(INTFA_INVALID_ARGUMENT, "", intfa_attention(&c.operands, NULL, &options[i], NULL));
  }
  intfa_options unlimited = {.struct_size = sizeof unlimited,
                             .mask = INTFA_MASK_SLIDING,
                             .window_left = &largest,
                             .window_right = &largest};
  OK(intfa_attention(&c.operands, NULL, &unlimited, NULL));
  unlimited = (intfa_options){
      .struct_size = sizeof unlimited, .mask = INTFA_MASK_PREFIX_CAUSAL, .prefix = INT64_MAX};
  OK(intfa_attention(&c.operands, NULL, &unlimited, NULL));

  /* Blocks: ten queries, twenty keys. */
  const int64_t offsets[] = {0, 1, 2}, backwards[] = {0, 2, 1}, far[] = {0, INT64_MAX, INT64_MIN};
  const int64_t high[] = {0, 1, 5}, late[] = {1, 2, 3}, visible[] = {0, 1, 2},
                unknown[] = {0, 7, 0};
  intfa_visible_blocks blocks[] = {
      {0, 0, 0, 8, 2, offsets, visible},
      {0, 0, 5, 0, 2, offsets, visible},
      {0, 0, INT64_MAX, 8, 2, offsets, visible},
      {0, 0, 5, INT64_MIN, 2, offsets, visible},
      {0, 0, 5, 8, 3, offsets, visible},
      {0, 0, 5, 8, INT64_MAX, offsets, visible},
      {0, 0, 5, 8, -2, offsets, visible},
      {0, 0, 5, 8, 2, NULL, visible},
      {0, 0, 5, 8, 2, offsets, NULL},
      {0, 0, 5, 8, 2, backwards, visible},
      {0, 0, 5, 8, 2, far, visible},
      {0, 0, 5, 8, 2, high, visible},
      {0, 0, 5, 8, 2, late, visible},
      {0, 0, 5, 8, 2, offsets, unknown},
  };
  for (size_t i = 0; i < sizeof blocks / sizeof *blocks; ++i) {
    intfa_options with = {.struct_size = sizeof with, .blocks = &blocks[i]};
    EXPECT(INTFA_INVALID_ARGUMENT, "blocks: struct_size",
           intfa_attention(&c.operands, NULL, &with, NULL));
    blocks[i].struct_size = sizeof *blocks;
    intfa_status status = intfa_attention(&c.operands, NULL, &with, NULL);
    CHECK((status == INTFA_INVALID_ARGUMENT || status == INTFA_SHAPE_MISMATCH) &&
              strstr(intfa_last_error(), "blocks"),
          "blocks %d: %s", (int)i, intfa_status_name(status));
  }

  EXPECT(INTFA_INVALID_ARGUMENT, "precision is 'int7'",
         intfa_attention(&c.operands, "int7", NULL, NULL));
  EXPECT(INTFA_INVALID_ARGUMENT, "precision is ''", intfa_attention(&c.operands, "", NULL, NULL));
  EXPECT(INTFA_INVALID_ARGUMENT, "precision", intfa_attention(&c.operands, "\xff\xfe", NULL, NULL));
  EXPECT(INTFA_UNSUPPORTED, "recipe", intfa_attention(&c.operands, "int4QueryKey", NULL, NULL));
  const int32_t threads[] = {0, -1, INT32_MIN, INT32_MAX};
  intfa_backend backends[] = {
      {.name = "tpu"},
      {.name = ""},
      {.instruction_set = "avx1024"},
      {.device = 1},
      {.name = "reference", .device = -1},
      {.name = "reference", .thread_count = &threads[3]},
      {.name = "reference", .instruction_set = "portable"},
      {.thread_count = &threads[0]},
      {.thread_count = &threads[1]},
      {.thread_count = &threads[2]},
  };
  for (size_t i = 0; i < sizeof backends / sizeof *backends; ++i) {
    backends[i].struct_size = sizeof *backends;
    EXPECT(INTFA_INVALID_ARGUMENT, "", intfa_attention(&c.operands, NULL, NULL, &backends[i]));
  }
  intfa_backend backend = {.struct_size = sizeof backend, .thread_count = &threads[3]};
  OK(intfa_attention(&c.operands, NULL, NULL, &backend));
  backend = (intfa_backend){.struct_size = sizeof backend, .name = "reference"};
  OK(intfa_attention(&c.operands, "int4QueryKey", NULL, &backend));
  intfa_kv_pool_shape shape = {sizeof shape, 0, 2, 32, 32, 64, 64};
  intfa_kv_pool *pool = NULL;
  OK(intfa_kv_pool_create(&shape, NULL, &backend, &pool));
  intfa_kv_pool_destroy(pool);
  EXPECT(INTFA_UNSUPPORTED, "float8", intfa_kv_pool_create(&shape, "float8", NULL, &pool));
  close_call(&c);
}

static void test_information(void) {
  CHECK(!strcmp(intfa_version(), INTFA_VERSION), "%s", intfa_version());
  CHECK(!strcmp(intfa_status_name(INTFA_OUT_OF_PAGES), "INTFA_OUT_OF_PAGES"), "name");
  CHECK(!strcmp(intfa_status_name(-3), "unknown status"), "name");
  CHECK(!strcmp(intfa_status_name(INT32_MIN), "unknown status"), "name");
  intfa_information information = {.struct_size = sizeof information};
  OK(intfa_get_information(&information));
  CHECK(strstr(information.instruction_sets, "portable") == information.instruction_sets, "%s",
        information.instruction_sets);
  CHECK(strstr(information.precisions, "int4KeyValue"), "%s", information.precisions);
  CHECK(information.thread_count >= 1 && information.core_count >= 1, "threads");
  EXPECT(INTFA_INVALID_ARGUMENT, "information is NULL", intfa_get_information(NULL));
  const char *name = NULL;
  OK(intfa_get_instruction_set(&name));
  CHECK(name && strstr(information.instruction_sets, name), "%s", name ? name : "NULL");
  EXPECT(INTFA_INVALID_ARGUMENT, "name is NULL", intfa_get_instruction_set(NULL));
  int32_t count = -1;
  intfa_status status = intfa_get_device_count(&count);
  CHECK(status == INTFA_OK ? count > 0 : status == INTFA_UNAVAILABLE && count == 0, "%d GPUs, %s",
        count, intfa_last_error());
  EXPECT(INTFA_INVALID_ARGUMENT, "count is NULL", intfa_get_device_count(NULL));
  intfa_device device = {.struct_size = sizeof device};
  if (count > 0) {
    OK(intfa_get_device(0, &device));
    CHECK(device.major > 0 && strlen(device.name) > 0, "%s", device.name);
    EXPECT(INTFA_INVALID_ARGUMENT, "description is NULL", intfa_get_device(0, NULL));
  }
  EXPECT(INTFA_UNAVAILABLE, "", intfa_get_device(count, &device));
  EXPECT(INTFA_UNAVAILABLE, "", intfa_get_device(-1, &device));
  intfa_get_device(INT32_MIN, NULL);
}

void test_errors(void) {
  test_information();
  test_null();
  test_struct_sizes();
  test_tensors();
  test_shapes();
  test_options();
}
