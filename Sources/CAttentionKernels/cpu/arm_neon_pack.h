// Storage of quantised keys and values for the NEON sets. Included inside a set's target region, after
// arm_neon_lanes.h and what the set has of its own:
//   KEY_PIECE        channels of one key side by side
//   pack_channels    one block of eight channels and KEY_UNIT keys of values
//
// Keys: per eight tokens [D / KEY_PIECE][8 tokens][KEY_PIECE]. Values: per KEY_UNIT tokens
// [Dv / 8][a block of the set]. D is padded to QUERY_PIECE channels, Dv to 8, tokens to 64, with
// zeros. Tokens of values are in the order of weight_position. Four-bit operands are stored
// as the INT8 codes that they stand for: unpacking in the loop would cost more than the bytes.

static void pack_channels(const int8_t *rows, int32_t width, int8_t *target);

static int64_t key_bytes(int64_t tokens, int32_t dimension) {
  return padded(tokens, INTFA_PACK_UNIT) * padded(dimension, QUERY_PIECE);
}
static int64_t value_bytes(int64_t tokens, int32_t dimension) {
  return padded(tokens, INTFA_PACK_UNIT) * padded(dimension, 8);
}

// Rows [first, first + INTFA_PACK_UNIT) with zeros beyond the last token and channel.
static int32_t padded_rows(const intfa_pack *a, int64_t first, int32_t width, int8_t *rows) {
  const int64_t left = a->end - first;
  const int32_t count = left < INTFA_PACK_UNIT ? (int32_t)left : INTFA_PACK_UNIT;
  const int8_t *codes = a->codes + (first - a->begin) * a->dimension;
  memset(rows, 0, (size_t)(INTFA_PACK_UNIT * width));
  if (a->four_bits) return INTFA_PACK_UNIT;
  for (int32_t t = 0; t < count; t++)
    memcpy(rows + t * width, codes + t * a->dimension, (size_t)a->dimension);
  return count;
}

// The INT8 codes that `count` codes `stride` apart stand for when they share four bits' step.
static void regroup(int8_t *codes, int32_t count, int32_t stride) {
  const intfa_regrouping g = intfa_regroup(codes, count, stride);
  for (int32_t i = 0; i < count; i++) {
    const int32_t code = intfa_four_bits(codes[i * stride], g) * g.step + g.low;
    codes[i * stride] = (int8_t)(code > 127 ? 127 : code < -127 ? -127 : code);
  }
}

// Rows of codes that were in four bits, [INTFA_PACK_UNIT][width].
static void place_rows(const int8_t *codes, int32_t dimension, int32_t width, int8_t *rows) {
  for (int32_t t = 0; t < INTFA_PACK_UNIT; t++)
    memcpy(rows + t * width, codes + t * dimension, (size_t)dimension);
}

static void pack_keys(const intfa_pack *a) {
  const int32_t width = (int32_t)padded(a->dimension, QUERY_PIECE);
  int8_t rows[INTFA_PACK_UNIT * INTFA_MAX_DIMENSION], codes[INTFA_PACK_UNIT * INTFA_MAX_DIMENSION];
  for (int64_t first = a->begin; first < a->end; first += INTFA_PACK_UNIT) {
    const int32_t count = padded_rows(a, first, width, rows);
    if (a->four_bits) {
      const int64_t index = (first - a->begin) / INTFA_PACK_UNIT;
      intfa_unpack_keys__portable(a->four_bits + index * intfa_four_bit_key_bytes(a->dimension), 0,
                                  INTFA_PACK_UNIT, a->dimension, codes);
      place_rows(codes, a->dimension, width, rows);
    }
    for (int32_t t = 0; a->int4 && !a->four_bits && t < count; t += INTFA_KEY_GROUP)
      for (int32_t c = 0; c < a->dimension; c++)
        regroup(rows + t * width + c, count - t < INTFA_KEY_GROUP ? count - t : INTFA_KEY_GROUP, width);
    int8_t *target = (int8_t *)a->target + first * width;
    for (int32_t t = 0; t < INTFA_PACK_UNIT; t += 8)
      for (int32_t c = 0; c < width; c += KEY_PIECE)
        for (int32_t i = 0; i < 8; i++, target += KEY_PIECE)
          memcpy(target, rows + (t + i) * width + c, KEY_PIECE);
  }
}

static void pack_values(const intfa_pack *a) {
  const int32_t width = (int32_t)padded(a->dimension, 8);
  int8_t rows[INTFA_PACK_UNIT * INTFA_MAX_DIMENSION], codes[INTFA_PACK_UNIT * INTFA_MAX_DIMENSION];
  for (int64_t first = a->begin; first < a->end; first += INTFA_PACK_UNIT) {
    const int32_t count = padded_rows(a, first, width, rows);
    if (a->four_bits) {
      const int64_t index = (first - a->begin) / INTFA_PACK_UNIT;
      intfa_unpack_values__portable(a->four_bits + index * intfa_four_bit_value_bytes(a->dimension), 0,
                                    INTFA_PACK_UNIT, a->dimension, codes);
      place_rows(codes, a->dimension, width, rows);
    }
    for (int32_t t = 0; a->int4 && !a->four_bits && t < count; t++)
      for (int32_t c = 0; c < a->dimension; c += INTFA_VALUE_GROUP)
        regroup(rows + t * width + c,
                a->dimension - c < INTFA_VALUE_GROUP ? a->dimension - c : INTFA_VALUE_GROUP, 1);
    int8_t *target = (int8_t *)a->target + first * width;
    for (int32_t t = 0; t < INTFA_PACK_UNIT; t += KEY_UNIT)
      for (int32_t c = 0; c < width; c += 8, target += 8 * KEY_UNIT)
        pack_channels(rows + t * width + c, width, target);
  }
}

// Rows 0, 1, 2, 3 of eight channels, `stride` apart -> [8 channels][4 rows].
INLINE uint16x8x2_t four_tokens(const int8_t *rows, int32_t stride) {
  uint8x8_t x[4];
  UNROLL for (int i = 0; i < 4; i++) x[i] = vreinterpret_u8_s8(vld1_s8(rows + i * stride));
  uint8x8x2_t first = vzip_u8(x[0], x[1]), second = vzip_u8(x[2], x[3]);
  return vzipq_u16(vreinterpretq_u16_u8(vcombine_u8(first.val[0], first.val[1])),
                   vreinterpretq_u16_u8(vcombine_u8(second.val[0], second.val[1])));
}
