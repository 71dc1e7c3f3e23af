// Portable float tile loop: P relative to the running row maximum, as FlashAttention has it.
//
// Serves float32, bfloat16, float16 and float8 operands, INT8 scores with 16-bit values, and the
// paper's full INT8 (signed P with 127 levels). Per row and tile:
//   s_j = logit of key j in powers of two;  m' = max(m, max s_j), a whole number for some P
//   a = 2^(m - m');  p_j = 2^(s_j - m'), rounded to the format of P
//   out = a out + sum p_j v_j;  total = a total + sum 2^(s_j - m')      unrounded
// Every sum runs over channels or keys in order, in float32; the paper's P.V is an integer product,
// at most 128 * 127 * 127 = 2.1e6.
//
// Packed keys: float32 as [token / 64][D][64 tokens], so that scores of neighbouring keys are
// neighbours, or codes [token][D]. Packed values: float32 or codes [token][Dv].
#include "key_mask.h"
#include "portable.h"

enum { UNIT = INTFA_PACK_UNIT };

typedef struct {
  float query[INTFA_MAX_ROWS * INTFA_MAX_DIMENSION];
} running_scratch;
_Static_assert(sizeof(running_scratch) <= INTFA_SCRATCH_BYTES, "fits the scratch memory");

static int64_t packed_bytes(intfa_format format, int64_t tokens, int32_t dimension) {
  const int64_t padded = (tokens + UNIT - 1) / UNIT * UNIT;
  return padded * dimension * (format == INTFA_INT8 ? 1 : (int64_t)sizeof(float));
}
int64_t intfa_running_key_bytes__portable(const intfa_running_formats *formats, int64_t tokens,
                                          int32_t dimension) {
  return packed_bytes(formats->score, tokens, dimension);
}
int64_t intfa_running_value_bytes__portable(const intfa_running_formats *formats, int64_t tokens,
                                            int32_t dimension) {
  return packed_bytes(formats->value, tokens, dimension);
}

static void copy_codes(const intfa_pack_running *a) {
  memcpy((int8_t *)a->target + a->begin * a->dimension, a->codes,
         (size_t)((a->end - a->begin) * a->dimension));
}

void intfa_pack_running_keys__portable(const intfa_pack_running *a) {
  if (a->formats.score == INTFA_INT8) {
    copy_codes(a);
    return;
  }
  float x[INTFA_MAX_DIMENSION];
  for (int64_t j = a->begin; j < a->end; j++) {
    intfa_load_rows(&a->rows, j, j + 1, a->dimension, a->multiplier, a->formats.score, x);
    float *target = (float *)a->target + j / UNIT * UNIT * a->dimension + j % UNIT;
    for (int32_t c = 0; c < a->dimension; c++) target[c * UNIT] = x[c];
  }
}

void intfa_pack_running_values__portable(const intfa_pack_running *a) {
  if (a->formats.value == INTFA_INT8)
    copy_codes(a);
  else
    intfa_load_rows(&a->rows, a->begin, a->end, a->dimension, a->multiplier, a->formats.value,
                    (float *)a->target + a->begin * a->dimension);
}

// Logits of `count` keys from `first`.
static void score_int8(const intfa_attend_running *a, int32_t r, int64_t first, int32_t count,
                       float *logits) {
  const int8_t *q = a->query_codes + (int64_t)r * a->head_dimension;
  for (int32_t j = 0; j < count; j++) {
    const int8_t *k = (const int8_t *)a->key + (first + j) * a->head_dimension;
    int32_t product = 0;
    for (int32_t c = 0; c < a->head_dimension; c++) product += (int32_t)q[c] * k[c];
    logits[j] = (float)product * a->key_scale[first + j] * a->query_scale[r];
  }
  if (a->bias)
    for (int32_t j = 0; j < count; j++) logits[j] += a->bias[first + j];
}

static void score_float(const intfa_attend_running *a, const float *q, float scale, int64_t first,
                        int32_t count, float *logits) {
  for (int32_t done = 0, part; done < count; done += part) {
    const int64_t key = first + done;
    const int32_t lane = (int32_t)(key % UNIT);
    part = UNIT - lane < count - done ? UNIT - lane : count - done;
    const float *k = (const float *)a->key + (key - lane) * a->head_dimension + lane;
    float sums[UNIT] = {0};
    for (int32_t c = 0; c < a->head_dimension; c++) {
      const float x = q[c];
      for (int32_t j = 0; j < part; j++) sums[j] += x * k[c * UNIT + j];
    }
    for (int32_t j = 0; j < part; j++) logits[done + j] = sums[j] * scale;
  }
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

static void attend_row(const intfa_attend_running *a, int32_t r, key_range seen, const float *q) {
  const int32_t count = (int32_t)(seen.end - seen.begin), dimension = a->value_dimension;
  float logits[INTFA_MAX_TILE], p[INTFA_MAX_TILE];
  if (a->formats.score == INTFA_INT8)
    score_int8(a, r, seen.begin, count, logits);
  else
    score_float(a, q, a->query_scale[r], seen.begin, count, logits);
  if (a->softcap > 0) {
    float shift = a->row_shift ? a->row_shift[r] : 0;
    for (int32_t j = 0; j < count; j++) logits[j] = soft_cap(logits[j] + shift, a->softcap);
  }

  if (a->mask) mask_row(a->mask, r, seen.begin, count, logits);

  float top = logits[0], sum = 0;
  for (int32_t j = 1; j < count; j++) top = logits[j] > top ? logits[j] : top;
  if (has_whole_reference(a->formats.probability)) top = __builtin_ceilf(top);
  top = a->reference[r] > top ? a->reference[r] : top;
  float keep = exp2_fast(a->reference[r] - top);
  for (int32_t j = 0; j < count; j++)
    p[j] = logits[j] == -__builtin_inff() ? 0 : exp2_fast(logits[j] - top);
  for (int32_t j = 0; j < count; j++) sum += p[j];
  for (int32_t j = 0; j < count; j++) p[j] = round_probability(p[j], a->formats.probability);
  a->reference[r] = top;
  a->total[r] = a->total[r] * keep + sum;

  float *out = a->out + r * a->out_stride;
  if (a->formats.probability == INTFA_P_INT8) {
    int32_t acc[INTFA_MAX_DIMENSION] = {0};
    for (int32_t j = 0; j < count; j++) {
      const int16_t weight = (int16_t)p[j];
      const int8_t *v = (const int8_t *)a->value + (seen.begin + j) * dimension;
      for (int32_t c = 0; c < dimension; c++) acc[c] += (int16_t)(weight * v[c]);
    }
    for (int32_t c = 0; c < dimension; c++) out[c] = out[c] * keep + (float)acc[c];
    return;
  }
  for (int32_t c = 0; c < dimension; c++) out[c] *= keep;
  for (int32_t j = 0; j < count; j++) {
    const float weight = p[j], *v = (const float *)a->value + (seen.begin + j) * dimension;
    for (int32_t c = 0; c < dimension; c++) out[c] += weight * v[c];
  }
}

void intfa_attend_running__portable(const intfa_attend_running *a) {
  running_scratch *s = a->scratch;
  if (a->formats.score != INTFA_INT8)
    intfa_load_rows(&a->query, 0, a->rows, a->head_dimension, a->query_multiplier, a->formats.score,
                    s->query);
  for (int64_t begin = a->key_begin, end; begin < a->key_end; begin = end) {
    end = tile_end(begin, a->key_end, a->first_tile, a->tile);
    for (int32_t r = 0; r < a->rows; r++) {
      key_range seen = visible_keys(&a->visible, r, begin, end);
      if (seen.begin < seen.end) attend_row(a, r, seen, s->query + (int64_t)r * a->head_dimension);
    }
  }
}

void intfa_finish__portable(const intfa_finish *a) {
  for (int32_t r = 0; r < a->rows; r++) {
    float *out = a->out + r * a->out_stride;
    float factor = a->total[r] > 0 ? a->factor / a->total[r] : 0;
    if (a->rotates) intfa_rotate(out, a->value_dimension);
    for (int32_t c = 0; c < a->value_dimension; c++)
      store_element(a->target, r * a->target_stride + c, out[c] * factor, a->target_format);
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
