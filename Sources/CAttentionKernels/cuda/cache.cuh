// New tokens of a cache: the first ones kept as they came, values to codes whose unit is fixed.
//
// A warp has a row; eight warps to a block. Nothing depends on how many tokens come at once, nor on
// the schedule.
#pragma once
#include "values.cuh"

// Grid: rows of all heads, eight to a block.
template <int E>
DEVICE void keep_rows(const intfa_cuda_keep& p) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const u64 row = (u64)blockIdx.x * kRowWarps + warp;
  if (row >= (u64)p.rows.heads * p.rows.tokens) return;
  const int head = (int)(row / p.rows.tokens), token = (int)(row - (u64)head * p.rows.tokens);
  float x[E];
  load_row(x, p.rows, head, token, lane);
  float* const target =
      (float*)p.target +
      ((size_t)head * INTFA_CUDA_FIRST_TOKENS + p.first + token) * p.rows.dimension;
  UNROLL for (int e = 0; e < E; e++) {
    if (32 * e + lane < p.rows.dimension) target[32 * e + lane] = x[e];
  }
}

// Where a key stands in a table in the order of permuted_key.
DEVICE int permuted_position(int key) {
  const int j = key >> 3 & 1, t = key >> 1 & 3, b = key & 1;
  return (key & ~15) + 4 * t + 2 * j + b;
}

// Grid: rows of all heads, eight to a block. n_j is an integer, so that it is the same before and after
// an outlier comes, but for a row above 127 units. An outlier, above four times the mean, makes the
// row sum of its head exact.
template <int E>
DEVICE void append_values(const intfa_cuda_append& p) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const u64 row = (u64)blockIdx.x * kRowWarps + warp;
  if (row >= (u64)p.rows.heads * p.rows.tokens) return;
  const int head = (int)(row / p.rows.tokens), token = (int)(row - (u64)head * p.rows.tokens);
  const int position = p.first + token;
  intfa_cuda_value_head* const result = (intfa_cuda_value_head*)p.results + head;
  const float unit = result->unit;
  float x[E];
  load_row(x, p.rows, head, token, lane);
  rotate_row(x, p.rotation, lane);
  const float top = fmaxf(largest_magnitude(x), kSmallestMaximum), ratio = 127.f * unit / top;
  const float n = ratio < 1.f ? ratio : floorf(fminf(ratio, 127.f)), multiplier = n / unit;
  s8* const codes = (s8*)p.codes + ((size_t)head * p.pitch + position) * p.code_pitch;
  UNROLL for (int e = 0; e < E; e++) {
    if (32 * e + lane < p.code_pitch) codes[32 * e + lane] = code_of(x[e], multiplier);
  }
  if (lane != 0) return;
  const size_t table = (size_t)head * p.pitch;
  ((float*)p.real_weights)[table + position] = n;
  ((float*)p.fold)[table + position] = -log2f(n);
  ((u8*)p.weights)[table + permuted_position(position)] = (u8)fmaxf(n, 1.f);
  // Several rows may: they write the same.
  if (top > 32.f * unit) result->exact = 1;
}
