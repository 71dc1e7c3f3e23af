// Integer scores of 6 query rows x 16 keys. Included inside the target region of an instruction
// set, after its units.
#pragma once
#include "x86_avx2.h"

enum {
  STEP_BYTES = 4 * KEYS,  // one unit of 16 keys or channels
  GROUPS = (INTFA_MAX_ROWS + ROWS - 1) / ROWS,
  QUERY_UNITS = GROUPS * ROWS * INTFA_MAX_DIMENSION / UNIT + LANES - ROWS
};

// Keeps twelve sums in registers and everything on its side of this line. Else the compiler mixes
// multiplies and exponentials by its own model, runs out of registers, and the sums live on the
// stack.
#define PIN(acc)                                                                                   \
  __asm__ volatile(""                                                                              \
                   : "+x"(acc[0][0]), "+x"(acc[0][1]), "+x"(acc[1][0]), "+x"(acc[1][1]),           \
                     "+x"(acc[2][0]), "+x"(acc[2][1]), "+x"(acc[3][0]), "+x"(acc[3][1]),           \
                     "+x"(acc[4][0]), "+x"(acc[4][1]), "+x"(acc[5][0]), "+x"(acc[5][1])::"memory")
#define PIN_ROW(sums) __asm__ volatile("" : "+x"(sums[0]), "+x"(sums[1])::"memory")

// Units of a query row or key: its dimension, padded to a quad.
INLINE int32_t steps_of(int32_t dimension) { return (int32_t)padded(dimension, 4) / UNIT; }

// Codes of `rows` of six rows into units [step][ROWS], zeros for what is missing, and what their
// sums start at for the 128 that was added to the keys.
static void load_query_units(const int8_t *query, int32_t rows, int32_t d, int32_t *units,
                             int32_t start[LANES]) {
  const int32_t quads = (int32_t)padded(d, 4) / 4;
  _Alignas(32) int8_t codes[LANES][INTFA_MAX_DIMENSION];
  memset(codes, 0, sizeof codes);
  for (int32_t i = 0; i < rows; i++) memcpy(codes[i], query + (int64_t)i * d, (size_t)d);
  __m256i sums = _mm256_setzero_si256();
  for (int32_t c = 0; c < quads; c += LANES) {
    __m256 quad[LANES];
    UNROLL for (int i = 0; i < LANES; i++)
      quad[i] = _mm256_load_ps((const float *)(codes[i] + 4 * c));
    transpose8(quad);
    // Six of the eight rows that are stored stay; the next store overwrites the others.
    for (int32_t i = 0; i < LANES && c + i < quads; i++)
      units = store_query(_mm256_castps_si256(quad[i]), units, &sums);
  }
  _mm256_store_si256((__m256i *)start, _mm256_sub_epi32(_mm256_setzero_si256(), sums));
}

INLINE void score_step(const int32_t *query, const uint8_t *key, int32_t step,
                       __m256i acc[ROWS][2]) {
  const int32_t *q = query + step * ROWS;
  const __m256i *k = (const __m256i *)(key + step * STEP_BYTES);
  __m256i k0 = _mm256_load_si256(k), k1 = _mm256_load_si256(k + 1);
  UNROLL for (int i = 0; i < ROWS; i++) {
    __m256i unit = _mm256_set1_epi32(q[i]);
    acc[i][0] = multiply_add(acc[i][0], k0, unit);
    acc[i][1] = multiply_add(acc[i][1], k1, unit);
    PIN_ROW(acc[i]);
  }
  PIN(acc);
}

// Products of six rows with sixteen keys, all steps.
INLINE void code_scores(const int32_t *units, const int32_t *start, const uint8_t *key,
                        int32_t steps, __m256 products[ROWS][2]) {
  __m256i acc[ROWS][2];
  UNROLL for (int i = 0; i < ROWS; i++) acc[i][0] = acc[i][1] = _mm256_set1_epi32(start[i]);
  KEEP_LOOP for (int32_t step = 0; step < steps; step++) score_step(units, key, step, acc);
  UNROLL for (int i = 0; i < ROWS; i++)
    UNROLL for (int j = 0; j < 2; j++) products[i][j] = _mm256_cvtepi32_ps(acc[i][j]);
}
