// Types and small functions of the AVX-512 VNNI kernels. Included inside their target region.
#pragma once
#include <immintrin.h>

#include "kernels.h"
#include "portable.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("clang loop unroll(full)")
#define KEEP_LOOP _Pragma("clang loop unroll(disable)")

enum {
  ROWS = 4,   // query rows of a register tile
  KEYS = 64,  // keys of a register tile: 4 x 64 int32 sums fill 16 registers
  UNITS = 16, // pieces that the work on a register tile is cut into, ROWS x KEYS / 16
  SUBS = INTFA_MAX_TILE / KEYS
};

// Where the weights of keys 4 * four ... 4 * four + 3 of 64 stand once their logits are narrowed
// 32 -> 16 -> 8 bits: two packs interleave the 128-bit quarters of four registers.
INLINE int32_t p_offset(int32_t four) { return 16 * (four % 4) + 4 * (four / 4); }
// From the order of keys to that of their weights and back.
INLINE __m512i dword_order(void) {
  return _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
}

#pragma GCC visibility push(hidden)

// Integer tiles of at most this many rows are bound by memory, and have a loop of their own.
enum { FEW_ROWS = 16 };
void intfa_attend_few__avx512vnni(const intfa_attend_tiles *a);

// INT8 codes of 64 tokens as they would be packed, from four bits; fetches as many bytes from `ahead`.
void intfa_unpack_key_unit__avx512vnni(const uint8_t *unit, int32_t stride, uint8_t *codes,
                                       const char *ahead);
void intfa_unpack_value_unit__avx512vnni(const uint8_t *unit, int32_t width, int8_t *codes,
                                         const char *ahead);

#pragma GCC visibility pop

// Bytes of 64 tokens stored in four bits; see x86_avx512vnni_pack.c.
INLINE int32_t int4_key_unit_bytes(int32_t stride) { return stride * (KEYS / 2 + 4); }
INLINE int32_t int4_value_unit_bytes(int32_t width) { return width * (KEYS / 2 + 8); }

INLINE __mmask64 first_bytes(int32_t count) {
  return count >= 64 ? ~0ull : count > 0 ? (1ull << count) - 1 : 0;
}

INLINE int64_t padded(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

// exp2_fast of four exponents, operation by operation.
INLINE __m128 exp2_x4(__m128 x) {
  x = _mm_min_ps(_mm_max_ps(x, _mm_set1_ps(-126.0f)), _mm_set1_ps(126.0f));
  __m128 shifted = _mm_add_ps(x, _mm_set1_ps(12582912.0f));
  __m128 f = _mm_sub_ps(x, _mm_sub_ps(shifted, _mm_set1_ps(12582912.0f)));
  __m128 p = _mm_set1_ps(1.5403530e-4f);
  p = _mm_add_ps(_mm_mul_ps(p, f), _mm_set1_ps(1.3333558e-3f));
  p = _mm_add_ps(_mm_mul_ps(p, f), _mm_set1_ps(9.6181291e-3f));
  p = _mm_add_ps(_mm_mul_ps(p, f), _mm_set1_ps(5.5504109e-2f));
  p = _mm_add_ps(_mm_mul_ps(p, f), _mm_set1_ps(2.4022651e-1f));
  p = _mm_add_ps(_mm_mul_ps(p, f), _mm_set1_ps(6.9314718e-1f));
  p = _mm_add_ps(_mm_mul_ps(p, f), _mm_set1_ps(1.0f));
  __m128i exponent = _mm_add_epi32(_mm_castps_si128(shifted), _mm_set1_epi32(127 - 0x4B400000));
  return _mm_mul_ps(p, _mm_castsi128_ps(_mm_slli_epi32(exponent, 23)));
}

// Horizontal maxima and sums of four registers at once.
INLINE __m128 four_maxima(const __m512 x[ROWS]) {
  __m512 a = _mm512_max_ps(_mm512_unpacklo_ps(x[0], x[2]), _mm512_unpackhi_ps(x[0], x[2]));
  __m512 b = _mm512_max_ps(_mm512_unpacklo_ps(x[1], x[3]), _mm512_unpackhi_ps(x[1], x[3]));
  __m512 c = _mm512_max_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  __m256 d = _mm256_max_ps(_mm512_castps512_ps256(c), _mm512_extractf32x8_ps(c, 1));
  return _mm_max_ps(_mm256_castps256_ps128(d), _mm256_extractf128_ps(d, 1));
}
INLINE __m128i four_sums(const __m512i x[ROWS]) {
  __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(x[0], x[2]), _mm512_unpackhi_epi32(x[0], x[2]));
  __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(x[1], x[3]), _mm512_unpackhi_epi32(x[1], x[3]));
  __m512i c = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  __m256i d = _mm256_add_epi32(_mm512_castsi512_si256(c), _mm512_extracti32x8_epi32(c, 1));
  return _mm_add_epi32(_mm256_castsi256_si128(d), _mm256_extracti128_si256(d, 1));
}

// Sixteen partial sums added as intfa_dot adds them: halves onto each other.
INLINE float sum_of_lanes(__m512 x) {
  __m256 a = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  b = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}

// 16 rows of 16 dwords -> 16 columns.
INLINE void transpose16(__m512i *r) {
  __m512i t[16];
  UNROLL for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  UNROLL for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  UNROLL for (int i = 0; i < 16; i += 8) UNROLL for (int j = 0; j < 4; j++) {
    t[i + j] = _mm512_shuffle_i32x4(r[i + j], r[i + 4 + j], 0x88);
    t[i + 4 + j] = _mm512_shuffle_i32x4(r[i + j], r[i + 4 + j], 0xDD);
  }
  UNROLL for (int j = 0; j < 8; j++) {
    r[j] = _mm512_shuffle_i32x4(t[j], t[8 + j], 0x88);
    r[8 + j] = _mm512_shuffle_i32x4(t[j], t[8 + j], 0xDD);
  }
}

enum { MAX_CHUNKS = INTFA_MAX_DIMENSION / 16 };

// The mask of register `chunk` of a row.
INLINE __mmask16 lanes_of(int32_t dimension, int32_t chunk) {
  int32_t left = dimension - 16 * chunk;
  return left >= 16 ? 0xFFFF : left > 0 ? (__mmask16)((1u << left) - 1) : 0;
}

INLINE __m512 load_chunk(const intfa_rows *rows, int64_t row, int32_t dimension, int32_t chunk) {
  const int64_t at = row * rows->stride + 16 * chunk;
  const __mmask16 mask = lanes_of(dimension, chunk);
  if (rows->format == INTFA_FLOAT32) return _mm512_maskz_loadu_ps(mask, (const float *)rows->base + at);
  __m256i half = _mm256_maskz_loadu_epi16(mask, (const uint16_t *)rows->base + at);
  if (rows->format == INTFA_FLOAT16) return _mm512_cvtph_ps(half);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
