// Queries and keys to INT8 codes: one pass for means and checks, one that centres, rotates,
// rounds and makes the bias of each key. A warp has a row; eight warps to a block.
//
// Both passes read what they need once, so memory bandwidth bounds them. Sums are added in one
// order, so the bits do not depend on the schedule.
#pragma once
#include "rows.cuh"

constexpr int kRowWarps = 8;  // of every kernel in this file

// Grid: blocks of INTFA_CUDA_SUM_BLOCK tokens of all heads. E: channels / 32.
template <int E>
DEVICE void survey_rows(const intfa_cuda_survey& p) {
  STATIC_SHARED_MEMORY float sums[kRowWarps][E * 32];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int blocks = (p.rows.tokens + INTFA_CUDA_SUM_BLOCK - 1) / INTFA_CUDA_SUM_BLOCK;
  const int head = blockIdx.x / blocks, block = blockIdx.x - head * blocks;
  const int begin = block * INTFA_CUDA_SUM_BLOCK;
  const int end = begin + INTFA_CUDA_SUM_BLOCK < p.rows.tokens ? begin + INTFA_CUDA_SUM_BLOCK
                                                               : p.rows.tokens;
  intfa_cuda_status* const status = (intfa_cuda_status*)p.status;
  float x[E], sum[E], largest = 0.f;
  UNROLL for (int e = 0; e < E; e++) sum[e] = 0.f;
  for (int token = begin + warp; token < end; token += kRowWarps) {
    load_row(x, p.rows, head, token, lane);
    bool bad = false;
    UNROLL for (int e = 0; e < E; e++) {
      // Negated, so that NaN is caught.
      if (!(fabsf(x[e]) < p.limit)) bad = true;
      sum[e] += x[e];
    }
    largest = fmaxf(largest, largest_magnitude(x));
    if (bad) atomic_min(&status->first_bad[p.tensor], (u64)head * p.rows.tokens + token);
    if (p.maxima) {
      rotate_row(x, p.rotation, lane);
      const float top = largest_magnitude(x);
      if (lane == 0) ((float*)p.maxima)[(size_t)head * p.maxima_pitch + token] = top;
    }
  }
  if (lane == 0) atomic_max(&status->largest[p.tensor], float_as_bits(largest));
  if (!p.sums) return;
  UNROLL for (int e = 0; e < E; e++) sums[warp][32 * e + lane] = sum[e];
  __syncthreads();
  const size_t place = ((size_t)head * blocks + block) * p.rows.dimension;
  for (int c = threadIdx.x; c < p.rows.dimension; c += 32 * kRowWarps) {
    float total = 0.f;
    for (int w = 0; w < kRowWarps; w++) total += sums[w][c];
    ((float*)p.sums)[place + c] = total;
  }
}

// Grid: heads.
template <int E>
DEVICE void finish_means(const intfa_cuda_mean& p) {
  STATIC_SHARED_MEMORY float sums[kRowWarps][E * 32];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, head = blockIdx.x;
  const int blocks = (p.tokens + INTFA_CUDA_SUM_BLOCK - 1) / INTFA_CUDA_SUM_BLOCK;
  const float* const partial = (const float*)p.sums + (size_t)head * blocks * p.dimension;
  float x[E];
  UNROLL for (int e = 0; e < E; e++) {
    const int channel = 32 * e + lane;
    x[e] = 0.f;
    if (channel >= p.dimension) continue;
    for (int b = warp; b < blocks; b += kRowWarps) x[e] += partial[(size_t)b * p.dimension + channel];
  }
  UNROLL for (int e = 0; e < E; e++) sums[warp][32 * e + lane] = x[e];
  __syncthreads();
  if (warp != 0) return;
  UNROLL for (int e = 0; e < E; e++) {
    float total = 0.f;
    for (int w = 0; w < kRowWarps; w++) total += sums[w][32 * e + lane];
    x[e] = total / (float)p.tokens;
    if (32 * e + lane < p.dimension) ((float*)p.mean)[(size_t)head * p.dimension + 32 * e + lane] = x[e];
  }
  if (!p.rotated_mean) return;
  rotate_row(x, p.rotation, lane);
  UNROLL for (int e = 0; e < E; e++) {
    if (32 * e + lane >= p.dimension) continue;
    ((float*)p.rotated_mean)[(size_t)head * p.dimension + 32 * e + lane] = x[e];
  }
}

// Grid: rows of all heads, eight to a block.
template <int E>
DEVICE void quantize_rows(const intfa_cuda_quantize& p) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, d = p.rows.dimension;
  const u64 row = (u64)blockIdx.x * kRowWarps + warp;
  if (row >= (u64)p.rows.heads * p.rows.tokens) return;
  const int head = (int)(row / p.rows.tokens), token = (int)(row - (u64)head * p.rows.tokens);
  float x[E];
  load_row(x, p.rows, head, token, lane);
  if (p.shift_means) {
    const float* const mean = (const float*)p.shift_means + (size_t)(head / p.shift_group) * d;
    const float product = dot_row(x, mean, d, lane);
    if (lane == 0) ((float*)p.shifts)[row] = p.shift_factor * product;
  }
  if (p.mean) {
    const float* const mean = (const float*)p.mean + (size_t)head * d;
    UNROLL for (int e = 0; e < E; e++) if (32 * e + lane < d) x[e] -= mean[32 * e + lane];
  }
  rotate_row(x, p.rotation, lane);
  const float top = fmaxf(largest_magnitude(x), kSmallestMaximum), multiplier = 127.f / top;
  const int packed_head = head / p.pack, place = token * p.pack + head - packed_head * p.pack;
  s8* const codes = (s8*)p.codes + ((size_t)packed_head * p.code_rows + place) * p.code_pitch;
  UNROLL for (int e = 0; e < E; e++) {
    if (32 * e + lane < p.code_pitch) codes[32 * e + lane] = code_of(x[e], multiplier);
  }
  const size_t entry = (size_t)packed_head * p.scale_pitch + place;
  const float scale = top / 127.f * p.scale_factor;
  if (lane == 0) {
    if (p.pairs) {
      ((ScalePair*)p.scales)[entry] = scale_pair(scale);
    } else {
      ((float*)p.scales)[entry] = scale;
    }
  }
  for (int member = 0; member < p.group; member++) {
    const size_t query_head = (size_t)head * p.group + member;
    float bias = ((const float*)p.fold)[entry];
    if (p.bias_means) {
      bias += p.bias_factor * dot_row(x, (const float*)p.bias_means + query_head * d, d, lane);
    }
    if (lane == 0) ((float*)p.biases)[query_head * p.scale_pitch + token] = bias;
  }
}

// Grid: rows of all heads, eight to a block.
template <int E>
DEVICE void convert_rows(const intfa_cuda_convert& p) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const u64 row = (u64)blockIdx.x * kRowWarps + warp;
  if (row >= (u64)p.rows.heads * p.rows.tokens) return;
  const int head = (int)(row / p.rows.tokens), token = (int)(row - (u64)head * p.rows.tokens);
  float x[E];
  load_row(x, p.rows, head, token, lane);
  u16* const target = (u16*)p.target + row * p.pitch;
  UNROLL for (int e = 0; e < E; e++) {
    if (32 * e + lane >= p.pitch) continue;
    target[32 * e + lane] =
        (u16)(p.format == INTFA_CUDA_BFLOAT16 ? pack_bf16x2(x[e], 0.f) : pack_f16x2(x[e], 0.f));
  }
}
