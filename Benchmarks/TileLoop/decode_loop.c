// Speed of the integer tile loop for few rows, as in decoding, from the caches and from memory.
//
//   clang -std=c2x -O2 -I Sources/CAttentionKernels/include -I Sources/CAttentionKernels/cpu \
//     Benchmarks/TileLoop/decode_loop.c Sources/CAttentionKernels/cpu/*.c -lm -o .build/decode_loop
//   taskset -c 1 .build/decode_loop [rows] [seconds]
//
// Two key/value heads, random codes and scales, keys and values in 8 and in 4 bits. Per line: nanoseconds
// per tile of 128 keys, and bytes a second beside those of a plain read of the same operands; shortest of
// many runs in thread time, in turn.
#define _GNU_SOURCE
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "attention_kernels.h"
#include "cache_kernels.h"
#include "random_operands.h"

enum { HEADS = 2, METHODS = 3, LARGEST_ROWS = 16 };
static const char *const names[METHODS] = {"int8", "int4", "int4KeyValue"};

static void run(const intfa_cpu_kernels *kernels, const intfa_attend_tiles *heads) {
  for (int h = 0; h < HEADS; h++) {
    for (int i = 0; i < LARGEST_ROWS; i++) heads[h].total[i] = 0, heads[h].reference[i] = -INFINITY;
    kernels->attend_tiles(&heads[h]);
  }
}

static void measure(const intfa_cpu_kernels *kernels, int32_t rows, int32_t d, int64_t n, double limit) {
  const int64_t size = n * d;
  int8_t *q = zeroed(LARGEST_ROWS * d), *k = zeroed(size), *v = zeroed(size), *weight = zeroed(HEADS * n);
  float *key_scale = zeroed(4 * HEADS * n), *bias = zeroed(4 * HEADS * n), *scale = zeroed(4 * LARGEST_ROWS);
  for (int64_t i = 0; i < size; i++) k[i] = code(), v[i] = code();
  for (int64_t i = 0; i < LARGEST_ROWS * d; i++) q[i] = code();
  for (int i = 0; i < LARGEST_ROWS; i++) scale[i] = 64 * 1.44f / 1600 / sqrtf((float)d);
  for (int64_t i = 0; i < HEADS * n; i++) {
    key_scale[i] = 1 + 0.1f * normal(), bias[i] = 3 * normal(), weight[i] = (int8_t)(10 + 2 * normal());
  }
  const int64_t stride = (d + INTFA_OUT_UNIT - 1) / INTFA_OUT_UNIT * INTFA_OUT_UNIT;
  float *out = zeroed(4 * LARGEST_ROWS * stride), *total = zeroed(64), *reference = zeroed(64);
  void *scratch = zeroed(INTFA_SCRATCH_BYTES);
  intfa_attend_tiles calls[METHODS][HEADS];
  int64_t key_bytes[METHODS], value_bytes[METHODS];
  for (int m = 0; m < METHODS; m++) {
    key_bytes[m] = kernels->key_bytes(n, d, m > 0), value_bytes[m] = kernels->value_bytes(n, d, m > 1);
    for (int h = 0; h < HEADS; h++) {
      void *keys = zeroed(key_bytes[m]), *values = zeroed(value_bytes[m]);
      kernels->pack_keys(&(intfa_pack){.codes = k, .end = n, .dimension = d, .int4 = m > 0, .target = keys});
      kernels->pack_values(&(intfa_pack){.codes = v, .end = n, .dimension = d, .int4 = m > 1, .target = values});
      calls[m][h] = (intfa_attend_tiles){
          .rows = rows, .head_dimension = d, .value_dimension = d, .key_end = n, .first_tile = 64, .tile = 128,
          .visible = {.end = n, .rows_per_step = 1}, .query = q, .query_scale = scale, .key = keys,
          .key_scale = key_scale + h * n, .bias = bias + h * n, .value = values, .int4_key = m > 0,
          .int4_value = m > 1, .weight = weight + h * n, .sums_codes = true, .out = out, .out_stride = stride,
          .total = total, .reference = reference, .scratch = scratch};
    }
  }
  double best[METHODS], read[METHODS];
  for (int m = 0; m < METHODS; m++) best[m] = read[m] = 1e9;
  const int repeats = n < 4096 ? 32 : 1;
  for (double start = seconds_of_thread(); seconds_of_thread() - start < limit;)
    for (int m = 0; m < METHODS; m++) {
      double t = seconds_of_thread();
      for (int i = 0; i < repeats; i++) run(kernels, calls[m]);
      t = (seconds_of_thread() - t) / repeats;
      best[m] = t < best[m] ? t : best[m];
      t = seconds_of_thread();
      volatile uint64_t sum = 0;
      for (int h = 0; h < HEADS; h++)
        sum += intfa_read_bytes(calls[m][h].key, key_bytes[m] / 512 * 512) +
               intfa_read_bytes(calls[m][h].value, value_bytes[m] / 512 * 512);
      t = seconds_of_thread() - t;
      read[m] = t < read[m] ? t : read[m];
    }
  for (int m = 0; m < METHODS; m++) {
    const double bytes = HEADS * (double)(key_bytes[m] + value_bytes[m]);
    printf("D %3d N %5d rows %2d %-12s %7.1f ns a tile %6.1f GB/s of %6.1f\n", d, (int)n, rows, names[m],
           1e9 * best[m] / (HEADS * (double)n / 128), 1e-9 * bytes / best[m], 1e-9 * bytes / read[m]);
  }
  fflush(stdout);
}

int main(int count, char **arguments) {
  const int32_t rows = count > 1 ? atoi(arguments[1]) : 4;
  const double limit = count > 2 ? atof(arguments[2]) : 1;
  const intfa_cpu_kernels *kernels = intfa_cpu_kernels_for(INTFA_AVX512_VNNI);
  if (!kernels) return fprintf(stderr, "avx512vnni: not available on this processor\n"), 69;
  if (rows < 1 || rows > LARGEST_ROWS) return fprintf(stderr, "rows: 1 to %d\n", LARGEST_ROWS), 64;
  for (int32_t d = 64; d <= 128; d += 64) {
    measure(kernels, rows, d, 1024, limit);
    measure(kernels, rows, d, 65536, limit);
  }
  return 0;
}
