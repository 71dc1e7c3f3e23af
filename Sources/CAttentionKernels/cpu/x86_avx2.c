// Integer tile loop with 256-bit vpmaddwd (s16 x s16 -> s32) for both products of attention.
//
// AVX2 has no instruction that adds products of 8-bit numbers in 32 bits. vpmaddubsw adds two of
// them in 16 bits and saturates: 2 * 255 * 127 exceeds 32767, and what does fit leaves no room to
// add a second sum, so that its way to 32 bits (vpsignb, vpmaddubsw, vpmaddwd, vpaddd) is as long
// as twice vpmaddwd and vpaddd on codes widened to 16 bits. A tile is widened once for all rows of
// a call.
//
// instruction                    per cycle on Zen 5      here, per 6 rows x 16 keys, D = Dv = 64
// vpmaddwd                       2 (multiply ports)      384 + 384
// vpaddd                         4, of all ports         384 + 384: all four ports are busy
// loads, broadcasts              2                       8 per 12 vpmaddwd
//
// Registers: 12 sums (6 rows x 16 keys or channels), 2 keys or values, 1 broadcast, 1 product.
// Keys are packed +128 and widened without sign, values with it; a row's sums start at
// -128 * sum(q).
// Bounds: |sums| <= 256 * 255 * 127 = 8.3e6 while scoring, 128 * 255 * 127 = 4.2e6 for values; the
// pair that vpmaddwd adds is at most 2 * 255 * 127.
// Error: that of the portable kernel, bit for bit.
#if defined(__x86_64__)
#include "kernels.h"

#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#include "x86_avx2_units.h"

// P of sixteen keys: a row is a register of 16 words, in the order that narrowing 32 -> 16 bits
// leaves: quads 0 and 2, then 1 and 3, of two pairs each.
typedef struct {
  uint8_t bytes[ROWS * KEYS * 2];
} weights;
INLINE int32_t weight_place(int32_t row, int32_t pair) {
  return row * 8 + pair / 2 % 2 * 4 + pair / 4 * 2 + pair % 2;
}
INLINE void store_row(__m256i words, const int8_t *n, int32_t row, weights *p,
                      int32_t sum[ROWS][8]) {
  __m256i *sums = (__m256i *)sum[row];
  __m256i codes = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)n));
  _mm256_store_si256((__m256i *)p->bytes + row, words);
  _mm256_store_si256(
      sums, multiply_add(_mm256_load_si256(sums), words, _mm256_permute4x64_epi64(codes, 0xD8)));
}
INLINE void store_even(__m256i words, const int8_t *n, int32_t pair, weights *p,
                       int32_t sum[ROWS][8]) {
  store_row(words, n, 2 * pair, p, sum);
}
INLINE void store_odd(__m256i words, const int8_t *n, int32_t pair, weights *p,
                      int32_t sum[ROWS][8]) {
  store_row(words, n, 2 * pair + 1, p, sum);
}
INLINE __m256i row_sums(int32_t sum[ROWS][8]) {
  __m256i x[ROWS];
  UNROLL for (int i = 0; i < ROWS; i++) {
    x[i] = _mm256_load_si256((const __m256i *)sum[i]);
    _mm256_store_si256((__m256i *)sum[i], _mm256_setzero_si256());
  }
  __m256i ab = _mm256_hadd_epi32(x[0], x[1]), cd = _mm256_hadd_epi32(x[2], x[3]);
  __m256i ef = _mm256_hadd_epi32(x[4], x[5]);
  __m256i abcd = _mm256_hadd_epi32(ab, cd), efef = _mm256_hadd_epi32(ef, ef);
  return _mm256_add_epi32(_mm256_permute2x128_si256(abcd, efef, 0x20),
                          _mm256_permute2x128_si256(abcd, efef, 0x31));
}

// A tile of values in 16 bits; load_values fills the `unit`th 64 of it.
typedef struct {
  _Alignas(64) int8_t value[2 * INTFA_MAX_TILE * INTFA_MAX_DIMENSION];
  _Alignas(64) int8_t unpacked[INTFA_PACK_UNIT * INTFA_MAX_DIMENSION];
} value_buffer;
INLINE void widen_values(const int8_t *from, int64_t bytes, int8_t *to) {
  for (int64_t i = 0; i < bytes; i += 64, from += 64, to += 128)
    UNROLL for (int half = 0; half < 64; half += 32) {
      __m256i x = _mm256_load_si256((const __m256i *)(from + half));
      _mm256_store_si256((__m256i *)(to + half), even_codes(x));
      _mm256_store_si256((__m256i *)(to + 64 + half), odd_codes(x));
    }
}
static const int8_t *load_values(const intfa_attend_tiles *a, int64_t place, int32_t unit,
                                 value_buffer *buffer) {
  const int32_t width = (int32_t)padded(a->value_dimension, KEYS);
  const int64_t bytes = INTFA_PACK_UNIT * (int64_t)width;
  const int8_t *source = (const int8_t *)a->value + place * width;
  if (a->int4_value) {
    unpack_value_unit((const uint8_t *)a->value + place / INTFA_PACK_UNIT * int4_value_bytes(width),
                      width, buffer->unpacked);
    source = buffer->unpacked;
  }
  int8_t *target = buffer->value + 2 * bytes * unit;
  widen_values(source, bytes, target);
  return target;
}

#include "x86_avx2_tiles.h"

void intfa_attend_tiles__avx2(const intfa_attend_tiles *a) { attend_tiles(a); }
#pragma clang attribute pop
#endif
