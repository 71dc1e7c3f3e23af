// Integer kernels with 128-bit smmla and usmmla (2 x 8 times 8 x 2 bytes -> four sums of eight), Armv8.6
// and, as an option, before.
//
// instruction                     Neoverse N2        Neoverse V2        here, per 16 scores
//                                 per cycle, latency                    (D = Dv = 64, tiles of 128)
// smmla, usmmla                   2, 3               4, 3               32 scores + 32 values + 1
// fadd fmul fmaxnm fminnm         2, 2...3           4, 2...3           32
// tbl of four registers           1/2, 4             2/3, 4             1
// ushr sli sri urshl              1, 2...4           2, 2...4           10
// fcvt, scvtf of four             1/2, 4             1, 4               none
// trn1, trn2, dup                 2, 2               4, 2               1 + 2
// 128-bit load                    3, 6               3, 6               1 per 2 smmla
// Rates and latencies: LLVM 19's scheduling models, which cite Arm's optimisation guides. They put the
// compiled loops at 47 % of the issue rate of the products for D = 64 and 60 % for D = 128.
// The kernels are verified under emulation and were never timed on hardware.
//
// A register of sums has two rows x two keys. Logits and P stay so: P of two rows x eight keys is the
// left operand of usmmla as it comes out of the exponentials.
//
// Registers, both products: 16 sums (8 rows x 8 keys or channels), 4 pairs of query rows or of P, 4
// pairs of keys or channels; 8 are free.
// Bounds: see arm_neon_tiles.h.
#if defined(__aarch64__)
#include "arm_targets.h"
#include "kernels.h"

TARGET_I8MM
enum { LANE_ROWS = 2, KEY_PIECE = 8 };
#include "arm_neon_lanes.h"

// ---------------------------------------------------------------------------------- products

INLINE void multiply_keys(const int R, const int8_t *query, const int8_t *key, int32_t channels,
                          int32x4_t sum[GROUPS][VECTORS]) {
  KEEP_LOOP for (int32_t c = 0; c < channels; c += 8, query += 8 * R, key += 64) {
    int8x16_t q[GROUPS];
    UNROLL for (int i = 0; i < R / 2; i++) q[i] = vld1q_s8(query + 16 * i);
    UNROLL for (int v = 0; v < VECTORS; v++) {
      int8x16_t k = vld1q_s8(key + 16 * v);
      UNROLL for (int i = 0; i < R / 2; i++) sum[i][v] = vmmlaq_s32(sum[i][v], q[i], k);
    }
  }
}

INLINE void multiply_values(const int R, const uint8_t weights[GROUPS][16], const int8_t *value,
                            int32x4_t sum[GROUPS][VECTORS]) {
  uint8x16_t p[GROUPS];
  UNROLL for (int i = 0; i < R / 2; i++) p[i] = vld1q_u8(weights[i]);
  UNROLL for (int v = 0; v < VECTORS; v++) {
    int8x16_t x = vld1q_s8(value + 16 * v);
    UNROLL for (int i = 0; i < R / 2; i++) sum[i][v] = vusmmlaq_s32(sum[i][v], p[i], x);
  }
}

INLINE float32x4_t halves(float64x2_t x) { return vreinterpretq_f32_f64(x); }
INLINE void separate(const int32x4_t sum[VECTORS], float32x4_t rows[LANE_ROWS][2]) {
  UNROLL for (int i = 0; i < 2; i++) {
    float64x2_t even = vreinterpretq_f64_f32(float_of_sum(sum[2 * i]));
    float64x2_t odd = vreinterpretq_f64_f32(float_of_sum(sum[2 * i + 1]));
    rows[0][i] = halves(vtrn1q_f64(even, odd));
    rows[1][i] = halves(vtrn2q_f64(even, odd));
  }
}

// ---------------------------------------------------------------------------------- row sums

typedef struct {
  int32x4_t weighted;  // of p * n, each row twice
} row_sums;

INLINE void add_weights(row_sums *sums, uint8x16_t p, const int8_t *n) {
  sums->weighted = vusmmlaq_s32(sums->weighted, p, vcombine_s8(vld1_s8(n), vld1_s8(n)));
}
INLINE void keep_row_sums(const row_sums *sums, weights *w, int32_t i) {
  w->weighted[2 * i] = vgetq_lane_s32(sums->weighted, 0);
  w->weighted[2 * i + 1] = vgetq_lane_s32(sums->weighted, 2);
  w->start[2 * i] = w->start[2 * i + 1] = MAGIC;
}

#include "arm_neon_tiles.h"

// ---------------------------------------------------------------------------------- storage

#include "arm_neon_pack.h"

// [8 channels][8 tokens].
static void pack_channels(const int8_t *rows, int32_t width, int8_t *target) {
  uint16x8x2_t first = four_tokens(rows, LANE_KEYS * width);
  uint16x8x2_t second = four_tokens(rows + width, LANE_KEYS * width);
  UNROLL for (int i = 0; i < 2; i++) {
    uint32x4x2_t x = vzipq_u32(vreinterpretq_u32_u16(first.val[i]),
                               vreinterpretq_u32_u16(second.val[i]));
    vst1q_s8(target + 32 * i, vreinterpretq_s8_u32(x.val[0]));
    vst1q_s8(target + 32 * i + 16, vreinterpretq_s8_u32(x.val[1]));
  }
}

int64_t intfa_key_bytes__neoni8mm(int64_t tokens, int32_t dimension, bool int4) {
  (void)int4;
  return key_bytes(tokens, dimension);
}
int64_t intfa_value_bytes__neoni8mm(int64_t tokens, int32_t dimension, bool int4) {
  (void)int4;
  return value_bytes(tokens, dimension);
}
// Four bits are stored as the INT8 codes that they stand for.
void intfa_open_key_unit__neoni8mm(const void *int4_unit, int32_t dimension, void *unit) {
  memcpy(unit, int4_unit, (size_t)intfa_key_bytes__neoni8mm(INTFA_PACK_UNIT, dimension, true));
}
void intfa_open_value_unit__neoni8mm(const void *int4_unit, int32_t dimension, void *unit) {
  memcpy(unit, int4_unit, (size_t)intfa_value_bytes__neoni8mm(INTFA_PACK_UNIT, dimension, true));
}
void intfa_pack_keys__neoni8mm(const intfa_pack *a) { pack_keys(a); }
void intfa_pack_values__neoni8mm(const intfa_pack *a) { pack_values(a); }
void intfa_attend_tiles__neoni8mm(const intfa_attend_tiles *a) { attend_tiles(a); }
TARGET_END
#endif
