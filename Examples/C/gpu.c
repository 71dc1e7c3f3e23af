/* Attention on tensors that are in the memory of a GPU already, in a stream of the caller. This program
   has its context from the driver; that of the CUDA runtime, of PyTorch or of CuPy is the same one. */
#include <dlfcn.h>
#include <int_flash_attention.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { HEADS = 8, KV_HEADS = 2, TOKENS = 256, D = 64 };

static void require(intfa_status status) {
  if (status == INTFA_OK) return;
  fprintf(stderr, "%s: %s\n", intfa_status_name(status), intfa_last_error());
  exit(1);
}

/* Calls a function of the driver, which is found at run time. */
#define CUDA(name, types, ...)                              \
  do {                                                      \
    int(*function) types;                                   \
    *(void **)&function = dlsym(driver, name);              \
    int result = function ? function(__VA_ARGS__) : -1;     \
    if (result != 0) {                                      \
      fprintf(stderr, "%s gives %d\n", name, result);       \
      exit(1);                                              \
    }                                                       \
  } while (0)

static void *driver;

static void *device_memory(size_t bytes) {
  uint64_t address;
  CUDA("cuMemAlloc_v2", (uint64_t *, size_t), &address, bytes);
  return (void *)(uintptr_t)address;
}

/* Numbers from -1 to 1 in device memory. */
static void *activations(int heads, unsigned seed) {
  size_t count = (size_t)heads * TOKENS * D;
  float *x = malloc(sizeof(float) * count);
  for (size_t i = 0; i < count; ++i)
    x[i] = (float)((seed = seed * 1664525u + 1013904223u) >> 8) / 0x1p23f - 1;
  void *place = device_memory(sizeof(float) * count);
  CUDA("cuMemcpyHtoD_v2", (uint64_t, const void *, size_t), (uint64_t)(uintptr_t)place, x,
       sizeof(float) * count);
  free(x);
  return place;
}

int main(void) {
  int32_t count;
  if (intfa_get_device_count(&count) != INTFA_OK) {
    printf("no GPU: %s\n", intfa_last_error());
    return 0;
  }
  driver = dlopen("libcuda.so.1", RTLD_NOW);
  void *context, *stream;
  CUDA("cuDevicePrimaryCtxRetain", (void **, int), &context, 0);
  CUDA("cuCtxPushCurrent_v2", (void *), context);
  CUDA("cuStreamCreate", (void **, unsigned), &stream, 1);

  const int64_t many[] = {HEADS, TOKENS, D}, few[] = {KV_HEADS, TOKENS, D};
  intfa_tensor query = {sizeof query, INTFA_FLOAT32, activations(HEADS, 1), 3, many, NULL};
  intfa_tensor key = {sizeof key, INTFA_FLOAT32, activations(KV_HEADS, 2), 3, few, NULL};
  intfa_tensor value = {sizeof value, INTFA_FLOAT32, activations(KV_HEADS, 3), 3, few, NULL};
  intfa_tensor output = query;
  output.data = device_memory(sizeof(float) * HEADS * TOKENS * D);

  /* A plan compiles its kernels, or finds them compiled; make it once. */
  const intfa_shape shape = {sizeof shape, 0, 1, HEADS, KV_HEADS, TOKENS, TOKENS, D, D};
  const intfa_options options = {.struct_size = sizeof options, .mask = INTFA_MASK_CAUSAL};
  const intfa_backend backend = {.struct_size = sizeof backend, .name = "cuda"};
  intfa_plan *plan;
  int64_t workspace_size;
  require(intfa_plan_create(&shape, "int8", &options, &backend, &plan));
  require(intfa_plan_get_workspace_size(plan, &workspace_size));
  void *workspace = device_memory((size_t)workspace_size);

  const intfa_operands operands = {.struct_size = sizeof operands,
                                   .query = &query,
                                   .key = &key,
                                   .value = &value,
                                   .output = &output};
  require(intfa_plan_enqueue(plan, &operands, workspace, stream));
  /* The call is in the stream; what comes after it there sees its output. To read it here, wait. */
  require(intfa_plan_check(plan, workspace, stream));
  float first[4];
  CUDA("cuMemcpyDtoH_v2", (void *, uint64_t, size_t), first, (uint64_t)(uintptr_t)output.data,
       sizeof first);
  printf("%lld bytes of workspace; the output begins %.3f %.3f %.3f %.3f\n",
         (long long)workspace_size, first[0], first[1], first[2], first[3]);
  intfa_plan_destroy(plan);
  return 0;
}
