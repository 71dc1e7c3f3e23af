// Rows of a tensor in a warp: lane l has channels l, 32 + l, 64 + l, ..., E of them; those from
// `dimension` on are zero. So loads and stores are of neighbours, whatever the dimension is.
#pragma once
#include "primitives.cuh"

// The element offset of a row; `head` counts over the batch.
DEVICE size_t row_offset(const intfa_cuda_rows& rows, int head, int token) {
  const int batch = head / rows.batch_heads, index = head - batch * rows.batch_heads;
  return batch * rows.batch_stride + index * rows.head_stride + token * rows.token_stride;
}

DEVICE float load_element(const intfa_cuda_rows& rows, size_t offset) {
  if (rows.format == INTFA_CUDA_FLOAT32) return ((const float*)rows.base)[offset];
  const u16 bits = ((const u16*)rows.base)[offset];
  return rows.format == INTFA_CUDA_BFLOAT16 ? bits_as_float((u32)bits << 16) : float_of_f16(bits);
}

template <int E>
DEVICE void load_row(float (&x)[E], const intfa_cuda_rows& rows, int head, int token, int lane) {
  const size_t start = row_offset(rows, head, token);
  UNROLL for (int e = 0; e < E; e++) {
    const int channel = 32 * e + lane;
    x[e] = channel < rows.dimension ? load_element(rows, start + channel) : 0.f;
  }
}

template <int E>
DEVICE void store_row(const float (&x)[E], const intfa_cuda_rows& rows, int head, int token,
                      int lane) {
  const size_t start = row_offset(rows, head, token);
  UNROLL for (int e = 0; e < E; e++) {
    const int channel = 32 * e + lane;
    if (channel >= rows.dimension) continue;
    if (rows.format == INTFA_CUDA_FLOAT32) {
      ((float*)rows.base)[start + channel] = x[e];
    } else {
      const u32 bits =
          rows.format == INTFA_CUDA_BFLOAT16 ? pack_bf16x2(x[e], 0.f) : pack_f16x2(x[e], 0.f);
      ((u16*)rows.base)[start + channel] = (u16)bits;
    }
  }
}

// Walsh-Hadamard butterflies inside blocks of `block` channels, a power of two that divides the
// dimension; without normalisation.
template <int E>
DEVICE void rotate_row(float (&x)[E], int block, int lane) {
  UNROLL for (int stride = 1; stride < 32; stride *= 2) {
    if (stride >= block) return;
    UNROLL for (int e = 0; e < E; e++) {
      const float other = __shfl_xor_sync(kAllLanes, x[e], stride);
      x[e] = lane & stride ? other - x[e] : x[e] + other;
    }
  }
  UNROLL for (int stride = 1; stride < E; stride *= 2) {
    if (32 * stride >= block) return;
    UNROLL for (int e = 0; e < E; e++) {
      if (e & stride || e + stride >= E) continue;
      const float a = x[e], b = x[e + stride];
      x[e] = a + b;
      x[e + stride] = a - b;
    }
  }
}

DEVICE float warp_sum(float x) {
  UNROLL for (int mask = 16; mask > 0; mask /= 2) x += __shfl_xor_sync(kAllLanes, x, mask);
  return x;
}
DEVICE float warp_max(float x) {
  UNROLL for (int mask = 16; mask > 0; mask /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, mask));
  return x;
}

template <int E>
DEVICE float largest_magnitude(const float (&x)[E]) {
  float largest = 0.f;
  UNROLL for (int e = 0; e < E; e++) largest = fmaxf(largest, fabsf(x[e]));
  return warp_max(largest);
}

// The inner product with a vector of `dimension` floats.
template <int E>
DEVICE float dot_row(const float (&x)[E], const float* y, int dimension, int lane) {
  float sum = 0.f;
  UNROLL for (int e = 0; e < E; e++) {
    const int channel = 32 * e + lane;
    if (channel < dimension) sum = fmaf(x[e], y[channel], sum);
  }
  return warp_sum(sum);
}

// rnd(x * multiplier), ties to even, inside -127...127.
DEVICE s8 code_of(float x, float multiplier) {
  return (s8)round_to_int(fminf(fmaxf(x * multiplier, -127.f), 127.f));
}
