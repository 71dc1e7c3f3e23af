// survey, load_rotary, quantize and finish: every sum, code, scale, bias and output. The log-sum-exp is left out of
// the digest, as its logarithm is the platform's own.
#include "comparison.h"

typedef struct {
  int32_t count, dimension, first;  // rows [first, count)
  intfa_format storage;
  bool rotates, flag, other;  // sums, mean, log-sum-exp; row maxima, multipliers
} problem;

static int64_t padded(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }
static const char *const storage_names[] = {"float32", "float16", "bfloat16"};

// Bits of the storage format: ordinary numbers below 4, and where wanted tiny, subnormal and large ones.
static uint32_t random_number(intfa_format storage, bool extremes, generator *g) {
  const uint32_t sign = random_bits(g) & 1, fraction = random_bits(g);
  const bool is_extreme = random_below(g, 24) == 0 && extremes;
  switch (storage) {
    case INTFA_FLOAT16: {
      uint32_t exponent = (uint32_t)(is_extreme ? random_below(g, 31) : 12 + random_below(g, 5));
      return sign << 15 | exponent << 10 | (fraction & 0x3FF);
    }
    case INTFA_BFLOAT16: {
      uint32_t exponent = (uint32_t)(is_extreme ? random_below(g, 180) : 124 + random_below(g, 5));
      return sign << 15 | exponent << 7 | (fraction & 0x7F);
    }
    default: {
      uint32_t exponent = (uint32_t)(is_extreme ? random_below(g, 180) : 124 + random_below(g, 5));
      return sign << 31 | exponent << 23 | (fraction & 0x7FFFFF);
    }
  }
}

// Rows that lie apart, as in a caller's tensor.
static intfa_rows make_rows(const problem *p, bool extremes, generator *g) {
  const int64_t stride = p->dimension + random_below(g, 3);
  const size_t bytes = p->storage == INTFA_FLOAT32 ? 4 : 2;
  uint8_t *base = take((size_t)((p->count - 1) * stride + p->dimension) * bytes);
  for (int32_t i = 0; i < p->count; i++) {
    const bool is_zero = random_below(g, 20) == 0;
    for (int32_t c = 0; c < p->dimension; c++) {
      uint32_t bits = is_zero ? 0 : random_number(p->storage, extremes, g);
      memcpy(base + (size_t)(i * stride + c) * bytes, &bits, bytes);  // little-endian
    }
  }
  return (intfa_rows){base, stride, p->storage};
}

static float *make_floats(int64_t count, float low, float high, generator *g) {
  float *x = take(sizeof(float) * (size_t)count);
  for (int64_t i = 0; i < count; i++) x[i] = random_between(g, low, high);
  return x;
}

// ---------------------------------------------------------------------------------- survey

// Sums or row maxima: no call asks for both, and sets may then leave the sums out.
static void compare_survey(const problem *p, const kernel_sets *sets, generator *g) {
  const bool has_sums = p->flag && !p->other;
  begin_case("survey, rows %d to %d, D %d, %s%s%s%s", p->first, p->count, p->dimension,
             storage_names[p->storage], has_sums ? ", sums" : "", p->other ? ", row maxima" : "",
             p->rotates ? ", rotated" : "");
  intfa_rows rows = make_rows(p, true, g);
  // Sometimes an element that is not finite, or one that reaches the limit exactly.
  float limit = 0x1p60f;
  if (p->storage == INTFA_FLOAT32) {
    const int64_t i = p->first + random_below(g, p->count - p->first);
    float *element = (float *)rows.base + i * rows.stride + random_below(g, p->dimension);
    switch (random_below(g, 12)) {
      case 0: *element = __builtin_nanf(""); break;
      case 1: *element = -__builtin_inff(); break;
      case 2: *element = -limit; break;
    }
  }
  const int64_t count = p->count - p->first;
  const int64_t blocks = (count + INTFA_SUM_BLOCK - 1) / INTFA_SUM_BLOCK;
  intfa_survey first = {0};
  for (int i = 0; i < sets->count; i++) {
    intfa_survey a = {
        .rows = rows,
        .begin = p->first,
        .end = p->count,
        .dimension = p->dimension,
        .limit = limit,
        .block_sums = has_sums ? take(sizeof(float) * (size_t)(blocks * p->dimension)) : NULL,
        .largest = take(sizeof(float)),
        .first_bad = take(sizeof(int64_t)),
        .rotates = p->rotates,
        .row_maxima = p->other ? take(sizeof(float) * (size_t)count) : NULL,
    };
    sets->kernels[i]->survey(&a);
    if (i == 0) first = a;
    const char *name = sets->kernels[i]->name;
    compare_bytes(name, "first_bad", a.first_bad, first.first_bad, sizeof(int64_t));
    if (*first.first_bad >= 0) continue;  // the call ends there; nothing else is read
    compare_floats(name, "largest", a.largest, first.largest, 1, 1, 1);
    if (has_sums)
      compare_floats(name, "block_sums", a.block_sums, first.block_sums, blocks, p->dimension, p->dimension);
    if (p->other) compare_floats(name, "row_maxima", a.row_maxima, first.row_maxima, count, 1, 1);
    if (i > 0) continue;
    digest(a.largest, sizeof(float));
    if (has_sums) digest(a.block_sums, sizeof(float) * (size_t)(blocks * p->dimension));
    if (p->other) digest(a.row_maxima, sizeof(float) * (size_t)count);
  }
  release_all();
}

// ---------------------------------------------------------------------------------- rotary

static void compare_rotary(const problem *p, const kernel_sets *sets, generator *g) {
  const int32_t pairs = random_below(g, 3) ? p->dimension / 2 : random_below(g, p->dimension / 2 + 1);
  const int64_t step = random_below(g, 2), position = random_below(g, 5);
  begin_case("rotary, rows %d to %d, D %d, %s, %d %s pairs, step %d", p->first, p->count, p->dimension,
             storage_names[p->storage], pairs, p->flag ? "interleaved" : "half-split", (int)step);
  const intfa_rows rows = make_rows(p, true, g);
  const int64_t count = p->count - p->first, positions = position + (count - 1) * step + 1;
  const float *cosines = make_floats(positions * pairs, -1, 1, g);
  const float *sines = make_floats(positions * pairs, -1, 1, g);
  intfa_load_rotary first = {0};
  for (int i = 0; i < sets->count; i++) {
    intfa_load_rotary a = {
        .rows = rows,
        .begin = p->first,
        .end = p->count,
        .dimension = p->dimension,
        .pairs = pairs,
        .interleaved = p->flag,
        .cosines = cosines,
        .sines = sines,
        .position = position,
        .step = step,
        .target = take(sizeof(float) * (size_t)(count * p->dimension)),
    };
    sets->kernels[i]->load_rotary(&a);
    if (i == 0) first = a;
    compare_floats(sets->kernels[i]->name, "rows", a.target, first.target, count, p->dimension,
                   p->dimension);
  }
  digest(first.target, sizeof(float) * (size_t)(count * p->dimension));
  release_all();
}

// ---------------------------------------------------------------------------------- quantize

static void compare_quantize(const problem *p, const kernel_sets *sets, generator *g) {
  const int32_t heads = random_below(g, 4);
  begin_case("quantize, rows %d to %d, D %d, %s%s%s%s, %d biases", p->first, p->count, p->dimension,
             storage_names[p->storage], p->flag ? ", mean" : "", p->other ? ", multipliers" : "",
             p->rotates ? ", rotated" : "", heads);
  // Multipliers are made from the largest magnitude, so that codes are never far out of range.
  intfa_rows rows = make_rows(p, !p->other, g);
  const int64_t count = p->count - p->first, mean_stride = p->dimension + 1, bias_stride = p->count + 2;
  const float *mean = p->flag ? make_floats(p->dimension, -2, 2, g) : NULL;
  const float *multipliers = p->other ? make_floats(p->count, 0, 32, g) : NULL;
  const float *means = make_floats(heads * mean_stride, -2, 2, g);
  const float *addend = random_below(g, 2) ? make_floats(p->count, -9, 9, g) : NULL;
  intfa_quantize first = {0};
  for (int i = 0; i < sets->count; i++) {
    intfa_quantize a = {
        .rows = rows,
        .begin = p->first,
        .end = p->count,
        .dimension = p->dimension,
        .rotates = p->rotates,
        .mean = mean,
        .multipliers = multipliers,
        .codes = take((size_t)(count * p->dimension)),
        .scales = p->other ? NULL : take(sizeof(float) * (size_t)count),
        .bias_count = heads,
        .bias_means = means,
        .bias_mean_stride = mean_stride,
        .bias_factor = 0.37f,
        .bias_addend = addend,
        .biases = take(sizeof(float) * (size_t)(heads * bias_stride)),
        .bias_stride = bias_stride,
    };
    sets->kernels[i]->quantize(&a);
    if (i == 0) first = a;
    const char *name = sets->kernels[i]->name;
    compare_bytes(name, "codes", a.codes, first.codes, count * p->dimension);
    if (a.scales) compare_floats(name, "scales", a.scales, first.scales, count, 1, 1);
    // Whole rows: what lies beside the rows asked for stays as it was.
    compare_bytes(name, "biases", a.biases, first.biases, heads * bias_stride * (int64_t)sizeof(float));
  }
  digest(first.codes, (size_t)(count * p->dimension));
  if (first.scales) digest(first.scales, sizeof(float) * (size_t)count);
  digest(first.biases, sizeof(float) * (size_t)(heads * bias_stride));
  release_all();
}

// ---------------------------------------------------------------------------------- finish

static void compare_finish(const problem *p, const kernel_sets *sets, generator *g) {
  const int32_t rows = p->count < INTFA_MAX_ROWS ? p->count : INTFA_MAX_ROWS;
  begin_case("finish, %d rows, Dv %d, %s%s", rows, p->dimension, storage_names[p->storage],
             p->rotates ? ", rotated" : "");
  const int64_t unit_rows = padded(rows, INTFA_ROW_UNIT), stride = padded(p->dimension, INTFA_OUT_UNIT);
  const int64_t target_stride = p->dimension + random_below(g, 3), sum_stride = 1 + random_below(g, 2);
  const size_t bytes = p->storage == INTFA_FLOAT32 ? 4 : 2;
  const size_t target_bytes = bytes * (size_t)((rows - 1) * target_stride + p->dimension);
  const size_t sum_bytes = sizeof(float) * (size_t)((rows - 1) * sum_stride + 1);
  float *given = make_floats(unit_rows * stride, -50, 50, g), *total = make_floats(unit_rows, 1, 300, g);
  const float *reference = make_floats(unit_rows, -500, 500, g);
  const float *shift = random_below(g, 2) ? make_floats(rows, -4, 4, g) : NULL;
  // Rows without keys; subnormal and overflowing halves.
  for (int32_t r = 0; r < rows; r++) {
    if (random_below(g, 9) == 0) total[r] = 0;
    if (random_below(g, 9) == 0) total[r] *= random_below(g, 2) ? 0x1p20f : 0x1p-16f;
  }
  intfa_finish first = {0};
  for (int i = 0; i < sets->count; i++) {
    float *out = take(sizeof(float) * (size_t)(unit_rows * stride));
    memcpy(out, given, sizeof(float) * (size_t)(unit_rows * stride));
    intfa_finish a = {
        .rows = rows,
        .value_dimension = p->dimension,
        .rotates = p->rotates,
        .factor = 0.71f,
        .steps = 64,
        .total_unit = 255,
        .out = out,
        .out_stride = stride,
        .total = total,
        .reference = reference,
        .row_shift = shift,
        .target = take(target_bytes),
        .target_stride = target_stride,
        .target_format = p->storage,
        .log_sum_exp = p->flag ? take(sum_bytes) : NULL,
        .log_sum_exp_stride = sum_stride,
    };
    sets->kernels[i]->finish(&a);
    if (i == 0) first = a;
    const char *name = sets->kernels[i]->name;
    compare_bytes(name, "the output", a.target, first.target, (int64_t)target_bytes);
    if (p->flag) compare_bytes(name, "log_sum_exp", a.log_sum_exp, first.log_sum_exp, (int64_t)sum_bytes);
  }
  digest(first.target, target_bytes);
  release_all();
}

#define PICK(list, i) list[(i) % (int32_t)(sizeof list / sizeof list[0])]

void compare_prepass(const kernel_sets *sets) {
  static const int32_t dimensions[] = {1, 5, 16, 24, 63, 64, 65, 80, 96, 128, 192, 240, 256};
  static const int32_t counts[] = {1, 2, 3, 4, 5, 15, 16, 17, 63, 255, 256, 257, 530};
  generator g = {20250919};
  for (int32_t i = 0; i < 13 * 32; i++) {
    problem p = {
        .count = PICK(counts, random_below(&g, 13)),
        .dimension = PICK(dimensions, i),
        .storage = (intfa_format)random_below(&g, 3),
        .rotates = i / 13 % 2,
        .flag = i / 13 / 2 % 2,
        .other = i / 13 / 4 % 2,
    };
    // Pieces begin at a block of sums.
    p.first = p.count > INTFA_SUM_BLOCK && random_below(&g, 2) ? INTFA_SUM_BLOCK : 0;
    compare_survey(&p, sets, &g);
    compare_rotary(&p, sets, &g);
    compare_quantize(&p, sets, &g);
    compare_finish(&p, sets, &g);
  }
}
