// Four-bit units of 64 tokens in the order of the portable kernels: how saved caches have them, whatever
// instruction set they come from or go to.
#include "cache_kernels.h"
#include "portable.h"

enum { LARGEST_STEP = 17, LARGEST_CODE = 15 };

// The smallest step that gives `count` codes back which were decoded from four bits: the lowest code is
// the offset, others are whole steps away, and 127 may be where a sum was clamped.
static intfa_regrouping exact_regrouping(const int8_t *codes, int32_t count, int32_t stride) {
  intfa_regrouping g = {.low = 127, .step = 1};
  for (int32_t i = 0; i < count; i++) g.low = codes[i * stride] < g.low ? codes[i * stride] : g.low;
  for (; g.step < LARGEST_STEP; g.step++) {
    bool is_exact = true;
    for (int32_t i = 0; i < count && is_exact; i++) {
      const int32_t code = codes[i * stride], x = code - g.low;
      is_exact = x <= LARGEST_CODE * g.step && (x % g.step == 0 || code == 127);
    }
    if (is_exact) break;
  }
  return g;
}
static uint8_t exact_bits(int32_t code, intfa_regrouping g) {
  return (uint8_t)((code - g.low + g.step - 1) / g.step);
}

static int32_t value_groups(int32_t dimension) {
  return (dimension + INTFA_VALUE_GROUP - 1) / INTFA_VALUE_GROUP;
}
int64_t intfa_four_bit_key_bytes(int32_t dimension) {
  return intfa_key_bytes__portable(INTFA_PACK_UNIT, dimension, true);
}
int64_t intfa_four_bit_value_bytes(int32_t dimension) {
  return intfa_value_bytes__portable(INTFA_PACK_UNIT, dimension, true);
}

// ---------------------------------------------------------------------------------- keys

void intfa_four_bit_keys(const int8_t *codes, int32_t dimension, uint8_t *unit) {
  const int32_t pairs = INTFA_KEY_GROUP / 2;
  for (int32_t first = 0; first < INTFA_PACK_UNIT; first += INTFA_KEY_GROUP) {
    const int8_t *group = codes + first * dimension;
    uint8_t *steps = unit + dimension * pairs, *offsets = steps + dimension;
    for (int32_t c = 0; c < dimension; c++) {
      const intfa_regrouping g = exact_regrouping(group + c, INTFA_KEY_GROUP, dimension);
      steps[c] = (uint8_t)g.step;
      offsets[c] = (uint8_t)(int8_t)g.low;
      for (int32_t t = 0; t < pairs; t++) {
        const int8_t *two = group + 2 * t * dimension + c;
        unit[c * pairs + t] = (uint8_t)(exact_bits(two[0], g) | exact_bits(two[dimension], g) << 4);
      }
    }
    unit = offsets + dimension;
  }
}

void intfa_four_bit_key_parts(const uint8_t *unit, int32_t dimension, int32_t stride, uint8_t *codes,
                              uint8_t *steps, int8_t *offsets) {
  const int32_t pairs = INTFA_KEY_GROUP / 2;
  for (int32_t first = 0; first < INTFA_PACK_UNIT; first += INTFA_KEY_GROUP) {
    for (int32_t c = 0; c < dimension; c++)
      for (int32_t t = 0; t < INTFA_KEY_GROUP; t++)
        codes[(first + t) * stride + c] = unit[c * pairs + t / 2] >> (t % 2 * 4) & 15;
    unit += dimension * pairs;
    memcpy(steps, unit, (size_t)dimension);
    memcpy(offsets, unit + dimension, (size_t)dimension);
    unit += 2 * dimension, steps += dimension, offsets += dimension;
  }
}

// ---------------------------------------------------------------------------------- values

void intfa_four_bit_values(const int8_t *codes, int32_t dimension, uint8_t *unit) {
  const int32_t groups = value_groups(dimension), bytes = (dimension + 1) / 2;
  for (int32_t t = 0; t < INTFA_PACK_UNIT; t++, codes += dimension, unit += bytes + 2 * groups) {
    memset(unit, 0, (size_t)bytes);
    for (int32_t group = 0; group < groups; group++) {
      const int32_t begin = group * INTFA_VALUE_GROUP, left = dimension - begin;
      const int32_t count = left < INTFA_VALUE_GROUP ? left : INTFA_VALUE_GROUP;
      const intfa_regrouping g = exact_regrouping(codes + begin, count, 1);
      unit[bytes + group] = (uint8_t)g.step;
      unit[bytes + groups + group] = (uint8_t)(int8_t)g.low;
      for (int32_t c = begin; c < begin + count; c++)
        unit[c / 2] |= (uint8_t)(exact_bits(codes[c], g) << (c % 2 * 4));
    }
  }
}

void intfa_four_bit_value_parts(const uint8_t *unit, int32_t dimension, int32_t stride, uint8_t *codes,
                                uint8_t *steps, int8_t *offsets) {
  const int32_t groups = value_groups(dimension), bytes = (dimension + 1) / 2;
  for (int32_t t = 0; t < INTFA_PACK_UNIT; t++, unit += bytes + 2 * groups) {
    for (int32_t c = 0; c < dimension; c++) codes[t * stride + c] = unit[c / 2] >> (c % 2 * 4) & 15;
    memcpy(steps + t * groups, unit + bytes, (size_t)groups);
    memcpy(offsets + t * groups, unit + bytes + groups, (size_t)groups);
  }
}
