// What the 256-bit integer tile loop keeps of its rows. Included by x86_avx2_tiles.h.
#pragma once
#include "key_mask.h"
#include "online_softmax.h"
#include "x86_avx2_scores.h"

enum {
  UNITS = KEYS / UNIT,  // units of 16 tokens
  BLOCKS = SUBS / BLOCK,
  PAIRS = ROWS / 2
};

// What six rows need from their scores to their values.
typedef struct {
  _Alignas(64) float logit[SUBS][ROWS][KEYS];
  _Alignas(64) weights p[SUBS], rest[SUBS];
  _Alignas(32) float top[ROWS][LANES];     // maxima of the lanes
  _Alignas(32) float unused[ROWS][LANES];  // those of sub-tiles that are not masked yet
  // Partial sums of p * n and rest * n, as store_odd leaves them.
  _Alignas(32) int32_t sum[ROWS][LANES], rest_sum[ROWS][LANES];
  _Alignas(32) float row_top[LANES], gain[LANES], rest_gain[LANES];
  int32_t index, rows;           // of the group; rows that exist
  int32_t first_sub, end_sub;    // sub-tiles of the tile that some row sees
  int32_t whole_sub, whole_end;  // those that every row sees all of
  int32_t done, portions;        // exponentials of two rows and one sub-tile each
  bool has_rests;                // P of some row has a rest; only then they are filled
} group;

// The keys and values of one tile, by 64 tokens.
typedef struct {
  int64_t place[BLOCKS];        // in arrays over keys
  const uint8_t *key[BLOCKS];   // [BLOCK][steps][STEP_BYTES]
  const int8_t *value[BLOCKS];  // [channels / 16][BLOCK][UNITS][STEP_BYTES]
} tile_operands;

INLINE int64_t place_of(const tile_operands *t, int32_t sub) {
  return t->place[sub / BLOCK] + sub % BLOCK * KEYS;
}

// Everything that a call keeps in its scratch memory.
typedef struct {
  group groups[2];
  _Alignas(32) float total[GROUPS][LANES], reference[GROUPS][LANES];
  _Alignas(32) float scale[GROUPS][LANES], shift[GROUPS][LANES];
  _Alignas(32) int32_t start[GROUPS][LANES];     // -128 * sum(q)
  _Alignas(32) float sink[INTFA_MAX_DIMENSION];  // output of rows that do not exist
  int8_t n[INTFA_MAX_TILE];                      // of the tile; zeros where they are not integers
  int32_t query[QUERY_UNITS];                    // [group][step][ROWS]
  key_buffer keys;
  value_buffer values;
} state;
_Static_assert(sizeof(state) <= INTFA_SCRATCH_BYTES, "fits the scratch memory of a call");

static void prepare_rows(const intfa_attend_tiles *a, state *s) {
  const int32_t d = a->head_dimension;
  for (int32_t i = 0; i < 2; i++) memset(s->groups[i].sum, 0, sizeof s->groups[i].sum);
  memset(s->total, 0, offsetof(state, query) - offsetof(state, total));
  for (int32_t row = 0; row < a->rows; row += ROWS) {
    const int32_t index = row / ROWS, rows = a->rows - row < ROWS ? a->rows - row : ROWS;
    const size_t bytes = sizeof(float) * (size_t)rows;
    load_query_units(a->query + (int64_t)row * d, rows, d, s->query + (int64_t)row * steps_of(d),
                     s->start[index]);
    memcpy(s->scale[index], a->query_scale + row, bytes);
    memcpy(s->total[index], a->total + row, bytes);
    memcpy(s->reference[index], a->reference + row, bytes);
    if (a->softcap > 0) memcpy(s->shift[index], a->row_shift + row, bytes);
  }
}

static void store_totals(const intfa_attend_tiles *a, const state *s) {
  for (int32_t row = 0; row < a->rows; row += ROWS) {
    const int32_t index = row / ROWS, rows = a->rows - row < ROWS ? a->rows - row : ROWS;
    memcpy(a->total + row, s->total[index], sizeof(float) * (size_t)rows);
    memcpy(a->reference + row, s->reference[index], sizeof(float) * (size_t)rows);
  }
}

// What the rows of group `index` see of [begin, end); false where that is nothing.
static bool begin_group(const intfa_attend_tiles *a, int32_t index, int64_t begin, int64_t end,
                        group *g) {
  const int32_t row = index * ROWS, left = a->rows - row;
  g->index = index;
  g->rows = left < ROWS ? left : ROWS;
  // Later rows see keys from later on and up to later ones.
  const key_range first = visible_keys(&a->visible, row, begin, end);
  const key_range last = visible_keys(&a->visible, row + g->rows - 1, begin, end);
  if (first.begin >= last.end) return false;
  if (a->mask && !mask_shows(a->mask, row, row + g->rows, first.begin, last.end)) return false;
  g->first_sub = (int32_t)(first.begin - begin) / KEYS;
  g->end_sub = (int32_t)(last.end - begin + KEYS - 1) / KEYS;
  g->whole_sub = (int32_t)(last.begin - begin + KEYS - 1) / KEYS;
  g->whole_end = first.end > begin ? (int32_t)(first.end - begin) / KEYS : 0;
  g->has_rests = rests_in(a, row, row + g->rows - 1, begin);
  g->done = 0;
  g->portions = (g->end_sub - g->first_sub) * PAIRS;
  for (int32_t i = 0; i < ROWS; i++) _mm256_store_ps(g->top[i], _mm256_set1_ps(-1e30f));
  return true;
}
INLINE bool is_whole(const group *g, int32_t sub) {
  return sub >= g->whole_sub && sub < g->whole_end;
}
