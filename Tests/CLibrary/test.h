/* What the tests of the C library share: checks, tensors in several layouts, plain attention. */
#ifndef TEST_H
#define TEST_H

#include <int_flash_attention.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern int failures;

#define CHECK(condition, ...)                                \
  do {                                                       \
    if (!(condition)) {                                      \
      ++failures;                                            \
      printf("%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      printf(__VA_ARGS__);                                   \
      printf("\n");                                          \
    }                                                        \
  } while (0)

/* The call gives this status; its message, unless it is INTFA_OK, contains this text. */
#define EXPECT(expected, text, call) expect(__FILE__, __LINE__, #call, expected, text, call)
#define OK(call) EXPECT(INTFA_OK, "", call)
void expect(const char *file, int line, const char *what, intfa_status expected, const char *text,
            intfa_status status);

typedef enum { ROW_MAJOR, TOKENS_FIRST, REVERSED, GAPS } layout;

/* A tensor with memory of exactly its elements. */
typedef struct {
  intfa_tensor tensor;
  int64_t shape[4], strides[4];
  void *memory;
} array;

/* rank sizes; zeros. Layouts other than ROW_MAJOR: heads and tokens swapped, tokens backwards,
   unused elements after each row. */
array make(intfa_element_type type, layout layout, int64_t rank, const int64_t *shape);
/* Four, three and two sizes, row-major without gaps. */
array make4(intfa_element_type type, int64_t a, int64_t b, int64_t c, int64_t d);
array make3(intfa_element_type type, int64_t a, int64_t b, int64_t c);
void drop(array *a);
/* The array as an argument; valid as long as it stays where it is. */
const intfa_tensor *view(array *a);

/* Elements by row-major index; values are rounded to the type. */
double get(const array *a, int64_t index);
void set(array *a, int64_t index, double value);
int64_t count_of(const array *a);
/* Normally distributed values, the same for a seed. */
void fill(array *a, uint64_t seed);
/* Whether two arrays of the same shape have the same bits. */
int same(const array *a, const array *b);

/* Sets the elements of a boolean mask [..., rows, keys] that blocks show. */
void show_blocks(array *mask, const intfa_visible_blocks *blocks, int64_t rows, int64_t keys);

/* Tokens begin to end - 1 of [H, N, D], in the same memory. */
array tokens(const array *a, int64_t begin, int64_t end);

/* Attention in double precision, from the operands of a call, which all have four dimensions but
   log_sum_exp with three and slopes and sinks with one; the mask has all of its dimensions. */
void naive(const array *query, const array *key, const array *value, const array *mask,
           const array *slopes, const array *sinks, const intfa_options *options, double *output,
           double *log_sum_exp);

/* A pool of pages of 64 tokens, for keys and values of d channels. */
intfa_kv_pool *make_pool(const char *precision, int64_t kv_heads, int64_t d, int64_t capacity);
/* Attention of queries [Hq, n, D] that are the last tokens of a cache: [Hq, n, D]. */
array attend(const intfa_kv_pool *pool, const intfa_kv_cache *cache, array *queries,
             const intfa_options *options, const intfa_rotary *rotary);

/* Sum of the differences over sum of the magnitudes. */
double relative_error(const array *a, const double *exact);

void test_errors(void);
void test_attention(void);
void test_caches(void);
void test_rotary(void);
void test_snapshots(void);
void test_quantization(void);
void test_gpu(void);
void test_threads(void);

#endif
