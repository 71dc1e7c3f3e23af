// The tile loop on INT8 codes for sm_90a: one producer warpgroup and two consumers of 64 rows each.
//
// Queries and keys are in natural [head][token][D] order. 8-bit wgmma takes K-major operands only, so
// values are transposed, [head][D][key], and their keys permuted inside each group of 16 so that P
// needs no shuffle (permuted_key): of S, lane 4g + t has keys 8n + 2t and 8n + 2t + 1 in rows g, g + 8;
// operand A wants positions 4t .. 4t + 3.
//
//   tensor core:    QK(j) | PV(j-1) | the other's | QK(j+1) | PV(j)
//   this consumer:          softmax(j) .............. drain(j-1) pack(j)
//
// The consumers issue their products in turn, ping-pong as in FlashAttention-3 (arXiv 2407.08608,
// section 3.1): so the softmax of one runs beside the products of the other. A turn ends when both
// products are issued, and is passed on through a barrier.
// Where the mask of a row ends, pack(j) waits for a product of its own, of the rests of P.
//
// A thread of D = 128, tiles of 128 keys: scores 64 registers (logits reuse them), P 32, O 64, the
// product of a tile 64. D = 256 computes the product of a tile in PARTS of its columns.
//
// Accumulators: int32, as attention_int8_sm80.cuh bounds them; |P.v8| <= 128 * 255 * 127 < 2^22. They
// are drained into float32 per tile. Error: that of the recipe plus the rounding of float32.
//
// What the assembler punishes (the compilation test fails on its notes):
//  * The packed P of tile j must not share registers with that of tile j-1 while PV(j-1) reads them:
//    pin(probabilities) after the wait keeps them apart, else every wgmma is serialised (C7513).
//  * Arithmetic may sink below the wait for PV(j-1), which is all that orders it: pin(x) and the
//    branch around the next wait for keys hold the exponentials above it.
//  * A wait for the turn right before the products spills 43 registers; beside the wait for keys none.
//  * wgmma accumulates in place, so a magic start would cost a move per score, as much as it saves.
#pragma once
#include "mask.cuh"
#include "output.cuh"
#include "primitives_sm90.cuh"

constexpr int kConsumers = 2;

// Keys of the first tile that do not exist: it has 64 keys, whatever the others have.
template <int BLOCK_N>
DEVICE constexpr int tile_lead() {
  return BLOCK_N - 64;
}

// Q | K[STAGES] | V[STAGES] | scales, biases, weights [STAGES] | barriers: Q, turns, K full, K empty,
// V full, V empty
template <int D, int BLOCK_N, int STAGES>
DEVICE constexpr int shared_bytes_int8_sm90() {
  return kConsumers * 64 * D + 2 * STAGES * BLOCK_N * D + STAGES * BLOCK_N * 12 + 24 + 32 * STAGES;
}

template <int D, int BLOCK_N, int STAGES, int PARTS>
DEVICE void attention_int8_sm90(const intfa_cuda_attention_sm90& arguments) {
  constexpr int BLOCK_M = kConsumers * 64, TILE = BLOCK_N * D, PART = D / PARTS;
  constexpr int LEAD = tile_lead<BLOCK_N>();
  constexpr int QK_ROW = D < 128 ? D : 128, QK_SUBTILES = D / QK_ROW;  // a swizzle spans 128 bytes
  constexpr int V_ROW = BLOCK_N < 128 ? BLOCK_N : 128, V_SUBTILES = BLOCK_N / V_ROW;
  constexpr int TABLES = BLOCK_N * 12;
  const intfa_cuda_attention& p = arguments.attention;
  DYNAMIC_SHARED_MEMORY;
  const u32 q_tile = shared_address(shared_memory), k_tiles = q_tile + BLOCK_M * D;
  const u32 v_tiles = k_tiles + STAGES * TILE, tables = v_tiles + STAGES * TILE;
  const u32 q_full = tables + STAGES * TABLES, turns = q_full + 8;
  const u32 k_full = turns + 8 * kConsumers, k_empty = k_full + 8 * STAGES;
  const u32 v_full = k_empty + 8 * STAGES, v_empty = v_full + 8 * STAGES;
  const int thread = threadIdx.x, group = thread >> 7;
  const int rows = rows_of_head(p.output), row_blocks = (rows + BLOCK_M - 1) / BLOCK_M;
  const int head = blockIdx.x / row_blocks, key_head = head / p.output.group, split = blockIdx.y;
  // The last rows first: under a causal mask they see the most keys.
  const int first_row = (row_blocks - 1 - (int)(blockIdx.x - head * row_blocks)) * BLOCK_M;
  const int last_row = first_row + BLOCK_M < rows ? first_row + BLOCK_M - 1 : rows - 1;
  const KeyRange tiles = visible_tiles<BLOCK_N, LEAD>(p.visible, p.key_tokens, first_row, last_row,
                                                      split, p.split_tiles);
  const bool exact =
      ((const intfa_cuda_value_head*)p.output.value_heads)[key_head].exact != 0;
  // A head with an outlier in its values has tiles of 64 keys: the two halves of a tile take turns,
  // each with the other one masked. Such heads are rare.
  const int halves = BLOCK_N > 64 && exact && !p.running_maximum ? 2 : 1;
  const int count = tiles.end > tiles.begin ? halves * (tiles.end - tiles.begin) : 0;
  if (thread == 0) {
    barrier_init(q_full, 1);
    for (int i = 0; i < kConsumers; i++) barrier_init(turns + 8 * i, 4);  // an arrival a warp
    for (int i = 0; i < STAGES; i++) {
      barrier_init(k_full + 8 * i, 1);
      barrier_init(v_full + 8 * i, 1);
      barrier_init(k_empty + 8 * i, kConsumers * 4);  // one arrival a warp: each reads the tables
      barrier_init(v_empty + 8 * i, kConsumers * 4);
    }
    barrier_init_fence();
  }
  __syncthreads();

  if (group == kConsumers) {  // the producer: one thread keeps STAGES tiles of K and V on their way
    registers_lower<24>();
    if (thread == kConsumers * 128 && count > 0) {
      const float* const scales = (const float*)p.key_scales + (size_t)key_head * p.pitch;
      const float* const biases = (const float*)p.biases + (size_t)head * p.pitch;
      const int weight_bytes = exact ? 4 : 1;
      const u8* const weights =
          (exact ? (const u8*)p.real_weights : (const u8*)p.weights) +
          (size_t)key_head * p.pitch * weight_bytes;
      barrier_expect(q_full, BLOCK_M * D);
      for (int c = 0; c < QK_SUBTILES; c++) {
        tma_load_2d(q_tile + c * BLOCK_M * QK_ROW, &arguments.query_map, q_full, c * QK_ROW,
                    head * rows + first_row);
      }
      for (int i = 0; i < count; i++) {
        const int stage = i % STAGES, first = first_key<BLOCK_N, LEAD>(tiles.begin + i / halves);
        const u32 parity = (u32)(i / STAGES) & 1, table = tables + stage * TABLES;
        const u32 k_bar = k_full + 8 * stage, v_bar = v_full + 8 * stage;
        barrier_wait(k_empty + 8 * stage, parity ^ 1);  // a fresh barrier passes the other parity
        barrier_expect(k_bar, TILE + BLOCK_N * (8 + weight_bytes));
        for (int c = 0; c < QK_SUBTILES; c++) {
          tma_load_2d(k_tiles + stage * TILE + c * BLOCK_N * QK_ROW, &arguments.key_map, k_bar,
                      c * QK_ROW, key_head * p.key_tokens + first);
        }
        bulk_load(table, scales + first, 4 * BLOCK_N, k_bar);
        bulk_load(table + 4 * BLOCK_N, biases + first, 4 * BLOCK_N, k_bar);
        bulk_load(table + 8 * BLOCK_N, weights + first * weight_bytes, BLOCK_N * weight_bytes, k_bar);
        barrier_wait(v_empty + 8 * stage, parity ^ 1);
        barrier_expect(v_bar, TILE);
        for (int c = 0; c < V_SUBTILES; c++) {
          tma_load_2d(v_tiles + stage * TILE + c * D * V_ROW, &arguments.value_map, v_bar,
                      first + c * V_ROW, key_head * D);
        }
      }
    }
    return;
  }

  // ---- consumers
  registers_raise<240>();
  const int lane = thread & 31, warp = thread >> 5, g = lane >> 2, t = lane & 3;
  const int warp_row = first_row + warp * 16;
  // Tiles inside these keys need no mask for any row of the block; found from what all threads share,
  // so that they take no registers of a thread.
  const int clear_begin = visible_keys(p.visible, p.key_tokens, last_row).begin;
  const int clear_end = visible_keys(p.visible, p.key_tokens, first_row).end;
  int s[BLOCK_N / 2];                  // scores; element 4n + e: row g + 8 * (e / 2), key 8n + 2t + e % 2
  float x[BLOCK_N / 2];                // logits, then probabilities
  u32 probabilities[BLOCK_N / 32][4];  // packed, operand A of P.V
  int product[PART / 2];               // a part of P.V of a tile
  float o[D / 2], total[2] = {0.f, 0.f}, maximum[2] = {kMasked, kMasked}, row_scale[2];
  float tile_max[2];  // what P of the tile is relative to
  float gain[2];      // 2^(that - maximum) of the tile whose product is in flight
  UNROLL for (int i = 0; i < D / 2; i++) o[i] = 0.f;
  UNROLL for (int r = 0; r < 2; r++) {
    const int row = warp_row + g + 8 * r;
    row_scale[r] = row < rows ? ((const float*)p.query_scales)[(size_t)head * rows + row] : 0.f;
  }

  auto table_of = [&](int stage) { return shared_memory + (tables - q_tile) + stage * TABLES; };
  auto issue_qk = [&](int stage) {
    pin(s);
    pin(product);
    pin(probabilities);
    wgmma_fence();
    UNROLL for (int k = 0; k < D; k += 32) {
      const int c = k / QK_ROW, offset = k % QK_ROW;
      const u32 a = q_tile + c * BLOCK_M * QK_ROW + group * 64 * QK_ROW + offset;
      const u32 b = k_tiles + stage * TILE + c * BLOCK_N * QK_ROW + offset;
      wgmma_s8s8_ss(s, k_major_descriptor<QK_ROW>(a), k_major_descriptor<QK_ROW>(b), k != 0);
    }
    wgmma_commit();
  };
  auto issue_pv = [&](int stage, int part) {
    pin(product);
    pin(probabilities);
    wgmma_fence();
    UNROLL for (int k = 0; k < BLOCK_N; k += 32) {
      const int c = k / V_ROW, offset = k % V_ROW;
      const u64 v = k_major_descriptor<V_ROW>(v_tiles + stage * TILE + c * D * V_ROW +
                                              part * PART * V_ROW + offset);
      if (k == 0) {
        wgmma_u8s8_rs_first(product, probabilities[0], v);
      } else {
        wgmma_u8s8_rs(product, probabilities[k / 32], v);
      }
    }
    wgmma_commit();
  };
  // Scores of a tile to probabilities in x, relative to tile_max.
  auto softmax = [&](int i, int stage) {
    const float2* const scales = (const float2*)table_of(stage);
    const float2* const biases = scales + BLOCK_N / 2;
    const int first = first_key<BLOCK_N, LEAD>(tiles.begin + i / halves);
    float top[2] = {kMasked, kMasked}, offset[2];
    UNROLL for (int n = 0; n < BLOCK_N / 8; n++) {
      const float2 scale = scales[n * 4 + t], bias = biases[n * 4 + t];
      UNROLL for (int e = 0; e < 4; e++) {
        const float y = (float)s[4 * n + e] * (e & 1 ? scale.y : scale.x);
        x[4 * n + e] = fmaf(y, row_scale[e >> 1], e & 1 ? bias.y : bias.x);
      }
    }
    if (first < clear_begin || first + BLOCK_N > clear_end || halves > 1) {
      UNROLL for (int r = 0; r < 2; r++) {
        KeyRange seen = visible_keys(p.visible, p.key_tokens, warp_row + g + 8 * r);
        if (halves > 1) {
          const int half = first + (i & 1) * (BLOCK_N / 2);
          seen.begin = seen.begin > half ? seen.begin : half;
          seen.end = seen.end < half + BLOCK_N / 2 ? seen.end : half + BLOCK_N / 2;
        }
        seen = keys_of_lane(seen, first, t);
        UNROLL for (int n = 0; n < BLOCK_N / 8; n++) UNROLL for (int b = 0; b < 2; b++) {
            if (8 * n + b < seen.begin || 8 * n + b >= seen.end) x[4 * n + 2 * r + b] = kMasked;
          }
      }
    }
    UNROLL for (int r = 0; r < 2; r++) {
      UNROLL for (int n = 0; n < BLOCK_N / 8; n++) {
        top[r] = fmaxf(top[r], fmaxf(x[4 * n + 2 * r], x[4 * n + 2 * r + 1]));
      }
      top[r] = fmaxf(top[r], __shfl_xor_sync(kAllLanes, top[r], 1));
      top[r] = fmaxf(top[r], __shfl_xor_sync(kAllLanes, top[r], 2));
      tile_max[r] = p.running_maximum ? fmaxf(maximum[r], top[r]) : top[r];
      offset[r] = tile_max[r] > kMaskedTest ? p.output.log2_levels - tile_max[r] : 0.f;
    }
    UNROLL for (int i = 0; i < BLOCK_N / 2; i++) x[i] = exp2_fast(x[i] + offset[i >> 1 & 1]);
  };
  auto drain = [&](int part) {
    UNROLL for (int i = 0; i < PART / 2; i++) {
      float& place = o[part * PART / 2 + i];
      place = fmaf((float)product[i], gain[i >> 1 & 1], place);
    }
  };
  // Retires PV of the tile in `stage`, whose part 0 is in flight.
  auto finish_pv = [&](int stage) {
    wgmma_wait<0>(product);
    drain(0);
    UNROLL for (int part = 1; part < PARTS; part++) {
      issue_pv(stage, part);
      wgmma_wait<0>(product);
      drain(part);
    }
    pin(probabilities);  // keeps the old P alive until the tensor core has read it
  };
  auto release = [&](u32 barrier) {
    __syncwarp();
    if (lane == 0) barrier_arrive(barrier);
  };
  auto parity_of = [](int i) { return (u32)(i / STAGES) & 1; };
  // Before and after the products of round i, from 1. The first consumer's first turn is there from the
  // start: a fresh barrier passes the other parity.
  auto take_turn = [&](int i) { barrier_wait(turns + 8 * group, (u32)(i + group) & 1); };
  auto pass_turn = [&] { release(turns + 8 * (1 - group)); };
  // Numbers of 0...255 to operand A of P.V, and to the row sum if that is of codes.
  auto pack = [&](const float(&x)[BLOCK_N / 2], const u8* weights) {
    UNROLL for (int i = 0; i < BLOCK_N / 16; i++) UNROLL for (int r = 0; r < 2; r++) {
        const int a = 8 * i + 2 * r;
        probabilities[i >> 1][(i & 1) * 2 + r] = pack_u8x4(x[a], x[a + 1], x[a + 4], x[a + 5]);
      }
    UNROLL for (int r = 0; !exact && r < 2; r++) {
      int sum = 0;
      UNROLL for (int i = 0; i < BLOCK_N / 16; i++) {
        sum = dot_u8s8(probabilities[i >> 1][(i & 1) * 2 + r], ((const u32*)weights)[4 * i + t], sum);
      }
      total[r] = fmaf((float)sum, gain[r], total[r]);
    }
  };
  // What P.V of tile i needs. Row sum and O, which has all earlier tiles, move to the new maximum.
  auto prepare_pv = [&](int i, int stage) {
    const u8* const weights = table_of(stage) + 8 * BLOCK_N;
    bool changed = false;
    float decay[2];
    UNROLL for (int r = 0; r < 2; r++) {
      const float next = fmaxf(maximum[r], tile_max[r]);
      decay[r] = exp2_fast(maximum[r] - next);
      gain[r] = tile_max[r] > kMaskedTest ? exp2_fast(tile_max[r] - next) : 0.f;
      changed |= next != maximum[r];
      maximum[r] = next;
      total[r] *= decay[r];
    }
    if (__any_sync(kAllLanes, changed)) {  // rare once the maximum has settled
      UNROLL for (int i = 0; i < D / 2; i++) o[i] *= decay[i >> 1 & 1];
    }
    UNROLL for (int r = 0; exact && r < 2; r++) {
      float sum = 0.f;
      UNROLL for (int n = 0; n < BLOCK_N / 8; n++) {
        const float2 weight = ((const float2*)weights)[n * 4 + t];
        sum = fmaf(x[4 * n + 2 * r], weight.x, sum);
        sum = fmaf(x[4 * n + 2 * r + 1], weight.y, sum);
      }
      total[r] = fmaf(sum, gain[r], total[r]);
    }
    const int length = BLOCK_N / halves;
    const int first = first_key<BLOCK_N, LEAD>(tiles.begin + i / halves) + i % halves * length;
    const int group_row = first_row + 64 * group;
    if (p.refines && first + length >= clear_end &&
        mask_ends(p.visible, group_row, group_row + 63, first, length)) {
      float rest[BLOCK_N / 2];
      UNROLL for (int r = 0; r < 2; r++) {
        const int row = warp_row + g + 8 * r;
        const bool ends = mask_ends(p.visible, row, row, first, length);
        UNROLL for (int n = 0; n < BLOCK_N / 8; n++) UNROLL for (int b = 0; b < 2; b++)
          rest[4 * n + 2 * r + b] = split_rest(x[4 * n + 2 * r + b], ends);
        gain[r] /= 256.f;
      }
      pack(rest, weights);
      barrier_wait(v_full + 8 * stage, parity_of(i));
      issue_pv(stage, 0);
      finish_pv(stage);
      UNROLL for (int r = 0; r < 2; r++) gain[r] *= 256.f;
    }
    pack(x, weights);
  };

  if (count > 0) {
    barrier_wait(q_full, 0);
    barrier_wait(k_full, 0);
    issue_qk(0);
    wgmma_wait<0>(s);
    softmax(0, 0);
    prepare_pv(0, 0);
    release(k_empty);
    if (count > 1) {
      barrier_wait(k_full + 8 * (1 % STAGES), parity_of(1));
      take_turn(1);
    }
    // D = 256 makes one round more and leaves it halfway: a second copy of finish_pv would spill. Its
    // scores are of a stage that nobody writes any more, and are dropped.
    constexpr int DROPPED = D > 128 ? 1 : 0;
    for (int i = 1; i < count + DROPPED; i++) {
      const int stage = i % STAGES, previous = (i - 1) % STAGES;
      issue_qk(stage);
      barrier_wait(v_full + 8 * previous, parity_of(i - 1));
      issue_pv(previous, 0);
      pass_turn();
      wgmma_wait<1>(s);
      softmax(i, stage);
      pin(x);
      if (i + 1 < count) {
        barrier_wait(k_full + 8 * ((i + 1) % STAGES), parity_of(i + 1));
        take_turn(i + 1);
      }
      finish_pv(previous);
      release(v_empty + 8 * previous);
      if (DROPPED && i == count) break;
      prepare_pv(i, stage);
      release(k_empty + 8 * stage);
    }
    if (!DROPPED) {
      const int last = (count - 1) % STAGES;
      barrier_wait(v_full + 8 * last, parity_of(count - 1));
      issue_pv(last, 0);
      finish_pv(last);
    }
  }

  // Everything that was copied has been read; its place holds all rows as floats.
  static_assert(BLOCK_M * 4 * D <= shared_bytes_int8_sm90<D, BLOCK_N, STAGES>(), "room for O");
  sync_threads<kConsumers * 128>();
  UNROLL for (int r = 0; r < 2; r++) {
    total[r] += __shfl_xor_sync(kAllLanes, total[r], 1);
    total[r] += __shfl_xor_sync(kAllLanes, total[r], 2);
  }
  finish_rows<D, 16>(p.output, head, warp_row, split, total, maximum,
                 (float*)shared_memory + warp * 16 * D, [&](int r, float* place) {
                   UNROLL for (int n = 0; n < D / 8; n++) {
                     const float2 pair = {o[4 * n + 2 * r], o[4 * n + 2 * r + 1]};
                     *(float2*)(place + 8 * n + 2 * t) = pair;
                   }
                 });
}
