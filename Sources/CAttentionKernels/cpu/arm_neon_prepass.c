// Pre-pass and epilogue with 128-bit registers, for every 64-bit Arm processor: survey, rotation,
// quantisation, normalisation.
//
// Rows are taken four at a time and transposed into a panel, one register per channel: then the
// rotation is additions between registers, and row maxima, scales and inner products have one lane
// per row; only the transpositions shuffle (8 for 4 x 4 numbers). Every sum and butterfly is that of
// portable_prepass.c, in its order and without fused multiply-add, so all bits are equal. Fewer rows
// than four are padded with zeros, and so are channels beyond the last whole sixteen.
//
// Per four channels of four rows about 4 loads, 16 shuffles, 4 log2(D) / 2 additions of the rotation,
// 20 more to round and narrow. Verified under emulation, never timed on hardware.
#if defined(__aarch64__)
#include <arm_neon.h>

#include "arm_targets.h"
#include "kernels.h"
#include "portable.h"
#include "rotary.h"

enum { PANEL = 4, CHUNK = 16 };  // rows of a panel; channels that are rotated in registers

typedef struct {
  _Alignas(64) float at[INTFA_MAX_DIMENSION][PANEL];  // [channel][row]
} panel;

INLINE uint32x4_t magnitude_of(float32x4_t x) { return vreinterpretq_u32_f32(vabsq_f32(x)); }
INLINE int32_t padded(int32_t count, int32_t unit) { return (count + unit - 1) / unit * unit; }

// ---------------------------------------------------------------------------------- panels

// Channels c ..< c + 4 of a row, zeros beyond the last.
INLINE float32x4_t load_four(const intfa_rows *rows, int64_t row, int32_t c, int32_t dimension) {
  const int64_t at = row * rows->stride + c;
  const int32_t left = dimension - c;
  if (rows->format == INTFA_FLOAT32) {
    const float *source = (const float *)rows->base + at;
    if (left >= 4) return vld1q_f32(source);
    float some[4] = {0};
    for (int32_t i = 0; i < left; i++) some[i] = source[i];
    return vld1q_f32(some);
  }
  const uint16_t *source = (const uint16_t *)rows->base + at;
  uint16_t some[4] = {0};
  for (int32_t i = 0; i < left && left < 4; i++) some[i] = source[i];
  const uint16x4_t half = vld1_u16(left < 4 ? some : source);
  if (rows->format == INTFA_FLOAT16) return vcvt_f32_f16(vreinterpret_f16_u16(half));
  return vreinterpretq_f32_u32(vshll_n_u16(half, 16));
}

INLINE void transpose(float32x4_t x[PANEL]) {
  const float32x4_t a = vzip1q_f32(x[0], x[2]), b = vzip2q_f32(x[0], x[2]);
  const float32x4_t c = vzip1q_f32(x[1], x[3]), d = vzip2q_f32(x[1], x[3]);
  x[0] = vzip1q_f32(a, c);
  x[1] = vzip2q_f32(a, c);
  x[2] = vzip1q_f32(b, d);
  x[3] = vzip2q_f32(b, d);
}

INLINE void butterfly(float32x4_t *a, float32x4_t *b) {
  const float32x4_t sum = vaddq_f32(*a, *b);
  *b = vsubq_f32(*a, *b);
  *a = sum;
}

// Butterflies of strides 1, 2, 4, ... below `block`. Channels beyond the row are zero and stay zero: a
// block is whole, and the padding has blocks of its own.
static void rotate_panel(panel *p, int32_t dimension) {
  const int32_t block = dimension & -dimension, width = padded(dimension, CHUNK);
  for (int32_t c = 0; c < width; c += CHUNK) {
    float32x4_t x[CHUNK];
    UNROLL for (int i = 0; i < CHUNK; i++) x[i] = vld1q_f32(p->at[c + i]);
    UNROLL for (int step = 1; step < CHUNK; step *= 2)
      if (step < block)
        UNROLL for (int i = 0; i < CHUNK; i++)
          if (!(i & step)) butterfly(&x[i], &x[i + step]);
    UNROLL for (int i = 0; i < CHUNK; i++) vst1q_f32(p->at[c + i], x[i]);
  }
  for (int32_t step = CHUNK; step < block; step *= 2)
    for (int32_t c = 0; c < width; c++) {
      if (c & step) continue;
      float32x4_t a = vld1q_f32(p->at[c]), b = vld1q_f32(p->at[c + step]);
      butterfly(&a, &b);
      vst1q_f32(p->at[c], a);
      vst1q_f32(p->at[c + step], b);
    }
}

// Rows [row, row + count) less `mean`, rotated where asked.
static void load_panel(const intfa_rows *rows, int64_t row, int32_t count, int32_t dimension,
                       const float *mean, bool rotates, panel *p) {
  const intfa_rows mean_row = {mean, 0, INTFA_FLOAT32};
  for (int32_t c = 0; c < padded(dimension, CHUNK); c += 4) {
    float32x4_t x[PANEL];
    UNROLL for (int i = 0; i < PANEL; i++) {
      x[i] = vdupq_n_f32(0);
      if (i >= count || c >= dimension) continue;
      x[i] = load_four(rows, row + i, c, dimension);
      if (mean) x[i] = vsubq_f32(x[i], load_four(&mean_row, 0, c, dimension));
    }
    transpose(x);
    UNROLL for (int i = 0; i < PANEL; i++) vst1q_f32(p->at[c + i], x[i]);
  }
  if (rotates) rotate_panel(p, dimension);
}

// The largest magnitudes of the rows of a panel. By bits, so that NaN counts as the largest.
static uint32x4_t panel_maxima(const panel *p, int32_t dimension) {
  uint32x4_t largest[4];
  UNROLL for (int i = 0; i < 4; i++) largest[i] = vdupq_n_u32(0);
  for (int32_t c = 0; c < padded(dimension, CHUNK); c += 4)
    UNROLL for (int i = 0; i < 4; i++)
      largest[i] = vmaxq_u32(largest[i], magnitude_of(vld1q_f32(p->at[c + i])));
  return vmaxq_u32(vmaxq_u32(largest[0], largest[1]), vmaxq_u32(largest[2], largest[3]));
}

static void store_lanes(float *target, float32x4_t x, int32_t count) {
  float lanes[4];
  vst1q_f32(lanes, x);
  memcpy(target, lanes, sizeof(float) * (size_t)count);
}
static float32x4_t load_lanes(const float *source, int32_t count) {
  float lanes[4] = {0};
  memcpy(lanes, source, sizeof(float) * (size_t)count);
  return vld1q_f32(lanes);
}

// ---------------------------------------------------------------------------------- survey

void intfa_survey__neon(const intfa_survey *a) {
  const uint32_t limit = bits_of(a->limit);
  uint32x4_t largest = vdupq_n_u32(0);
  float sums[INTFA_MAX_DIMENSION] = {0}, *target = a->block_sums;
  *a->first_bad = -1;
  for (int64_t row = a->begin; row < a->end; row++) {
    uint32x4_t row_largest = vdupq_n_u32(0);
    const bool is_first = row % INTFA_SUM_BLOCK == 0;
    for (int32_t c = 0; c < a->dimension; c += 4) {
      const float32x4_t x = load_four(&a->rows, row, c, a->dimension);
      row_largest = vmaxq_u32(row_largest, magnitude_of(x));
      if (target) vst1q_f32(sums + c, is_first ? x : vaddq_f32(vld1q_f32(sums + c), x));
    }
    largest = vmaxq_u32(largest, row_largest);
    if (vmaxvq_u32(row_largest) >= limit && *a->first_bad < 0) *a->first_bad = row;
    if (target && ((row + 1) % INTFA_SUM_BLOCK == 0 || row + 1 == a->end)) {
      memcpy(target, sums, sizeof(float) * (size_t)a->dimension);
      target += a->dimension;
    }
  }
  if (a->largest) *a->largest = float_of(vmaxvq_u32(largest));
  if (!a->row_maxima) return;
  panel p;
  for (int64_t row = a->begin; row < a->end; row += PANEL) {
    const int32_t count = a->end - row < PANEL ? (int32_t)(a->end - row) : PANEL;
    load_panel(&a->rows, row, count, a->dimension, NULL, a->rotates, &p);
    store_lanes(a->row_maxima + (row - a->begin),
                vreinterpretq_f32_u32(panel_maxima(&p, a->dimension)), count);
  }
}

// ---------------------------------------------------------------------------------- codes

// bias[h][row] = factor * (mean_h . x) + addend for the rows of a panel, with intfa_dot's sixteen
// partial sums.
static void store_biases(const intfa_quantize *a, int64_t row, int32_t count, const panel *p) {
  float32x4_t addend = vdupq_n_f32(0);
  if (a->bias_addend) addend = load_lanes(a->bias_addend + row, count);
  for (int32_t h = 0; h < a->bias_count; h++) {
    const float *mean = a->bias_means + h * a->bias_mean_stride;
    float32x4_t sum[CHUNK];
    UNROLL for (int i = 0; i < CHUNK; i++) sum[i] = vdupq_n_f32(0);
    int32_t c = 0;
    for (; c + CHUNK <= a->dimension; c += CHUNK)
      UNROLL for (int i = 0; i < CHUNK; i++)
        sum[i] = vaddq_f32(sum[i], vmulq_n_f32(vld1q_f32(p->at[c + i]), mean[c + i]));
    UNROLL for (int i = 0; i < CHUNK; i++)
      if (c + i < a->dimension)
        sum[i] = vaddq_f32(sum[i], vmulq_n_f32(vld1q_f32(p->at[c + i]), mean[c + i]));
    UNROLL for (int half = CHUNK / 2; half > 0; half /= 2)
      UNROLL for (int i = 0; i < half; i++) sum[i] = vaddq_f32(sum[i], sum[i + half]);
    store_lanes(a->biases + h * a->bias_stride + row,
                vaddq_f32(vmulq_n_f32(sum[0], a->bias_factor), addend), count);
  }
}

// Four channels of four rows as codes, each row's four in one lane. Adding 1.5 * 2^23 rounds to an
// integer whose low byte is the code.
INLINE uint32x4_t four_codes(const panel *p, int32_t c, float32x4_t multiplier) {
  uint32x4_t x[4];
  UNROLL for (int i = 0; i < 4; i++) {
    float32x4_t code = vmulq_f32(vld1q_f32(p->at[c + i]), multiplier);
    code = vminnmq_f32(vmaxnmq_f32(code, vdupq_n_f32(-127)), vdupq_n_f32(127));
    x[i] = vreinterpretq_u32_f32(vaddq_f32(code, vdupq_n_f32(12582912.0f)));
  }
  const uint32x4_t low = vsliq_n_u32(x[0], x[1], 8), high = vsliq_n_u32(x[2], x[3], 8);
  return vsliq_n_u32(low, high, 16);
}

void intfa_quantize__neon(const intfa_quantize *a) {
  const int32_t d = a->dimension;
  panel p;
  for (int64_t row = a->begin; row < a->end; row += PANEL) {
    const int32_t count = a->end - row < PANEL ? (int32_t)(a->end - row) : PANEL;
    load_panel(&a->rows, row, count, d, a->mean, a->rotates, &p);
    float32x4_t multiplier;
    if (a->multipliers) {
      multiplier = load_lanes(a->multipliers + row, count);
    } else {
      float32x4_t largest = vreinterpretq_f32_u32(panel_maxima(&p, d));
      largest = vmaxnmq_f32(largest, vdupq_n_f32(SMALLEST_MAXIMUM));
      multiplier = vdivq_f32(vdupq_n_f32(127), largest);
      store_lanes(a->scales + (row - a->begin), vdivq_f32(largest, vdupq_n_f32(127)), count);
    }
    int8_t *codes = a->codes + (row - a->begin) * d;
    for (int32_t c = 0; c < d; c += CHUNK) {
      float32x4_t x[PANEL];
      UNROLL for (int i = 0; i < 4; i++)
        x[i] = vreinterpretq_f32_u32(four_codes(&p, c + 4 * i, multiplier));
      transpose(x);
      for (int32_t i = 0; i < count; i++)
        memcpy(codes + i * d + c, &x[i], (size_t)(d - c < CHUNK ? d - c : CHUNK));
    }
    if (a->bias_count > 0) store_biases(a, row, count, &p);
  }
}

// ---------------------------------------------------------------------------------- epilogue

// Channels c ..< c + 4 of a row into the caller's tensor, none beyond the last.
INLINE void store_four(void *target, int64_t at, int32_t left, float32x4_t x, intfa_format format) {
  const size_t count = left < 4 ? (size_t)left : 4;
  if (format == INTFA_FLOAT32) {
    memcpy((float *)target + at, &x, sizeof(float) * count);
    return;
  }
  uint16x4_t half;
  if (format == INTFA_FLOAT16) {
    half = vreinterpret_u16_f16(vcvt_f16_f32(x));
  } else {  // nearest, ties to even; the output is finite
    uint32x4_t bits = vreinterpretq_u32_f32(x), odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    half = vshrn_n_u32(vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7FFF))), 16);
  }
  memcpy((uint16_t *)target + at, &half, sizeof(uint16_t) * count);
}

void intfa_finish__neon(const intfa_finish *a) {
  const int32_t d = a->value_dimension;
  const intfa_rows out = {a->out, a->out_stride, INTFA_FLOAT32};
  panel p;
  for (int32_t row = 0; row < a->rows; row += PANEL) {
    const int32_t count = a->rows - row < PANEL ? a->rows - row : PANEL;
    float factors[PANEL] = {0};
    for (int32_t i = 0; i < count; i++)
      if (a->total[row + i] > 0) factors[i] = a->factor / a->total[row + i];
    const float32x4_t factor = vld1q_f32(factors);
    load_panel(&out, row, count, d, NULL, a->rotates, &p);
    for (int32_t c = 0; c < d; c += 4) {
      float32x4_t x[PANEL];
      UNROLL for (int i = 0; i < 4; i++) x[i] = vmulq_f32(vld1q_f32(p.at[c + i]), factor);
      transpose(x);
      for (int32_t i = 0; i < count; i++)
        store_four(a->target, (row + i) * a->target_stride + c, d - c, x[i], a->target_format);
    }
  }
  intfa_finish_log_sum_exp(a);
}
void intfa_load_rotary__neon(const intfa_load_rotary *a) { load_rotary(a); }
#endif
