/* Rotary embeddings: against the formula, and fused into caches against turned rows. */
#include <math.h>

#include "test.h"

enum { HEADS = 4, KV_HEADS = 2, D = 64, R = 48, LENGTH = 200, POSITIONS = 300 };

static intfa_rotary *make_rotary(intfa_rotary_style style) {
  intfa_rotary_angles angles = {.struct_size = sizeof angles,
                                .style = style,
                                .rotary_dimension = R,
                                .position_count = POSITIONS,
                                .base = &(double){500}};
  intfa_rotary *rotary = NULL;
  OK(intfa_rotary_create(&angles, &rotary));
  return rotary;
}

static void test_formula(intfa_rotary_style style) {
  intfa_rotary *rotary = make_rotary(style), *given = NULL;
  array rows = make(INTFA_FLOAT32, TOKENS_FIRST, 3, (int64_t[]){KV_HEADS, LENGTH, D}),
        turned = make4(INTFA_FLOAT32, 1, KV_HEADS, LENGTH, D),
        again = make3(INTFA_FLOAT32, KV_HEADS, LENGTH, D),
        cosines = make(INTFA_FLOAT32, ROW_MAJOR, 2, (int64_t[]){POSITIONS, R / 2}),
        sines = make(INTFA_FLOAT32, ROW_MAJOR, 2, (int64_t[]){POSITIONS, R / 2});
  fill(&rows, 1);
  OK(intfa_rotary_apply(rotary, view(&rows), 7, view(&turned)));
  for (int64_t row = 0; row < KV_HEADS * LENGTH; ++row)
    for (int64_t c = 0; c < D; ++c) {
      int64_t pair = style == INTFA_ROTARY_INTERLEAVED ? c / 2 : c % (R / 2);
      int is_first = style == INTFA_ROTARY_INTERLEAVED ? c % 2 == 0 : c < R / 2;
      int64_t step = style == INTFA_ROTARY_INTERLEAVED ? 1 : R / 2;
      double angle = (double)(7 + row % LENGTH) * pow(500, -2.0 * (double)pair / R);
      double x = get(&rows, row * D + c), expected = x;
      if (c < R && is_first)
        expected = x * cos(angle) - get(&rows, row * D + c + step) * sin(angle);
      else if (c < R)
        expected = x * cos(angle) + get(&rows, row * D + c - step) * sin(angle);
      CHECK(fabs(get(&turned, row * D + c) - expected) < 1e-5, "row %d, channel %d", (int)row,
            (int)c);
    }
  for (int64_t i = 0; i < POSITIONS * (R / 2); ++i) {
    double angle = (double)(i / (R / 2)) * pow(500, -2.0 * (double)(i % (R / 2)) / R);
    set(&cosines, i, cos(angle)), set(&sines, i, sin(angle));
  }
  intfa_rotary_angles tables = {.struct_size = sizeof tables,
                                .style = style,
                                .cosines = view(&cosines),
                                .sines = view(&sines)};
  OK(intfa_rotary_create(&tables, &given));
  OK(intfa_rotary_apply(given, view(&rows), 7, view(&again)));
  CHECK(same(&turned, &again), "tables give other bits");
  /* In place. */
  OK(intfa_rotary_apply(rotary, view(&rows), 7, view(&rows)));
  CHECK(same(&turned, &rows), "in place other bits");
  intfa_rotary_destroy(rotary);
  intfa_rotary_destroy(given);
  drop(&rows), drop(&turned), drop(&again), drop(&cosines), drop(&sines);
}

/* Keys and queries turned on the way have the bits of keys and queries turned beforehand. */
static void test_caches_turn(const char *precision, intfa_rotary_style style) {
  intfa_rotary *rotary = make_rotary(style);
  array keys = make3(INTFA_FLOAT32, KV_HEADS, LENGTH, D),
        values = make3(INTFA_FLOAT32, KV_HEADS, LENGTH, D),
        queries = make3(INTFA_FLOAT32, HEADS, LENGTH, D),
        turned_keys = make3(INTFA_FLOAT32, KV_HEADS, LENGTH, D),
        turned_queries = make3(INTFA_FLOAT32, HEADS, LENGTH, D);
  fill(&keys, 1), fill(&values, 2), fill(&queries, 3);
  OK(intfa_rotary_apply(rotary, view(&keys), 30, view(&turned_keys)));
  OK(intfa_rotary_apply(rotary, view(&queries), 30, view(&turned_queries)));
  intfa_kv_pool *pool = make_pool(precision, KV_HEADS, D, 1024);
  intfa_kv_cache *turned = NULL, *fused = NULL;
  OK(intfa_kv_cache_create(pool, &turned));
  OK(intfa_kv_cache_create(pool, &fused));
  OK(intfa_kv_cache_append(turned, view(&turned_keys), view(&values)));
  OK(intfa_kv_cache_set_first_position(fused, 30));
  const int64_t cuts[] = {0, 64, 65, LENGTH};
  for (int i = 0; i < 3; ++i) {
    array k = tokens(&keys, cuts[i], cuts[i + 1]), v = tokens(&values, cuts[i], cuts[i + 1]);
    OK(intfa_kv_cache_append_rotary(fused, view(&k), view(&v), rotary));
  }
  int64_t position = 0;
  OK(intfa_kv_cache_get_first_position(fused, &position));
  CHECK(position == 30, "first position %d", (int)position);
  array expected = attend(pool, turned, &turned_queries, NULL, NULL),
        found = attend(pool, fused, &queries, NULL, rotary),
        last = tokens(&queries, LENGTH - 5, LENGTH), part = tokens(&expected, LENGTH - 5, LENGTH),
        end = attend(pool, fused, &last, NULL, rotary);
  CHECK(same(&expected, &found), "%s: other bits than turned rows", precision);
  CHECK(same(&part, &end), "%s: the last queries have other bits", precision);
  intfa_kv_cache_destroy(turned);
  intfa_kv_cache_destroy(fused);
  intfa_kv_pool_destroy(pool);
  intfa_rotary_destroy(rotary);
  drop(&keys), drop(&values), drop(&queries), drop(&turned_keys), drop(&turned_queries);
  drop(&expected), drop(&found), drop(&end);
}

static void test_angles(void) {
  static const uint32_t sizes[] = {0, 4, 7, 12, sizeof(intfa_rotary_angles) + 8, UINT32_MAX};
  const double zero = 0, minus = -3, infinity = INFINITY, nan = NAN, ten = 10;
  array table = make(INTFA_FLOAT32, ROW_MAJOR, 2, (int64_t[]){6, 2}),
        wide = make(INTFA_FLOAT32, ROW_MAJOR, 2, (int64_t[]){6, 129}),
        codes = make(INTFA_INT8, ROW_MAJOR, 2, (int64_t[]){6, 2}),
        empty = make(INTFA_FLOAT32, ROW_MAJOR, 2, (int64_t[]){0, 2}),
        deep = make3(INTFA_FLOAT32, 1, 6, 2),
        infinite = make(INTFA_FLOAT32, ROW_MAJOR, 2, table.shape),
        /* One element, seen as a table beyond all memory. */
      endless = make(INTFA_FLOAT32, ROW_MAJOR, 2, (int64_t[]){1, 1});
  set(&infinite, 3, INFINITY);
  endless.shape[0] = (int64_t)1 << 40, endless.shape[1] = 2;
  endless.strides[0] = endless.strides[1] = 0;
  struct {
    intfa_rotary_angles angles;
    intfa_status status;
    const char *text;
  } cases[] = {
      {{.style = 2, .rotary_dimension = 4, .position_count = 6},
       INTFA_INVALID_ARGUMENT,
       "style is 2"},
      {{.style = INT32_MIN, .rotary_dimension = 4}, INTFA_INVALID_ARGUMENT, "style"},
      {{.rotary_dimension = 4}, INTFA_INVALID_ARGUMENT, "positionCount is 0"},
      {{.position_count = 6}, INTFA_INVALID_ARGUMENT, "rotaryDimension is 0"},
      {{.rotary_dimension = 3, .position_count = 6},
       INTFA_INVALID_ARGUMENT,
       "rotaryDimension is 3"},
      {{.rotary_dimension = -2, .position_count = 6}, INTFA_INVALID_ARGUMENT, "rotaryDimension"},
      {{.rotary_dimension = 258, .position_count = 6}, INTFA_INVALID_ARGUMENT, "rotaryDimension"},
      {{.rotary_dimension = INT64_MAX - 1, .position_count = 6}, INTFA_INVALID_ARGUMENT, "rotary"},
      {{.rotary_dimension = 4, .position_count = -1}, INTFA_INVALID_ARGUMENT, "positionCount"},
      {{.rotary_dimension = 4, .position_count = INT64_MAX},
       INTFA_INVALID_ARGUMENT,
       "positionCount"},
      {{.rotary_dimension = 4, .position_count = 6, .base = &zero}, INTFA_INVALID_ARGUMENT, "base"},
      {{.rotary_dimension = 4, .position_count = 6, .base = &minus},
       INTFA_INVALID_ARGUMENT,
       "base"},
      {{.rotary_dimension = 4, .position_count = 6, .base = &infinity},
       INTFA_INVALID_ARGUMENT,
       "base"},
      {{.rotary_dimension = 4, .position_count = 6, .base = &nan}, INTFA_INVALID_ARGUMENT, "base"},
      {{.cosines = view(&table)}, INTFA_INVALID_ARGUMENT, "sines is NULL"},
      {{.sines = view(&table)}, INTFA_INVALID_ARGUMENT, "cosines is NULL"},
      {{.rotary_dimension = 4, .cosines = view(&table), .sines = view(&table)},
       INTFA_INVALID_ARGUMENT,
       "rotary_dimension"},
      {{.position_count = 6, .cosines = view(&table), .sines = view(&table)},
       INTFA_INVALID_ARGUMENT,
       "position_count"},
      {{.base = &ten, .cosines = view(&table), .sines = view(&table)},
       INTFA_INVALID_ARGUMENT,
       "base"},
      {{.cosines = view(&table), .sines = view(&wide)}, INTFA_SHAPE_MISMATCH, "sines"},
      {{.cosines = view(&wide), .sines = view(&wide)}, INTFA_INVALID_ARGUMENT, "129 pairs"},
      {{.cosines = view(&deep), .sines = view(&deep)}, INTFA_SHAPE_MISMATCH, "cosines"},
      {{.cosines = view(&empty), .sines = view(&empty)}, INTFA_INVALID_ARGUMENT, "positionCount"},
      {{.cosines = view(&endless), .sines = view(&endless)},
       INTFA_INVALID_ARGUMENT,
       "positionCount"},
      {{.cosines = view(&table), .sines = view(&codes)}, INTFA_UNSUPPORTED_ELEMENT_TYPE, "sines"},
      {{.cosines = view(&table), .sines = view(&infinite)}, INTFA_NON_FINITE_INPUT, "sines"},
  };
  intfa_rotary *rotary = NULL;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
    cases[i].angles.struct_size = sizeof(intfa_rotary_angles);
    EXPECT(cases[i].status, cases[i].text, intfa_rotary_create(&cases[i].angles, &rotary));
  }
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; ++i) {
    intfa_rotary_angles angles = {.struct_size = sizes[i]};
    EXPECT(INTFA_INVALID_ARGUMENT, "angles: struct_size", intfa_rotary_create(&angles, &rotary));
  }
  EXPECT(INTFA_INVALID_ARGUMENT, "angles is NULL", intfa_rotary_create(NULL, &rotary));
  EXPECT(INTFA_INVALID_ARGUMENT, "rotary is NULL", intfa_rotary_create(&cases[0].angles, NULL));
  CHECK(!rotary, "an embedding despite an error");
  drop(&table), drop(&wide), drop(&codes), drop(&empty), drop(&deep), drop(&infinite);
  drop(&endless);
}

static void test_refusals(void) {
  intfa_rotary *rotary = make_rotary(INTFA_ROTARY_HALF_SPLIT);
  array k = make3(INTFA_FLOAT32, KV_HEADS, 10, D),
        narrow = make3(INTFA_FLOAT32, KV_HEADS, 10, R - 2),
        codes = make3(INTFA_INT8, KV_HEADS, 10, D), o = make3(INTFA_FLOAT32, KV_HEADS, 10, D);
  const intfa_tensor *key = view(&k), *output = view(&o);
  EXPECT(INTFA_INVALID_ARGUMENT, "rotary is NULL", intfa_rotary_apply(NULL, key, 0, output));
  EXPECT(INTFA_INVALID_ARGUMENT, "rows is NULL", intfa_rotary_apply(rotary, NULL, 0, output));
  EXPECT(INTFA_INVALID_ARGUMENT, "output is NULL", intfa_rotary_apply(rotary, key, 0, NULL));
  EXPECT(INTFA_SHAPE_MISMATCH, "output", intfa_rotary_apply(rotary, key, 0, view(&narrow)));
  EXPECT(INTFA_SHAPE_MISMATCH, "48 channels",
         intfa_rotary_apply(rotary, view(&narrow), 0, view(&narrow)));
  EXPECT(INTFA_UNSUPPORTED_ELEMENT_TYPE, "rows",
         intfa_rotary_apply(rotary, view(&codes), 0, output));
  EXPECT(INTFA_UNSUPPORTED_ELEMENT_TYPE, "output",
         intfa_rotary_apply(rotary, key, 0, view(&codes)));
  static const int64_t positions[] = {-1, POSITIONS - 9, INT64_MAX, INT64_MIN, INT32_MAX};
  for (size_t i = 0; i < sizeof positions / sizeof *positions; ++i)
    EXPECT(INTFA_INVALID_ARGUMENT, "positions",
           intfa_rotary_apply(rotary, key, positions[i], output));

  intfa_kv_pool *pool = make_pool(NULL, KV_HEADS, D, 128),
                *small = make_pool(NULL, KV_HEADS, 32, 128);
  intfa_kv_cache *cache = NULL, *few = NULL;
  OK(intfa_kv_cache_create(pool, &cache));
  OK(intfa_kv_cache_create(small, &few));
  EXPECT(INTFA_INVALID_ARGUMENT, "cache is NULL",
         intfa_kv_cache_append_rotary(NULL, key, key, rotary));
  EXPECT(INTFA_INVALID_ARGUMENT, "key is NULL",
         intfa_kv_cache_append_rotary(cache, NULL, key, rotary));
  EXPECT(INTFA_INVALID_ARGUMENT, "value is NULL",
         intfa_kv_cache_append_rotary(cache, key, NULL, rotary));
  EXPECT(INTFA_INVALID_ARGUMENT, "rotary is NULL",
         intfa_kv_cache_append_rotary(cache, key, key, NULL));
  EXPECT(INTFA_SHAPE_MISMATCH, "key", intfa_kv_cache_append_rotary(few, key, key, rotary));
  array thin = make3(INTFA_FLOAT32, KV_HEADS, 10, 32);
  EXPECT(INTFA_SHAPE_MISMATCH, "48 channels",
         intfa_kv_cache_append_rotary(few, view(&thin), view(&thin), rotary));
  static const int64_t firsts[] = {-1, INT64_MIN, INT64_MAX, (int64_t)INT32_MAX + 1};
  for (size_t i = 0; i < sizeof firsts / sizeof *firsts; ++i)
    EXPECT(INTFA_INVALID_ARGUMENT, "position", intfa_kv_cache_set_first_position(cache, firsts[i]));
  int64_t position = 1;
  EXPECT(INTFA_INVALID_ARGUMENT, "cache is NULL", intfa_kv_cache_set_first_position(NULL, 0));
  EXPECT(INTFA_INVALID_ARGUMENT, "cache is NULL",
         intfa_kv_cache_get_first_position(NULL, &position));
  EXPECT(INTFA_INVALID_ARGUMENT, "position is NULL",
         intfa_kv_cache_get_first_position(cache, NULL));
  OK(intfa_kv_cache_get_first_position(cache, &position));
  CHECK(position == 0, "first position %d", (int)position);

  OK(intfa_kv_cache_set_first_position(cache, POSITIONS - 9));
  EXPECT(INTFA_INVALID_ARGUMENT, "positions",
         intfa_kv_cache_append_rotary(cache, key, key, rotary));
  int64_t count = 1;
  OK(intfa_kv_cache_count(cache, &count));
  CHECK(count == 0, "tokens despite an error");
  OK(intfa_kv_cache_set_first_position(cache, 0));
  OK(intfa_kv_cache_append_rotary(cache, key, key, rotary));
  /* More queries than tokens: the first ones stand before the text. */
  array q = make3(INTFA_FLOAT32, HEADS, 11, D), r = make3(INTFA_FLOAT32, HEADS, 11, D);
  const intfa_kv_cache *handle = cache;
  intfa_kv_operands operands = {.struct_size = sizeof operands,
                                .query = view(&q),
                                .output = view(&r),
                                .caches = &handle,
                                .cache_count = 1,
                                .rotary = rotary};
  EXPECT(INTFA_INVALID_ARGUMENT, "positions", intfa_kv_cache_run(pool, &operands, NULL));
  OK(intfa_kv_cache_set_first_position(cache, INT32_MAX));
  EXPECT(INTFA_INVALID_ARGUMENT, "positions", intfa_kv_cache_run(pool, &operands, NULL));
  /* A caller that was compiled before the member was there. */
  operands.struct_size = offsetof(intfa_kv_operands, rotary);
  OK(intfa_kv_cache_run(pool, &operands, NULL));
  intfa_kv_cache_destroy(cache);
  intfa_kv_cache_destroy(few);
  intfa_kv_pool_destroy(pool);
  intfa_kv_pool_destroy(small);
  intfa_rotary_destroy(rotary);
  intfa_rotary_destroy(NULL);
  drop(&k), drop(&narrow), drop(&codes), drop(&o), drop(&thin), drop(&q), drop(&r);
}

void test_rotary(void) {
  test_formula(INTFA_ROTARY_HALF_SPLIT);
  test_formula(INTFA_ROTARY_INTERLEAVED);
  static const char *const precisions[] = {NULL, "int4KeyValue", "bfloat16", "float32"};
  for (int i = 0; i < 4; ++i) {
    test_caches_turn(precisions[i], INTFA_ROTARY_HALF_SPLIT);
    test_caches_turn(precisions[i], INTFA_ROTARY_INTERLEAVED);
  }
  test_angles();
  test_refusals();
}
