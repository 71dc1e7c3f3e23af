// A unit of 32 bits in AVX2: two codes of 16 bits, which vpmaddwd multiplies and adds. Included
// inside the target region.
#pragma once
#include "x86_avx2_int4.h"

enum { UNIT = 2 };  // codes of two channels or tokens, in 16 bits

INLINE __m256i multiply_add(__m256i sums, __m256i a, __m256i b) {
  return _mm256_add_epi32(sums, _mm256_madd_epi16(a, b));
}
// Even and odd bytes of quads as pairs of 16-bit numbers, with their signs.
INLINE __m256i even_codes(__m256i quads) {
  return _mm256_srai_epi16(_mm256_slli_epi16(quads, 8), 8);
}
INLINE __m256i odd_codes(__m256i quads) { return _mm256_srai_epi16(quads, 8); }

// Returns where the next units go.
INLINE int32_t *store_query(__m256i quad, int32_t *units, __m256i *sums) {
  const __m256i even = even_codes(quad), odd = odd_codes(quad);
  *sums = multiply_add(*sums, _mm256_set1_epi16(128), _mm256_add_epi16(even, odd));
  _mm256_storeu_si256((__m256i *)units, even);
  _mm256_storeu_si256((__m256i *)(units + ROWS), odd);
  return units + 2 * ROWS;
}

// One step of quads, 16 keys or channels, becomes two of pairs: even bytes, odd bytes.
INLINE void widen_keys(const uint8_t *from, int64_t bytes, uint8_t *to) {
  for (int64_t i = 0; i < bytes; i += 64, from += 64, to += 128)
    UNROLL for (int half = 0; half < 64; half += 32) {
      __m256i x = _mm256_load_si256((const __m256i *)(from + half));
      _mm256_store_si256((__m256i *)(to + half), _mm256_and_si256(x, _mm256_set1_epi16(0xFF)));
      _mm256_store_si256((__m256i *)(to + 64 + half), _mm256_srli_epi16(x, 8));
    }
}

// A tile of keys in 16 bits; load_keys fills the `unit`th 64 of it.
typedef struct {
  _Alignas(64) uint8_t key[2 * INTFA_MAX_TILE * INTFA_MAX_DIMENSION];
  _Alignas(64) uint8_t unpacked[INTFA_PACK_UNIT * INTFA_MAX_DIMENSION];
} key_buffer;
INLINE const uint8_t *load_keys(const void *key, bool int4, int32_t dimension, int64_t place,
                                int32_t unit, key_buffer *buffer) {
  const int32_t stride = (int32_t)padded(dimension, 4);
  const int64_t bytes = INTFA_PACK_UNIT * (int64_t)stride;
  const uint8_t *source = (const uint8_t *)key + place * stride;
  if (int4) {
    source = (const uint8_t *)key + place / INTFA_PACK_UNIT * int4_key_bytes(stride);
    unpack_key_unit(source, stride, buffer->unpacked);
    source = buffer->unpacked;
  }
  uint8_t *target = buffer->key + 2 * bytes * unit;
  widen_keys(source, bytes, target);
  return target;
}
