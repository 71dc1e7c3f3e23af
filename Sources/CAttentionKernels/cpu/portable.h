// What the portable files share, and what other instruction sets borrow from them.
#pragma once
#include "fast_exp.h"
#include "number_formats.h"

// A row of zeros gets this maximum: its codes are zero and nothing is divided by zero.
#define SMALLEST_MAXIMUM 0x1p-100f

#pragma GCC visibility push(hidden)

void intfa_survey__portable(const intfa_survey *);
void intfa_rotated_maxima__portable(const intfa_rows *, int64_t, int64_t, int32_t, bool, float *);
void intfa_quantize__portable(const intfa_quantize *);
void intfa_attend_tiles__portable(const intfa_attend_tiles *);
void intfa_attend_running__portable(const intfa_attend_running *);
void intfa_merge__portable(const intfa_merge *);
void intfa_finish__portable(const intfa_finish *);

// INT8 codes of tokens [begin, end) from their four-bit storage; keys begin at a group.
void intfa_unpack_int4_keys(const intfa_int4 *, int64_t begin, int64_t end, int32_t dimension,
                            int8_t *codes);
void intfa_unpack_int4_values(const intfa_int4 *, int64_t begin, int64_t end, int32_t dimension,
                              int8_t *codes);

#pragma GCC visibility pop

// Keys of [begin, end) that row r sees.
typedef struct {
  int64_t begin, end;
} key_range;

static inline key_range visible_keys(const intfa_visible *v, int32_t r, int64_t begin, int64_t end) {
  int64_t first = v->first + r * v->step, last = v->end + r * v->step;
  return (key_range){first > begin ? first : begin, last < end ? last : end};
}
static inline int64_t tile_end(int64_t begin, int64_t end, int32_t first_tile, int32_t tile) {
  int64_t stop = begin == 0 ? first_tile : begin + tile;
  return stop < end ? stop : end;
}
