/* Tensors in the memory of a GPU, as a library that has a context and a stream passes them. Where there
   is no GPU, that it is said. With INTFA_TEST_GPU set there must be one, also a simulated one. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <math.h>

#include "test.h"

/* The driver as another library calls it. */
static struct {
  int (*cuDevicePrimaryCtxRetain)(void **, int);
  int (*cuCtxCreate_v2)(void **, unsigned, int);
  int (*cuCtxPushCurrent_v2)(void *);
  int (*cuCtxPopCurrent_v2)(void **);
  int (*cuMemAlloc_v2)(uint64_t *, size_t);
  int (*cuMemFree_v2)(uint64_t);
  int (*cuMemcpyHtoD_v2)(uint64_t, const void *, size_t);
  int (*cuMemcpyDtoH_v2)(void *, uint64_t, size_t);
  int (*cuStreamCreate)(void **, unsigned);
  int (*cuStreamSynchronize)(void *);
} driver;

static void load_driver(void) {
  void *library = dlopen("libcuda.so.1", RTLD_NOW);
  CHECK(library, "%s", dlerror());
#define LOAD(name) *(void **)&driver.name = dlsym(library, #name)
  LOAD(cuDevicePrimaryCtxRetain), LOAD(cuCtxCreate_v2), LOAD(cuCtxPushCurrent_v2);
  LOAD(cuCtxPopCurrent_v2), LOAD(cuMemAlloc_v2), LOAD(cuMemFree_v2), LOAD(cuMemcpyHtoD_v2);
  LOAD(cuMemcpyDtoH_v2), LOAD(cuStreamCreate), LOAD(cuStreamSynchronize);
}
#define DRIVER(function, ...) CHECK(driver.function(__VA_ARGS__) == 0, #function)

/* An array, and a copy of its memory on the device. */
typedef struct {
  array host;
  array device;
  void *lowest; /* on the host */
  uint64_t address;
  size_t bytes;
} mirror;

static mirror make_mirror(intfa_element_type type, layout layout, int64_t a, int64_t b, int64_t c,
                          int64_t d, uint64_t seed) {
  mirror m = {.host = d ? make(type, layout, 4, (int64_t[]){a, b, c, d})
                        : make(type, layout, 3, (int64_t[]){a, b, c})};
  if (seed) fill(&m.host, seed);
  int64_t low = 0, high = 0, size = type == INTFA_FLOAT32 ? 4 : 2;
  for (int i = 0; i < m.host.tensor.rank; ++i) {
    int64_t last = (m.host.shape[i] - 1) * m.host.strides[i];
    *(last < 0 ? &low : &high) += last;
  }
  m.bytes = (size_t)((high - low + 1) * size);
  m.lowest = (char *)m.host.tensor.data + low * size;
  DRIVER(cuMemAlloc_v2, &m.address, m.bytes);
  DRIVER(cuMemcpyHtoD_v2, m.address, m.lowest, m.bytes);
  m.device = m.host;
  m.device.tensor.data = (void *)(uintptr_t)(m.address - (uint64_t)(low * size));
  return m;
}

static void fetch(mirror *m) { DRIVER(cuMemcpyDtoH_v2, m->lowest, m->address, m->bytes); }

static void drop_mirror(mirror *m) {
  DRIVER(cuMemFree_v2, m->address);
  drop(&m->host);
}

/* A call with all that it needs. */
typedef struct {
  mirror query, key, value, output, sums;
  intfa_operands operands; /* on the device */
  intfa_shape shape;
} call;

static call open_call(intfa_element_type type, layout layout, int64_t queries, int64_t keys) {
  call c = {.query = make_mirror(type, layout, 2, 4, queries, 64, 1),
            .key = make_mirror(type, layout, 2, 2, keys, 64, 2),
            .value = make_mirror(type, layout, 2, 2, keys, 64, 3),
            .output = make_mirror(type, layout, 2, 4, queries, 64, 0),
            .sums = make_mirror(INTFA_FLOAT32, ROW_MAJOR, 2, 4, queries, 0, 0),
            .shape = {sizeof(intfa_shape), 0, 2, 4, 2, queries, keys, 64, 64}};
  /* An outlier in the first head, whose row sum then is exact: other tables are read. */
  set(&c.value.host, 64 * 7, 400);
  DRIVER(cuMemcpyHtoD_v2, c.value.address, c.value.lowest, c.value.bytes);
  return c;
}

static void use_device(call *c) {
  c->operands = (intfa_operands){
      .struct_size = sizeof c->operands,
      .query = view(&c->query.device),
      .key = view(&c->key.device),
      .value = view(&c->value.device),
      .output = view(&c->output.device),
      .log_sum_exp = view(&c->sums.device),
  };
}

static void close_call(call *c) {
  drop_mirror(&c->query), drop_mirror(&c->key), drop_mirror(&c->value), drop_mirror(&c->output);
  drop_mirror(&c->sums);
}

static const intfa_backend gpu = {.struct_size = sizeof gpu, .name = "cuda"};
static const intfa_options causal = {.struct_size = sizeof causal, .mask = INTFA_MASK_CAUSAL};

static uint64_t make_workspace(const intfa_plan *plan) {
  int64_t size = 0;
  uint64_t workspace = 0;
  OK(intfa_plan_get_workspace_size(plan, &size));
  CHECK(size > 0, "a workspace of %lld bytes", (long long)size);
  DRIVER(cuMemAlloc_v2, &workspace, (size_t)size);
  return workspace;
}
#define POINTER(address) ((void *)(uintptr_t)(address))

/* The bits of a call on the host's tensors, and near exact attention; the plan is gone before the work
   has begun. */
static void check_results(const char *precision, intfa_element_type type, layout layout,
                          const intfa_backend *backend) {
  call c = open_call(type, layout, 70, 90);
  use_device(&c);
  intfa_plan *plan = NULL;
  void *stream = NULL;
  DRIVER(cuStreamCreate, &stream, 1);
  OK(intfa_plan_create(&c.shape, precision, &causal, backend, &plan));
  array expected = make4(type, 2, 4, 70, 64), expected_sums = make3(INTFA_FLOAT32, 2, 4, 70);
  intfa_operands host = {
      .struct_size = sizeof host,
      .query = view(&c.query.host),
      .key = view(&c.key.host),
      .value = view(&c.value.host),
      .output = view(&expected),
      .log_sum_exp = view(&expected_sums),
  };
  OK(intfa_plan_run(plan, &host));
  uint64_t workspace = make_workspace(plan);
  for (int i = 0; i < 2; ++i) OK(intfa_plan_enqueue(plan, &c.operands, POINTER(workspace), stream));
  fetch(&c.output);
  intfa_device device = {.struct_size = sizeof device};
  OK(intfa_get_device(0, &device));
  /* The simulator runs nothing before somebody waits. */
  if (!strcmp(device.name, "CUDA simulator"))
    CHECK(get(&c.output.host, 5) == 0, "the call has waited");
  intfa_plan_destroy(plan);
  DRIVER(cuStreamSynchronize, stream);
  fetch(&c.output), fetch(&c.sums);
  CHECK(same(&c.output.host, &expected), "%s: other bits than a call on the host", precision);
  CHECK(same(&c.sums.host, &expected_sums), "%s: other log-sum-exp", precision);
  double *exact = malloc(sizeof(double) * 2 * 4 * 70 * 64);
  double *exact_sums = malloc(sizeof(double) * 2 * 4 * 70);
  naive(&c.query.host, &c.key.host, &c.value.host, NULL, NULL, NULL, &causal, exact, exact_sums);
  double error = relative_error(&c.output.host, exact);
  CHECK(error <= 3e-2, "%s: error %g", precision, error);
  free(exact), free(exact_sums), drop(&expected), drop(&expected_sums);
  DRIVER(cuMemFree_v2, workspace);
  close_call(&c);
}

/* One workspace for plans of several shapes in turn, and what intfa_plan_check says. */
static void test_workspace(void) {
  call first = open_call(INTFA_FLOAT32, ROW_MAJOR, 3, 1100),
       second = open_call(INTFA_FLOAT32, GAPS, 70, 90);
  use_device(&first), use_device(&second);
  intfa_plan *plans[2] = {NULL, NULL};
  OK(intfa_plan_create(&first.shape, NULL, NULL, &gpu, &plans[0]));
  OK(intfa_plan_create(&second.shape, NULL, NULL, &gpu, &plans[1]));
  uint64_t workspaces[2] = {make_workspace(plans[0]), make_workspace(plans[1])};
  int64_t sizes[2];
  for (int i = 0; i < 2; ++i) OK(intfa_plan_get_workspace_size(plans[i], &sizes[i]));
  void *workspace = POINTER(workspaces[sizes[1] > sizes[0]]);
  OK(intfa_plan_enqueue(plans[1], &second.operands, POINTER(workspaces[1]), NULL));
  OK(intfa_plan_check(plans[1], POINTER(workspaces[1]), NULL));
  fetch(&second.output);
  array kept = make4(INTFA_FLOAT32, 2, 4, 70, 64);
  for (int64_t i = 0; i < count_of(&kept); ++i) set(&kept, i, get(&second.output.host, i));
  for (int i = 0; i < 2; ++i) {
    OK(intfa_plan_enqueue(plans[0], &first.operands, workspace, NULL));
    OK(intfa_plan_enqueue(plans[1], &second.operands, workspace, NULL));
  }
  OK(intfa_plan_check(plans[1], workspace, NULL));
  fetch(&second.output);
  CHECK(same(&kept, &second.output.host), "a workspace of another plan changes bits");

  const float bad[] = {NAN, INFINITY, 1e30f};
  for (int i = 0; i < 3; ++i) {
    set(&second.value.host, 64, bad[i]);
    DRIVER(cuMemcpyHtoD_v2, second.value.address, second.value.lowest, second.value.bytes);
    OK(intfa_plan_enqueue(plans[1], &second.operands, workspace, NULL));
    EXPECT(INTFA_NON_FINITE_INPUT, "value at batch 0, head 0, token 1",
           intfa_plan_check(plans[1], workspace, NULL));
  }
  OK(intfa_plan_enqueue(plans[0], &first.operands, workspace, NULL));
  OK(intfa_plan_check(plans[0], workspace, NULL));
  for (int i = 0; i < 2; ++i) {
    intfa_plan_destroy(plans[i]);
    DRIVER(cuMemFree_v2, workspaces[i]);
  }
  drop(&kept), close_call(&first), close_call(&second);
}

static void test_misuse(void) {
  call c = open_call(INTFA_FLOAT32, ROW_MAJOR, 70, 90);
  use_device(&c);
  intfa_plan *plan = NULL;
  OK(intfa_plan_create(&c.shape, NULL, NULL, &gpu, &plan));
  const uint64_t place = make_workspace(plan);
  void *workspace = POINTER(place);
#define ENQUEUE intfa_plan_enqueue(plan, &c.operands, workspace, NULL)
  OK(ENQUEUE);
  EXPECT(INTFA_INVALID_ARGUMENT, "operands is NULL", intfa_plan_enqueue(plan, NULL, workspace, NULL));
  EXPECT(INTFA_INVALID_ARGUMENT, "byte_count is NULL", intfa_plan_get_workspace_size(plan, NULL));
  EXPECT(INTFA_INVALID_ARGUMENT, "workspace is NULL",
         intfa_plan_enqueue(plan, &c.operands, NULL, NULL));
  EXPECT(INTFA_INVALID_ARGUMENT, "workspace is not aligned",
         intfa_plan_enqueue(plan, &c.operands, POINTER(place + 16), NULL));
  EXPECT(INTFA_INVALID_ARGUMENT, "workspace is at address",
         intfa_plan_enqueue(plan, &c.operands, POINTER(256), NULL));
  EXPECT(INTFA_INVALID_ARGUMENT, "workspace is NULL", intfa_plan_check(plan, NULL, NULL));
  EXPECT(INTFA_INVALID_ARGUMENT, "workspace is at address",
         intfa_plan_check(plan, POINTER(256), NULL));

  /* Memory of the host, wrong sizes and types, one tensor after the other. */
  static const char *const names[] = {"query", "key", "value", "output", "log_sum_exp"};
  mirror *all[] = {&c.query, &c.key, &c.value, &c.output, &c.sums};
  for (int i = 0; i < 5; ++i) {
    array *a = &all[i]->device, kept = *a;
    a->tensor.data = all[i]->host.tensor.data;
    EXPECT(INTFA_INVALID_ARGUMENT, names[i], ENQUEUE);
    CHECK(strstr(intfa_last_error(), "not in the memory of a GPU"), "%s", intfa_last_error());
    a->tensor.data = NULL;
    EXPECT(INTFA_INVALID_ARGUMENT, "data is NULL", ENQUEUE);
    a->tensor = kept.tensor;
    a->shape[2] += 1;
    EXPECT(INTFA_SHAPE_MISMATCH, i == 4 ? "logSumExp" : names[i], (view(a), ENQUEUE));
    a->shape[2] = INT64_MAX;
    EXPECT(INTFA_INVALID_ARGUMENT, names[i], ENQUEUE);
    a->shape[2] = kept.shape[2];
    a->tensor.element_type = INTFA_INT8;
    EXPECT(INTFA_UNSUPPORTED_ELEMENT_TYPE, i == 4 ? "logSumExp" : names[i], ENQUEUE);
    a->tensor.element_type = INTFA_FLOAT32;
    a->strides[2] = (int64_t)1 << 46;
    CHECK(ENQUEUE != INTFA_OK, "a stride out of memory");
    a->strides[2] = kept.strides[2];
    OK(ENQUEUE);
  }
  c.query.device.strides[3] = 2;
  EXPECT(INTFA_INVALID_ARGUMENT, "stride 2 in its last dimension", ENQUEUE);
  c.query.device.strides[3] = 1;
  c.output.device.strides[2] = 1;
  EXPECT(INTFA_OVERLAPPING_OUTPUT, "output", ENQUEUE);
  c.output.device.strides[2] = 64;
  c.operands.output = c.operands.query;
  EXPECT(INTFA_OVERLAPPING_OUTPUT, "output shares memory with query", ENQUEUE);
  c.operands.output = view(&c.output.device);
  void *own = c.sums.device.tensor.data;
  c.sums.device.tensor.data = c.output.device.tensor.data;
  EXPECT(INTFA_OVERLAPPING_OUTPUT, "logSumExp shares memory with output", ENQUEUE);
  c.sums.device.tensor.data = own;
  const intfa_tensor **extras[] = {&c.operands.mask, &c.operands.alibi_slopes, &c.operands.sinks};
  for (int i = 0; i < 3; ++i) {
    *extras[i] = view(&c.key.device);
    EXPECT(INTFA_UNSUPPORTED, "is given; backend 'cuda' takes", ENQUEUE);
    *extras[i] = NULL;
  }
  c.operands.log_sum_exp = NULL;
  OK(ENQUEUE);
  OK(intfa_plan_check(plan, workspace, NULL));
  intfa_plan_destroy(plan);

  /* Nothing to read, nothing to write. */
  c.shape.key_value_length = 0;
  c.key.device.shape[2] = c.value.device.shape[2] = 0;
  c.key.device.tensor.data = c.value.device.tensor.data = NULL;
  OK(intfa_plan_create(&c.shape, NULL, NULL, &gpu, &plan));
  OK(ENQUEUE);
  OK(intfa_plan_check(plan, workspace, NULL));
  fetch(&c.output);
  CHECK(get(&c.output.host, 77) == 0, "no keys give %g", get(&c.output.host, 77));
  intfa_plan_destroy(plan);
  c.shape.query_length = 0;
  c.query.device.shape[2] = c.output.device.shape[2] = 0;
  OK(intfa_plan_create(&c.shape, NULL, NULL, &gpu, &plan));
  OK(intfa_plan_enqueue(plan, &c.operands, NULL, NULL));
  OK(intfa_plan_check(plan, NULL, NULL));
  intfa_plan_destroy(plan);
  DRIVER(cuMemFree_v2, place);
  close_call(&c);
}

/* What the backend does not compute, and sizes that no GPU has. */
static void test_plans(void) {
  intfa_shape shape = {sizeof shape, 0, 1, 4, 2, 10, 20, 64, 64};
  intfa_plan *plan = NULL;
  const float softcap = 20;
  const int64_t offsets[] = {0, 1}, visible[] = {0};
  const intfa_visible_blocks blocks = {sizeof blocks, 0, 10, 20, 1, offsets, visible};
  const intfa_options refused[] = {{.softcap = &softcap},
                                   {.mask = INTFA_MASK_PREFIX_CAUSAL, .prefix = 3},
                                   {.blocks = &blocks}};
  for (int i = 0; i < 3; ++i) {
    intfa_options options = refused[i];
    options.struct_size = sizeof options;
    EXPECT(INTFA_UNSUPPORTED, "CUDA backend", intfa_plan_create(&shape, NULL, &options, &gpu, &plan));
  }
  EXPECT(INTFA_UNSUPPORTED, "int8, int8Paper, bfloat16 and float16",
         intfa_plan_create(&shape, "int4", NULL, &gpu, &plan));
  intfa_backend backend = gpu;
  const int32_t absent[] = {999, INT32_MAX, INT32_MIN, -2};
  for (int i = 0; i < 4; ++i) {
    backend.device = absent[i];
    EXPECT(INTFA_UNAVAILABLE, "no CUDA device", intfa_plan_create(&shape, NULL, NULL, &backend, &plan));
  }
  static const int64_t numbers[] = {
      0, 1, -1, INT32_MAX, INT64_MAX, INT64_MIN, (int64_t)1 << 28, (int64_t)1 << 40};
  const int n = sizeof numbers / sizeof *numbers;
  for (int first = 0; first < 5; ++first)
    for (int second = first + 1; second < 5; ++second)
      for (int a = 0; a < n * n; ++a) {
        intfa_shape absurd = {sizeof absurd, 0, 1, 2, 1, 5, 5, 64, 64};
        int64_t *sizes = &absurd.batch_count;
        sizes[first] = numbers[a / n], sizes[second] = numbers[a % n];
        plan = NULL;
        intfa_status status = intfa_plan_create(&absurd, NULL, NULL, &gpu, &plan);
        int64_t size = -1;
        CHECK((status == INTFA_OK) == (plan != NULL), "a plan despite an error");
        if (plan) OK(intfa_plan_get_workspace_size(plan, &size));
        CHECK(!plan || size > 0, "a workspace of %lld bytes", (long long)size);
        intfa_plan_destroy(plan);
      }
}

static void test_on_gpu(void) {
  load_driver();
  intfa_shape shape = {sizeof shape, 0, 1, 4, 2, 10, 20, 64, 64};
  intfa_plan *plan = NULL;
  const intfa_backend current = {.struct_size = sizeof current,
                                 .device = INTFA_CURRENT_DEVICE,
                                 .name = "cuda"};
  EXPECT(INTFA_UNAVAILABLE, "no CUDA context is current in this thread",
         intfa_plan_create(&shape, NULL, NULL, &current, &plan));
  void *context = NULL;
  DRIVER(cuDevicePrimaryCtxRetain, &context, 0);
  DRIVER(cuCtxPushCurrent_v2, context);
  check_results("int8", INTFA_FLOAT32, ROW_MAJOR, &gpu);
  check_results("int8", INTFA_FLOAT32, TOKENS_FIRST, &current);
  check_results("int8", INTFA_BFLOAT16, REVERSED, &gpu);
  check_results("bfloat16", INTFA_BFLOAT16, GAPS, &gpu);
  check_results("float16", INTFA_FLOAT16, ROW_MAJOR, &gpu);
  test_workspace();
  test_misuse();
  test_plans();
  DRIVER(cuCtxPopCurrent_v2, &context);
  /* A context that is not the primary one; it stays current in this thread. */
  DRIVER(cuCtxCreate_v2, &context, 0, 0);
  check_results("int8", INTFA_FLOAT32, ROW_MAJOR, &current);
}

void test_gpu(void) {
  intfa_shape shape = {sizeof shape, 0, 1, 4, 2, 10, 20, 64, 64};
  intfa_plan *plan = NULL;
  int64_t size = 0;
  const intfa_operands operands = {.struct_size = sizeof operands};
  EXPECT(INTFA_INVALID_ARGUMENT, "plan is NULL", intfa_plan_get_workspace_size(NULL, &size));
  EXPECT(INTFA_INVALID_ARGUMENT, "plan is NULL", intfa_plan_enqueue(NULL, &operands, NULL, NULL));
  EXPECT(INTFA_INVALID_ARGUMENT, "plan is NULL", intfa_plan_check(NULL, NULL, NULL));
  OK(intfa_plan_create(&shape, NULL, NULL, NULL, &plan));
  EXPECT(INTFA_INVALID_ARGUMENT, "query is NULL", intfa_plan_enqueue(plan, &operands, NULL, NULL));
  EXPECT(INTFA_UNSUPPORTED, "backend 'cpu'", intfa_plan_get_workspace_size(plan, &size));
  EXPECT(INTFA_UNSUPPORTED, "backend 'cpu'", intfa_plan_check(plan, NULL, NULL));
  array q = make4(INTFA_FLOAT32, 1, 4, 10, 64), k = make4(INTFA_FLOAT32, 1, 2, 20, 64);
  const intfa_operands full = {.struct_size = sizeof full,
                               .query = view(&q),
                               .key = view(&k),
                               .value = view(&k),
                               .output = view(&q)};
  EXPECT(INTFA_UNSUPPORTED, "backend 'cpu'", intfa_plan_enqueue(plan, &full, NULL, NULL));
  drop(&q), drop(&k);
  intfa_plan_destroy(plan);

  int32_t count = 0;
  if (intfa_get_device_count(&count) == INTFA_OK) {
    test_on_gpu();
    return;
  }
  CHECK(!getenv("INTFA_TEST_GPU"), "INTFA_TEST_GPU is set, but: %s", intfa_last_error());
  EXPECT(INTFA_UNAVAILABLE, "CUDA driver", intfa_plan_create(&shape, NULL, NULL, &gpu, &plan));
}
