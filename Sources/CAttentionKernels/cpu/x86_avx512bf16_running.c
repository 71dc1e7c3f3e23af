// The loop of the running maximum with bfloat16 products: vdpbf16ps, two products a lane and
// instruction, summed in float32.
//
// Serves values and P in bfloat16 with queries and keys in bfloat16 or INT8, and leaves every other
// recipe to x86_avx512vnni_running.c; the loop itself is x86_avx512_running_loop.h. Packed keys:
// [token / 32][pair of channels][32 tokens], packed values: [pair of tokens][Dv].
// Error against the portable loop: as said there, and vdpbf16ps flushes denormals.
#if defined(__x86_64__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,f16c"))), \
                             apply_to = function)
#define RUNNING_BFLOAT16
#include "kernels.h"
#include "x86_avx512_running_loop.h"

static bool has_pair_values(const intfa_running_formats *f) {
  return f->value == INTFA_BFLOAT16 && f->probability == INTFA_P_BFLOAT16 &&
         (f->score == INTFA_BFLOAT16 || f->score == INTFA_INT8);
}
static bool has_pair_scores(const intfa_running_formats *f) {
  return has_pair_values(f) && f->score == INTFA_BFLOAT16;
}

// ---------------------------------------------------------------------------------- packing

int64_t intfa_running_key_bytes__avx512bf16(const intfa_running_formats *formats, int64_t tokens,
                                            int32_t dimension) {
  if (!has_pair_scores(formats))
    return intfa_running_key_bytes__avx512vnni(formats, tokens, dimension);
  return padded(tokens, INTFA_PACK_UNIT) * query_lanes(dimension, PAIRS) * 4;
}
int64_t intfa_running_value_bytes__avx512bf16(const intfa_running_formats *formats, int64_t tokens,
                                              int32_t dimension) {
  if (!has_pair_values(formats))
    return intfa_running_value_bytes__avx512vnni(formats, tokens, dimension);
  return padded(tokens, INTFA_PACK_UNIT) * padded(dimension, 64) * 2;
}

// Channels 32 * block ... of a row as 16 pairs of bfloat16; zeros where there is no such row.
INLINE __m512i pair_lanes(const intfa_rows *rows, int64_t row, int64_t end, int32_t dimension,
                          int32_t block) {
  if (row >= end) return _mm512_setzero_si512();
  if (rows->format == INTFA_BFLOAT16) {
    const int32_t left = dimension - 32 * block;
    const __mmask32 mask = left >= 32 ? ~0u : left > 0 ? (1u << left) - 1 : 0;
    const uint16_t *base = (const uint16_t *)rows->base + row * rows->stride;
    return _mm512_maskz_loadu_epi16(mask, base + 32 * block);
  }
  return (__m512i)_mm512_cvtne2ps_pbh(load_chunk(rows, row, dimension, 2 * block + 1),
                                      load_chunk(rows, row, dimension, 2 * block));
}

void intfa_pack_running_keys__avx512bf16(const intfa_pack_running *a) {
  if (!has_pair_scores(&a->formats)) {
    intfa_pack_running_keys__avx512vnni(a);
    return;
  }
  const int32_t lanes = query_lanes(a->dimension, PAIRS);
  for (int64_t first = a->begin; first < a->end; first += 16) {
    for (int32_t i = 16; i < 32; i++) prefetch_row(&a->rows, first + i, a->end, a->dimension);
    for (int32_t block = 0; 16 * block < lanes; block++) {
      __m512i rows[16];
      for (int32_t i = 0; i < 16; i++)
        rows[i] = pair_lanes(&a->rows, first + i, a->end, a->dimension, block);
      store_key_lanes(a->target, first, lanes, block, rows);
    }
  }
  clear_key_padding(a->target, a->end, lanes);
}

void intfa_pack_running_values__avx512bf16(const intfa_pack_running *a) {
  if (!has_pair_values(&a->formats)) {
    intfa_pack_running_values__avx512vnni(a);
    return;
  }
  const int32_t width = (int32_t)padded(a->dimension, 64);
  const int64_t end = padded(a->end, SUB);
  for (int64_t token = a->begin; token < end; token += 2) {
    for (int32_t i = 16; i < 18; i++) prefetch_row(&a->rows, token + i, a->end, a->dimension);
    for (int32_t block = 0; 32 * block < width; block++) {
      __m512i even = pair_lanes(&a->rows, token, a->end, a->dimension, block);
      __m512i odd = pair_lanes(&a->rows, token + 1, a->end, a->dimension, block);
      store_value_pairs((uint32_t *)a->target + token / 2 * width + 32 * block, even, odd);
    }
  }
}

static void pack_pair_queries(const intfa_attend_running *a) {
  running_state *s = a->scratch;
  const int32_t d = a->head_dimension, lanes = query_lanes(d, PAIRS);
  const __m512i sign = _mm512_set1_epi32(query_sign(a) < 0 ? (int32_t)0x80008000 : 0);
  const __m512i kept = _mm512_set1_epi32(query_sign(a) != 0 ? -1 : 0);
  for (int32_t row = 0; row < a->rows; row += 16)
    for (int32_t block = 0; 16 * block < lanes; block++) {
      __m512i rows[16];
      for (int32_t i = 0; i < 16; i++) {
        __m512i x = pair_lanes(&a->query, row + i, a->rows, d, block);
        rows[i] = _mm512_and_si512(_mm512_xor_si512(x, sign), kept);
      }
      store_query_lanes(s->query, row, lanes, block, rows);
    }
}

// ---------------------------------------------------------------------------------- the loop

void intfa_attend_running__avx512bf16(const intfa_attend_running *a) {
  if (!has_pair_values(&a->formats)) {
    intfa_attend_running__avx512vnni(a);
    return;
  }
  if (!a->resumes) prepare_running_rows(a);
  if (has_pair_scores(&a->formats)) {
    if (!a->resumes) pack_pair_queries(a);
    attend_running((running_kind){PAIRS, PAIRS, INTFA_P_BFLOAT16, false}, a);
  } else {
    if (!a->resumes) pack_code_queries(a);
    attend_running((running_kind){QUADS, PAIRS, INTFA_P_BFLOAT16, true}, a);
  }
}
#pragma clang attribute pop
#endif
