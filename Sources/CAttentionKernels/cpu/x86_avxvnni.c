// Integer tile loop with 256-bit vpdpbusd (u8 x s8 -> s32, AVX-VNNI) for both products of
// attention.
//
// instruction                    per cycle on Zen 5      here, per 6 rows x 16 keys, D = Dv = 64
// vpdpbusd                       2 (multiply ports)      192 + 192
// vmulps, vpermd, packs          2, shared with it       24 + 12 + 6 scale scores, exponentials
// vaddps vmaxps vcvt*, shifts    2 (the other ports)     in the multiplies' shadow
// loads, broadcasts              2                       8 per 12 vpdpbusd
//
// Registers: 12 sums (6 rows x 16 keys or channels), 2 keys or values, 1 broadcast of 4 codes.
// Keys are packed +128, so that they are the unsigned operand; a row's sums start at -128 * sum(q).
// Bounds: |sums| <= 256 * 255 * 127 = 8.3e6 while scoring, 128 * 255 * 127 = 4.2e6 for values.
// Error: that of the portable kernel, bit for bit.
#if defined(__x86_64__)
#include "kernels.h"

#pragma clang attribute push(__attribute__((target("avx2,avxvnni"))), apply_to = function)
#include "x86_avxvnni_units.h"

// P of sixteen keys: two rows share a register of 32 bytes, in the order that narrowing 32 -> 16 ->
// 8 bits leaves: quads 0 and 2 of the even row, of the odd row; then quads 1 and 3.
typedef struct {
  uint8_t bytes[ROWS * KEYS];
} weights;
INLINE int32_t weight_place(int32_t row, int32_t quad) {
  return row / 2 * 8 + quad % 2 * 4 + row % 2 * 2 + quad / 2;
}
// Words until the odd row makes bytes of both.
INLINE void store_even(__m256i words, const int8_t *n, int32_t pair, weights *p,
                       int32_t sum[ROWS][8]) {
  (void)n;
  (void)sum;
  _mm256_store_si256((__m256i *)p->bytes + pair, words);
}
INLINE void store_odd(__m256i words, const int8_t *n, int32_t pair, weights *p,
                      int32_t sum[ROWS][8]) {
  __m256i *target = (__m256i *)p->bytes + pair, *sums = (__m256i *)sum[pair];
  __m256i bytes = _mm256_packus_epi16(_mm256_load_si256(target), words);
  __m256i quads = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)n));
  quads = _mm256_permutevar8x32_epi32(quads, _mm256_setr_epi32(0, 2, 0, 2, 1, 3, 1, 3));
  _mm256_store_si256(target, bytes);
  _mm256_store_si256(sums, multiply_add(_mm256_load_si256(sums), bytes, quads));
}
INLINE __m256i row_sums(int32_t sum[ROWS][8]) {
  __m128i pairs[ROWS / 2];
  UNROLL for (int i = 0; i < ROWS / 2; i++) {
    __m256i x = _mm256_load_si256((const __m256i *)sum[i]);
    pairs[i] = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    _mm256_store_si256((__m256i *)sum[i], _mm256_setzero_si256());
  }
  return _mm256_setr_m128i(_mm_hadd_epi32(pairs[0], pairs[1]), _mm_hadd_epi32(pairs[2], pairs[2]));
}

// The `unit`th 64 values of a tile, as packing left them or unpacked.
typedef struct {
  _Alignas(64) int8_t value[INTFA_MAX_TILE * INTFA_MAX_DIMENSION];
} value_buffer;
INLINE const int8_t *load_values(const intfa_attend_tiles *a, int64_t place, int32_t unit,
                                 value_buffer *buffer) {
  const int32_t width = (int32_t)padded(a->value_dimension, KEYS);
  if (!a->int4_value) return (const int8_t *)a->value + place * width;
  int8_t *target = buffer->value + unit * INTFA_PACK_UNIT * width;
  unpack_value_unit(
      (const uint8_t *)a->value + place / INTFA_PACK_UNIT * int4_value_bytes(width), width, target);
  return target;
}

#include "x86_avx2_tiles.h"

void intfa_attend_tiles__avxvnni(const intfa_attend_tiles *a) { attend_tiles(a); }
#pragma clang attribute pop
#endif
