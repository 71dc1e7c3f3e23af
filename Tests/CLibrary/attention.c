/* Results of intfa_attention and intfa_plan_run against attention in double precision. */
#include <math.h>

#include "test.h"

typedef struct {
  const char *precision;
  intfa_element_type input, output;
  layout layout;
  int64_t batch, heads, kv_heads, queries, keys, d, dv;
  intfa_mask_kind mask;
  int64_t left, right, prefix;  /* -1 is unlimited */
  float softcap, scale;         /* 0 is none */
  intfa_element_type mask_type; /* 0 is none */
  int has_slopes, has_sinks;
} call;

/* What normally distributed inputs of a few hundred keys give stays below these. */
static double bound(const char *precision, intfa_element_type output) {
  double rounding = output == INTFA_BFLOAT16 ? 3e-3 : output == INTFA_FLOAT16 ? 4e-4 : 0;
  if (!strcmp(precision, "float32")) return 2e-6 + rounding;
  if (!strcmp(precision, "float16")) return 1e-3 + rounding;
  if (!strcmp(precision, "bfloat16")) return 1e-2 + rounding;
  return 3e-2 + rounding;
}

static void check(const call *c) {
  int64_t rows = c->batch * c->heads * c->queries;
  array query = make(c->input, c->layout, 4, (int64_t[]){c->batch, c->heads, c->queries, c->d});
  array key = make(c->input, c->layout, 4, (int64_t[]){c->batch, c->kv_heads, c->keys, c->d});
  array value = make(c->input, c->layout, 4, (int64_t[]){c->batch, c->kv_heads, c->keys, c->dv});
  array output = make(c->output, c->layout, 4, (int64_t[]){c->batch, c->heads, c->queries, c->dv});
  array sums = make(INTFA_FLOAT32, c->layout, 3, (int64_t[]){c->batch, c->heads, c->queries});
  array mask =
      make4(c->mask_type ? c->mask_type : INTFA_BOOL, c->batch, c->heads, c->queries, c->keys);
  array slopes = make(INTFA_FLOAT32, ROW_MAJOR, 1, &c->heads);
  array sinks = make(INTFA_FLOAT32, ROW_MAJOR, 1, &c->heads);
  fill(&query, 1), fill(&key, 2), fill(&value, 3), fill(&mask, 4), fill(&sinks, 5);
  for (int64_t h = 0; h < c->heads; ++h) set(&slopes, h, 0.01 * (double)(h + 1));

  intfa_options options = {.struct_size = sizeof options, .mask = c->mask, .prefix = c->prefix};
  if (c->softcap) options.softcap = &c->softcap;
  if (c->scale) options.softmax_scale = &c->scale;
  if (c->mask == INTFA_MASK_SLIDING && c->left >= 0) options.window_left = &c->left;
  if (c->mask == INTFA_MASK_SLIDING && c->right >= 0) options.window_right = &c->right;
  intfa_operands operands = {
      .struct_size = sizeof operands,
      .query = view(&query),
      .key = view(&key),
      .value = view(&value),
      .output = view(&output),
      .log_sum_exp = view(&sums),
      .mask = c->mask_type ? view(&mask) : NULL,
      .alibi_slopes = c->has_slopes ? view(&slopes) : NULL,
      .sinks = c->has_sinks ? view(&sinks) : NULL,
  };
  OK(intfa_attention(&operands, c->precision, &options, NULL));

  double *exact = malloc(sizeof(double) * (size_t)(rows * c->dv));
  double *exact_sums = malloc(sizeof(double) * (size_t)rows);
  naive(&query, &key, &value, c->mask_type ? &mask : NULL, c->has_slopes ? &slopes : NULL,
        c->has_sinks ? &sinks : NULL, &options, exact, exact_sums);
  double error = relative_error(&output, exact), sums_error = relative_error(&sums, exact_sums);
  double limit = bound(c->precision, c->output);
  CHECK(error <= limit, "%s [%d %d %d %d]: error %g", c->precision, (int)c->heads, (int)c->queries,
        (int)c->keys, (int)c->d, error);
  CHECK(sums_error <= limit, "%s: log-sum-exp error %g", c->precision, sums_error);

  /* A plan, run twice and without the log-sum-exp, gives the same bits. */
  array again = make(c->output, ROW_MAJOR, 4, output.shape);
  intfa_shape shape = {.struct_size = sizeof shape,
                       .batch_count = c->batch,
                       .query_head_count = c->heads,
                       .key_value_head_count = c->kv_heads,
                       .query_length = c->queries,
                       .key_value_length = c->keys,
                       .head_dimension = c->d,
                       .value_dimension = c->dv};
  intfa_plan *plan = NULL;
  OK(intfa_plan_create(&shape, c->precision, &options, NULL, &plan));
  const char *summary = NULL;
  OK(intfa_plan_summary(plan, &summary));
  CHECK(summary && strstr(summary, "instruction set"), "%s", summary ? summary : "NULL");
  operands.output = view(&again);
  operands.log_sum_exp = NULL;
  for (int i = 0; i < 2; ++i) {
    OK(intfa_plan_run(plan, &operands));
    CHECK(same(&output, &again), "%s: a plan gives other bits", c->precision);
  }
  intfa_plan_destroy(plan);
  free(exact), free(exact_sums);
  drop(&query), drop(&key), drop(&value), drop(&output), drop(&sums), drop(&mask), drop(&slopes);
  drop(&sinks), drop(&again);
}

static void test_cases(void) {
  static const call cases[] = {
      {"float32", 1, 1, ROW_MAJOR, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0},
      {"float32", 1, 1, ROW_MAJOR, 2, 4, 2, 37, 131, 64, 48, 0, 0, 0, 0, 0, 0, 0, 0, 0},
      {"float32", 1, 1, TOKENS_FIRST, 2, 4, 1, 65, 65, 33, 33, 1, 0, 0, 0, 0, 0.3f, 0, 0, 0},
      {"float32", 1, 1, REVERSED, 1, 6, 3, 70, 20, 64, 64, 1, 0, 0, 0, 0, 0, 0, 0, 1},
      {"float32", 1, 2, GAPS, 1, 2, 2, 50, 90, 128, 7, 2, 16, 3, 0, 0, 0, 0, 0, 0},
      {"float32", 3, 3, GAPS, 1, 2, 1, 50, 90, 80, 256, 2, -1, 0, 0, 20, 0, 0, 1, 0},
      {"float32", 2, 1, REVERSED, 2, 2, 2, 40, 60, 16, 16, 3, 0, 0, 25, 0, 0, 0, 0, 0},
      {"float32", 1, 1, ROW_MAJOR, 2, 4, 2, 33, 77, 64, 64, 0, 0, 0, 0, 0, 0, INTFA_BOOL, 0, 1},
      {"float32", 1, 1, ROW_MAJOR, 2, 4, 2, 33, 77, 64, 64, 1, 0, 0, 0, 0, 0, 1, 1, 1},
      {"float16", 2, 2, TOKENS_FIRST, 1, 2, 2, 31, 129, 64, 64, 1, 0, 0, 0, 0, 0, 2, 0, 0},
      {"bfloat16", 3, 3, GAPS, 1, 4, 2, 129, 129, 64, 64, 1, 0, 0, 0, 0, 0, 0, 0, 0},
      {"int8", 1, 1, ROW_MAJOR, 2, 4, 2, 128, 256, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0},
      {"int8", 2, 3, TOKENS_FIRST, 1, 8, 2, 97, 193, 64, 32, 1, 0, 0, 0, 30, 0, 0, 1, 1},
      {"int8", 3, 2, REVERSED, 2, 2, 1, 67, 211, 128, 128, 2, 100, -1, 0, 0, 0, 3, 0, 0},
      {NULL, 1, 1, GAPS, 1, 2, 2, 64, 320, 96, 96, 3, 0, 0, 100, 0, 0, INTFA_BOOL, 0, 0},
      {"int8QueryKey", 1, 1, ROW_MAJOR, 1, 2, 2, 100, 200, 64, 64, 1, 0, 0, 0, 0, 0, 0, 0, 0},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
    call c = cases[i];
    if (!c.precision) c.precision = "int8";
    check(&c);
  }
}

/* Rank 3 is a batch of one; NULL strides are row-major; the default precision is int8. */
static void test_defaults(void) {
  array q = make3(INTFA_FLOAT32, 4, 20, 64), k = make3(INTFA_FLOAT32, 2, 30, 64);
  array v = make3(INTFA_FLOAT32, 2, 30, 64), o = make3(INTFA_FLOAT32, 4, 20, 64);
  array p = make3(INTFA_FLOAT32, 4, 20, 64);
  array sums = make(INTFA_FLOAT32, ROW_MAJOR, 2, (int64_t[]){4, 20});
  fill(&q, 1), fill(&k, 2), fill(&v, 3);
  intfa_operands operands = {.struct_size = sizeof operands,
                             .query = view(&q),
                             .key = view(&k),
                             .value = view(&v),
                             .output = view(&o),
                             .log_sum_exp = view(&sums)};
  q.tensor.strides = NULL;
  OK(intfa_attention(&operands, NULL, NULL, NULL));
  operands.output = view(&p);
  /* Members beyond struct_size count as zero, whatever is there. */
  float nan = NAN;
  intfa_options options = {.struct_size = 8, .softcap = &nan};
  int32_t threads = 1;
  intfa_backend backend = {.struct_size = sizeof backend,
                           .name = "cpu",
                           .instruction_set = NULL,
                           .thread_count = &threads};
  OK(intfa_attention(&operands, "int8", &options, &backend));
  CHECK(same(&o, &p), "defaults differ");
  options.struct_size = sizeof options;
  EXPECT(INTFA_INVALID_ARGUMENT, "softcap is nan",
         intfa_attention(&operands, "int8", &options, &backend));
  drop(&q), drop(&k), drop(&v), drop(&o), drop(&p), drop(&sums);
}

/* Blocks give what a mask of the same places gives. */
static void test_blocks(void) {
  array q = make3(INTFA_FLOAT32, 2, 100, 32), k = make3(INTFA_FLOAT32, 2, 150, 32);
  array v = make3(INTFA_FLOAT32, 2, 150, 32), o = make3(INTFA_FLOAT32, 2, 100, 32);
  array p = make3(INTFA_FLOAT32, 2, 100, 32), mask = make4(INTFA_BOOL, 1, 1, 100, 150);
  fill(&q, 1), fill(&k, 2), fill(&v, 3);
  const int64_t offsets[] = {0, 2, 3, 3, 6}, visible[] = {2, 0, 1, 0, 1, 2};
  intfa_visible_blocks blocks = {.struct_size = sizeof blocks,
                                 .query_block_length = 30,
                                 .key_block_length = 64,
                                 .query_block_count = 4,
                                 .offsets = offsets,
                                 .visible = visible};
  show_blocks(&mask, &blocks, 100, 150);
  intfa_options options = {.struct_size = sizeof options, .blocks = &blocks};
  intfa_operands operands = {.struct_size = sizeof operands,
                             .query = view(&q),
                             .key = view(&k),
                             .value = view(&v),
                             .output = view(&o)};
  OK(intfa_attention(&operands, "float32", &options, NULL));
  operands.output = view(&p);
  operands.mask = view(&mask);
  OK(intfa_attention(&operands, "float32", NULL, NULL));
  for (int64_t i = 0; i < count_of(&o); ++i)
    CHECK(fabs(get(&o, i) - get(&p, i)) < 1e-5, "blocks differ from the mask at %d", (int)i);
  drop(&q), drop(&k), drop(&v), drop(&o), drop(&p), drop(&mask);
}

/* Parts of the keys, merged, are attention to all of them. */
static void test_merge(void) {
  array q = make4(INTFA_FLOAT32, 2, 4, 30, 64), k = make4(INTFA_FLOAT32, 2, 2, 200, 64);
  array v = make4(INTFA_FLOAT32, 2, 2, 200, 64), o = make4(INTFA_FLOAT32, 2, 4, 30, 64);
  array whole = make4(INTFA_FLOAT32, 2, 4, 30, 64), sums = make3(INTFA_FLOAT32, 2, 4, 30);
  array whole_sums = make3(INTFA_FLOAT32, 2, 4, 30);
  fill(&q, 1), fill(&k, 2), fill(&v, 3);
  intfa_operands operands = {.struct_size = sizeof operands,
                             .query = view(&q),
                             .key = view(&k),
                             .value = view(&v),
                             .output = view(&whole),
                             .log_sum_exp = view(&whole_sums)};
  OK(intfa_attention(&operands, "float32", NULL, NULL));
  array parts[3], part_sums[3];
  const intfa_tensor *outputs[3], *log_sum_exps[3];
  const int64_t cuts[] = {0, 64, 64, 200};
  for (int i = 0; i < 3; ++i) {
    parts[i] = make(INTFA_FLOAT32, (layout)i, 4, o.shape);
    part_sums[i] = make(INTFA_FLOAT32, (layout)i, 3, sums.shape);
    array part_k = tokens(&k, cuts[i], cuts[i + 1]), part_v = tokens(&v, cuts[i], cuts[i + 1]);
    operands.key = view(&part_k);
    operands.value = view(&part_v);
    operands.output = outputs[i] = view(&parts[i]);
    operands.log_sum_exp = log_sum_exps[i] = view(&part_sums[i]);
    OK(intfa_attention(&operands, "float32", NULL, NULL));
  }
  OK(intfa_merge(outputs, log_sum_exps, 3, view(&o), view(&sums)));
  for (int64_t i = 0; i < count_of(&o); ++i)
    CHECK(fabs(get(&o, i) - get(&whole, i)) < 1e-5, "merged output differs at %d", (int)i);
  for (int64_t i = 0; i < count_of(&sums); ++i)
    CHECK(fabs(get(&sums, i) - get(&whole_sums, i)) < 1e-4, "merged sums differ at %d", (int)i);
  /* In place, and in another element type. */
  OK(intfa_merge(outputs, log_sum_exps, 3, outputs[0], log_sum_exps[0]));
  CHECK(same(&o, &parts[0]) && same(&sums, &part_sums[0]), "merging in place differs");
  array half = make(INTFA_BFLOAT16, REVERSED, 4, o.shape);
  OK(intfa_merge(outputs, log_sum_exps, 1, view(&half), view(&sums)));
  for (int64_t i = 0; i < count_of(&o); ++i)
    CHECK(fabs(get(&o, i) - get(&half, i)) <= fabs(get(&o, i)) / 256, "one part at %d", (int)i);
  OK(intfa_merge(NULL, NULL, 0, view(&o), view(&sums)));
  CHECK(get(&o, 5) == 0 && get(&sums, 5) == -INFINITY, "no parts");

  /* An error in a later part leaves everything as it was. */
  set(&part_sums[2], 7, NAN);
  set(&o, 5, 42);
  EXPECT(INTFA_NON_FINITE_INPUT, "part 2",
         intfa_merge(outputs, log_sum_exps, 3, view(&o), view(&sums)));
  CHECK(get(&o, 5) == 42, "written despite an error");
  EXPECT(INTFA_OVERLAPPING_OUTPUT, "output",
         intfa_merge(outputs, log_sum_exps, 2, view(&o),
                     &(intfa_tensor){sizeof(intfa_tensor), 1, o.memory, 3, sums.shape, NULL}));
  EXPECT(INTFA_SHAPE_MISMATCH, "outputs[0]",
         intfa_merge(&log_sum_exps[0], log_sum_exps, 1, view(&o), view(&sums)));
  EXPECT(INTFA_SHAPE_MISMATCH, "log_sum_exps[0]",
         intfa_merge(outputs, outputs, 1, view(&o), view(&sums)));
  for (int i = 0; i < 3; ++i) drop(&parts[i]), drop(&part_sums[i]);
  drop(&q), drop(&k), drop(&v), drop(&o), drop(&whole), drop(&sums), drop(&whole_sums), drop(&half);
}

void test_attention(void) {
  test_cases();
  test_defaults();
  test_blocks();
  test_merge();
}
