// Float tile loop of the running maximum with 128-bit fmla, for every 64-bit Arm processor.
//
// instruction          Neoverse N1        Neoverse V1        here, per 4 scores (D = Dv = 64)
//                      per cycle, latency
// fmla (by element)    2, 4               4, 4               64 scores + 64 values
// fadd fmul fmaxnm     2, 2...3           4, 2...3           about 25
// 128-bit load         2, 5               3, 6               1 per 4 fmla
// Rates and latencies: LLVM 19's scheduling models, which cite Arm's optimisation guides. Verified under
// emulation, never timed on hardware.
//
// All operands are float32 in the loop: keys and values are converted when they are packed, queries at
// the beginning of a call. INT8 codes too: products and sums of codes are integers below 2^24
// (256 * 127 * 127 = 4.1e6), so that float32 holds them exactly, fused or not.
//
// Packed keys: [token / 8][D][8 tokens], D padded to 4. Packed values: [token][Dv], Dv padded to 8.
// Tokens are padded with zeros to INTFA_PACK_UNIT.
//
// Registers, both products: 16 sums (8 rows x 8 keys or channels), 8 for four channels of the queries or
// four keys of P, 2 for keys or values. The last few rows are taken two at a time. The bits of a row
// depend on nothing but the row and its keys.
#if defined(__aarch64__)
#include "arm_neon_exp2.h"
#include "key_mask.h"
#include "kernels.h"
#include "portable.h"

enum { ROWS = 8, UNIT = 8, TILE = INTFA_MAX_TILE + UNIT };

typedef struct {
  _Alignas(64) float logit[ROWS][TILE];
  _Alignas(64) float p[TILE / 4][ROWS][4];
  float keep[ROWS];  // what the sums so far are multiplied by
  _Alignas(64) float query[INTFA_MAX_ROWS * INTFA_MAX_DIMENSION];  // [D / 4][rows at once][4]
} state;
_Static_assert(sizeof(state) <= INTFA_SCRATCH_BYTES, "fits the scratch memory");

static int64_t padded(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }
static int32_t rows_at_once(int32_t left) { return left >= ROWS ? ROWS : 2; }

// ---------------------------------------------------------------------------------- storage

int64_t intfa_running_key_bytes__neon(const intfa_running_formats *formats, int64_t tokens,
                                      int32_t dimension) {
  (void)formats;
  return padded(tokens, INTFA_PACK_UNIT) * padded(dimension, 4) * (int64_t)sizeof(float);
}
int64_t intfa_running_value_bytes__neon(const intfa_running_formats *formats, int64_t tokens,
                                        int32_t dimension) {
  (void)formats;
  return padded(tokens, INTFA_PACK_UNIT) * padded(dimension, 8) * (int64_t)sizeof(float);
}

// A token as float32, with zeros up to `width` channels and for tokens beyond the last.
static void load_token(const intfa_pack_running *a, intfa_format format, int64_t token, int32_t width,
                       float *x) {
  memset(x, 0, sizeof(float) * (size_t)width);
  if (token >= a->end) return;
  const int8_t *codes = a->codes + (token - a->begin) * a->dimension;
  if (format == INTFA_INT8)
    for (int32_t c = 0; c < a->dimension; c++) x[c] = codes[c];
  else
    intfa_load_rows(&a->rows, token, token + 1, a->dimension, a->multiplier, format, x);
}

void intfa_pack_running_keys__neon(const intfa_pack_running *a) {
  const int32_t width = (int32_t)padded(a->dimension, 4);
  float x[INTFA_MAX_DIMENSION];
  for (int64_t token = a->begin; token < padded(a->end, INTFA_PACK_UNIT); token++) {
    load_token(a, a->formats.score, token, width, x);
    float *target = (float *)a->target + token / UNIT * UNIT * width + token % UNIT;
    for (int32_t c = 0; c < width; c++) target[c * UNIT] = x[c];
  }
}

void intfa_pack_running_values__neon(const intfa_pack_running *a) {
  const int32_t width = (int32_t)padded(a->dimension, 8);
  for (int64_t token = a->begin; token < padded(a->end, INTFA_PACK_UNIT); token++)
    load_token(a, a->formats.value, token, width, (float *)a->target + token * width);
}

static void prepare_queries(const intfa_attend_running *a, state *s) {
  const int32_t d = a->head_dimension, stride = (int32_t)padded(d, 4);
  float x[INTFA_MAX_DIMENSION];
  memset(s->query, 0, sizeof(float) * (size_t)(padded(a->rows, 2) * stride));
  for (int32_t row = 0, count; row < a->rows; row += count) {
    count = rows_at_once(a->rows - row);
    for (int32_t r = 0; r < count && row + r < a->rows; r++) {
      if (a->formats.score == INTFA_INT8)
        for (int32_t c = 0; c < d; c++) x[c] = a->query_codes[(int64_t)(row + r) * d + c];
      else
        intfa_load_rows(&a->query, row + r, row + r + 1, d, a->query_multiplier, a->formats.score, x);
      for (int32_t c = 0; c < d; c++)
        s->query[(int64_t)row * stride + (c / 4 * count + r) * 4 + c % 4] = x[c];
    }
  }
}

// ---------------------------------------------------------------------------------- scores

// sum[row][half] += x[half] * y[row][lane]
#define ADD_PRODUCTS(x, y, lane)                                              \
  do {                                                                        \
    float32x4_t x0 = vld1q_f32(x), x1 = vld1q_f32((x) + 4);                   \
    UNROLL for (int i = 0; i < R; i++) {                                      \
      sum[i][0] = vfmaq_laneq_f32(sum[i][0], x0, y[i], lane);                 \
      sum[i][1] = vfmaq_laneq_f32(sum[i][1], x1, y[i], lane);                 \
    }                                                                         \
  } while (0)

// Logits of R rows, of which `count` exist, and keys [from, to).
INLINE void score(const int R, const intfa_attend_running *a, state *s, int32_t row, int32_t count,
                  int64_t from, int64_t to) {
  const int32_t stride = (int32_t)padded(a->head_dimension, 4);
  KEEP_LOOP for (int64_t j = from; j < to; j += UNIT) {
    const float *query = s->query + (int64_t)row * stride;
    const float *key = (const float *)a->key + j * stride;
    float32x4_t sum[ROWS][2];
    UNROLL for (int i = 0; i < R; i++) sum[i][0] = sum[i][1] = vdupq_n_f32(0);
    KEEP_LOOP for (int32_t c = 0; c < stride; c += 4, query += 4 * R, key += 4 * UNIT) {
      float32x4_t q[ROWS];
      UNROLL for (int i = 0; i < R; i++) q[i] = vld1q_f32(query + 4 * i);
      ADD_PRODUCTS(key, q, 0);
      ADD_PRODUCTS(key + UNIT, q, 1);
      ADD_PRODUCTS(key + 2 * UNIT, q, 2);
      ADD_PRODUCTS(key + 3 * UNIT, q, 3);
    }
    UNROLL for (int h = 0; h < 2; h++) {
      const bool has_scale = a->formats.score == INTFA_INT8;
      const float32x4_t zero = vdupq_n_f32(0), one = vdupq_n_f32(1);
      float32x4_t key_scale = has_scale ? vld1q_f32(a->key_scale + j + 4 * h) : one;
      float32x4_t bias = a->bias ? vld1q_f32(a->bias + j + 4 * h) : zero;
      UNROLL for (int i = 0; i < R; i++) {
        float scale = i < count ? a->query_scale[row + i] : 0;
        float32x4_t x = vmulq_n_f32(vmulq_f32(sum[i][h], key_scale), scale);
        vst1q_f32(s->logit[i] + (j - from) + 4 * h, vaddq_f32(x, bias));
      }
    }
  }
}

static __attribute__((noinline)) void cap_logits(const intfa_attend_running *a, float *logit,
                                                 int32_t row, int64_t count) {
  const float shift = a->row_shift ? a->row_shift[row] : 0;
  for (int64_t j = 0; j < count; j++) logit[j] = soft_cap(logit[j] + shift, a->softcap);
}

// ---------------------------------------------------------------------------------- exponentials

// drop_mantissa of four numbers.
INLINE float32x4_t drop_bits(float32x4_t x, const int drop) {
  uint32x4_t bits = vreinterpretq_u32_f32(x);
  uint32x4_t odd = vandq_u32(vshlq_u32(bits, vdupq_n_s32(-drop)), vdupq_n_u32(1));
  bits = vaddq_u32(vaddq_u32(bits, vdupq_n_u32((1u << (drop - 1)) - 1)), odd);
  return vreinterpretq_f32_u32(vandq_u32(bits, vdupq_n_u32(~0u << drop)));
}
// P as portable_running.c rounds it.
INLINE float32x4_t rounded(float32x4_t p, const intfa_probability format) {
  switch (format) {
    case INTFA_P_FLOAT32: return p;
    case INTFA_P_FLOAT16: return vcvt_f32_f16(vcvt_f16_f32(p));
    case INTFA_P_BFLOAT16: return drop_bits(p, 16);
    case INTFA_P_FLOAT8: {
      const float32x4_t magic = vdupq_n_f32(24576.0f), x = vmulq_n_f32(p, 256.0f);
      float32x4_t small = vsubq_f32(vaddq_f32(x, magic), magic);
      float32x4_t code = vbslq_f32(vcltq_f32(x, vdupq_n_f32(0x1p-6f)), small, drop_bits(x, 20));
      return vmulq_n_f32(code, 1.0f / 256.0f);
    }
    case INTFA_P_INT8:
      return vcvtq_f32_s32(vcvtq_s32_f32(vaddq_f32(vmulq_n_f32(p, 127.0f), vdupq_n_f32(0.5f))));
  }
  return p;
}

// P of one row, its running maximum and sum. Keys outside [first, last) get P = 0; key 0 of those is
// `from`.
INLINE void softmax_row(const intfa_probability format, const intfa_attend_running *a, state *s,
                        int32_t i, int32_t row, int64_t from, int32_t first, int32_t last,
                        int32_t count) {
  const float none = -__builtin_inff();
  const int32x4_t lanes = {0, 1, 2, 3};
  float *logit = s->logit[i];
  float32x4_t largest = vdupq_n_f32(none), sum = vdupq_n_f32(0);
  if (a->softcap > 0) cap_logits(a, logit, row, count);
  if (a->mask && first < last) mask_row(a->mask, row, from + first, last - first, logit + first);
  for (int32_t j = 0; j < count; j += 4) {
    int32x4_t key = vaddq_s32(lanes, vdupq_n_s32(j));
    uint32x4_t seen = vandq_u32(vcgeq_s32(key, vdupq_n_s32(first)), vcltq_s32(key, vdupq_n_s32(last)));
    float32x4_t x = vbslq_f32(seen, vld1q_f32(logit + j), vdupq_n_f32(none));
    vst1q_f32(logit + j, x);
    largest = vmaxnmq_f32(largest, x);
  }
  float top = vmaxnmvq_f32(largest), reference = a->reference[row];
  if (has_whole_reference(format)) top = __builtin_ceilf(top);
  top = reference > top ? reference : top;
  s->keep[i] = exp2_fast(reference - top);
  for (int32_t j = 0; j < count; j += 4) {
    float32x4_t x = vld1q_f32(logit + j);
    uint32x4_t seen = vcgtq_f32(x, vdupq_n_f32(none));  // 2^x is never quite 0
    float32x4_t p = exp2_x4(vsubq_f32(x, vdupq_n_f32(top)));
    p = vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(p), seen));
    sum = vaddq_f32(sum, p);
    vst1q_f32(s->p[j / 4][i], rounded(p, format));
  }
  a->reference[row] = top;
  a->total[row] = a->total[row] * s->keep[i] + vaddvq_f32(sum);
}

// P of `count` rows; out of line, so that the formats exist once.
static __attribute__((noinline)) void softmax_rows(const intfa_attend_running *a, state *s,
                                                   int32_t row, int32_t count, int64_t begin,
                                                   int64_t end, int64_t from, int64_t to) {
  for (int32_t i = 0; i < count; i++) {
    const key_range seen = visible_keys(&a->visible, row + i, begin, end);
    const int32_t first = (int32_t)(seen.begin - from), width = (int32_t)(to - from);
    const int32_t last = (int32_t)(seen.end > begin ? seen.end - from : 0);
    switch (a->formats.probability) {
      case INTFA_P_FLOAT32: softmax_row(INTFA_P_FLOAT32, a, s, i, row + i, from, first, last, width); break;
      case INTFA_P_FLOAT16: softmax_row(INTFA_P_FLOAT16, a, s, i, row + i, from, first, last, width); break;
      case INTFA_P_BFLOAT16: softmax_row(INTFA_P_BFLOAT16, a, s, i, row + i, from, first, last, width); break;
      case INTFA_P_FLOAT8: softmax_row(INTFA_P_FLOAT8, a, s, i, row + i, from, first, last, width); break;
      case INTFA_P_INT8: softmax_row(INTFA_P_INT8, a, s, i, row + i, from, first, last, width); break;
    }
  }
}

// ---------------------------------------------------------------------------------- values

// out = keep * out + P x values for R rows and the keys [from, to).
INLINE void add_values(const int R, const intfa_attend_running *a, const state *s, int32_t row,
                       int64_t from, int64_t to) {
  const int32_t width = (int32_t)padded(a->value_dimension, 8);
  KEEP_LOOP for (int32_t c = 0; c < width; c += 8) {
    const float *value = (const float *)a->value + from * width + c;
    float32x4_t sum[ROWS][2];
    UNROLL for (int i = 0; i < R; i++) sum[i][0] = sum[i][1] = vdupq_n_f32(0);
    KEEP_LOOP for (int64_t j = 0; j < to - from; j += 4, value += 4 * width) {
      float32x4_t p[ROWS];
      UNROLL for (int i = 0; i < R; i++) p[i] = vld1q_f32(s->p[j / 4][i]);
      ADD_PRODUCTS(value, p, 0);
      ADD_PRODUCTS(value + width, p, 1);
      ADD_PRODUCTS(value + 2 * width, p, 2);
      ADD_PRODUCTS(value + 3 * width, p, 3);
    }
    UNROLL for (int i = 0; i < R; i++) {
      float *out = a->out + (row + i) * a->out_stride + c;
      vst1q_f32(out, vaddq_f32(vmulq_n_f32(vld1q_f32(out), s->keep[i]), sum[i][0]));
      vst1q_f32(out + 4, vaddq_f32(vmulq_n_f32(vld1q_f32(out + 4), s->keep[i]), sum[i][1]));
    }
  }
}

// ---------------------------------------------------------------------------------- the loop

// R rows against the tile [begin, end).
INLINE void attend_rows(const int R, const intfa_attend_running *a, state *s, int32_t row,
                        int64_t begin, int64_t end) {
  const int32_t count = row + R < a->rows ? R : a->rows - row;
  const key_range first_seen = visible_keys(&a->visible, row, begin, end);
  const key_range last_seen = visible_keys(&a->visible, row + count - 1, begin, end);
  if (first_seen.begin >= last_seen.end) return;
  const int64_t from = first_seen.begin / UNIT * UNIT, to = padded(last_seen.end, UNIT);
  score(R, a, s, row, count, from, to);
  softmax_rows(a, s, row, count, begin, end, from, to);
  add_values(R, a, s, row, from, to);
}

void intfa_attend_running__neon(const intfa_attend_running *a) {
  state *s = a->scratch;
  memset(s->p, 0, sizeof s->p);
  memset(s->keep, 0, sizeof s->keep);
  prepare_queries(a, s);
  for (int64_t begin = a->key_begin, end; begin < a->key_end; begin = end) {
    end = tile_end(begin, a->key_end, a->first_tile, a->tile);
    for (int32_t row = 0, count; row < a->rows; row += count) {
      count = rows_at_once(a->rows - row);
      if (count == ROWS)
        attend_rows(ROWS, a, s, row, begin, end);
      else
        attend_rows(2, a, s, row, begin, end);
    }
  }
}
#endif
