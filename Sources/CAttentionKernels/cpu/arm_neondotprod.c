// Integer kernels with 128-bit sdot and udot (8-bit x 8-bit -> four sums of four), Armv8.2 and later.
//
// instruction                     Neoverse N1        Neoverse V1        here, per 16 scores
//                                 per cycle, latency                    (D = Dv = 64, tiles of 128)
// sdot, udot (by element)         2, 2               4, 2               64 scores + 64 values + 2
// fadd fmul fmaxnm fminnm         2, 2...3           4, 2...3           32
// tbl of four registers           2/3, 4             2/3, 4             1
// ushr sli sri urshl              1, 2...4           2, 2...4           10
// fcvt, scvtf of four             1/2, 4             1, 4               none
// 128-bit load                    2, 5               3, 6               1 per 4 sdot
// Rates and latencies: LLVM 19's scheduling models, which cite Arm's optimisation guides. They put the
// compiled loops at 63 to 66 % of the issue rate of the products for D = 64 and 76 to 77 % for D = 128.
// The kernels are verified under emulation and were never timed on hardware.
//
// sdot multiplies signed codes only. P is unsigned, so the values are packed +128 and udot sums
// p * (v + 128); sums start at -128 * sum(p), which a second udot per register of P yields.
//
// Registers, both products: 16 sums (8 rows x 8 keys or channels), 8 for four groups of channels of
// the queries or 16 keys of P, 2 for keys or values; 6 are free.
// Bounds: 128 * 255 * 255 = 8.3e6 before the start is subtracted, others see arm_neon_tiles.h.
#if defined(__aarch64__)
#include "arm_targets.h"
#include "kernels.h"

TARGET_DOTPROD
enum { LANE_ROWS = 1, KEY_PIECE = 4 };
#include "arm_neon_lanes.h"

// ---------------------------------------------------------------------------------- products

#define DOT_KEYS(piece)                                                                   \
  do {                                                                                    \
    int8x16_t k0 = vld1q_s8(key + 32 * piece), k1 = vld1q_s8(key + 32 * piece + 16);      \
    UNROLL for (int i = 0; i < R; i++) {                                                  \
      sum[i][0] = vdotq_laneq_s32(sum[i][0], k0, q[i], piece);                            \
      sum[i][1] = vdotq_laneq_s32(sum[i][1], k1, q[i], piece);                            \
    }                                                                                     \
  } while (0)

INLINE void multiply_keys(const int R, const int8_t *query, const int8_t *key, int32_t channels,
                          int32x4_t sum[GROUPS][VECTORS]) {
  KEEP_LOOP for (int32_t c = 0; c < channels; c += 16, query += 16 * R, key += 128) {
    int8x16_t q[ROWS];
    UNROLL for (int i = 0; i < R; i++) q[i] = vld1q_s8(query + 16 * i);
    DOT_KEYS(0);
    DOT_KEYS(1);
    DOT_KEYS(2);
    DOT_KEYS(3);
  }
}

#define DOT_VALUES(piece)                                                                          \
  do {                                                                                             \
    uint8x16_t v0 = vld1q_u8(value + 32 * piece), v1 = vld1q_u8(value + 32 * piece + 16);          \
    UNROLL for (int i = 0; i < R; i++) {                                                           \
      sum[i][0] = vreinterpretq_s32_u32(                                                           \
          vdotq_laneq_u32(vreinterpretq_u32_s32(sum[i][0]), v0, p[i], piece));                     \
      sum[i][1] = vreinterpretq_s32_u32(                                                           \
          vdotq_laneq_u32(vreinterpretq_u32_s32(sum[i][1]), v1, p[i], piece));                     \
    }                                                                                              \
  } while (0)

INLINE void multiply_values(const int R, const uint8_t weights[GROUPS][16], const int8_t *values,
                            int32x4_t sum[GROUPS][VECTORS]) {
  const uint8_t *value = (const uint8_t *)values;
  uint8x16_t p[ROWS];
  UNROLL for (int i = 0; i < R; i++) p[i] = vld1q_u8(weights[i]);
  DOT_VALUES(0);
  DOT_VALUES(1);
  DOT_VALUES(2);
  DOT_VALUES(3);
}

INLINE void separate(const int32x4_t sum[VECTORS], float32x4_t rows[LANE_ROWS][2]) {
  rows[0][0] = float_of_sum(sum[0]);
  rows[0][1] = float_of_sum(sum[1]);
}

// ---------------------------------------------------------------------------------- row sums

typedef struct {
  uint32x4_t codes, weighted;  // of p and of p * n; n is 0...127
} row_sums;

INLINE void add_weights(row_sums *sums, uint8x16_t p, const int8_t *n) {
  sums->codes = vdotq_u32(sums->codes, p, vdupq_n_u8(1));
  sums->weighted = vdotq_u32(sums->weighted, p, vld1q_u8((const uint8_t *)n));
}
INLINE void keep_row_sums(const row_sums *sums, weights *w, int32_t i) {
  w->weighted[i] = (int32_t)vaddvq_u32(sums->weighted);
  w->start[i] = float_of(MAGIC_BITS - 128 * vaddvq_u32(sums->codes));
}

#include "arm_neon_tiles.h"

// ---------------------------------------------------------------------------------- storage

#include "arm_neon_pack.h"

// [4 groups][8 channels][4 tokens], code + 128.
static void pack_channels(const int8_t *rows, int32_t width, int8_t *target) {
  const uint8x16_t flip = vdupq_n_u8(128);
  for (int32_t g = 0; g < 4; g++, target += 32) {
    uint16x8x2_t x = four_tokens(rows + g * width, LANE_KEYS * width);
    vst1q_u8((uint8_t *)target, veorq_u8(vreinterpretq_u8_u16(x.val[0]), flip));
    vst1q_u8((uint8_t *)target + 16, veorq_u8(vreinterpretq_u8_u16(x.val[1]), flip));
  }
}

int64_t intfa_key_bytes__neondotprod(int64_t tokens, int32_t dimension, bool int4) {
  (void)int4;
  return key_bytes(tokens, dimension);
}
int64_t intfa_value_bytes__neondotprod(int64_t tokens, int32_t dimension, bool int4) {
  (void)int4;
  return value_bytes(tokens, dimension);
}
// Four bits are stored as the INT8 codes that they stand for.
void intfa_open_key_unit__neondotprod(const void *int4_unit, int32_t dimension, void *unit) {
  memcpy(unit, int4_unit, (size_t)intfa_key_bytes__neondotprod(INTFA_PACK_UNIT, dimension, true));
}
void intfa_open_value_unit__neondotprod(const void *int4_unit, int32_t dimension, void *unit) {
  memcpy(unit, int4_unit, (size_t)intfa_value_bytes__neondotprod(INTFA_PACK_UNIT, dimension, true));
}
void intfa_pack_keys__neondotprod(const intfa_pack *a) { pack_keys(a); }
void intfa_pack_values__neondotprod(const intfa_pack *a) { pack_values(a); }
void intfa_attend_tiles__neondotprod(const intfa_attend_tiles *a) { attend_tiles(a); }
TARGET_END
#endif
