// Portable float tile loop: P relative to the running row maximum, as FlashAttention has it.
//
// Serves float32, bfloat16, float16 and float8 operands, INT8 scores with 16-bit values, and the
// paper's full INT8 (signed P with 127 levels). Per row and tile:
//   s_j = logit of key j in powers of two;  m' = max(m, max s_j);  a = 2^(m - m')
//   p_j = 2^(s_j - m'), rounded to the format of P
//   out = a out + sum p_j v_j;  total = a total + sum 2^(s_j - m')      unrounded
// Every sum runs over channels or keys in order, in float32; the paper's P.V is an integer product,
// at most 128 * 127 * 127 = 2.1e6.
#include "portable.h"

typedef struct {
  float key[INTFA_MAX_DIMENSION * INTFA_MAX_TILE];    // [channel][key of the tile]
  float value[INTFA_MAX_TILE * INTFA_MAX_DIMENSION];  // [key of the tile][channel]
} float_tile;

// Channel by channel, so that scores of neighbouring keys are neighbours.
static void load_keys(const intfa_attend_running *a, int64_t begin, int64_t end, float_tile *tile) {
  float x[INTFA_MAX_DIMENSION];
  for (int64_t j = begin; j < end; j++) {
    intfa_load_rows(&a->key, j, j + 1, a->head_dimension, a->key_multiplier, a->key_round, x);
    for (int32_t c = 0; c < a->head_dimension; c++)
      tile->key[c * INTFA_MAX_TILE + (j - begin)] = x[c];
  }
}

static void score_int8(const intfa_attend_running *a, int32_t r, int64_t begin, int32_t count,
                       float *logits) {
  const int8_t *q = a->query_codes + (int64_t)r * a->head_dimension;
  for (int32_t j = 0; j < count; j++) {
    const int8_t *k = a->key_codes + (begin + j) * a->head_dimension;
    int32_t product = 0;
    for (int32_t c = 0; c < a->head_dimension; c++) product += (int32_t)q[c] * k[c];
    logits[j] = (float)product * a->key_scale[begin + j] * a->query_scale[r];
  }
}

static void score_float(const intfa_attend_running *a, int32_t r, int32_t offset, int32_t count,
                        const float_tile *tile, float *logits) {
  const float *q = a->query + (int64_t)r * a->head_dimension;
  float sums[INTFA_MAX_TILE] = {0};
  for (int32_t c = 0; c < a->head_dimension; c++) {
    const float *k = tile->key + c * INTFA_MAX_TILE + offset;
    const float x = q[c];
    for (int32_t j = 0; j < count; j++) sums[j] += x * k[j];
  }
  for (int32_t j = 0; j < count; j++) logits[j] = sums[j] * a->query_scale[r];
}

static float round_probability(float p, intfa_probability format) {
  switch (format) {
    case INTFA_P_FLOAT32: return p;
    case INTFA_P_FLOAT16: return round_float16(p);
    case INTFA_P_BFLOAT16: return round_bfloat16(p);
    // 256 p uses the upper part of the format's range; the power of two cancels exactly.
    case INTFA_P_FLOAT8: return round_float8(256.0f * p) * (1.0f / 256.0f);
    case INTFA_P_INT8: return (float)(int32_t)(127.0f * p + 0.5f);
  }
  return p;
}

static void attend_row(const intfa_attend_running *a, int32_t r, int64_t first, key_range seen,
                       const float_tile *tile) {
  const int32_t count = (int32_t)(seen.end - seen.begin), dimension = a->value_dimension;
  const int32_t offset = (int32_t)(seen.begin - first);
  float logits[INTFA_MAX_TILE], p[INTFA_MAX_TILE];
  if (a->score == INTFA_SCORE_INT8)
    score_int8(a, r, seen.begin, count, logits);
  else
    score_float(a, r, offset, count, tile, logits);
  if (a->bias)
    for (int32_t j = 0; j < count; j++) logits[j] += a->bias[seen.begin + j];
  if (a->softcap > 0) {
    float shift = a->row_shift ? a->row_shift[r] : 0;
    for (int32_t j = 0; j < count; j++) logits[j] = soft_cap(logits[j] + shift, a->softcap);
  }

  float top = a->reference[r], sum = 0;
  for (int32_t j = 0; j < count; j++) top = logits[j] > top ? logits[j] : top;
  float keep = exp2_fast(a->reference[r] - top);
  for (int32_t j = 0; j < count; j++) p[j] = exp2_fast(logits[j] - top);
  for (int32_t j = 0; j < count; j++) sum += p[j];
  for (int32_t j = 0; j < count; j++) p[j] = round_probability(p[j], a->probability);
  a->reference[r] = top;
  a->total[r] = a->total[r] * keep + sum;

  float *out = a->out + r * a->out_stride;
  if (a->probability == INTFA_P_INT8) {
    int32_t acc[INTFA_MAX_DIMENSION] = {0};
    for (int32_t j = 0; j < count; j++) {
      const int16_t weight = (int16_t)p[j];
      const int8_t *v = a->value_codes + (seen.begin + j) * dimension;
      for (int32_t c = 0; c < dimension; c++) acc[c] += (int16_t)(weight * v[c]);
    }
    for (int32_t c = 0; c < dimension; c++) out[c] = out[c] * keep + (float)acc[c];
    return;
  }
  for (int32_t c = 0; c < dimension; c++) out[c] *= keep;
  for (int32_t j = 0; j < count; j++) {
    const float weight = p[j], *v = tile->value + (int64_t)(offset + j) * dimension;
    for (int32_t c = 0; c < dimension; c++) out[c] += weight * v[c];
  }
}

void intfa_attend_running__portable(const intfa_attend_running *a) {
  float_tile *tile = a->scratch;
  for (int64_t begin = a->key_begin, end; begin < a->key_end; begin = end) {
    end = tile_end(begin, a->key_end, a->first_tile, a->tile);
    if (a->score == INTFA_SCORE_FLOAT) load_keys(a, begin, end, tile);
    if (a->probability != INTFA_P_INT8)
      intfa_load_rows(&a->value, begin, end, a->value_dimension, a->value_multiplier,
                      a->value_round, tile->value);
    for (int32_t r = 0; r < a->rows; r++) {
      key_range seen = visible_keys(&a->visible, r, begin, end);
      if (seen.begin < seen.end) attend_row(a, r, begin, seen, tile);
    }
  }
}

_Static_assert(sizeof(float_tile) <= INTFA_SCRATCH_BYTES, "fits the scratch memory of a call");
int64_t intfa_scratch_bytes(void) { return INTFA_SCRATCH_BYTES; }

static void store(void *target, int64_t i, float x, intfa_format format) {
  switch (format) {
    case INTFA_FLOAT32: ((float *)target)[i] = x; return;
    case INTFA_FLOAT16: ((uint16_t *)target)[i] = half_from_float(x); return;
    case INTFA_BFLOAT16: ((uint16_t *)target)[i] = bfloat16_from_float(x); return;
    case INTFA_FLOAT8: return;
  }
}

void intfa_finish__portable(const intfa_finish *a) {
  for (int32_t r = 0; r < a->rows; r++) {
    float *out = a->out + r * a->out_stride;
    float factor = a->total[r] > 0 ? a->factor / a->total[r] : 0;
    if (a->rotates) intfa_rotate(out, a->value_dimension);
    for (int32_t c = 0; c < a->value_dimension; c++)
      store(a->target, r * a->target_stride + c, out[c] * factor, a->target_format);
  }
  intfa_finish_log_sum_exp(a);
}

void intfa_finish_log_sum_exp(const intfa_finish *a) {
  if (!a->log_sum_exp) return;
  for (int32_t r = 0; r < a->rows; r++) {
    float *target = a->log_sum_exp + r * a->log_sum_exp_stride;
    *target = -__builtin_inff();
    if (!(a->total[r] > 0)) continue;
    // The logarithm is the platform's own, in double precision.
    double logarithm = a->reference[r] / a->steps + __builtin_log2(a->total[r] / a->total_unit);
    *target = (float)(logarithm * 0.69314718055994531) + (a->row_shift ? a->row_shift[r] : 0);
  }
}
