// Registers of the NEON sets' integer tile loop: what their lanes hold, and how they become P.
// Included once per set, inside its target region, after the set has defined
//   LANE_ROWS  rows that a register of four sums covers: 1 (sdot) or 2 (smmla)
#pragma once
#include "arm_neon_exp2.h"
#include "key_mask.h"
#include "online_softmax.h"
#include "portable.h"

enum {
  ROWS = 8,                    // query rows of a register tile
  LANE_KEYS = 4 / LANE_ROWS,
  GROUPS = ROWS / LANE_ROWS,   // registers that cover all rows
  VECTORS = 8 / LANE_KEYS,     // registers that cover eight keys or channels
  UNIT = 16,                   // keys that ranges are rounded to
  KEY_UNIT = 4 * LANE_KEYS,    // keys of four registers, whose P fill one register
  QUERY_PIECE = 4 * LANE_KEYS, // channels of a row side by side in packed queries; D is padded to it
  TILE = INTFA_MAX_TILE + UNIT
};

// A byte of P of a few rows: the first, or the rest.
typedef struct {
  _Alignas(64) uint8_t p[TILE / KEY_UNIT][GROUPS][16];  // keys in the order of weight_position
  float gain[ROWS];
  float start[ROWS];       // what the sums of values begin at
  int32_t weighted[ROWS];  // sum of p * n
} weights;

// What a few rows need from their scores to their values.
typedef struct {
  _Alignas(64) float logit[GROUPS][TILE * LANE_ROWS];
  weights whole, rest;  // the rest only where some row has one
  float top[ROWS];
} group;

// Everything that a call keeps in its scratch memory.
typedef struct {
  group rows;
  _Alignas(64) uint8_t mantissa[64], high[64], low[64];  // of the table of powers
  _Alignas(64) int8_t weight[TILE];  // n_j of the tile in the order of P, from a multiple of UNIT
  _Alignas(64) float scale[INTFA_MAX_ROWS * 4 / LANE_ROWS];  // one register per GROUPS
  _Alignas(64) int8_t query[INTFA_MAX_ROWS * INTFA_MAX_DIMENSION];
} state;
_Static_assert(sizeof(state) <= INTFA_SCRATCH_BYTES, "fits the scratch memory");

INLINE int64_t padded(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

// Row and key of lane `lane` of a register.
INLINE int32_t lane_row(int32_t lane) { return lane / LANE_KEYS; }
INLINE int32_t lane_key(int32_t lane) { return lane % LANE_KEYS; }
INLINE float32x4_t row_lanes(const float *x) {
  float lanes[4];
  UNROLL for (int i = 0; i < 4; i++) lanes[i] = x[lane_row(i)];
  return vld1q_f32(lanes);
}
INLINE float32x4_t key_lanes(const float *x) {
  return LANE_KEYS == 4 ? vld1q_f32(x) : vcombine_f32(vld1_f32(x), vld1_f32(x));
}
INLINE float32x4_t float_of_sum(int32x4_t sum) {
  return vsubq_f32(vreinterpretq_f32_s32(sum), vdupq_n_f32(MAGIC));
}

// ---------------------------------------------------------------------------------- exponentials

// Rounded distances from the row maximum in the low bits of four words; those of masked logits and
// of rows that see nothing, where inf - inf is not a number, are 2047.
INLINE uint32x4_t steps_of(float32x4_t top, const float *logit) {
  float32x4_t distance = vminnmq_f32(vsubq_f32(top, vld1q_f32(logit)), vdupq_n_f32(2047.0f));
  return vreinterpretq_u32_f32(vaddq_f32(distance, vdupq_n_f32(MAGIC)));
}

// Steps of four registers of logits, and their low six bits in the order of weight_position.
INLINE uint8x16_t table_indices(float32x4_t top, const float *logit, uint16x8_t *even,
                                uint16x8_t *odd) {
  uint32x4_t low = vsliq_n_u32(steps_of(top, logit), steps_of(top, logit + 8), 16);
  uint32x4_t high = vsliq_n_u32(steps_of(top, logit + 4), steps_of(top, logit + 12), 16);
  *even = vreinterpretq_u16_u32(low), *odd = vreinterpretq_u16_u32(high);
  uint8x16_t steps = vuzp1q_u8(vreinterpretq_u8_u16(*even), vreinterpretq_u8_u16(*odd));
  return vandq_u8(steps, vdupq_n_u8(63));
}

// P of four registers of logits in the order of weight_position. With s = steps >> 6 the portable
// ((power >> s) + 128) >> 8 is ((power >> 7) + 2^s) >> (s + 1), a rounding shift. All power >> 7 are
// 256...511, so that a table of bytes has what varies.
INLINE uint8x16_t probabilities(float32x4_t top, const float *logit, uint8x16x4_t mantissas) {
  uint16x8_t even, odd;
  uint8x16_t mantissa = vqtbl4q_u8(mantissas, table_indices(top, logit, &even, &odd));
  uint16x8_t even_power = vreinterpretq_u16_u8(vzip1q_u8(mantissa, vdupq_n_u8(1)));  // + 256
  uint16x8_t odd_power = vreinterpretq_u16_u8(vzip2q_u8(mantissa, vdupq_n_u8(1)));
  even_power = vrshlq_u16(even_power, vreinterpretq_s16_u16(vmvnq_u16(vshrq_n_u16(even, 6))));
  odd_power = vrshlq_u16(odd_power, vreinterpretq_s16_u16(vmvnq_u16(vshrq_n_u16(odd, 6))));
  return vreinterpretq_u8_u16(vsliq_n_u16(even_power, odd_power, 8));
}

// The two bytes of P in that order, from the bytes of the table.
INLINE void bytes_of_powers(float32x4_t top, const float *logit, uint8x16x4_t high_bytes,
                            uint8x16x4_t low_bytes, uint8x16_t *p, uint8x16_t *rest) {
  uint16x8_t even, odd;
  uint8x16_t index = table_indices(top, logit, &even, &odd);
  uint8x16_t first = vqtbl4q_u8(high_bytes, index), second = vqtbl4q_u8(low_bytes, index);
  uint16x8_t even_power = vreinterpretq_u16_u8(vzip1q_u8(second, first));
  uint16x8_t odd_power = vreinterpretq_u16_u8(vzip2q_u8(second, first));
  even_power = vshlq_u16(even_power, vnegq_s16(vreinterpretq_s16_u16(vshrq_n_u16(even, 6))));
  odd_power = vshlq_u16(odd_power, vnegq_s16(vreinterpretq_s16_u16(vshrq_n_u16(odd, 6))));
  *p = vreinterpretq_u8_u16(vsriq_n_u16(odd_power, even_power, 8));
  *rest = vreinterpretq_u8_u16(vsliq_n_u16(even_power, odd_power, 8));
}

// Byte of a register of P that belongs to key `key` of KEY_UNIT. Values are packed so.
INLINE int32_t weight_position(int32_t key) { return 4 * (key % LANE_KEYS) + key / LANE_KEYS; }

// n_j of the tile [begin, end) into the order of P, once for all rows.
static void order_weights(const intfa_attend_tiles *a, int64_t begin, int64_t end, int8_t *ordered) {
  for (int64_t j = begin / UNIT * UNIT; j < padded(end, UNIT); j += KEY_UNIT, ordered += KEY_UNIT)
    for (int32_t i = 0; i < KEY_UNIT; i++)
      ordered[weight_position(i)] = a->weight[key_place(a->units, j) + i];
}
