/* Caches: chunks, forks, truncation and packed calls give the bits of one prefill. */
#include <math.h>

#include "test.h"

enum { HEADS = 4, KV_HEADS = 2, D = 64, LENGTH = 300 };

static array keys, values, queries;

static void append(intfa_kv_cache *cache, int64_t begin, int64_t end) {
  array k = tokens(&keys, begin, end), v = tokens(&values, begin, end);
  OK(intfa_kv_cache_append(cache, view(&k), view(&v)));
}

/* Attention of the last queries of one sequence of `count` tokens. */
static array run(intfa_kv_pool *pool, intfa_kv_cache *cache, int64_t count, int64_t rows,
                 array *sums) {
  array q = tokens(&queries, count - rows, count), o = make3(INTFA_FLOAT32, HEADS, rows, D);
  intfa_kv_operands operands = {.struct_size = sizeof operands,
                                .query = view(&q),
                                .output = view(&o),
                                .log_sum_exp = sums ? view(sums) : NULL,
                                .caches = (const intfa_kv_cache *const *)&cache,
                                .cache_count = 1};
  OK(intfa_kv_cache_run(pool, &operands, NULL));
  return o;
}

static int64_t free_pages(const intfa_kv_pool *pool) {
  intfa_kv_pool_information information = {.struct_size = sizeof information};
  OK(intfa_kv_pool_get_information(pool, &information));
  return information.free_page_count;
}

static void test_one(const char *precision, double bound) {
  intfa_kv_pool *pool = make_pool(precision, KV_HEADS, D, 2048);
  int64_t all = free_pages(pool), count = 0;
  intfa_kv_cache *whole = NULL, *cache = NULL, *fork = NULL;
  OK(intfa_kv_cache_create(pool, &whole));
  append(whole, 0, LENGTH);
  array sums = make(INTFA_FLOAT32, ROW_MAJOR, 2, (int64_t[]){HEADS, LENGTH});
  array expected = run(pool, whole, LENGTH, LENGTH, &sums);

  double *exact = malloc(sizeof(double) * HEADS * LENGTH * D);
  double *exact_sums = malloc(sizeof(double) * HEADS * LENGTH);
  array q = make4(INTFA_FLOAT32, 1, HEADS, LENGTH, D),
        k = make4(INTFA_FLOAT32, 1, KV_HEADS, LENGTH, D);
  array v = make4(INTFA_FLOAT32, 1, KV_HEADS, LENGTH, D);
  for (int64_t i = 0; i < count_of(&q); ++i) set(&q, i, get(&queries, i));
  for (int64_t i = 0; i < count_of(&k); ++i) set(&k, i, get(&keys, i)), set(&v, i, get(&values, i));
  intfa_options causal = {.struct_size = sizeof causal, .mask = INTFA_MASK_CAUSAL};
  naive(&q, &k, &v, NULL, NULL, NULL, &causal, exact, exact_sums);
  CHECK(relative_error(&expected, exact) < bound, "%s: %g", precision,
        relative_error(&expected, exact));
  CHECK(relative_error(&sums, exact_sums) < bound, "%s: log-sum-exp", precision);

  array mask = make(INTFA_FLOAT32, ROW_MAJOR, 3, (int64_t[]){HEADS, LENGTH, LENGTH}),
        slopes = make(INTFA_FLOAT32, ROW_MAJOR, 1, (int64_t[]){HEADS}),
        sinks = make(INTFA_FLOAT32, ROW_MAJOR, 1, (int64_t[]){HEADS}),
        added = make3(INTFA_FLOAT32, HEADS, LENGTH, D), all_queries = tokens(&queries, 0, LENGTH);
  fill(&mask, 7), fill(&sinks, 8);
  for (int64_t i = 0; i < count_of(&mask); i += 3) set(&mask, i, -INFINITY);
  for (int64_t h = 0; h < HEADS; ++h) set(&slopes, h, 0.5 / (double)(1 << h));
  intfa_kv_operands additions = {.struct_size = sizeof additions,
                                 .query = view(&all_queries),
                                 .output = view(&added),
                                 .caches = (const intfa_kv_cache *const *)&whole,
                                 .cache_count = 1,
                                 .mask = view(&mask),
                                 .alibi_slopes = view(&slopes),
                                 .sinks = view(&sinks)};
  OK(intfa_kv_cache_run(pool, &additions, NULL));
  naive(&q, &k, &v, &mask, &slopes, &sinks, &causal, exact, exact_sums);
  CHECK(relative_error(&added, exact) < bound, "%s with additions: %g", precision,
        relative_error(&added, exact));
  mask.shape[2] = LENGTH - 1;
  EXPECT(INTFA_SHAPE_MISMATCH, "mask", intfa_kv_cache_run(pool, &additions, NULL));

  /* In chunks that end at places where every precision gives the same bits; truncated and again. */
  OK(intfa_kv_cache_create(pool, &cache));
  append(cache, 0, 64);
  append(cache, 64, 192);
  OK(intfa_kv_cache_fork(cache, &fork));
  append(fork, 192, LENGTH);
  OK(intfa_kv_cache_count(cache, &count));
  CHECK(count == 192, "count %d", (int)count);
  append(cache, 100, 200);
  OK(intfa_kv_cache_truncate(cache, 192));
  append(cache, 192, LENGTH);
  array chunks = run(pool, cache, LENGTH, LENGTH, NULL),
        forked = run(pool, fork, LENGTH, LENGTH, NULL);
  CHECK(same(&expected, &chunks), "%s: chunks give other bits", precision);
  CHECK(same(&expected, &forked), "%s: a fork gives other bits", precision);

  /* Decoding and a chunk in one call, queries packed. */
  array packed = make3(INTFA_FLOAT32, HEADS, 41, D), output = make3(INTFA_FLOAT32, HEADS, 41, D);
  for (int64_t h = 0; h < HEADS; ++h)
    for (int64_t i = 0; i < 41; ++i)
      for (int64_t c = 0; c < D; ++c)
        set(&packed, (h * 41 + i) * D + c,
            get(&queries, (h * LENGTH + (i < 40 ? LENGTH - 40 + i : LENGTH - 1)) * D + c));
  const intfa_kv_cache *caches[] = {whole, fork, whole};
  intfa_kv_operands operands = {.struct_size = sizeof operands,
                                .query = view(&packed),
                                .output = view(&output),
                                .caches = caches,
                                .cache_count = 3,
                                .offsets = (int64_t[]){0, 40, 40, 41}};
  OK(intfa_kv_cache_run(pool, &operands, NULL));
  for (int64_t h = 0; h < HEADS; ++h)
    for (int64_t i = 0; i < 41 * D; ++i) {
      int64_t row = i / D < 40 ? LENGTH - 40 + i / D : LENGTH - 1;
      double difference =
          get(&output, h * 41 * D + i) - get(&expected, (h * LENGTH + row) * D + i % D);
      CHECK(difference == 0, "%s: a packed call gives other bits", precision);
    }

  /* Handles may go in any order. */
  intfa_kv_pool_information information = {.struct_size = 16};
  OK(intfa_kv_pool_get_information(pool, &information));
  CHECK(information.page_count == all && !information.precision, "pages %d", (int)all);
  CHECK(free_pages(pool) < all, "pages are taken");
  intfa_kv_cache_destroy(cache);
  intfa_kv_cache_destroy(whole);
  array again = run(pool, fork, LENGTH, LENGTH, NULL);
  CHECK(same(&expected, &again), "%s: a fork outlives its origin", precision);
  intfa_kv_cache *last = NULL;
  OK(intfa_kv_cache_create(pool, &last));
  intfa_kv_cache_destroy(fork);
  CHECK(free_pages(pool) == all, "pages come back");
  intfa_kv_pool_destroy(pool);
  append(last, 0, 10);
  intfa_kv_cache_destroy(last);
  free(exact), free(exact_sums);
  drop(&sums), drop(&expected), drop(&chunks), drop(&forked), drop(&packed), drop(&output),
      drop(&again);
  drop(&q), drop(&k), drop(&v);
  drop(&mask), drop(&slopes), drop(&sinks), drop(&added);
}

static void test_refusals(void) {
  intfa_kv_pool *pool = make_pool(NULL, KV_HEADS, D, 128),
                *other = make_pool(NULL, KV_HEADS, D, 128);
  intfa_kv_cache *cache = NULL;
  OK(intfa_kv_cache_create(pool, &cache));
  array k = tokens(&keys, 0, 129), v = tokens(&values, 0, 129);
  EXPECT(INTFA_OUT_OF_PAGES, "pages", intfa_kv_cache_append(cache, view(&k), view(&v)));
  k = tokens(&keys, 0, 128), v = tokens(&values, 0, 127);
  EXPECT(INTFA_SHAPE_MISMATCH, "value", intfa_kv_cache_append(cache, view(&k), view(&v)));
  k = tokens(&keys, 0, 100), v = tokens(&values, 0, 100);
  OK(intfa_kv_cache_append(cache, view(&k), view(&v)));
  EXPECT(INTFA_INVALID_ARGUMENT, "count is 101", intfa_kv_cache_truncate(cache, 101));
  EXPECT(INTFA_INVALID_ARGUMENT, "count is -1", intfa_kv_cache_truncate(cache, -1));
  EXPECT(INTFA_INVALID_ARGUMENT, "count", intfa_kv_cache_truncate(cache, INT64_MIN));

  array q = tokens(&queries, 90, 100), o = make3(INTFA_FLOAT32, HEADS, 10, D);
  const intfa_kv_cache *caches[] = {cache, NULL};
  intfa_kv_operands operands = {.struct_size = sizeof operands,
                                .query = view(&q),
                                .output = view(&o),
                                .caches = caches,
                                .cache_count = 1};
  EXPECT(INTFA_INVALID_ARGUMENT, "another pool", intfa_kv_cache_run(other, &operands, NULL));
  const int64_t bad[][3] = {
      {1, 10, 0}, {0, 9, 0}, {0, -1, 0}, {0, INT64_MAX, 0}, {INT64_MIN, 10, 0}};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; ++i) {
    operands.offsets = bad[i];
    EXPECT(INTFA_INVALID_ARGUMENT, "offsets", intfa_kv_cache_run(pool, &operands, NULL));
  }
  operands.offsets = (int64_t[]){0, 11, 10};
  operands.cache_count = 2;
  EXPECT(INTFA_INVALID_ARGUMENT, "caches[1] is NULL", intfa_kv_cache_run(pool, &operands, NULL));
  caches[1] = cache;
  EXPECT(INTFA_INVALID_ARGUMENT, "offsets", intfa_kv_cache_run(pool, &operands, NULL));
  operands.offsets = NULL;
  EXPECT(INTFA_INVALID_ARGUMENT, "offsets is NULL", intfa_kv_cache_run(pool, &operands, NULL));
  const int64_t counts[] = {-1, INT64_MAX, INT64_MIN, (int64_t)1 << 40};
  for (int i = 0; i < 4; ++i) {
    operands.cache_count = counts[i];
    EXPECT(INTFA_INVALID_ARGUMENT, "cache_count", intfa_kv_cache_run(pool, &operands, NULL));
  }
  operands.cache_count = 0;
  operands.caches = NULL;
  EXPECT(INTFA_INVALID_ARGUMENT, "offsets", intfa_kv_cache_run(pool, &operands, NULL));
  operands.caches = caches;
  operands.cache_count = 1;
  operands.output = operands.query;
  EXPECT(INTFA_OVERLAPPING_OUTPUT, "query", intfa_kv_cache_run(pool, &operands, NULL));
  operands.output = view(&o);
  array sums = make3(INTFA_FLOAT32, 1, HEADS, 10);
  operands.log_sum_exp = view(&sums);
  EXPECT(INTFA_SHAPE_MISMATCH, "logSumExp", intfa_kv_cache_run(pool, &operands, NULL));

  intfa_kv_cache_destroy(cache);
  intfa_kv_pool_destroy(pool);
  intfa_kv_pool_destroy(other);
  drop(&o), drop(&sums);
}

/* Blocks give what a mask of the same places gives, for all queries and for the last ones. */
static void test_blocks(const char *precision) {
  const int64_t offsets[] = {0, 1, 3, 4, 4, 6, 9, 10}, visible[] = {0, 1, 0, 1, 4, 0, 3, 2, 9, 0};
  intfa_visible_blocks blocks = {.struct_size = sizeof blocks,
                                 .query_block_length = 50,
                                 .key_block_length = 64,
                                 .query_block_count = 7,
                                 .offsets = offsets,
                                 .visible = visible};
  intfa_options options = {
      .struct_size = sizeof options, .mask = INTFA_MASK_CAUSAL, .blocks = &blocks};
  array mask = make3(INTFA_BOOL, 1, LENGTH, LENGTH), all = tokens(&queries, 0, LENGTH),
        last = tokens(&queries, LENGTH - 7, LENGTH),
        masked = make3(INTFA_FLOAT32, HEADS, LENGTH, D);
  show_blocks(&mask, &blocks, LENGTH, LENGTH);
  intfa_kv_pool *pool = make_pool(precision, KV_HEADS, D, 512);
  intfa_kv_cache *cache = NULL;
  OK(intfa_kv_cache_create(pool, &cache));
  append(cache, 0, LENGTH);
  const intfa_kv_cache *handle = cache;
  intfa_kv_operands operands = {.struct_size = sizeof operands,
                                .query = view(&all),
                                .output = view(&masked),
                                .caches = &handle,
                                .cache_count = 1,
                                .mask = view(&mask)};
  OK(intfa_kv_cache_run(pool, &operands, NULL));
  array output = attend(pool, cache, &all, &options, NULL),
        end = attend(pool, cache, &last, &options, NULL),
        part = tokens(&output, LENGTH - 7, LENGTH);
  for (int64_t i = 0; i < count_of(&output); ++i)
    CHECK(fabs(get(&output, i) - get(&masked, i)) < 1e-5, "%s: blocks differ from the mask at %d",
          precision, (int)i);
  CHECK(same(&end, &part), "%s: the last queries give other bits", precision);

  if (precision && !strcmp(precision, "float32")) {
    array uncached = make3(INTFA_FLOAT32, HEADS, LENGTH, D);
    intfa_operands plain = {.struct_size = sizeof plain,
                            .query = view(&all),
                            .key = view(&keys),
                            .value = view(&values),
                            .output = view(&uncached)};
    const int64_t few[] = {0, 1, 3, 4, 4, 6, 8}, present[] = {0, 1, 0, 1, 4, 0, 3, 2};
    blocks = (intfa_visible_blocks){sizeof blocks, 0, 50, 64, 6, few, present};
    OK(intfa_attention(&plain, precision, &options, NULL));
    for (int64_t i = 0; i < count_of(&output); ++i)
      CHECK(fabs(get(&output, i) - get(&uncached, i)) < 1e-5, "a cache differs at %d", (int)i);
    drop(&uncached);
  }
  intfa_kv_cache_destroy(cache);
  intfa_kv_pool_destroy(pool);
  drop(&mask), drop(&masked), drop(&output), drop(&end);
}

static void test_block_refusals(void) {
  intfa_kv_pool *pool = make_pool(NULL, KV_HEADS, D, 128);
  intfa_kv_cache *cache = NULL;
  OK(intfa_kv_cache_create(pool, &cache));
  append(cache, 0, 20);
  array q = tokens(&queries, 10, 20), o = make3(INTFA_FLOAT32, HEADS, 10, D);
  const intfa_kv_cache *handle = cache;
  intfa_kv_operands operands = {.struct_size = sizeof operands,
                                .query = view(&q),
                                .output = view(&o),
                                .caches = &handle,
                                .cache_count = 1};
  const int64_t offsets[] = {0, 1, 2, 3, 3}, backwards[] = {0, 2, 1, 3, 4},
                far[] = {0, INT64_MAX, INT64_MIN, 1, 2}, high[] = {0, 1, 2, 3, INT64_MAX},
                late[] = {1, 2, 3, 4, 5}, away[] = {0, 1, 2, 3, (int64_t)1 << 60},
                visible[] = {0, 1, 2, 0}, huge[] = {0, 0, INT64_MAX, INT64_MAX},
                negative[] = {0, 0, INT64_MIN, -1};
  intfa_visible_blocks blocks[] = {
      {0, 0, 0, 8, 4, offsets, visible},
      {0, 0, -5, 8, 4, offsets, visible},
      {0, 0, 5, 0, 4, offsets, visible},
      {0, 0, INT64_MAX, 8, 4, offsets, visible},
      {0, 0, 5, INT64_MIN, 4, offsets, visible},
      {0, 0, 5, 8, 3, offsets, visible},
      {0, 0, 5, 8, 0, offsets, visible},
      {0, 0, 5, 8, INT64_MIN, offsets, visible},
      {0, 0, 5, 8, 4, NULL, visible},
      {0, 0, 5, 8, 4, offsets, NULL},
      {0, 0, 5, 8, 4, backwards, visible},
      {0, 0, 5, 8, 4, far, visible},
      {0, 0, 5, 8, 4, high, visible},
      {0, 0, 5, 8, 4, away, visible},
      {0, 0, 5, 8, 4, late, visible},
      {0, 0, 5, 8, 4, offsets, huge},
      {0, 0, 5, 8, 4, offsets, negative},
  };
  intfa_options options = {.struct_size = sizeof options};
  for (size_t i = 0; i < sizeof blocks / sizeof *blocks; ++i) {
    options.blocks = &blocks[i];
    EXPECT(INTFA_INVALID_ARGUMENT, "blocks: struct_size",
           intfa_kv_cache_run(pool, &operands, &options));
    blocks[i].struct_size = sizeof *blocks;
    intfa_status status = intfa_kv_cache_run(pool, &operands, &options);
    CHECK((status == INTFA_INVALID_ARGUMENT || status == INTFA_SHAPE_MISMATCH) &&
              strstr(intfa_last_error(), "blocks"),
          "blocks %d: %s", (int)i, intfa_status_name(status));
  }
  /* Only the lists of the call's queries are read, and no more lists than there are tokens. */
  intfa_visible_blocks partly = {
      sizeof partly, 0, 5, 8, INT64_MAX, offsets, (int64_t[]){INT64_MAX, INT64_MIN, 2}};
  options.blocks = &partly;
  OK(intfa_kv_cache_run(pool, &operands, &options));
  array many = tokens(&queries, 0, 21), output = make3(INTFA_FLOAT32, HEADS, 21, D);
  operands.query = view(&many), operands.output = view(&output);
  EXPECT(INTFA_SHAPE_MISMATCH, "blocks", intfa_kv_cache_run(pool, &operands, &options));
  intfa_kv_cache_destroy(cache);
  intfa_kv_pool_destroy(pool);
  drop(&o), drop(&output);
}

static void test_pool_shapes(void) {
  static const int64_t bad[][5] = {
      {0, 64, 64, 64, 64},
      {-1, 64, 64, 64, 64},
      {2, 0, 64, 64, 64},
      {2, 257, 64, 64, 64},
      {2, 64, 0, 64, 64},
      {2, 64, INT64_MAX, 64, 64},
      {2, 64, 64, 0, 64},
      {2, 64, 64, -64, 64},
      {2, 64, 64, INT64_MAX, 64},
      {2, 64, 64, 64, 0},
      {2, 64, 64, 64, 63},
      {2, 64, 64, 64, INT64_MAX - 63},
      {2, 64, 64, 64, INT64_MIN},
      {INT64_MAX, 64, 64, 64, 64},
      {INT64_MAX, 1, 1, 1, 64},
      {(int64_t)1 << 50, 1, 1, 1, 64},
      {(int64_t)1 << 40, 1, 1, 1, 1 << 30},
      {(int64_t)1 << 33, 256, 256, 1 << 20, 64},
      {(int64_t)1 << 26, 256, 256, 1 << 22, 64},
  };
  for (size_t i = 0; i < sizeof bad / sizeof *bad; ++i) {
    intfa_kv_pool_shape shape = {sizeof shape, 0,         bad[i][0], bad[i][1],
                                 bad[i][2],    bad[i][3], bad[i][4]};
    static const char *const precisions[] = {"int8", "int4KeyValue", "float32"};
    for (int p = 0; p < 3; ++p) {
      intfa_kv_pool *pool = NULL;
      intfa_status status = intfa_kv_pool_create(&shape, precisions[p], NULL, &pool);
      CHECK(status == INTFA_INVALID_ARGUMENT || status == INTFA_OUT_OF_MEMORY, "pool %d: %s",
            (int)i, intfa_status_name(status));
      CHECK(!pool, "a pool despite an error");
    }
  }
}

void test_caches(void) {
  keys = make3(INTFA_FLOAT32, KV_HEADS, LENGTH, D);
  values = make3(INTFA_FLOAT32, KV_HEADS, LENGTH, D);
  queries = make3(INTFA_FLOAT32, HEADS, LENGTH, D);
  fill(&keys, 1), fill(&values, 2), fill(&queries, 3);
  test_one(NULL, 3e-2);
  test_one("int4", 1e-1);
  test_one("int4KeyValue", 2e-1);
  test_one("bfloat16", 1e-2);
  test_one("float32", 2e-6);
  static const char *const precisions[] = {NULL, "int4", "int4KeyValue", "bfloat16", "float32"};
  for (int i = 0; i < 5; ++i) test_blocks(precisions[i]);
  test_block_refusals();
  test_refusals();
  test_pool_shapes();
  drop(&keys), drop(&values), drop(&queries);
}
