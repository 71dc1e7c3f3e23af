// A unit of 32 bits in AVX-VNNI: four codes, which vpdpbusd (u8 x s8 -> s32) multiplies. Included
// inside the target region.
#pragma once
#include "x86_avx2.h"

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

// Sixty-four keys as packing left them; the buffer is not needed.
typedef struct {
  uint8_t unused;
} key_buffer;
INLINE const uint8_t *load_keys(const void *key, int32_t dimension, int64_t place, int32_t unit,
                                key_buffer *buffer) {
  (void)unit;
  (void)buffer;
  return (const uint8_t *)key + place * padded(dimension, UNIT);
}
