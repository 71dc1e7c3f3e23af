/* Attention in INT8 against float32, and how much less the default recipe errs than the paper's:
   inputs with a few large channels, as language models have them. */
#include <int_flash_attention.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { HEADS = 8, KV_HEADS = 2, TOKENS = 512, D = 64 };

static void require(intfa_status status) {
  if (status == INTFA_OK) return;
  fprintf(stderr, "%s: %s\n", intfa_status_name(status), intfa_last_error());
  exit(1);
}

/* Normally distributed numbers; a few channels are larger and off centre. */
static float *activations(int heads, unsigned seed) {
  float *x = malloc(sizeof(float) * (size_t)(heads * TOKENS * D));
  for (int i = 0; i < heads * TOKENS * D; ++i) {
    float sum = -6;
    for (int k = 0; k < 12; ++k)
      sum += (float)((seed = seed * 1664525u + 1013904223u) >> 8) / 0x1p24f;
    x[i] = i % D % 20 == 7 ? 4 * sum + 6 : sum;
  }
  return x;
}

int main(void) {
  float *q = activations(HEADS, 1), *k = activations(KV_HEADS, 2), *v = activations(KV_HEADS, 3);
  float *exact = malloc(sizeof(float) * HEADS * TOKENS * D);
  float *output = malloc(sizeof(float) * HEADS * TOKENS * D);

  /* Three dimensions are a batch of one; no strides are row-major. */
  const int64_t query_shape[] = {HEADS, TOKENS, D}, key_shape[] = {KV_HEADS, TOKENS, D};
  intfa_tensor query = {.struct_size = sizeof query,
                        .element_type = INTFA_FLOAT32,
                        .data = q,
                        .rank = 3,
                        .shape = query_shape};
  intfa_tensor key = {.struct_size = sizeof key,
                      .element_type = INTFA_FLOAT32,
                      .data = k,
                      .rank = 3,
                      .shape = key_shape};
  intfa_tensor value = key, result = query;
  value.data = v;
  result.data = exact;
  intfa_operands operands = {.struct_size = sizeof operands,
                             .query = &query,
                             .key = &key,
                             .value = &value,
                             .output = &result};
  intfa_options options = {.struct_size = sizeof options, .mask = INTFA_MASK_CAUSAL};

  const char *instructions;
  require(intfa_get_instruction_set(&instructions));
  printf("int-flash-attention %s on %s\n", intfa_version(), instructions);
  require(intfa_attention(&operands, "float32", &options, NULL));
  result.data = output;
  const char *const precisions[] = {"int8", "int8QueryKey", "int4", "int8Paper", "bfloat16"};
  for (size_t p = 0; p < sizeof precisions / sizeof *precisions; ++p) {
    require(intfa_attention(&operands, precisions[p], &options, NULL));
    double difference = 0, magnitude = 0;
    for (int i = 0; i < HEADS * TOKENS * D; ++i) {
      difference += fabs((double)output[i] - exact[i]);
      magnitude += fabs((double)exact[i]);
    }
    printf("%-14s differs from float32 by %.2f %%\n", precisions[p], 100 * difference / magnitude);
  }

  /* What cannot be computed is refused, with the reason. */
  k[1234] = NAN;
  intfa_status status = intfa_attention(&operands, "int8", &options, NULL);
  printf("%s: %s\n", intfa_status_name(status), intfa_last_error());
  free(q), free(k), free(v), free(exact), free(output);
  return 0;
}
