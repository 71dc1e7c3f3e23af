// The tile loop on INT8 codes with mma.m16n8k32: sm_80, 86, 89, and any newer device.
//
// Codes are in natural [head][token][D] order. A warp owns 16 query rows. g = lane / 4, t = lane % 4.
//
//   A (16 rows x 32 k, a byte each)          B (32 k x 8 columns)         C, D (16 rows x 8 columns)
//    reg 0: row g,   k = 4t .. 4t+3           reg 0: col g, k = 4t..4t+3   d0 row g   col 2t, d1 2t+1
//    reg 1: row g+8, k = 4t .. 4t+3           reg 1: same, k + 16          d2 row g+8 col 2t, d3 2t+1
//    reg 2, 3: as 0, 1 with k + 16
//
// S = Q K^T leaves a lane with keys 8n + 2t and 8n + 2t + 1; P as operand A wants four consecutive k
// in a register. The order of k inside one MMA is free as long as A and B agree, so the register of
// 16 keys holds keys 2t, 2t+1, 8+2t, 8+2t+1 (permuted_key), all of which the lane has, and V is read in
// that order: ldmatrix.trans on V takes pairs of channels 2g, 2g+1 as 16-bit elements,
//    r0 = {key 2t: ch 2g, ch 2g+1 | key 2t+1: ch 2g, ch 2g+1},  r1 = the same for keys 8+2t, 8+2t+1
//    select_bytes(r0, r1, 0x6420) = B for channel 2g,   select_bytes(r0, r1, 0x7531) = B for 2g+1
// The accumulator pair (even, odd) of 16 channels then has channels 16c + 4t .. 16c + 4t + 3.
//
// Accumulators: int32. |q8.k8| <= 256 * 127^2 < 2^22 and |P.v8| of a tile <= 64 * 255 * 127 < 2^22, so
// both may start at kMagicBits. Per tile the product is drained into float32, scaled by the weight of
// the tile's maximum; so are the rests of P where a row's mask ends, 1/256 of that. The row sum of
// codes takes one dp4a per four keys. Two stages of cp.async: eight
// warps hide the latency of one tile. Error: that of the recipe plus 2^-22 per logit.
#pragma once
#include "mask.cuh"
#include "output.cuh"
#include "tiles.cuh"

// Q | K[2] | V[2] | per stage: scale pairs, biases, weights
template <int D, int WARPS, int BLOCK_N>
DEVICE constexpr int shared_bytes_int8_sm80() {
  return WARPS * 16 * D + 4 * BLOCK_N * D + 2 * BLOCK_N * 16;
}

template <int D, int WARPS, int BLOCK_N>
DEVICE void attention_int8_sm80(const intfa_cuda_attention& p) {
  constexpr int BLOCK_M = WARPS * 16, THREADS = WARPS * 32, TILE = BLOCK_N * D;
  constexpr int TABLES = BLOCK_N * 16;  // bytes of a stage
  static_assert(THREADS >= BLOCK_N, "a thread for every piece of the tables");
  DYNAMIC_SHARED_MEMORY;
  const u32 q_tile = shared_address(shared_memory);
  const u32 k_tiles = q_tile + BLOCK_M * D, v_tiles = k_tiles + 2 * TILE;
  u8* const tables = shared_memory + BLOCK_M * D + 4 * TILE;
  const int thread = threadIdx.x, warp = thread >> 5, lane = thread & 31, g = lane >> 2, t = lane & 3;
  const int rows = rows_of_head(p.output), row_blocks = (rows + BLOCK_M - 1) / BLOCK_M;
  const int head = blockIdx.x / row_blocks, key_head = head / p.output.group, split = blockIdx.y;
  // The last rows first: under a causal mask they see the most keys.
  const int first_row = (row_blocks - 1 - (int)(blockIdx.x - head * row_blocks)) * BLOCK_M;
  const int last_row = first_row + BLOCK_M < rows ? first_row + BLOCK_M - 1 : rows - 1;
  const KeyRange tiles = visible_tiles<BLOCK_N, 0>(p.visible, p.key_tokens, first_row, last_row,
                                                   split, p.split_tiles);
  const size_t keys_begin = (size_t)key_head * p.key_rows * D;
  const bool exact =
      ((const intfa_cuda_value_head*)p.output.value_heads)[key_head].exact != 0;

  // Of the tables of a tile, which are padded, each of the first BLOCK_N threads copies 16 bytes:
  // pairs (8 bytes a key), biases (4), weights (1, or 4 where they are real).
  const int weight_bytes = exact ? 4 : 1;
  const size_t table_entry = (size_t)key_head * p.pitch, bias_entry = (size_t)head * p.pitch;
  const u8* table_source = (const u8*)p.key_scales + 8 * table_entry + 16 * thread;
  int table_step = 8 * BLOCK_N;
  if (thread >= BLOCK_N / 2) {
    table_source = (const u8*)p.biases + 4 * bias_entry + 16 * (thread - BLOCK_N / 2);
    table_step = 4 * BLOCK_N;
  }
  if (thread >= 3 * BLOCK_N / 4) {
    table_source = (exact ? (const u8*)p.real_weights : (const u8*)p.weights) +
                   weight_bytes * table_entry + 16 * (thread - 3 * BLOCK_N / 4);
    table_step = weight_bytes * BLOCK_N;
  }
  const bool copies_table =
      thread < 3 * BLOCK_N / 4 + weight_bytes * BLOCK_N / 16;

  auto load_tile = [&](int tile, int stage) {
    copy_rows<D, BLOCK_N, THREADS>(k_tiles + stage * TILE, (const u8*)p.key + keys_begin,
                                   tile * BLOCK_N, p.key_tokens);
    copy_rows<D, BLOCK_N, THREADS>(v_tiles + stage * TILE, (const u8*)p.value + keys_begin,
                                   tile * BLOCK_N, p.key_tokens);
    if (copies_table) {
      copy_async_16(shared_address(tables) + stage * TABLES + 16 * thread,
                    table_source + (size_t)tile * table_step, 16);
    }
  };
  copy_rows<D, BLOCK_M, THREADS>(q_tile, (const u8*)p.query + (size_t)head * rows * D, first_row, rows);
  if (tiles.begin < tiles.end) load_tile(tiles.begin, 0);
  copy_async_commit();

  const int warp_row = first_row + warp * 16;
  // Tiles inside these keys need no mask for any row of the warp.
  const int clear_begin = visible_keys(p.visible, p.key_tokens, warp_row + 15).begin;
  const int clear_end = visible_keys(p.visible, p.key_tokens, warp_row).end;
  u32 q_fragments[D > 128 ? 1 : D / 32][4];
  float o[D / 8][4], total[2] = {0.f, 0.f}, maximum[2] = {kMasked, kMasked}, row_scale[2];
  UNROLL for (int n = 0; n < D / 8; n++) UNROLL for (int e = 0; e < 4; e++) o[n][e] = 0.f;
  UNROLL for (int r = 0; r < 2; r++) {
    const int row = warp_row + g + 8 * r;
    row_scale[r] = row < rows ? ((const float*)p.query_scales)[(size_t)head * rows + row] : 0.f;
  }

  for (int tile = tiles.begin; tile < tiles.end; tile++) {
    const int stage = (tile - tiles.begin) & 1;
    if (tile + 1 < tiles.end) load_tile(tile + 1, stage ^ 1);
    copy_async_commit();  // possibly empty, so that "all but one group" always means this tile
    copy_async_wait<1>();
    __syncthreads();
    // S = Q K^T from the magic start. All of Q stays in registers up to D = 128; beyond, it would not
    // fit beside O, and a rolled loop keeps the addresses from filling what is left.
    int s[BLOCK_N / 8][4];
    UNROLL for (int n = 0; D > 128 && n < BLOCK_N / 8; n++) {
      UNROLL for (int e = 0; e < 4; e++) s[n][e] = kMagicBits;
    }
    _Pragma("unroll (D > 128 ? 1 : D / 32)") for (int c = 0; c < D / 32; c++) {
      u32(&a)[4] = q_fragments[D > 128 ? 0 : c];
      if (tile == tiles.begin || D > 128) {
        load_matrix_x4(a, q_tile + swizzled<D>(warp * 16 + (lane & 15), c * 2 + (lane >> 4)));
      }
      UNROLL for (int n = 0; n < BLOCK_N / 8; n += 2) {
        u32 b[4];  // keys 8n and on: b[0], b[1]; keys 8n + 8 and on: b[2], b[3]
        load_matrix_x4(b, k_tiles + stage * TILE + swizzled<D>(n * 8 + (lane & 7) + (lane >> 4) * 8,
                                                               c * 2 + (lane >> 3 & 1)));
        UNROLL for (int h = 0; h < 2; h++) {
          int(&d)[4] = s[n + h];
          const bool fresh = D <= 128 && c == 0;
          mma_s8s8(d, a, b[2 * h], b[2 * h + 1], fresh ? kMagicBits : d[0],
                   fresh ? kMagicBits : d[1], fresh ? kMagicBits : d[2], fresh ? kMagicBits : d[3]);
        }
      }
    }

    const u8* const table = tables + stage * TABLES;
    const ScalePair* const pairs = (const ScalePair*)table;
    const float* const bias = (const float*)(table + 8 * BLOCK_N);
    const u8* const weight = table + 12 * BLOCK_N;
    const int first = tile * BLOCK_N;
    float x[BLOCK_N / 8][4], top[2] = {kMasked, kMasked}, gain[2], offset[2];
    UNROLL for (int n = 0; n < BLOCK_N / 8; n++) UNROLL for (int e = 0; e < 4; e++) {
        const int key = n * 8 + 2 * t + (e & 1);
        const float y = fmaf(bits_as_float((u32)s[n][e]), pairs[key].scale, pairs[key].offset);
        x[n][e] = fmaf(y, row_scale[e >> 1], bias[key]);
      }
    if (first < clear_begin || first + BLOCK_N > clear_end) {
      UNROLL for (int r = 0; r < 2; r++) {
        const KeyRange seen =
            keys_of_lane(visible_keys(p.visible, p.key_tokens, warp_row + g + 8 * r), first, t);
        UNROLL for (int n = 0; n < BLOCK_N / 8; n++) UNROLL for (int b = 0; b < 2; b++) {
            if (8 * n + b < seen.begin || 8 * n + b >= seen.end) x[n][2 * r + b] = kMasked;
          }
      }
    }
    bool changed = false;
    float decay[2];
    UNROLL for (int r = 0; r < 2; r++) {
      UNROLL for (int n = 0; n < BLOCK_N / 8; n++) top[r] = fmaxf(top[r], fmaxf(x[n][2 * r], x[n][2 * r + 1]));
      top[r] = fmaxf(top[r], __shfl_xor_sync(kAllLanes, top[r], 1));
      top[r] = fmaxf(top[r], __shfl_xor_sync(kAllLanes, top[r], 2));
      const bool any = top[r] > kMaskedTest;
      const float next = fmaxf(maximum[r], top[r]);
      const float local = p.running_maximum ? next : top[r];
      decay[r] = exp2_fast(maximum[r] - next);
      gain[r] = any ? exp2_fast(local - next) : 0.f;
      offset[r] = any ? p.output.log2_levels - local : 0.f;
      changed |= next != maximum[r];
      maximum[r] = next;
    }
    if (__any_sync(kAllLanes, changed)) {  // rare once the maximum has settled
      UNROLL for (int n = 0; n < D / 8; n++) UNROLL for (int e = 0; e < 4; e++) o[n][e] *= decay[e >> 1];
      UNROLL for (int r = 0; r < 2; r++) total[r] *= decay[r];
    }
    UNROLL for (int n = 0; n < BLOCK_N / 8; n++) UNROLL for (int e = 0; e < 4; e++) x[n][e] = exp2_fast(x[n][e] + offset[e >> 1]);
    UNROLL for (int r = 0; exact && r < 2; r++) {
      float sum = 0.f;
      UNROLL for (int n = 0; n < BLOCK_N / 8; n++) UNROLL for (int b = 0; b < 2; b++)
        sum = fmaf(x[n][2 * r + b], ((const float*)weight)[n * 8 + 2 * t + b], sum);
      total[r] = fmaf(sum, gain[r], total[r]);
    }
    auto pack = [&](u32(&codes)[BLOCK_N / 32][4], const float(&x)[BLOCK_N / 8][4]) {
      UNROLL for (int i = 0; i < BLOCK_N / 16; i++) UNROLL for (int r = 0; r < 2; r++) {
          codes[i >> 1][(i & 1) * 2 + r] = pack_u8x4(x[2 * i][2 * r], x[2 * i][2 * r + 1],
                                                     x[2 * i + 1][2 * r], x[2 * i + 1][2 * r + 1]);
        }
    };
    u32 codes[BLOCK_N / 32][4], rests[BLOCK_N / 32][4];
    const bool has_rests = p.refines && first + BLOCK_N >= clear_end &&
                           mask_ends(p.visible, warp_row, warp_row + 15, first, BLOCK_N);
    if (has_rests) {
      float rest[BLOCK_N / 8][4];
      UNROLL for (int r = 0; r < 2; r++) {
        const int row = warp_row + g + 8 * r;
        const bool ends = mask_ends(p.visible, row, row, first, BLOCK_N);
        UNROLL for (int n = 0; n < BLOCK_N / 8; n++) UNROLL for (int b = 0; b < 2; b++)
          rest[n][2 * r + b] = split_rest(x[n][2 * r + b], ends);
      }
      pack(rests, rest);
    }
    pack(codes, x);
    // Row sum of codes, and O += P V, 16 channels at a time; once more for the rests.
    const int passes = has_rests ? 2 : 1;
    _Pragma("unroll 1") for (int pass = 0; pass < passes; pass++) {
      UNROLL for (int r = 0; pass > 0 && r < 2; r++) gain[r] /= 256.f;
      UNROLL for (int i = 0; pass > 0 && i < BLOCK_N / 32; i++) {
        UNROLL for (int e = 0; e < 4; e++) codes[i][e] = rests[i][e];
      }
      UNROLL for (int r = 0; !exact && r < 2; r++) {
        int sum = 0;
        UNROLL for (int i = 0; i < BLOCK_N / 16; i++)
          sum = dot_u8s8(codes[i >> 1][(i & 1) * 2 + r], ((const u32*)weight)[4 * i + t], sum);
        total[r] = fmaf((float)sum, gain[r], total[r]);
      }
      UNROLL for (int c = 0; c < D / 16; c++) {
        int even[4], odd[4];
        // Without a barrier, loads run so far ahead that they spill.
        if (D > 128 && c % 4 == 0) __syncwarp();
        UNROLL for (int i = 0; i < BLOCK_N / 32; i++) {
          u32 r[4];
          load_matrix_x4_transposed(r, v_tiles + stage * TILE + swizzled<D>(i * 32 + lane, c));
          const u32 even0 = select_bytes(r[0], r[1], 0x6420), even1 = select_bytes(r[2], r[3], 0x6420);
          const u32 odd0 = select_bytes(r[0], r[1], 0x7531), odd1 = select_bytes(r[2], r[3], 0x7531);
          if (i == 0) {
            mma_u8s8(even, codes[i], even0, even1, kMagicBits, kMagicBits, kMagicBits, kMagicBits);
            mma_u8s8(odd, codes[i], odd0, odd1, kMagicBits, kMagicBits, kMagicBits, kMagicBits);
          } else {
            mma_u8s8(even, codes[i], even0, even1, even[0], even[1], even[2], even[3]);
            mma_u8s8(odd, codes[i], odd0, odd1, odd[0], odd[1], odd[2], odd[3]);
          }
        }
        UNROLL for (int e = 0; e < 4; e++) {
          o[2 * c][e] = fmaf(bits_as_float((u32)even[e]) - kMagic, gain[e >> 1], o[2 * c][e]);
          o[2 * c + 1][e] = fmaf(bits_as_float((u32)odd[e]) - kMagic, gain[e >> 1], o[2 * c + 1][e]);
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
  finish_rows<D, 4>(p.output, head, warp_row, split, total, maximum, (float*)(shared_memory + warp * 16 * D),
                 [&](int r, float* place) {
                   UNROLL for (int c = 0; c < D / 16; c++) {
                     const float4 quad = {o[2 * c][2 * r], o[2 * c + 1][2 * r], o[2 * c][2 * r + 1],
                                          o[2 * c + 1][2 * r + 1]};
                     *(float4*)(place + 16 * c + 4 * t) = quad;
                   }
                 });
}
