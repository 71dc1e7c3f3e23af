// attend_running, with each set's own packing. Sums of floats may be taken in another order, and then P
// may round to a neighbour: out is held against a bound of that size, in proportion to what was summed.
#include <math.h>

#include "comparison.h"

typedef struct {
  const char *name;
  intfa_running_formats formats;
  float step;  // of P at 1
} recipe;

static const recipe recipes[] = {
    {"float32", {INTFA_FLOAT32, INTFA_FLOAT32, INTFA_P_FLOAT32}, 0x1p-23f},
    {"float16", {INTFA_FLOAT16, INTFA_FLOAT16, INTFA_P_FLOAT16}, 0x1p-10f},
    {"bfloat16", {INTFA_BFLOAT16, INTFA_BFLOAT16, INTFA_P_BFLOAT16}, 0x1p-7f},
    {"float8", {INTFA_FLOAT8, INTFA_FLOAT8, INTFA_P_FLOAT8}, 0x1p-3f},
    {"int8 scores, bfloat16", {INTFA_INT8, INTFA_BFLOAT16, INTFA_P_BFLOAT16}, 0x1p-7f},
    {"int8 scores, float16", {INTFA_INT8, INTFA_FLOAT16, INTFA_P_FLOAT16}, 0x1p-10f},
    {"int8", {INTFA_INT8, INTFA_INT8, INTFA_P_INT8}, 1.0f / 127},
};

typedef struct {
  const recipe *recipe;
  int32_t rows, d, dv, keys, tile;
  intfa_format storage;
  bool caps, is_causal, has_bias, has_mask;
} problem;

// A caller's tensor with rows that lie apart.
typedef struct {
  intfa_rows rows;
  int8_t *codes;
} operand;

static int64_t padded(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

// Values that every storage format holds: eighths, at most 4.
static operand make_operand(int64_t count, int32_t dimension, intfa_format storage, generator *g) {
  const int64_t stride = dimension + 3;
  const size_t bytes = storage == INTFA_FLOAT32 ? 4 : 2;
  operand o = {.codes = take((size_t)(count * dimension))};
  uint8_t *base = take((size_t)((count - 1) * stride + dimension) * bytes);
  o.rows = (intfa_rows){base, stride, storage};
  for (int64_t i = 0; i < count; i++)
    for (int32_t c = 0; c < dimension; c++) {
      int32_t eighths = random_below(g, 65) - 32;
      float x = (float)eighths / 8;
      uint32_t bits;
      memcpy(&bits, &x, sizeof bits);
      uint16_t half = (uint16_t)(bits >> 16);
      if (storage == INTFA_FLOAT16 && eighths != 0)
        half = (uint16_t)((bits >> 16 & 0x8000) | ((bits >> 13 & 0x3FFFF) - (112 << 10)));
      memcpy(base + (size_t)(i * stride + c) * bytes, bytes == 4 ? (void *)&x : (void *)&half, bytes);
      o.codes[i * dimension + c] = random_code(g);
    }
  return o;
}

typedef struct {
  operand query, key, value;
  float *query_scale, *row_shift, *key_scale, *bias;
  intfa_visible visible;
  intfa_key_mask *mask;
} operands;

static operands make_operands(const problem *p, generator *g) {
  const size_t keys = (size_t)padded(p->keys, INTFA_PACK_UNIT);
  operands o = {
      .query = make_operand(p->rows, p->d, p->storage, g),
      .key = make_operand(p->keys, p->d, p->storage, g),
      .value = make_operand(p->keys, p->dv, p->storage, g),
      .query_scale = take(sizeof(float) * (size_t)p->rows),
      .row_shift = take(sizeof(float) * (size_t)p->rows),
      .key_scale = take(sizeof(float) * keys),
      .bias = take(sizeof(float) * keys),
  };
  const bool has_codes = p->recipe->formats.score == INTFA_INT8;
  for (int32_t r = 0; r < p->rows; r++) {
    o.query_scale[r] = random_between(g, 1, 4) * (has_codes ? 0x1p-14f : 0x1p-4f);
    o.row_shift[r] = random_between(g, -4, 4);
  }
  for (int32_t j = 0; j < p->keys; j++) {
    o.key_scale[j] = random_between(g, 0, 2);
    o.bias[j] = random_between(g, -8, 8);
  }
  int64_t end = random_below(g, p->keys + p->rows) - p->rows + 1;
  o.visible = p->is_causal ? (intfa_visible){end - 1 - random_below(g, 150), end, 1, 0, 1}
                           : (intfa_visible){0, p->keys, 0, 0, 1};
  if (p->has_mask) o.mask = random_mask(g, p->rows, p->keys, 1.4427f);
  return o;
}

typedef struct {
  float *out, *total, *reference;
  int64_t stride;
} result;

static result attend(const problem *p, const operands *o, const intfa_cpu_kernels *kernels) {
  const int64_t rows = padded(p->rows, INTFA_ROW_UNIT), stride = padded(p->dv, INTFA_OUT_UNIT);
  const intfa_running_formats formats = p->recipe->formats;
  result x = {
      .out = take(sizeof(float) * (size_t)(rows * stride)),
      .total = take(sizeof(float) * (size_t)rows),
      .reference = take(sizeof(float) * (size_t)rows),
      .stride = stride,
  };
  memset(x.out, 0, sizeof(float) * (size_t)(rows * stride));
  for (int64_t r = 0; r < rows; r++) x.total[r] = 0, x.reference[r] = -1e30f;

  intfa_pack_running keys = {
      .formats = formats,
      .rows = o->key.rows,
      .multiplier = 1,
      .dimension = p->d,
      .target = take((size_t)kernels->running_key_bytes(&formats, p->keys, p->d)),
  };
  intfa_pack_running values = {
      .formats = formats,
      .rows = o->value.rows,
      .multiplier = formats.value == INTFA_FLOAT8 ? 0.5f : 1,  // as in calls
      .dimension = p->dv,
      .target = take((size_t)kernels->running_value_bytes(&formats, p->keys, p->dv)),
  };
  for (int piece = 0; piece < 2; piece++) {
    int64_t middle = p->keys / 2 / INTFA_PACK_UNIT * INTFA_PACK_UNIT;
    keys.begin = values.begin = piece ? middle : 0;
    keys.end = values.end = piece ? p->keys : middle;
    keys.codes = o->key.codes + keys.begin * p->d;
    values.codes = o->value.codes + values.begin * p->dv;
    kernels->pack_running_keys(&keys);
    kernels->pack_running_values(&values);
  }

  intfa_attend_running a = {
      .rows = p->rows,
      .head_dimension = p->d,
      .value_dimension = p->dv,
      .key_end = p->keys,
      .first_tile = 64,
      .tile = p->tile,
      .visible = o->visible,
      .mask = o->mask,
      .formats = formats,
      .query_codes = o->query.codes,
      .query = o->query.rows,
      .query_multiplier = 1,
      .query_scale = o->query_scale,
      .key = keys.target,
      .key_scale = formats.score == INTFA_INT8 ? o->key_scale : NULL,
      .bias = p->has_bias && formats.score == INTFA_INT8 ? o->bias : NULL,
      .value = values.target,
      .softcap = p->caps ? 12 : 0,
      .row_shift = p->caps ? o->row_shift : NULL,
      .out = x.out,
      .out_stride = stride,
      .total = x.total,
      .reference = x.reference,
      .scratch = take(INTFA_SCRATCH_BYTES),
  };
  kernels->attend_running(&a);
  return x;
}

// Two results of one row, both sides relative to 2^reference of the portable one.
static void compare_row(const problem *p, const char *set, int32_t r, const result *actual,
                        const result *expected) {
  const float total = expected->total[r];
  if (!(total > 0)) {
    if (actual->total[r] != 0) fail("%s, total[%d] is %g of no key", set, r, (double)actual->total[r]);
    compare_floats(set, "out of a row without keys", actual->out + r * actual->stride,
                   expected->out + r * expected->stride, 1, p->dv, 1);
    return;
  }
  const intfa_probability format = p->recipe->formats.probability;
  if ((format == INTFA_P_FLOAT32 || format == INTFA_P_BFLOAT16) &&
      actual->reference[r] != rintf(actual->reference[r]))
    fail("%s, reference[%d] is %g, not a whole number", set, r, (double)actual->reference[r]);
  const float factor = exp2f(actual->reference[r] - expected->reference[r]);
  const float drift = fabsf(actual->total[r] * factor - total);
  // Sums of P before it is rounded; exponentials need no more digits than P keeps.
  if (!(drift <= (1e-4f + p->recipe->step / 8) * total))
    fail("%s, total[%d] is %g, portable has %g", set, r, (double)(actual->total[r] * factor), (double)total);
  // One key's P a step away, times the largest value, 127 levels of P in the integer product.
  const bool has_codes = p->recipe->formats.value == INTFA_INT8;
  const float largest = has_codes ? 127 * 127 : 4;
  const float bound = largest * (2 * p->recipe->step + 1e-5f * total);
  for (int32_t c = 0; c < p->dv; c++) {
    const float x = actual->out[r * actual->stride + c] * factor;
    const float y = expected->out[r * expected->stride + c];
    if (!(fabsf(x - y) <= bound))
      fail("%s, out[%d][%d] is %g, portable has %g; they may differ by %g", set, r, c, (double)x,
           (double)y, (double)bound);
  }
}

static void compare(const problem *p, const kernel_sets *sets, generator *g) {
  begin_case("attend_running, %s, %d rows, %d keys, D %d, Dv %d, tiles 64 %d, storage %d, %s mask%s%s%s",
             p->recipe->name, p->rows, p->keys, p->d, p->dv, p->tile, (int)p->storage,
             p->is_causal ? "causal" : "full", p->caps ? ", softcap" : "", p->has_bias ? ", bias" : "",
             p->has_mask ? ", mask" : "");
  operands o = make_operands(p, g);
  result expected = attend(p, &o, sets->kernels[0]);
  for (int i = 1; i < sets->count; i++) {
    result actual = attend(p, &o, sets->kernels[i]);
    for (int32_t r = 0; r < p->rows; r++)
      compare_row(p, sets->kernels[i]->name, r, &actual, &expected);
  }
  release_all();
}

#define PICK(list, i) list[(i) % (int32_t)(sizeof list / sizeof list[0])]

void compare_attend_running(const kernel_sets *sets) {
  static const int32_t dimensions[] = {1, 5, 16, 63, 64, 65, 80, 96, 128, 192, 256};
  static const int32_t lengths[] = {1, 7, 8, 33, 63, 64, 65, 127, 129, 191, 193, 257, 331};
  static const int32_t row_counts[] = {1, 2, 3, 8, 9, 16, 31};
  generator g = {20250918};
  for (int32_t i = 0; i < 7 * 11 * 4; i++) {
    problem p = {
        .recipe = &recipes[i % 7],
        .rows = PICK(row_counts, random_below(&g, 7)),
        .d = PICK(dimensions, i),
        .dv = PICK(dimensions, random_below(&g, 11)),
        .keys = PICK(lengths, i),
        .tile = random_below(&g, 2) ? 64 : 128,
        .storage = (intfa_format)random_below(&g, 3),
        .caps = random_below(&g, 4) == 0,
        .is_causal = random_below(&g, 2) == 0,
        .has_bias = random_below(&g, 2) == 0,
        .has_mask = random_below(&g, 3) == 0,
    };
    compare(&p, sets, &g);
  }
}
