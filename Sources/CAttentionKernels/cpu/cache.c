// What key/value caches need beside the tile loops; see cache_kernels.h. Portable C: a cache calls
// these per token, or for the few rows that see its first tile only.
#include "cache_kernels.h"

#include <math.h>

#include "key_mask.h"
#include "portable.h"

enum { LARGEST_WEIGHT = 127 };
// A row that exceeds the mean of those the unit is from four times, as in value_scales.c: the unit is
// an eighth of that mean.
#define OUTLIER_UNITS 32.0f

void intfa_fold_fixed_values(intfa_fold_fixed *a) {
  const float largest = (float)LARGEST_WEIGHT * a->unit;
  a->first_outlier = -1;
  for (int64_t j = 0; j < a->count; j++) {
    const float maximum = a->maxima[j] > SMALLEST_MAXIMUM ? a->maxima[j] : SMALLEST_MAXIMUM;
    float n = largest / maximum;
    if (n >= 1) n = (float)(int32_t)(n < (float)LARGEST_WEIGHT ? n : (float)LARGEST_WEIGHT);
    a->weights[j] = n >= 1 ? (int8_t)n : 1;
    a->real_weights[j] = n;
    a->multipliers[j] = n / a->unit;
    a->logarithms[j] = (float)(-64.0 * log2(n));
    if (maximum > OUTLIER_UNITS * a->unit && a->first_outlier < 0) a->first_outlier = j;
  }
}

void intfa_scatter(const intfa_unit_part *a, const void *rows, void *unit) {
  const int32_t *places = a->places + (int64_t)a->token * a->dimension;
  const int32_t count = a->count * a->dimension;
  const uint8_t *codes = rows;
  const uint32_t *floats = rows;
  switch (a->size) {
    case 1:
      for (int32_t i = 0; i < count; i++) ((uint8_t *)unit)[places[i]] = codes[i] ^ a->flip;
      return;
    case 2:
      for (int32_t i = 0; i < count; i++) ((uint16_t *)unit)[places[i]] = (uint16_t)(floats[i] >> 16);
      return;
    default:
      for (int32_t i = 0; i < count; i++) ((uint32_t *)unit)[places[i]] = floats[i];
  }
}

void intfa_gather(const intfa_unit_part *a, const void *unit, void *rows) {
  const int32_t *places = a->places + (int64_t)a->token * a->dimension;
  const int32_t count = a->count * a->dimension;
  uint32_t *floats = rows;
  switch (a->size) {
    case 1:
      for (int32_t i = 0; i < count; i++)
        ((uint8_t *)rows)[i] = ((const uint8_t *)unit)[places[i]] ^ a->flip;
      return;
    case 2:
      for (int32_t i = 0; i < count; i++)
        floats[i] = (uint32_t)((const uint16_t *)unit)[places[i]] << 16;
      return;
    default:
      for (int32_t i = 0; i < count; i++) floats[i] = ((const uint32_t *)unit)[places[i]];
  }
}

void intfa_attend_exactly(const intfa_attend_exact *a) {
  float p[INTFA_PACK_UNIT];
  for (int32_t r = 0; r < a->rows; r++) {
    const key_range seen = visible_keys(&a->visible, r, 0, a->keys);
    float *out = a->out + r * a->out_stride, top = -1e30f, sum = 0;
    memset(out, 0, sizeof(float) * (size_t)a->value_dimension);
    for (int64_t j = seen.begin; j < seen.end; j++) {
      float s = a->scale * intfa_dot(a->query + (int64_t)r * a->head_dimension,
                                     a->key + j * a->head_dimension, a->head_dimension);
      if (a->softcap > 0) s = soft_cap(s, a->softcap);
      p[j] = s;
    }
    if (a->mask && seen.begin < seen.end)
      mask_row(a->mask, r, seen.begin, (int32_t)(seen.end - seen.begin), p + seen.begin);
    for (int64_t j = seen.begin; j < seen.end; j++) top = p[j] > top ? p[j] : top;
    for (int64_t j = seen.begin; j < seen.end; j++) {
      if (p[j] == -__builtin_inff()) continue;
      const float weight = exp2_fast(p[j] - top), *v = a->value + j * a->value_dimension;
      sum += weight;
      for (int32_t c = 0; c < a->value_dimension; c++) out[c] += weight * v[c];
    }
    a->total[r] = sum;
    a->reference[r] = top;
  }
}

uint64_t intfa_read_bytes(const void *base, int64_t bytes) {
  typedef uint64_t line __attribute__((vector_size(64)));
  const line *x = base;
  line sums[8] = {0};
  for (int64_t i = 0; i < bytes / 64; i += 8)
    for (int32_t l = 0; l < 8; l++) sums[l] += x[i + l];
  for (int32_t l = 1; l < 8; l++) sums[0] += sums[l];
  uint64_t sum = 0;
  for (int32_t l = 0; l < 8; l++) sum += sums[0][l];
  return sum;
}
