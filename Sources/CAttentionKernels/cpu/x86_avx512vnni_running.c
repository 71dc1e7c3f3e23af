// The loop of the running maximum on AVX-512 VNNI: float32 products, and INT8 products of Q.K and P.V.
//
// Serves every recipe of attend_running. 16-bit and 8-bit floats are rounded when they are packed and
// kept as float32, so their products are exact; the loop itself is x86_avx512_running_loop.h.
// Packed keys: [token / 32][lane][32 tokens], a lane one channel or four codes + 128. Packed values:
// [lane of tokens][Dv], a lane one float or the codes of four tokens. D is padded to 8 lanes, Dv to 64,
// tokens to 32, with zeros.
#if defined(__x86_64__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c"))), \
                             apply_to = function)
#include "kernels.h"
#include "x86_avx512_running_loop.h"

// ---------------------------------------------------------------------------------- packing

INLINE lane_kind lanes_for(intfa_format format) { return format == INTFA_INT8 ? QUADS : FLOATS; }

int64_t intfa_running_key_bytes__avx512vnni(const intfa_running_formats *formats, int64_t tokens,
                                            int32_t dimension) {
  return padded(tokens, INTFA_PACK_UNIT) * query_lanes(dimension, lanes_for(formats->score)) * 4;
}
int64_t intfa_running_value_bytes__avx512vnni(const intfa_running_formats *formats, int64_t tokens,
                                              int32_t dimension) {
  return padded(tokens, INTFA_PACK_UNIT) * padded(dimension, 64) * 4 / lanes_for(formats->value);
}

// Sixteen channels of a row, rounded; zeros where there is no such row.
INLINE __m512i float_lanes(const intfa_rows *rows, int64_t row, int64_t end, int32_t dimension,
                           int32_t chunk, float multiplier, intfa_format round) {
  if (row >= end) return _mm512_setzero_si512();
  __m512 x = _mm512_mul_ps(load_chunk(rows, row, dimension, chunk), _mm512_set1_ps(multiplier));
  return _mm512_castps_si512(round_x16(x, round));
}

void intfa_pack_running_keys__avx512vnni(const intfa_pack_running *a) {
  const bool is_int8 = a->formats.score == INTFA_INT8;
  const int32_t lanes = query_lanes(a->dimension, lanes_for(a->formats.score));
  for (int64_t first = a->begin; first < a->end; first += 16) {
    for (int32_t i = 16; i < 32 && !is_int8; i++)
      prefetch_row(&a->rows, first + i, a->end, a->dimension);
    for (int32_t chunk = 0; 16 * chunk < lanes; chunk++) {
      __m512i rows[16];
      for (int32_t i = 0; i < 16; i++) {
        const int64_t token = first + i;
        rows[i] = is_int8 ? _mm512_xor_si512(load_codes(a->codes + (token - a->begin) * a->dimension,
                                                        token < a->end ? a->dimension : 0, chunk),
                                             _mm512_set1_epi8(-128))
                          : float_lanes(&a->rows, token, a->end, a->dimension, chunk, a->multiplier,
                                        a->formats.score);
      }
      store_key_lanes(a->target, first, lanes, chunk, rows);
    }
  }
  clear_key_padding(a->target, a->end, lanes);
}

void intfa_pack_running_values__avx512vnni(const intfa_pack_running *a) {
  const int32_t d = a->dimension, width = (int32_t)padded(d, 64);
  const int64_t end = padded(a->end, SUB);
  if (a->formats.value != INTFA_INT8) {
    for (int64_t token = a->begin; token < end; token++) {
      prefetch_row(&a->rows, token + 16, a->end, d);
      for (int32_t chunk = 0; 16 * chunk < width; chunk++)
        _mm512_store_si512((float *)a->target + token * width + 16 * chunk,
                           float_lanes(&a->rows, token, a->end, d, chunk, a->multiplier,
                                       a->formats.value));
    }
    return;
  }
  for (int64_t token = a->begin; token < end; token += 4)
    for (int32_t c = 0; c < width; c += 16) {
      __m128i row[4];
      for (int32_t i = 0; i < 4; i++) {
        __mmask16 mask = token + i < a->end ? lanes_of(d, c / 16) : 0;
        row[i] = _mm_maskz_loadu_epi8(mask, a->codes + (token + i - a->begin) * d + c);
      }
      __m128i ab = _mm_unpacklo_epi8(row[0], row[1]), AB = _mm_unpackhi_epi8(row[0], row[1]);
      __m128i cd = _mm_unpacklo_epi8(row[2], row[3]), CD = _mm_unpackhi_epi8(row[2], row[3]);
      __m128i *to = (__m128i *)((int8_t *)a->target + token * width + 4 * c);
      _mm_store_si128(to, _mm_unpacklo_epi16(ab, cd));
      _mm_store_si128(to + 1, _mm_unpackhi_epi16(ab, cd));
      _mm_store_si128(to + 2, _mm_unpacklo_epi16(AB, CD));
      _mm_store_si128(to + 3, _mm_unpackhi_epi16(AB, CD));
    }
}

static void pack_float_queries(const intfa_attend_running *a) {
  running_state *s = a->scratch;
  const int32_t d = a->head_dimension, lanes = query_lanes(d, FLOATS);
  const float multiplier = a->query_multiplier * query_sign(a);
  for (int32_t row = 0; row < a->rows; row += 16)
    for (int32_t chunk = 0; 16 * chunk < lanes; chunk++) {
      __m512i rows[16];
      for (int32_t i = 0; i < 16; i++)
        rows[i] = float_lanes(&a->query, row + i, a->rows, d, chunk, multiplier, a->formats.score);
      store_query_lanes(s->query, row, lanes, chunk, rows);
    }
}

// ---------------------------------------------------------------------------------- the loop

static bool has_positive_scales(const intfa_attend_running *a) {
  for (int32_t r = 0; r < a->rows; r++)
    if (!(a->query_scale[r] > 0)) return false;
  return true;
}

#define ATTEND(score, value, probability) \
  attend_running((running_kind){score, value, probability, score == QUADS}, a)

// The paper's recipe, which has no bias: scale the scores once less.
static void attend_int8(const intfa_attend_running *a) {
  if (a->bias || !has_positive_scales(a))
    ATTEND(QUADS, QUADS, INTFA_P_INT8);
  else
    attend_running((running_kind){QUADS, QUADS, INTFA_P_INT8, false}, a);
}

void intfa_attend_running__avx512vnni(const intfa_attend_running *a) {
  if (!a->resumes) prepare_running_rows(a);
  if (a->formats.score == INTFA_INT8) {
    if (!a->resumes) pack_code_queries(a);
    switch (a->formats.probability) {
      case INTFA_P_FLOAT32: ATTEND(QUADS, FLOATS, INTFA_P_FLOAT32); return;
      case INTFA_P_FLOAT16: ATTEND(QUADS, FLOATS, INTFA_P_FLOAT16); return;
      case INTFA_P_BFLOAT16: ATTEND(QUADS, FLOATS, INTFA_P_BFLOAT16); return;
      case INTFA_P_FLOAT8: ATTEND(QUADS, FLOATS, INTFA_P_FLOAT8); return;
      case INTFA_P_INT8: attend_int8(a); return;
    }
  }
  if (!a->resumes) pack_float_queries(a);
  switch (a->formats.probability) {
    case INTFA_P_FLOAT32: ATTEND(FLOATS, FLOATS, INTFA_P_FLOAT32); return;
    case INTFA_P_FLOAT16: ATTEND(FLOATS, FLOATS, INTFA_P_FLOAT16); return;
    case INTFA_P_BFLOAT16: ATTEND(FLOATS, FLOATS, INTFA_P_BFLOAT16); return;
    case INTFA_P_FLOAT8: ATTEND(FLOATS, FLOATS, INTFA_P_FLOAT8); return;
    case INTFA_P_INT8: ATTEND(FLOATS, QUADS, INTFA_P_INT8); return;
  }
}
#pragma clang attribute pop
#endif
