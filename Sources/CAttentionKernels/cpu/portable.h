// What the portable files share, and what other instruction sets borrow from them.
#pragma once
#include "fast_exp.h"
#include "number_formats.h"

// A row of zeros gets this maximum: its codes are zero and nothing is divided by zero.
#define SMALLEST_MAXIMUM 0x1p-100f

#pragma GCC visibility push(hidden)

void intfa_survey__portable(const intfa_survey *);
void intfa_quantize__portable(const intfa_quantize *);
void intfa_load_rotary__portable(const intfa_load_rotary *);
void intfa_attend_tiles__portable(const intfa_attend_tiles *);
int64_t intfa_running_key_bytes__portable(const intfa_running_formats *, int64_t, int32_t);
int64_t intfa_running_value_bytes__portable(const intfa_running_formats *, int64_t, int32_t);
void intfa_pack_running_keys__portable(const intfa_pack_running *);
void intfa_pack_running_values__portable(const intfa_pack_running *);
void intfa_attend_running__portable(const intfa_attend_running *);
void intfa_merge__portable(const intfa_merge *);
void intfa_finish__portable(const intfa_finish *);

// The log-sum-exp part of finish, where it is asked for.
void intfa_finish_log_sum_exp(const intfa_finish *);
int64_t intfa_key_bytes__portable(int64_t tokens, int32_t dimension, bool int4);
int64_t intfa_value_bytes__portable(int64_t tokens, int32_t dimension, bool int4);
void intfa_pack_keys__portable(const intfa_pack *);
void intfa_pack_values__portable(const intfa_pack *);
void intfa_open_key_unit__portable(const void *int4_unit, int32_t dimension, void *unit);
void intfa_open_value_unit__portable(const void *int4_unit, int32_t dimension, void *unit);
// INT8 codes of tokens [begin, end) from their four-bit storage; keys begin at a group.
void intfa_unpack_keys__portable(const uint8_t *packed, int64_t begin, int64_t end,
                                 int32_t dimension, int8_t *codes);
void intfa_unpack_values__portable(const uint8_t *packed, int64_t begin, int64_t end,
                                   int32_t dimension, int8_t *codes);

// One unit of four_bits taken apart: what `pack` of other sets lays out in its own way. Codes 0...15 are
// [token][stride], steps and offsets of keys [2 groups][dimension], of values [token][groups].
void intfa_four_bit_key_parts(const uint8_t *unit, int32_t dimension, int32_t stride, uint8_t *codes,
                              uint8_t *steps, int8_t *offsets);
void intfa_four_bit_value_parts(const uint8_t *unit, int32_t dimension, int32_t stride, uint8_t *codes,
                                uint8_t *steps, int8_t *offsets);
int64_t intfa_four_bit_key_bytes(int32_t dimension);    // of a unit
int64_t intfa_four_bit_value_bytes(int32_t dimension);

// Progressive four bits: a code stands for clamp(four bits * step + low, +-127).
typedef struct {
  int32_t low, step;
} intfa_regrouping;
// Step and offset of `count` INT8 codes that lie `stride` apart.
intfa_regrouping intfa_regroup(const int8_t *codes, int32_t count, int32_t stride);
// Nearest, ties to even, of (code - low) / step; 0...15 by the choice of the step.
int32_t intfa_four_bits(int32_t code, intfa_regrouping g);

#pragma GCC visibility pop

// Keys of [begin, end) that row r sees.
typedef struct {
  int64_t begin, end;
} key_range;

// Keys from here on are hidden from row r.
static inline int64_t visible_end(const intfa_visible *v, int32_t r) {
  const int64_t end = v->end + r / v->rows_per_step * v->step;
  return end > v->least_end ? end : v->least_end;
}
static inline key_range visible_keys(const intfa_visible *v, int32_t r, int64_t begin, int64_t end) {
  const int64_t first = v->first + r / v->rows_per_step * v->step, last = visible_end(v, r);
  return (key_range){first > begin ? first : begin, last < end ? last : end};
}
// Where the arrays over keys hold the unit that `key` is in: INTFA_PACK_UNIT tokens from here.
static inline int64_t unit_place(const int32_t *units, int64_t key) {
  return units ? (int64_t)units[key / INTFA_PACK_UNIT] * INTFA_PACK_UNIT : key / INTFA_PACK_UNIT * INTFA_PACK_UNIT;
}
static inline int64_t key_place(const int32_t *units, int64_t key) {
  return unit_place(units, key) + key % INTFA_PACK_UNIT;
}
static inline int64_t tile_end(int64_t begin, int64_t end, int32_t first_tile, int32_t tile) {
  int64_t stop = begin == 0 ? first_tile : begin + tile;
  return stop < end ? stop : end;
}
// Whether the mask of one of the rows [first, last] moves with the row and ends in the tile that starts
// at `begin`. P of these rows then has a second byte, the rest: 256 p + rest are the sixteen bits of the
// table, not rounded. The weights next to a row's own position decide most of its result.
static inline bool rests_in(const intfa_attend_tiles *a, int32_t first, int32_t last, int64_t begin) {
  return a->refines && a->visible.step > 0 && visible_end(&a->visible, last) > begin &&
         visible_end(&a->visible, first) <= tile_end(begin, INT64_MAX, a->first_tile, a->tile);
}

// Whether the running maximum is rounded up to a whole number, which leaves the bits of P alone.
static inline bool has_whole_reference(intfa_probability format) {
  return format == INTFA_P_FLOAT32 || format == INTFA_P_BFLOAT16;
}
