// The tile loop on bfloat16 or float16 with mma.m16n8k16: the 16-bit baseline, from sm_80 on.
//
// Operands are in natural [head][token][D] order. A warp owns 16 query rows. g = lane / 4, t = lane % 4.
//
//   A (16 rows x 16 k, pairs)                B (16 k x 8 columns)         C, D (16 rows x 8 columns)
//    reg 0: row g,   k = 2t, 2t+1             reg 0: col g, k = 2t, 2t+1   d0 row g   col 2t, d1 2t+1
//    reg 1: row g+8, k = 2t, 2t+1             reg 1: same, k + 8           d2 row g+8 col 2t, d3 2t+1
//    reg 2, 3: as 0, 1 with k + 8
//
// So P of 16 keys is operand A without a shuffle, K is read as it lies, and V through ldmatrix.trans.
// Accumulators: float32. P is relative to the running maximum and rounded to 16 bits; the row sum
// takes it before that. Error: that of the recipe, up to the order of float32 sums.
#pragma once
#include "mask.cuh"
#include "output.cuh"
#include "tiles.cuh"

// Q | K[2] | V[2]
template <int D, int WARPS, int BLOCK_N>
DEVICE constexpr int shared_bytes_float16_sm80() {
  return (WARPS * 16 + 4 * BLOCK_N) * 2 * D;
}

template <int D, int WARPS, int BLOCK_N, bool BFLOAT16>
DEVICE void attention_float16_sm80(const intfa_cuda_attention_16& p) {
  constexpr int BLOCK_M = WARPS * 16, THREADS = WARPS * 32, ROW = 2 * D, TILE = BLOCK_N * ROW;
  DYNAMIC_SHARED_MEMORY;
  const u32 q_tile = shared_address(shared_memory);
  const u32 k_tiles = q_tile + BLOCK_M * ROW, v_tiles = k_tiles + 2 * TILE;
  const int thread = threadIdx.x, warp = thread >> 5, lane = thread & 31, g = lane >> 2, t = lane & 3;
  const int rows = rows_of_head(p.output), row_blocks = (rows + BLOCK_M - 1) / BLOCK_M;
  const int head = blockIdx.x / row_blocks, key_head = head / p.output.group, split = blockIdx.y;
  // The last rows first: under a causal mask they see the most keys.
  const int first_row = (row_blocks - 1 - (int)(blockIdx.x - head * row_blocks)) * BLOCK_M;
  const int last_row = first_row + BLOCK_M < rows ? first_row + BLOCK_M - 1 : rows - 1;
  const KeyRange tiles = visible_tiles<BLOCK_N, 0>(p.visible, p.key_tokens, first_row, last_row,
                                                   split, p.split_tiles);
  const size_t keys_begin = (size_t)key_head * p.key_tokens * ROW;
  auto load_tile = [&](int tile, int stage) {
    copy_rows<ROW, BLOCK_N, THREADS>(k_tiles + stage * TILE, (const u8*)p.key + keys_begin,
                                     tile * BLOCK_N, p.key_tokens);
    copy_rows<ROW, BLOCK_N, THREADS>(v_tiles + stage * TILE, (const u8*)p.value + keys_begin,
                                     tile * BLOCK_N, p.key_tokens);
  };
  copy_rows<ROW, BLOCK_M, THREADS>(q_tile, (const u8*)p.query + (size_t)head * rows * ROW, first_row,
                                   rows);
  if (tiles.begin < tiles.end) load_tile(tiles.begin, 0);
  copy_async_commit();

  const int warp_row = first_row + warp * 16;
  // Tiles inside these keys need no mask for any row of the warp.
  const int clear_begin = visible_keys(p.visible, p.key_tokens, warp_row + 15).begin;
  const int clear_end = visible_keys(p.visible, p.key_tokens, warp_row).end;
  u32 q_fragments[D > 128 ? 1 : D / 16][4];
  float o[D / 8][4], total[2] = {0.f, 0.f}, maximum[2] = {kMasked, kMasked};
  UNROLL for (int n = 0; n < D / 8; n++) UNROLL for (int e = 0; e < 4; e++) o[n][e] = 0.f;

  for (int tile = tiles.begin; tile < tiles.end; tile++) {
    const int stage = (tile - tiles.begin) & 1;
    if (tile + 1 < tiles.end) load_tile(tile + 1, stage ^ 1);
    copy_async_commit();  // possibly empty, so that "all but one group" always means this tile
    copy_async_wait<1>();
    __syncthreads();
    float x[BLOCK_N / 8][4];
    UNROLL for (int n = 0; n < BLOCK_N / 8; n++) UNROLL for (int e = 0; e < 4; e++) x[n][e] = 0.f;
    // S = Q K^T. All of Q stays in registers up to D = 128.
    _Pragma("unroll (D > 128 ? 1 : D / 16)") for (int c = 0; c < D / 16; c++) {
      u32(&a)[4] = q_fragments[D > 128 ? 0 : c];
      if (tile == tiles.begin || D > 128) {
        load_matrix_x4(a, q_tile + swizzled<ROW>(warp * 16 + (lane & 15), c * 2 + (lane >> 4)));
      }
      UNROLL for (int n = 0; n < BLOCK_N / 8; n += 2) {
        u32 b[4];  // keys 8n and on: b[0], b[1]; keys 8n + 8 and on: b[2], b[3]
        load_matrix_x4(b, k_tiles + stage * TILE +
                              swizzled<ROW>(n * 8 + (lane & 7) + (lane >> 4) * 8,
                                            c * 2 + (lane >> 3 & 1)));
        UNROLL for (int h = 0; h < 2; h++) {
          if (BFLOAT16) {
            mma_bf16(x[n + h], a, b[2 * h], b[2 * h + 1]);
          } else {
            mma_f16(x[n + h], a, b[2 * h], b[2 * h + 1]);
          }
        }
      }
    }

    const int first = tile * BLOCK_N;
    const bool masked = first < clear_begin || first + BLOCK_N > clear_end;
    float decay[2];
    UNROLL for (int r = 0; r < 2; r++) {
      float top = kMasked;
      UNROLL for (int n = 0; n < BLOCK_N / 8; n++) {
        UNROLL for (int b = 0; b < 2; b++) x[n][2 * r + b] *= p.scale;
      }
      if (masked) {
        const KeyRange seen =
            keys_of_lane(visible_keys(p.visible, p.key_tokens, warp_row + g + 8 * r), first, t);
        UNROLL for (int n = 0; n < BLOCK_N / 8; n++) UNROLL for (int b = 0; b < 2; b++) {
            if (8 * n + b < seen.begin || 8 * n + b >= seen.end) x[n][2 * r + b] = kMasked;
          }
      }
      UNROLL for (int n = 0; n < BLOCK_N / 8; n++) {
        top = fmaxf(top, fmaxf(x[n][2 * r], x[n][2 * r + 1]));
      }
      top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
      top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2));
      // A whole maximum leaves the bits of a bfloat16 P alone: the recipe has it so.
      const float next = fmaxf(maximum[r], BFLOAT16 ? ceilf(top) : top);
      decay[r] = exp2_fast(maximum[r] - next);
      maximum[r] = next;
      // A row that has seen no key must not take the masked ones for the largest.
      const float offset = next > kMaskedTest ? next : 0.f;
      float sum = 0.f;
      UNROLL for (int n = 0; n < BLOCK_N / 8; n++) UNROLL for (int b = 0; b < 2; b++) {
          x[n][2 * r + b] = exp2_fast(x[n][2 * r + b] - offset);
          sum += x[n][2 * r + b];
        }
      total[r] = fmaf(total[r], decay[r], sum);
    }
    UNROLL for (int n = 0; n < D / 8; n++) UNROLL for (int e = 0; e < 4; e++) o[n][e] *= decay[e >> 1];

    // O += P V, 16 keys and 16 channels at a time.
    UNROLL for (int i = 0; i < BLOCK_N / 16; i++) {
      u32 a[4];
      UNROLL for (int h = 0; h < 4; h++) {
        const float low = x[2 * i + (h >> 1)][2 * (h & 1)], high = x[2 * i + (h >> 1)][2 * (h & 1) + 1];
        a[h] = BFLOAT16 ? pack_bf16x2(low, high) : pack_f16x2(low, high);
      }
      UNROLL for (int c = 0; c < D / 8; c += 2) {
        u32 b[4];  // channels 8c and on: b[0], b[1]; channels 8c + 8 and on: b[2], b[3]
        load_matrix_x4_transposed(
            b, v_tiles + stage * TILE + swizzled<ROW>(i * 16 + (lane & 15), c + (lane >> 4)));
        UNROLL for (int h = 0; h < 2; h++) {
          if (BFLOAT16) {
            mma_bf16(o[c + h], a, b[2 * h], b[2 * h + 1]);
          } else {
            mma_f16(o[c + h], a, b[2 * h], b[2 * h + 1]);
          }
        }
      }
    }
    __syncthreads();  // everyone is done with this stage before it is filled again
  }

  copy_async_wait<0>();
  __syncthreads();
  UNROLL for (int r = 0; r < 2; r++) {
    total[r] += __shfl_xor_sync(kAllLanes, total[r], 1);
    total[r] += __shfl_xor_sync(kAllLanes, total[r], 2);
  }
  // The rows of Q have been read; their place holds four rows of floats.
  finish_rows<D, 4>(p.output, head, warp_row, split, total, maximum,
                 (float*)(shared_memory + warp * 16 * ROW), [&](int r, float* place) {
                   UNROLL for (int n = 0; n < D / 8; n++) {
                     const float2 pair = {o[n][2 * r], o[n][2 * r + 1]};
                     *(float2*)(place + 8 * n + 2 * t) = pair;
                   }
                 });
}
