// The end of a row: normalise, rotate back, round once, store; log-sum-exp; merging of splits.
#pragma once
#include "rows.cuh"

// Rows of a head of the loop, which is `pack` query heads side by side, token by token.
DEVICE int rows_of_head(const intfa_cuda_output& p) { return p.rows.tokens * p.pack; }

// x is the sum of P times codes, `total` the row sum, both relative to 2^reference.
template <int E>
DEVICE void finish_row(float (&x)[E], const intfa_cuda_output& p, int head, int row, float total,
                       float reference, int lane) {
  float factor = 1.f;
  if (p.value_heads) {
    const int shared = head / p.group;
    factor = ((const intfa_cuda_value_head*)p.value_heads)[shared].unit / (float)p.rotation;
  }
  const float scale = total > 0.f ? factor / total : 0.f;  // a row that sees no key gives zeros
  rotate_row(x, p.rotation, lane);
  UNROLL for (int e = 0; e < E; e++) x[e] *= scale;
  const int token = row / p.pack, query_head = head * p.pack + row - token * p.pack;
  store_row(x, p.rows, query_head, token, lane);
  if (!p.log_sum_exp || lane != 0) return;
  float result = bits_as_float(0xff800000u);
  if (total > 0.f) {
    result = 0.69314718f * (reference + (log2f(total) - p.log2_levels));
    if (p.shifts) result += ((const float*)p.shifts)[(size_t)query_head * p.rows.tokens + token];
  }
  const int batch = query_head / p.rows.batch_heads, index = query_head - batch * p.rows.batch_heads;
  ((float*)p.log_sum_exp)[batch * p.log_sum_exp_batch_stride + index * p.log_sum_exp_head_stride +
                          token * p.log_sum_exp_token_stride] = result;
}

// The entry of a row in the partial results of a split.
DEVICE size_t partial_entry(const intfa_cuda_output& p, int split, int head, int row) {
  return ((size_t)split * (p.rows.heads / p.pack) + head) * rows_of_head(p) + row;
}

// The 16 rows of a warp whose accumulators are in fragment order: lane 4g + t has rows g and g + 8.
// They go through shared memory, ROWS of them at a time (4 or 16), so that a warp ends up with a whole
// row and stores neighbours. put(r, place) writes the lane's channels of row g + 8r. `scratch` has
// ROWS * D floats that are this warp's alone; total and reference are equal in the lanes of a row.
template <int D, int ROWS, class Put>
DEVICE void finish_rows(const intfa_cuda_output& p, int head, int first_row, int split,
                        const float (&total)[2], const float (&reference)[2], float* scratch,
                        Put put) {
  static_assert(ROWS == 4 || ROWS == 16, "a part of g's rows, or both rows of every g");
  const int lane = threadIdx.x & 31, g = lane >> 2;
  UNROLL for (int part = 0; part < 16 / ROWS; part++) {
    __syncwarp();
    if (ROWS == 16) {
      put(0, scratch + g * D);
      put(1, scratch + (g + 8) * D);
    } else if (g >> 2 == (part & 1)) {
      put(part >> 1, scratch + (g & 3) * D);
    }
    __syncwarp();
    _Pragma("unroll 1") for (int i = 0; i < ROWS; i++) {
      const int index = ROWS * part + i, row = first_row + index, source = 4 * (index & 7);
      const float row_total = __shfl_sync(kAllLanes, index < 8 ? total[0] : total[1], source);
      const float row_reference =
          __shfl_sync(kAllLanes, index < 8 ? reference[0] : reference[1], source);
      if (row >= rows_of_head(p)) continue;
      float x[D / 32];
      UNROLL for (int e = 0; e < D / 32; e++) x[e] = scratch[i * D + 32 * e + lane];
      if (p.splits == 1) {
        finish_row(x, p, head, row, row_total, row_reference, lane);
        continue;
      }
      const size_t entry = partial_entry(p, split, head, row);
      UNROLL for (int e = 0; e < D / 32; e++) {
        ((float*)p.partials)[entry * p.partial_pitch + 32 * e + lane] = x[e];
      }
      if (lane == 0) {
        ((float*)p.totals)[entry] = row_total;
        ((float*)p.references)[entry] = row_reference;
      }
    }
  }
}

// Merges the splits of every row in the order of their keys. Grid: rows of all heads, eight warps
// to a block.
template <int E>
DEVICE void merge_splits(const intfa_cuda_output& p) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const u64 index = (u64)blockIdx.x * 8 + warp;
  if (index >= (u64)p.rows.heads * p.rows.tokens) return;
  const int rows = rows_of_head(p), head = (int)(index / rows), row = (int)(index - (u64)head * rows);
  float x[E], total = 0.f, reference = kMasked;
  UNROLL for (int e = 0; e < E; e++) x[e] = 0.f;
  for (int split = 0; split < p.splits; split++) {
    const size_t entry = partial_entry(p, split, head, row);
    const float part = ((const float*)p.totals)[entry], top = ((const float*)p.references)[entry];
    if (!(part > 0.f)) continue;
    const float next = fmaxf(reference, top);
    const float decay = exp2_fast(reference - next), gain = exp2_fast(top - next);
    total = total * decay + part * gain;
    UNROLL for (int e = 0; e < E; e++) {
      const float y = ((const float*)p.partials)[entry * p.partial_pitch + 32 * e + lane];
      x[e] = x[e] * decay + y * gain;
    }
    reference = next;
  }
  finish_row(x, p, head, row, total, reference, lane);
}
