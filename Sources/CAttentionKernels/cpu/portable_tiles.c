// Portable integer tile loop: INT8 scores, tile-local softmax with unsigned 8-bit P, INT8 values.
//
// Per row and tile of at most 128 keys:
//   s_j   = ((float)(q8 . k8_j) * sk_j) * sq + bias_j                      steps of 2^(1/64)
//   t     = max s_j;  i_j = rnd(t - s_j), at most 2047
//   p_j   = (table[i_j & 63] >> (i_j >> 6)) + 128 >> 8                     0...255
//   out  += gain * sum p_j v8_j;  total += gain * sum p_j n_j              gain = 2^((t - ref) / 64)
// In the tile that a row's mask ends in, where asked (rests_in):
//   p_j   = x >> 8, rest_j = x & 255 of x = table[i_j & 63] >> (i_j >> 6)
//   out  += gain * sum p_j v8_j, then gain / 256 * sum rest_j v8_j;  total += gain / 256 * sum x n_j
// Bounds: |q8 . k8| <= 256 * 127 * 127 = 4.2e6, |sum p v|, |sum rest v| and sum p n <=
// 128 * 255 * 127 = 4.2e6, all below 2^24, so that their conversion to float32 is exact; sum x n <=
// 128 * 65280 * 127 = 1.1e9 is below 2^31.
// Error against exact arithmetic on the same codes: that of P, half of 1/255 of the tile's maximum,
// or 1/65280 of it with a rest, plus 0.55 % of each p (half a step).
#include "key_mask.h"
#include "online_softmax.h"
#include "portable.h"

static int32_t dot_int8(const int8_t *a, const int8_t *b, int32_t count) {
  int32_t sum = 0;
  for (int32_t c = 0; c < count; c++) sum += (int32_t)a[c] * b[c];
  return sum;
}

// One tile of keys and values, token by token: where it lies, or gathered and unpacked.
typedef struct {
  const int8_t *key, *value, *weight;
  const float *key_scale, *bias, *fold, *real_weight;
} tile_operands;

typedef struct {
  int8_t key[INTFA_MAX_TILE * INTFA_MAX_DIMENSION], value[INTFA_MAX_TILE * INTFA_MAX_DIMENSION];
  int8_t weight[INTFA_MAX_TILE];
  float key_scale[INTFA_MAX_TILE], bias[INTFA_MAX_TILE], fold[INTFA_MAX_TILE], real_weight[INTFA_MAX_TILE];
} gathered_tile;
_Static_assert(sizeof(gathered_tile) <= INTFA_SCRATCH_BYTES, "fits the scratch memory");

// Sums of weight * value over the keys [begin, end) of a tile.
static void add_values(const uint8_t *weights, int32_t begin, int32_t end, const int8_t *values,
                       int32_t dimension, int32_t *sums) {
  memset(sums, 0, sizeof(int32_t) * (size_t)dimension);
  for (int32_t j = begin; j < end; j++) {
    const int16_t weight = weights[j];
    if (weight == 0) continue;
    const int8_t *v = values + (int64_t)j * dimension;
    for (int32_t c = 0; c < dimension; c++) sums[c] += (int16_t)(weight * v[c]);
  }
}

// One row against the keys `seen` of the tile that starts at `first`.
static void attend_row(const intfa_attend_tiles *a, int32_t r, int64_t first, key_range seen,
                       const tile_operands *t) {
  const int32_t begin = (int32_t)(seen.begin - first), end = (int32_t)(seen.end - first);
  const int32_t dimension = a->value_dimension;
  const bool has_rest = rests_in(a, r, r, first);
  float logits[INTFA_MAX_TILE], top = -1e30f;
  int32_t acc[INTFA_MAX_DIMENSION], rest_acc[INTFA_MAX_DIMENSION], weighted = 0;  // in 1/256
  uint8_t p[INTFA_MAX_TILE], rest[INTFA_MAX_TILE];
  const int8_t *q = a->query + (int64_t)r * a->head_dimension;

  for (int32_t j = begin; j < end; j++) {
    int32_t product = dot_int8(q, t->key + (int64_t)j * a->head_dimension, a->head_dimension);
    float s = (float)product * t->key_scale[j];
    s = s * a->query_scale[r] + t->bias[j];
    if (a->softcap > 0) s = soft_cap(s + a->row_shift[r], a->softcap) + t->fold[j];
    logits[j] = s;
  }
  if (a->mask) mask_row(a->mask, r, seen.begin, end - begin, logits + begin);
  for (int32_t j = begin; j < end; j++) top = logits[j] > top ? logits[j] : top;

  float real_sum = 0, lane[16] = {0};
  for (int32_t j = begin; j < end; j++) {
    p[j] = rest[j] = 0;
    if (logits[j] == -__builtin_inff()) continue;
    float distance = top - logits[j];
    distance = distance < 2047.0f ? distance : 2047.0f;
    int32_t steps = (int32_t)round_to_step(distance, 12582912.0f);
    uint32_t power = (uint32_t)power_table[steps & 63] >> (steps >> 6);
    if (!has_rest) power = (power + 128) & ~255u;
    p[j] = (uint8_t)(power >> 8);
    rest[j] = (uint8_t)power;
    if (a->weight) {
      weighted += (int32_t)power * t->weight[j];
    } else {
      float exact_p = real_power_table[steps & 63] * float_of((127u - (uint32_t)(steps >> 6)) << 23);
      float summed = a->sums_codes ? (float)power * REST_UNIT : exact_p;
      lane[j % 16] += summed * t->real_weight[j];
    }
  }
  if (!a->weight) {
    for (int32_t half = 8; half > 0; half /= 2)
      for (int32_t l = 0; l < half; l++) lane[l] += lane[l + half];
    real_sum = lane[0];
  }

  add_values(p, begin, end, t->value, dimension, acc);
  if (has_rest) add_values(rest, begin, end, t->value, dimension, rest_acc);

  float *out = a->out + r * a->out_stride;
  float gain = tile_gain(top, a->reference + r, a->total + r, out, dimension);
  a->total[r] += a->weight ? gain * REST_UNIT * (float)weighted : gain * real_sum;
  for (int32_t c = 0; c < dimension; c++) out[c] += gain * (float)acc[c];
  for (int32_t c = 0; has_rest && c < dimension; c++) out[c] += gain * REST_UNIT * (float)rest_acc[c];
}

// Copies tokens [begin, end) of one unit into their place in the tile.
static void gather(const intfa_attend_tiles *a, int64_t begin, int64_t end, int32_t at,
                   gathered_tile *tile) {
  const int64_t place = key_place(a->units, begin), stop = place + (end - begin);
  const int32_t d = a->head_dimension, dv = a->value_dimension;
  const size_t count = (size_t)(end - begin), floats = sizeof(float) * count;
  if (a->int4_key)
    intfa_unpack_keys__portable(a->key, place, stop, d, tile->key + at * d);
  else
    memcpy(tile->key + at * d, (const int8_t *)a->key + place * d, count * (size_t)d);
  if (a->int4_value)
    intfa_unpack_values__portable(a->value, place, stop, dv, tile->value + at * dv);
  else
    memcpy(tile->value + at * dv, (const int8_t *)a->value + place * dv, count * (size_t)dv);
  memcpy(tile->key_scale + at, a->key_scale + place, floats);
  memcpy(tile->bias + at, a->bias + place, floats);
  if (a->softcap > 0) memcpy(tile->fold + at, a->fold + place, floats);
  if (a->weight)
    memcpy(tile->weight + at, a->weight + place, count);
  else
    memcpy(tile->real_weight + at, a->real_weight + place, floats);
}

void intfa_attend_tiles__portable(const intfa_attend_tiles *a) {
  gathered_tile *tile = a->scratch;
  const tile_operands t = {tile->key,  tile->value, tile->weight,     tile->key_scale,
                           tile->bias, tile->fold,  tile->real_weight};
  for (int64_t begin = a->key_begin, end; begin < a->key_end; begin = end) {
    end = tile_end(begin, a->key_end, a->first_tile, a->tile);
    for (int64_t key = begin, stop; key < end; key = stop) {
      stop = (key / INTFA_PACK_UNIT + 1) * INTFA_PACK_UNIT;
      stop = stop < end ? stop : end;
      gather(a, key, stop, (int32_t)(key - begin), tile);
    }
    for (int32_t r = 0; r < a->rows; r++) {
      key_range seen = visible_keys(&a->visible, r, begin, end);
      if (seen.begin < seen.end) attend_row(a, r, begin, seen, &t);
    }
  }
}

void intfa_merge__portable(const intfa_merge *a) {
  for (int32_t r = 0; r < a->rows; r++) {
    if (!(a->from_total[r] > 0)) continue;
    float *out = a->into_out + r * a->out_stride;
    const float *from = a->from_out + r * a->out_stride;
    float into = a->into_reference[r], other = a->from_reference[r];
    float reference = into > other ? into : other;
    float keep = exp2_fast((into - reference) / a->steps), add = exp2_fast((other - reference) / a->steps);
    a->into_total[r] = a->into_total[r] * keep + a->from_total[r] * add;
    for (int32_t c = 0; c < a->value_dimension; c++) out[c] = out[c] * keep + from[c] * add;
    a->into_reference[r] = reference;
  }
}
