// Which keys a row sees, and which tiles of keys a block of rows has to visit.
#pragma once
#include "primitives.cuh"

// The keys [begin, end) of one row, inside those that there are; empty where end <= begin.
struct KeyRange {
  int begin, end;
};
DEVICE int visible_end(const intfa_cuda_visible& v, int row) {
  return v.end + row / v.rows_per_step * v.step;
}
DEVICE KeyRange visible_keys(const intfa_cuda_visible& v, int keys, int row) {
  const int begin = v.first + row / v.rows_per_step * v.step, end = visible_end(v, row);
  return {begin > 0 ? begin : 0, end < keys ? end : keys};
}

// Whether the mask of one of the rows [first_row, last_row] ends in the tile of `length` keys at
// `first`. Where the recipe asks for it, P of these rows then has a second byte, the rest:
// code + rest / 256. The weights next to a row's own position decide most of its result.
DEVICE bool mask_ends(const intfa_cuda_visible& v, int first_row, int last_row, int first, int length) {
  return visible_end(v, last_row) > first && visible_end(v, first_row) <= first + length;
}

// The same for a lane whose score 8n + b of a tile is of key first + 8n + 2t + b: in terms of 8n + b,
// so that a comparison is with a constant and no key takes a register.
DEVICE KeyRange keys_of_lane(const KeyRange& seen, int first, int t) {
  return {seen.begin - first - 2 * t, seen.end - first - 2 * t};
}

// Tile j has the keys [first_key(j), first_key(j) + BLOCK_N). With a lead the first tile is short,
// as the recipe wants it: its first LEAD keys do not exist.
template <int BLOCK_N, int LEAD>
DEVICE int first_key(int tile) {
  return tile * BLOCK_N - LEAD;
}

// The tiles [begin, end) that rows [first_row, last_row] see inside a split.
template <int BLOCK_N, int LEAD>
DEVICE KeyRange visible_tiles(const intfa_cuda_visible& v, int keys, int first_row, int last_row,
                              int split, int split_tiles) {
  const int begin = visible_keys(v, keys, first_row).begin;
  const int end = visible_keys(v, keys, last_row).end;
  if (end <= begin) return {0, 0};
  KeyRange tiles = {(begin + LEAD) / BLOCK_N, (end + LEAD + BLOCK_N - 1) / BLOCK_N};
  const int split_begin = split * split_tiles, split_end = split_begin + split_tiles;
  tiles.begin = tiles.begin > split_begin ? tiles.begin : split_begin;
  tiles.end = tiles.end < split_end ? tiles.end : split_end;
  return tiles;
}
