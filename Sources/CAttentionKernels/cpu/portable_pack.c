// Portable storage of quantised keys and values: INT8 row by row, or progressive four bits.
//
// Four-bit keys: for each group of 32 tokens [D][16] bytes of codes, [D] steps, [D] offsets; token 2t
// of the group in the low half of byte t. Four-bit values: for each token (Dv + 1) / 2 bytes of codes,
// then a step and then an offset per 16 channels. A code stands for clamp(code * step + offset, +-127).
#include "portable.h"

intfa_regrouping intfa_regroup(const int8_t *codes, int32_t count, int32_t stride) {
  int32_t low = 127, high = -127;
  for (int32_t i = 0; i < count; i++) {
    int32_t code = codes[i * stride];
    low = code < low ? code : low;
    high = code > high ? code : high;
  }
  int32_t step = (high - low + 14) / 15;
  return (intfa_regrouping){low, step > 1 ? step : 1};
}
int32_t intfa_four_bits(int32_t code, intfa_regrouping g) {
  float q = round_to_step((float)(code - g.low) / (float)g.step, 12582912.0f);
  return (int32_t)(q > 15.0f ? 15.0f : q);
}

static int64_t group_bytes(int32_t dimension) {
  return (int64_t)dimension * (INTFA_KEY_GROUP / 2 + 2);
}

static void pack_group(const int8_t *codes, int32_t count, int32_t dimension, uint8_t *target) {
  uint8_t *steps = target + (int64_t)dimension * INTFA_KEY_GROUP / 2, *offsets = steps + dimension;
  memset(target, 0, (size_t)dimension * INTFA_KEY_GROUP / 2);
  for (int32_t c = 0; c < dimension; c++) {
    intfa_regrouping g = intfa_regroup(codes + c, count, dimension);
    steps[c] = (uint8_t)g.step;
    offsets[c] = (uint8_t)(int8_t)g.low;
    for (int32_t t = 0; t < count; t++)
      target[c * (INTFA_KEY_GROUP / 2) + t / 2] |=
          (uint8_t)(intfa_four_bits(codes[t * dimension + c], g) << (t % 2 * 4));
  }
}

static int32_t value_groups(int32_t dimension) {
  return (dimension + INTFA_VALUE_GROUP - 1) / INTFA_VALUE_GROUP;
}
static int64_t token_bytes(int32_t dimension) {
  return (dimension + 1) / 2 + 2 * value_groups(dimension);
}

static void pack_token(const int8_t *codes, int32_t dimension, uint8_t *target) {
  int32_t groups = value_groups(dimension);
  uint8_t *steps = target + (dimension + 1) / 2, *offsets = steps + groups;
  memset(target, 0, (size_t)(dimension + 1) / 2);
  for (int32_t group = 0; group < groups; group++) {
    int32_t begin = group * INTFA_VALUE_GROUP, end = begin + INTFA_VALUE_GROUP;
    end = end < dimension ? end : dimension;
    intfa_regrouping g = intfa_regroup(codes + begin, end - begin, 1);
    steps[group] = (uint8_t)g.step;
    offsets[group] = (uint8_t)(int8_t)g.low;
    for (int32_t c = begin; c < end; c++)
      target[c / 2] |= (uint8_t)(intfa_four_bits(codes[c], g) << (c % 2 * 4));
  }
}

static int8_t decoded(int32_t code, int32_t step, int32_t offset) {
  int32_t x = code * step + offset;
  return (int8_t)(x > 127 ? 127 : x < -127 ? -127 : x);
}

void intfa_unpack_keys__portable(const uint8_t *packed, int64_t begin, int64_t end,
                                 int32_t dimension, int8_t *codes) {
  for (int64_t first = begin; first < end; first += INTFA_KEY_GROUP) {
    const uint8_t *group = packed + first / INTFA_KEY_GROUP * group_bytes(dimension);
    const uint8_t *steps = group + (int64_t)dimension * INTFA_KEY_GROUP / 2;
    const int8_t *offsets = (const int8_t *)(steps + dimension);
    int64_t count = end - first < INTFA_KEY_GROUP ? end - first : INTFA_KEY_GROUP;
    for (int64_t t = 0; t < count; t++, codes += dimension)
      for (int32_t c = 0; c < dimension; c++)
        codes[c] = decoded(group[c * (INTFA_KEY_GROUP / 2) + t / 2] >> (t % 2 * 4) & 15, steps[c],
                           offsets[c]);
  }
}

void intfa_unpack_values__portable(const uint8_t *packed, int64_t begin, int64_t end,
                                   int32_t dimension, int8_t *codes) {
  for (int64_t t = begin; t < end; t++, codes += dimension) {
    const uint8_t *token = packed + t * token_bytes(dimension);
    const uint8_t *steps = token + (dimension + 1) / 2;
    const int8_t *offsets = (const int8_t *)(steps + value_groups(dimension));
    for (int32_t c = 0; c < dimension; c++)
      codes[c] = decoded(token[c / 2] >> (c % 2 * 4) & 15, steps[c / INTFA_VALUE_GROUP],
                         offsets[c / INTFA_VALUE_GROUP]);
  }
}

void intfa_open_key_unit__portable(const void *int4_unit, int32_t dimension, void *unit) {
  intfa_unpack_keys__portable(int4_unit, 0, INTFA_PACK_UNIT, dimension, unit);
}
void intfa_open_value_unit__portable(const void *int4_unit, int32_t dimension, void *unit) {
  intfa_unpack_values__portable(int4_unit, 0, INTFA_PACK_UNIT, dimension, unit);
}

int64_t intfa_key_bytes__portable(int64_t tokens, int32_t dimension, bool int4) {
  int64_t groups = (tokens + INTFA_KEY_GROUP - 1) / INTFA_KEY_GROUP;
  return int4 ? groups * group_bytes(dimension) : tokens * dimension;
}
int64_t intfa_value_bytes__portable(int64_t tokens, int32_t dimension, bool int4) {
  return tokens * (int4 ? token_bytes(dimension) : dimension);
}

void intfa_pack_keys__portable(const intfa_pack *a) {
  uint8_t *target = a->target;
  if (a->four_bits) {
    const int64_t begin = intfa_key_bytes__portable(a->begin, a->dimension, true);
    memcpy(target + begin, a->four_bits,
           (size_t)(intfa_key_bytes__portable(a->end, a->dimension, true) - begin));
    return;
  }
  if (!a->int4) {
    memcpy(target + a->begin * a->dimension, a->codes, (size_t)((a->end - a->begin) * a->dimension));
    return;
  }
  const int8_t *codes = a->codes;
  for (int64_t t = a->begin; t < a->end; t += INTFA_KEY_GROUP) {
    int64_t count = a->end - t < INTFA_KEY_GROUP ? a->end - t : INTFA_KEY_GROUP;
    pack_group(codes, (int32_t)count, a->dimension,
               target + t / INTFA_KEY_GROUP * group_bytes(a->dimension));
    codes += count * a->dimension;
  }
}

void intfa_pack_values__portable(const intfa_pack *a) {
  uint8_t *target = a->target;
  int64_t count = a->end - a->begin;
  if (a->four_bits) {
    memcpy(target + a->begin * token_bytes(a->dimension), a->four_bits,
           (size_t)(count * token_bytes(a->dimension)));
    return;
  }
  if (!a->int4) {
    memcpy(target + a->begin * a->dimension, a->codes, (size_t)(count * a->dimension));
    return;
  }
  for (int64_t t = 0; t < count; t++)
    pack_token(a->codes + t * a->dimension, a->dimension,
               target + (a->begin + t) * token_bytes(a->dimension));
}
