/* Caches in files: what is loaded has the bits of what was saved; damaged files give a status. */
#define _POSIX_C_SOURCE 200809L
#include <unistd.h>

#include "test.h"

enum { HEADS = 4, KV_HEADS = 2, D = 32, SAVED = 150, LENGTH = 200 };

static char folder[] = "/tmp/intfa-snapshots-XXXXXX", path[64];
static array keys, values, queries;

static void append(intfa_kv_cache *cache, int64_t begin, int64_t end) {
  array k = tokens(&keys, begin, end), v = tokens(&values, begin, end);
  OK(intfa_kv_cache_append(cache, view(&k), view(&v)));
}

static int64_t free_pages(const intfa_kv_pool *pool) {
  intfa_kv_pool_information information = {.struct_size = sizeof information};
  OK(intfa_kv_pool_get_information(pool, &information));
  return information.free_page_count;
}

static void test_round_trip(const char *precision) {
  intfa_kv_pool *pool = make_pool(precision, KV_HEADS, D, 512),
                *other = make_pool(precision, KV_HEADS, D, 512);
  intfa_kv_cache *cache = NULL, *loaded = NULL;
  OK(intfa_kv_cache_create(pool, &cache));
  append(cache, 0, SAVED);
  OK(intfa_kv_cache_set_first_position(cache, 17));
  OK(intfa_kv_cache_save(cache, path));
  OK(intfa_kv_cache_load(other, path, &loaded));
  int64_t count = 0, position = 0;
  OK(intfa_kv_cache_count(loaded, &count));
  OK(intfa_kv_cache_get_first_position(loaded, &position));
  CHECK(count == SAVED && position == 17, "%s: %d tokens from %d on", precision, (int)count,
        (int)position);
  for (int64_t end = SAVED; end <= LENGTH; end += LENGTH - SAVED) {
    if (end > SAVED) append(cache, SAVED, end), append(loaded, SAVED, end);
    array q = tokens(&queries, 0, end), a = attend(pool, cache, &q, NULL, NULL),
          b = attend(other, loaded, &q, NULL, NULL);
    CHECK(same(&a, &b), "%s: other bits after %d tokens", precision, (int)end);
    drop(&a), drop(&b);
  }
  intfa_kv_cache_destroy(cache);
  intfa_kv_cache_destroy(loaded);
  intfa_kv_pool_destroy(pool);
  intfa_kv_pool_destroy(other);
}

static void test_refusals(void) {
  intfa_kv_pool *pool = make_pool(NULL, KV_HEADS, D, 512),
                *small = make_pool(NULL, KV_HEADS, D, 128),
                *wide = make_pool(NULL, KV_HEADS, 2 * D, 512),
                *other = make_pool("int4", KV_HEADS, D, 512);
  intfa_kv_cache *cache = NULL, *loaded = NULL;
  OK(intfa_kv_cache_create(pool, &cache));
  append(cache, 0, SAVED);
  OK(intfa_kv_cache_save(cache, path));
  EXPECT(INTFA_INVALID_ARGUMENT, "cache is NULL", intfa_kv_cache_save(NULL, path));
  EXPECT(INTFA_INVALID_ARGUMENT, "path is NULL", intfa_kv_cache_save(cache, NULL));
  EXPECT(INTFA_INVALID_ARGUMENT, "path is not UTF-8", intfa_kv_cache_save(cache, "/tmp/\xff\xfe"));
  EXPECT(INTFA_FILE_FAILURE, "cannot write", intfa_kv_cache_save(cache, ""));
  EXPECT(INTFA_FILE_FAILURE, "cannot write", intfa_kv_cache_save(cache, folder));
  EXPECT(INTFA_FILE_FAILURE, "cannot write", intfa_kv_cache_save(cache, "/nowhere/at/all"));
  EXPECT(INTFA_INVALID_ARGUMENT, "pool is NULL", intfa_kv_cache_load(NULL, path, &loaded));
  EXPECT(INTFA_INVALID_ARGUMENT, "path is NULL", intfa_kv_cache_load(pool, NULL, &loaded));
  EXPECT(INTFA_INVALID_ARGUMENT, "cache is NULL", intfa_kv_cache_load(pool, path, NULL));
  EXPECT(INTFA_INVALID_ARGUMENT, "path is not UTF-8",
         intfa_kv_cache_load(pool, "/tmp/\xff\xfe", &loaded));
  EXPECT(INTFA_FILE_FAILURE, "cannot open", intfa_kv_cache_load(pool, "", &loaded));
  EXPECT(INTFA_FILE_FAILURE, "cannot", intfa_kv_cache_load(pool, folder, &loaded));
  EXPECT(INTFA_FILE_FAILURE, "cannot open", intfa_kv_cache_load(pool, "/nowhere/at/all", &loaded));
  EXPECT(INTFA_SHAPE_MISMATCH, "headDimension", intfa_kv_cache_load(wide, path, &loaded));
  EXPECT(INTFA_SHAPE_MISMATCH, "precision", intfa_kv_cache_load(other, path, &loaded));
  int64_t free = free_pages(small);
  EXPECT(INTFA_OUT_OF_PAGES, "pages", intfa_kv_cache_load(small, path, &loaded));
  CHECK(free_pages(small) == free, "pages are gone");
  CHECK(!loaded, "a cache despite an error");

  intfa_backend backend = {.struct_size = sizeof backend, .name = "reference"};
  intfa_kv_pool_shape shape = {sizeof shape, 0, KV_HEADS, D, D, 512, 64};
  intfa_kv_pool *reference = NULL;
  intfa_kv_cache *slow = NULL;
  OK(intfa_kv_pool_create(&shape, NULL, &backend, &reference));
  OK(intfa_kv_cache_create(reference, &slow));
  EXPECT(INTFA_UNSUPPORTED, "snapshots", intfa_kv_cache_save(slow, path));
  EXPECT(INTFA_UNSUPPORTED, "snapshots", intfa_kv_cache_load(reference, path, &loaded));
  intfa_kv_cache_destroy(slow);
  intfa_kv_cache_destroy(cache);
  intfa_kv_pool_destroy(reference);
  intfa_kv_pool_destroy(pool);
  intfa_kv_pool_destroy(small);
  intfa_kv_pool_destroy(wide);
  intfa_kv_pool_destroy(other);
}

static void write_file(const unsigned char *bytes, size_t count) {
  FILE *file = fopen(path, "wb");
  CHECK(file && fwrite(bytes, 1, count, file) == count && fclose(file) == 0, "cannot write %s",
        path);
}

/* Every byte of the header changed and some of the rest, and files that end too early. */
static void test_damage(const char *precision) {
  intfa_kv_pool *pool = make_pool(precision, KV_HEADS, D, 128);
  intfa_kv_cache *cache = NULL;
  OK(intfa_kv_cache_create(pool, &cache));
  append(cache, 0, 70);
  OK(intfa_kv_cache_save(cache, path));
  intfa_kv_cache_destroy(cache);
  static unsigned char bytes[1 << 20];
  FILE *file = fopen(path, "rb");
  size_t count = file ? fread(bytes, 1, sizeof bytes, file) : 0;
  CHECK(count > 1000 && count < sizeof bytes && fclose(file) == 0, "cannot read %s", path);
  size_t header = 8 + bytes[0] + (size_t)bytes[1] * 256;
  for (size_t length = 0; length < count; length += length < header ? 97 : 997) {
    intfa_kv_cache *loaded = NULL;
    write_file(bytes, length);
    EXPECT(INTFA_MALFORMED_FILE, path, intfa_kv_cache_load(pool, path, &loaded));
  }
  for (size_t i = 0; i < count; i += i < header ? 1 : 331) {
    unsigned char kept = bytes[i];
    bytes[i] ^= i % 2 ? 0x80 : 0x11;
    write_file(bytes, count);
    intfa_kv_cache *loaded = NULL;
    intfa_status status = intfa_kv_cache_load(pool, path, &loaded);
    CHECK((status == INTFA_OK && loaded) ||
              (!loaded && (status == INTFA_MALFORMED_FILE || status == INTFA_SHAPE_MISMATCH ||
                           status == INTFA_OUT_OF_PAGES)),
          "byte %d: %s", (int)i, intfa_status_name(status));
    if (status == INTFA_OK) {
      array q = tokens(&queries, 0, 70), o = attend(pool, loaded, &q, NULL, NULL);
      append(loaded, 70, 128);
      drop(&o);
    }
    intfa_kv_cache_destroy(loaded);
    bytes[i] = kept;
  }
  intfa_kv_pool_destroy(pool);
}

void test_snapshots(void) {
  CHECK(mkdtemp(folder), "no folder %s", folder);
  snprintf(path, sizeof path, "%s/cache.safetensors", folder);
  keys = make3(INTFA_FLOAT32, KV_HEADS, LENGTH, D);
  values = make3(INTFA_FLOAT32, KV_HEADS, LENGTH, D);
  queries = make3(INTFA_FLOAT32, HEADS, LENGTH, D);
  fill(&keys, 1), fill(&values, 2), fill(&queries, 3);
  static const char *const precisions[] = {NULL, "int4", "int4KeyValue", "bfloat16", "float32"};
  for (int i = 0; i < 5; ++i) test_round_trip(precisions[i]);
  test_refusals();
  for (int i = 0; i < 5; ++i) test_damage(precisions[i]);
  drop(&keys), drop(&values), drop(&queries);
  unlink(path);
  rmdir(folder);
}
