// A unit of 32 bits in AVX-VNNI: four codes, which vpdpbusd (u8 x s8 -> s32) multiplies. Included
// inside the target region.
#pragma once
#include "x86_avx2_int4.h"

enum { UNIT = 4 };  // codes of four channels or tokens

INLINE __m256i multiply_add(__m256i sums, __m256i unsigned_codes, __m256i signed_codes) {
  return _mm256_dpbusd_avx_epi32(sums, unsigned_codes, signed_codes);
}
// Returns where the next units go.
INLINE int32_t *store_query(__m256i quad, int32_t *units, __m256i *sums) {
  *sums = multiply_add(*sums, _mm256_set1_epi8(-128), quad);
  _mm256_storeu_si256((__m256i *)units, quad);
  return units + ROWS;
}

// The `unit`th 64 keys of a tile, as packing left them or unpacked.
typedef struct {
  _Alignas(64) uint8_t key[INTFA_MAX_TILE * INTFA_MAX_DIMENSION];
} key_buffer;
INLINE const uint8_t *load_keys(const void *key, bool int4, int32_t dimension, int64_t place,
                                int32_t unit, key_buffer *buffer) {
  const int32_t stride = (int32_t)padded(dimension, UNIT);
  if (!int4) return (const uint8_t *)key + place * stride;
  uint8_t *target = buffer->key + unit * INTFA_PACK_UNIT * stride;
  unpack_key_unit((const uint8_t *)key + place / INTFA_PACK_UNIT * int4_key_bytes(stride), stride,
                  target);
  return target;
}
