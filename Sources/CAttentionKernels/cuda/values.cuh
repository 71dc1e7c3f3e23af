// Values to INT8 codes whose scale f = unit / n rides on the logits as -log2(n).
#pragma once
#include "prepass.cuh"

constexpr int kScaleThreads = 256;

// The sum over a block of kScaleThreads threads, in one order.
DEVICE float block_sum(float x, float* scratch) {
  x = warp_sum(x);
  __syncthreads();
  if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = x;
  __syncthreads();
  float total = 0.f;
  for (int w = 0; w < kScaleThreads / 32; w++) total += scratch[w];
  return total;
}
DEVICE float block_max(float x, float* scratch) {
  x = warp_max(x);
  __syncthreads();
  if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = x;
  __syncthreads();
  float total = 0.f;
  for (int w = 0; w < kScaleThreads / 32; w++) total = fmaxf(total, scratch[w]);
  return total;
}

// Grid: heads. The unit is an eighth of the mean of the largest magnitudes. A token above four times
// the mean is an outlier: the mean then leaves such tokens out, and the row sum is exact.
DEVICE void find_value_scales(const intfa_cuda_value_scales& p) {
  STATIC_SHARED_MEMORY float scratch[kScaleThreads / 32];
  const float* const maxima = (const float*)p.maxima + (size_t)blockIdx.x * p.pitch;
  float sum = 0.f, largest = kSmallestMaximum;
  for (int i = threadIdx.x; i < p.tokens; i += kScaleThreads) {
    const float top = fmaxf(maxima[i], kSmallestMaximum);
    sum += top;
    largest = fmaxf(largest, top);
  }
  const float mean = fmaxf(block_sum(sum, scratch) / (float)p.tokens, kSmallestMaximum);
  largest = block_max(largest, scratch);
  const float limit = 4.f * mean;
  intfa_cuda_value_head result = {mean / 8.f, 0};
  if (!p.folded) {
    result = {largest / 127.f, 1};
  } else if (largest > limit) {
    float kept = 0.f, count = 0.f;
    for (int i = threadIdx.x; i < p.tokens; i += kScaleThreads) {
      const float top = fmaxf(maxima[i], kSmallestMaximum);
      if (top > limit) continue;
      kept += top;
      count += 1.f;
    }
    kept = block_sum(kept, scratch);
    count = block_sum(count, scratch);
    result = {fmaxf(kept / fmaxf(count, 1.f), kSmallestMaximum) / 8.f, 1};
  }
  if (threadIdx.x == 0) ((intfa_cuda_value_head*)p.results)[blockIdx.x] = result;
}

// n_j: how many units go into the scale of a row whose largest magnitude is `top`.
DEVICE float value_reciprocal(float top, const intfa_cuda_value_head& head, int folded) {
  if (!folded) return 1.f;
  const float ratio = 127.f * head.unit / fmaxf(top, kSmallestMaximum);
  return head.exact ? fminf(ratio, 127.f) : fminf(fmaxf(floorf(ratio), 1.f), 127.f);
}

// Grid: blocks of INTFA_CUDA_VALUE_BLOCK entries of the tables of all heads; entries behind the last
// token are zeros.
template <int E, bool TRANSPOSED>
DEVICE void quantize_values(const intfa_cuda_value_codes& p) {
  STATIC_SHARED_MEMORY s8 tile[E * 32][INTFA_CUDA_VALUE_BLOCK + 4];
  STATIC_SHARED_MEMORY u8 weights[INTFA_CUDA_VALUE_BLOCK];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int blocks = p.pitch / INTFA_CUDA_VALUE_BLOCK;
  const int head = blockIdx.x / blocks, begin = (blockIdx.x - head * blocks) * INTFA_CUDA_VALUE_BLOCK;
  const size_t table = (size_t)head * p.pitch + begin;
  const intfa_cuda_value_head scale = ((const intfa_cuda_value_head*)p.results)[head];
  float x[E];
  for (int i = warp; i < INTFA_CUDA_VALUE_BLOCK; i += kRowWarps) {
    const int token = begin + i;
    const bool exists = token < p.rows.tokens;
    float n = 0.f;
    UNROLL for (int e = 0; e < E; e++) x[e] = 0.f;
    if (exists) {
      load_row(x, p.rows, head, token, lane);
      rotate_row(x, p.rotation, lane);
      n = value_reciprocal(((const float*)p.maxima)[table + i], scale, p.folded);
    }
    const float multiplier = n / scale.unit;
    UNROLL for (int e = 0; e < E; e++) {
      const int channel = 32 * e + lane;
      if (channel >= p.code_pitch) continue;
      const s8 code = code_of(x[e], multiplier);
      if (TRANSPOSED) {
        tile[channel][i] = code;
      } else if (exists) {
        ((s8*)p.codes)[((size_t)head * p.rows.tokens + token) * p.code_pitch + channel] = code;
      }
    }
    if (lane == 0) {
      ((float*)p.real_weights)[table + i] = n;
      ((float*)p.fold)[table + i] = exists ? -log2f(n) : 0.f;
      weights[i] = (u8)round_to_int(n);
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < INTFA_CUDA_VALUE_BLOCK; i += 32 * kRowWarps) {
    ((u8*)p.weights)[table + i] = weights[permuted_key(i)];
  }
  if (!TRANSPOSED) return;
  constexpr int kQuads = INTFA_CUDA_VALUE_BLOCK / 4;
  for (int i = threadIdx.x; i < p.code_pitch * kQuads; i += 32 * kRowWarps) {
    const int channel = i / kQuads, quad = i % kQuads;
    u32 bytes = 0;
    UNROLL for (int b = 0; b < 4; b++) {
      bytes |= (u32)(u8)tile[channel][permuted_key(4 * quad + b)] << (8 * b);
    }
    s8* const row = (s8*)p.codes + ((size_t)head * p.code_pitch + channel) * p.pitch + begin;
    ((u32*)row)[quad] = bytes;
  }
}
