// attend_tiles, with each set's own packing: every row and channel of out, total and reference.
#include "comparison.h"

typedef enum { NORMAL, RISING, FALLING, SINK, EQUAL, LARGEST, SCATTERED, ZEROS, SCORES } score_kind;
typedef enum { FULL, CAUSAL, WINDOW, UNEVEN, MASKS } mask_kind;
typedef enum { INTEGERS, REALS_OVER_CODES, REALS, WEIGHTS } weight_kind;

static const char *const score_names[] = {"normal",  "rising",    "falling",   "sink",
                                          "equal",   "largest",   "scattered", "zeros"};
static const char *const mask_names[] = {"full", "causal", "window", "uneven"};
static const char *const weight_names[] = {"integers", "reals over codes", "reals"};

typedef struct {
  int32_t rows, d, dv, keys, first_tile, tile;
  score_kind scores;
  mask_kind mask;
  weight_kind weights;
  bool int4_key, int4_value, caps, has_units, has_mask, refines;
} problem;

// What all sets read: codes in token order, arrays over keys in units where a table says so. Beyond the
// last key these are NaN, which kernels may read and must not use.
typedef struct {
  int8_t *query, *key, *value, *weight;
  float *query_scale, *row_shift, *key_scale, *bias, *fold, *real_weight;
  intfa_visible visible;
  int32_t *units;
  intfa_key_mask *mask;
} operands;

typedef struct {
  float *out, *total, *reference;
  int64_t stride;
} result;

static int64_t padded(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

static int8_t code(const problem *p, generator *g) {
  if (p->scores == LARGEST) return random_below(g, 8) ? 127 : -127;
  if (p->scores == ZEROS) return 0;
  // Sometimes the largest magnitude, mostly smaller ones, as in data.
  return random_below(g, 16) ? (int8_t)(random_code(g) / 3) : random_code(g);
}

static float bias(const problem *p, int64_t j, generator *g) {
  switch (p->scores) {
    // Across a tile by more than the reference may lag behind, 60 powers of two.
    case RISING: return (float)j * 37.5f;
    case FALLING: return (float)j * -37.5f;
    case SINK: return j == 0 ? 2500.25f : random_between(g, -4, 4);
    case EQUAL: case LARGEST: case ZEROS: return 0;
    case SCATTERED: return random_below(g, 4) ? random_between(g, -8, 8) : random_between(g, -8, 8) * 65536;
    default: return random_between(g, -300, 300);
  }
}

static intfa_visible visible(const problem *p, generator *g) {
  const int32_t together = random_below(g, 3) ? 1 : 1 + random_below(g, 5);
  const int64_t offset = p->keys - p->rows / together;
  const int64_t least = random_below(g, 4) ? 0 : random_below(g, p->keys + 1);
  switch (p->mask) {
    case CAUSAL: return (intfa_visible){-1000, offset + 1, 1, least, together};
    case WINDOW: {
      int64_t left = random_below(g, p->keys + 1), right = random_below(g, 20);
      return (intfa_visible){offset - left, offset + right + 1, 1, least, together};
    }
    // The diagonal anywhere: rows that see nothing, and rows beyond the last key.
    case UNEVEN: {
      int64_t end = random_below(g, p->keys + p->rows) - p->rows + 1;
      return (intfa_visible){end - 1 - random_below(g, 40), end, 1, least, together};
    }
    default: return (intfa_visible){0, p->keys, 0, least, 1};
  }
}

// A unit more than needed, so that a table can leave one out.
static int64_t capacity(const problem *p) {
  return padded(p->keys, INTFA_PACK_UNIT) + (p->has_units ? INTFA_PACK_UNIT : 0);
}
static int64_t place(const operands *o, int64_t key) {
  const int64_t unit = key / INTFA_PACK_UNIT;
  return (o->units ? o->units[unit] : unit) * INTFA_PACK_UNIT + key % INTFA_PACK_UNIT;
}
static int32_t *make_units(const problem *p, generator *g) {
  const int32_t count = (int32_t)(capacity(p) / INTFA_PACK_UNIT);
  int32_t *units = take(sizeof(int32_t) * (size_t)count);
  for (int32_t i = 0; i < count; i++) {
    const int32_t other = random_below(g, i + 1);
    units[i] = units[other];
    units[other] = i;
  }
  return units;
}

static operands make_operands(const problem *p, generator *g) {
  const size_t keys = (size_t)p->keys, unit = (size_t)capacity(p);
  operands o = {
      .query = take((size_t)(padded(p->rows, INTFA_ROW_UNIT) * p->d)),
      .key = take(keys * (size_t)p->d),
      .value = take(keys * (size_t)p->dv),
      .weight = take(unit),
      .query_scale = take(sizeof(float) * (size_t)p->rows),
      .row_shift = take(sizeof(float) * (size_t)p->rows),
      .key_scale = take(sizeof(float) * unit),
      .bias = take(sizeof(float) * unit),
      .fold = take(sizeof(float) * unit),
      .real_weight = take(sizeof(float) * unit),
      .units = p->has_units ? make_units(p, g) : NULL,
      .mask = p->has_mask ? random_mask(g, p->rows, p->keys, 92.3f) : NULL,
  };
  for (int64_t i = 0; i < (int64_t)p->rows * p->d; i++) o.query[i] = code(p, g);
  for (int64_t i = 0; i < (int64_t)keys * p->d; i++)
    o.key[i] = p->scores == EQUAL && i >= p->d ? o.key[i - p->d] : code(p, g);
  for (int64_t i = 0; i < (int64_t)keys * p->dv; i++)
    o.value[i] = p->scores == LARGEST ? (i % p->dv % 2 ? 127 : -127) : random_code(g);
  for (int32_t r = 0; r < p->rows; r++) {
    o.query_scale[r] = random_between(g, 1, 4) * (p->scores == LARGEST ? 0x1p-20f : 0x1p-7f);
    o.row_shift[r] = random_between(g, -200, 200);
  }
  for (int64_t j = 0; j < p->keys; j++) {
    const int64_t at = place(&o, j);
    o.weight[at] = (int8_t)(p->scores == LARGEST ? 127 : 1 + random_below(g, 127));
    o.key_scale[at] = p->scores == EQUAL ? 1 : random_between(g, 0, 2);
    o.bias[at] = bias(p, j, g);
    o.fold[at] = random_between(g, -400, 0);
    o.real_weight[at] = random_between(g, 0, 127);
  }
  o.visible = visible(p, g);
  return o;
}

// The keys in two calls, as spans are: the second begins at a tile boundary.
static result attend(const problem *p, const operands *o, const intfa_cpu_kernels *kernels) {
  const int64_t rows = padded(p->rows, INTFA_ROW_UNIT), stride = padded(p->dv, INTFA_OUT_UNIT);
  result x = {
      .out = take(sizeof(float) * (size_t)(rows * stride)),
      .total = take(sizeof(float) * (size_t)rows),
      .reference = take(sizeof(float) * (size_t)rows),
      .stride = stride,
  };
  memset(x.out, 0, sizeof(float) * (size_t)(rows * stride));
  for (int64_t r = 0; r < rows; r++) x.total[r] = 0, x.reference[r] = -__builtin_inff();

  const int64_t tokens = o->units ? capacity(p) : p->keys;
  intfa_pack keys = {
      .dimension = p->d,
      .int4 = p->int4_key,
      .target = take((size_t)kernels->key_bytes(tokens, p->d, p->int4_key)),
  };
  intfa_pack values = {
      .dimension = p->dv,
      .int4 = p->int4_value,
      .target = take((size_t)kernels->value_bytes(tokens, p->dv, p->int4_value)),
  };
  // Unit by unit where a table says where they go, else in two pieces.
  const int64_t half = p->keys / 2 / INTFA_PACK_UNIT * INTFA_PACK_UNIT;
  for (int64_t first = 0, stop; first < p->keys; first = stop) {
    stop = o->units ? first + INTFA_PACK_UNIT : first < half ? half : p->keys;
    if (stop > p->keys) stop = p->keys;
    keys.begin = values.begin = place(o, first);
    keys.end = values.end = keys.begin + stop - first;
    keys.codes = o->key + first * p->d;
    values.codes = o->value + first * p->dv;
    kernels->pack_keys(&keys);
    kernels->pack_values(&values);
  }

  intfa_attend_tiles a = {
      .rows = p->rows,
      .head_dimension = p->d,
      .value_dimension = p->dv,
      .first_tile = p->first_tile,
      .tile = p->tile,
      .visible = o->visible,
      .refines = p->refines,
      .units = o->units,
      .mask = o->mask,
      .query = o->query,
      .query_scale = o->query_scale,
      .key = keys.target,
      .key_scale = o->key_scale,
      .bias = o->bias,
      .value = values.target,
      .int4_key = p->int4_key,
      .int4_value = p->int4_value,
      .weight = p->weights == INTEGERS ? o->weight : NULL,
      .real_weight = p->weights == INTEGERS ? NULL : o->real_weight,
      .sums_codes = p->weights != REALS,
      .softcap = p->caps ? 640.0f : 0,
      .row_shift = p->caps ? o->row_shift : NULL,
      .fold = p->caps ? o->fold : NULL,
      .out = x.out,
      .out_stride = stride,
      .total = x.total,
      .reference = x.reference,
      .scratch = take(INTFA_SCRATCH_BYTES),
  };
  int64_t boundary = p->first_tile;
  while (boundary + p->tile <= p->keys / 2) boundary += p->tile;
  if (boundary > p->keys) boundary = p->keys;
  for (int part = 0; part < 2; part++) {
    a.key_begin = part ? boundary : 0;
    a.key_end = part ? p->keys : boundary;
    if (a.key_begin < a.key_end) kernels->attend_tiles(&a);
  }
  return x;
}

static void compare(const problem *p, const kernel_sets *sets, generator *g) {
  begin_case("attend_tiles, %d rows, %d keys, D %d, Dv %d, tiles %d %d, %s scores, %s mask, %s%s%s%s%s%s%s",
             p->rows, p->keys, p->d, p->dv, p->first_tile, p->tile, score_names[p->scores],
             mask_names[p->mask], weight_names[p->weights], p->int4_key ? ", int4 keys" : "",
             p->int4_value ? ", int4 values" : "", p->caps ? ", softcap" : "",
             p->has_units ? ", units" : "", p->has_mask ? ", mask" : "",
             p->refines ? ", refined" : "");
  operands o = make_operands(p, g);
  result expected = attend(p, &o, sets->kernels[0]);
  for (int i = 1; i < sets->count; i++) {
    const char *name = sets->kernels[i]->name;
    result actual = attend(p, &o, sets->kernels[i]);
    compare_floats(name, "out", actual.out, expected.out, p->rows, p->dv, expected.stride);
    compare_floats(name, "total", actual.total, expected.total, p->rows, 1, 1);
    // Nothing reads the reference of a row that has seen no key.
    for (int32_t r = 0; r < p->rows; r++)
      if (expected.total[r] > 0)
        compare_floats(name, "reference", actual.reference + r, expected.reference + r, 1, 1, 1);
  }
  for (int32_t r = 0; r < p->rows; r++) {
    digest(expected.out + r * expected.stride, sizeof(float) * (size_t)p->dv);
    digest(expected.total + r, sizeof(float));
    digest(expected.reference + r, sizeof(float));
  }
  release_all();
}

#define PICK(list, i) list[(i) % (int32_t)(sizeof list / sizeof list[0])]

void compare_attend_tiles(const kernel_sets *sets) {
  static const int32_t dimensions[] = {1, 5, 16, 63, 64, 65, 80, 96, 128, 192, 256};
  static const int32_t lengths[] = {1,   2,   15,  16,  17,  31,  33,  63,  64,  65,  79,  97, 127,
                                    128, 129, 160, 191, 192, 193, 211, 256, 257, 320, 331, 449};
  static const int32_t row_counts[] = {1, 2, 3, 4, 5, 7, 8, 9, 11, 15, 16, 17, 23, 31, 37, 64};
  static const int32_t tiles[][2] = {{64, 128}, {64, 64}};
  generator g = {20250917};
  for (int32_t i = 0; i < 4 * 11 * MASKS * SCORES; i++) {
    const int32_t *tile = PICK(tiles, i / 3);
    problem p = {
        .rows = PICK(row_counts, random_below(&g, 16)),
        .d = PICK(dimensions, i),
        .dv = PICK(dimensions, random_below(&g, 11)),
        .keys = PICK(lengths, i),
        .first_tile = tile[0],
        .tile = tile[1],
        .scores = (score_kind)(i / 11 / MASKS % SCORES),
        .mask = (mask_kind)(i / 11 % MASKS),
        .weights = (weight_kind)random_below(&g, WEIGHTS),
        .int4_key = random_below(&g, 6) == 0,
        .int4_value = random_below(&g, 6) == 0,
        .caps = random_below(&g, 4) == 0,
        .has_units = random_below(&g, 3) == 0,
        .has_mask = random_below(&g, 4) == 0,
        .refines = random_below(&g, 3) > 0,
    };
    compare(&p, sets, &g);
  }
}
