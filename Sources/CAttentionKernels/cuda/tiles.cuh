// Rows of codes or 16-bit floats on their way into shared memory, for the loops with mma.
#pragma once
#include "primitives.cuh"

// Byte offset of a 16-byte chunk in a tile of rows of ROW_BYTES; eight rows fall on all 32 banks.
template <int ROW_BYTES>
DEVICE u32 swizzled(u32 row, u32 chunk) {
  if (ROW_BYTES == 64 || ROW_BYTES == 192) return row * ROW_BYTES + ((chunk ^ (row >> 1 & 3)) << 4);
  if (ROW_BYTES == 96) return row * ROW_BYTES + ((chunk ^ (row >> 2 & 1)) << 4);
  return row * ROW_BYTES + ((chunk ^ (row & 7)) << 4);
}

// Starts the copy of rows [first, first + ROWS) of `count`; those that do not exist arrive as zeros.
template <int ROW_BYTES, int ROWS, int THREADS>
DEVICE void copy_rows(u32 target, const u8* source, int first, int count) {
  constexpr int CHUNKS = ROW_BYTES / 16, PIECES = ROWS * CHUNKS;
  UNROLL for (int i = 0; i < (PIECES + THREADS - 1) / THREADS; i++) {
    const int piece = threadIdx.x + i * THREADS;
    if (PIECES % THREADS != 0 && piece >= PIECES) break;
    const bool exists = first + piece / CHUNKS < count;
    const size_t place = exists ? (size_t)first * ROW_BYTES + 16 * piece : 0;
    copy_async_16(target + swizzled<ROW_BYTES>(piece / CHUNKS, piece % CHUNKS), source + place,
                  exists ? 16u : 0u);
  }
}
