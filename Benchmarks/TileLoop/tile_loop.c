// Speed of the integer tile loop alone, as a share of the instruction peak of the same run.
//
//   clang -std=c2x -O2 -I Sources/CAttentionKernels/include -I Sources/CAttentionKernels/cpu \
//     Benchmarks/TileLoop/tile_loop.c Sources/CAttentionKernels/cpu/*.c -lm -o .build/tile_loop
//   taskset -c 1 .build/tile_loop [avx512vnni | avxvnni | avx2] [seconds]
//
// One head, random codes and scales, blocks of 256 query rows; neither quantisation nor epilogue. Under the
// causal mask P has rests, as in `int8`.
// Shortest of many runs in thread time; the peak is the 90th percentile of looks between the runs.
#define _GNU_SOURCE
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "attention_kernels.h"
#include "random_operands.h"

enum { BLOCK = 256, LOOKS = 100000 };

typedef struct {
  intfa_attend_tiles call;
  const float *query_scale;
  const int8_t *query;
  float *out, *total, *reference;
} problem;

static problem make(const intfa_cpu_kernels *kernels, int32_t d, int64_t n) {
  int8_t *q = zeroed(n * d), *k = zeroed(n * d), *v = zeroed(n * d), *weight = zeroed(n + 64);
  float *qs = zeroed(4 * n), *ks = zeroed(4 * n + 256), *bias = zeroed(4 * n + 256);
  for (int64_t i = 0; i < n * d; i++) q[i] = code(), k[i] = code(), v[i] = code();
  for (int64_t i = 0; i < n; i++) {
    qs[i] = (1 + 0.02f * normal()) * 64 * 1.44f / 1600 / sqrtf((float)d);
    ks[i] = 1 + 0.1f * normal();
    bias[i] = 3 * normal();
    weight[i] = (int8_t)(10 + 2 * normal());
  }
  void *keys = zeroed(kernels->key_bytes(n, d, false)), *values = zeroed(kernels->value_bytes(n, d, false));
  kernels->pack_keys(&(intfa_pack){.codes = k, .end = n, .dimension = d, .target = keys});
  kernels->pack_values(&(intfa_pack){.codes = v, .end = n, .dimension = d, .target = values});
  const intfa_attend_tiles call = {
      .head_dimension = d, .value_dimension = d, .first_tile = 64, .tile = 128, .key = keys,
      .key_scale = ks, .bias = bias, .value = values, .weight = weight, .sums_codes = true,
      .out_stride = (d + INTFA_OUT_UNIT - 1) / INTFA_OUT_UNIT * INTFA_OUT_UNIT,
      .scratch = zeroed(INTFA_SCRATCH_BYTES)};
  return (problem){call, qs, q, zeroed(4 * n * call.out_stride), zeroed(4 * n), zeroed(4 * n)};
}

static void run(const intfa_cpu_kernels *kernels, const problem *p, int64_t n, bool causal) {
  for (int64_t begin = 0; begin < n; begin += BLOCK) {
    intfa_attend_tiles a = p->call;
    a.rows = BLOCK;
    a.visible = (intfa_visible){.first = causal ? -n : 0, .end = causal ? begin + 1 : n, .step = causal,
                                .rows_per_step = 1};
    a.refines = causal;
    a.key_end = causal ? begin + BLOCK : n;
    a.query = p->query + begin * a.head_dimension;
    a.query_scale = p->query_scale + begin;
    a.out = p->out + begin * a.out_stride;
    a.total = p->total + begin;
    a.reference = p->reference + begin;
    memset(a.out, 0, sizeof(float) * (size_t)(BLOCK * a.out_stride));
    for (int64_t i = 0; i < BLOCK; i++) a.total[i] = 0, a.reference[i] = -INFINITY;
    kernels->attend_tiles(&a);
  }
}

static int ascending(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

int main(int count, char **arguments) {
  const char *name = count > 1 ? arguments[1] : "avx512vnni";
  const double limit = count > 2 ? atof(arguments[2]) : 0.5;
  const intfa_isa isa = !strcmp(name, "avx2")      ? INTFA_AVX2
                        : !strcmp(name, "avxvnni") ? INTFA_AVX_VNNI
                                                   : INTFA_AVX512_VNNI;
  const intfa_cpu_kernels *kernels = intfa_cpu_kernels_for(isa);
  if (!kernels) return fprintf(stderr, "%s: not available on this processor\n", name), 69;
  static double looks[LOOKS];
  for (int32_t d = 64; d <= 128; d += 64)
    for (int64_t n = 1024; n <= 16384; n *= 4) {
      const problem p = make(kernels, d, n);
      for (int causal = 0; causal < 2; causal++) {
        double best = 1e9;
        int32_t runs = 0;
        for (double start = seconds_of_thread();
             (seconds_of_thread() - start < limit || runs < 4) && runs < LOOKS; runs++) {
          double t = seconds_of_thread();
          const int64_t operations = kernels->peak(INTFA_PEAK_INT8, 3000);
          looks[runs] = (double)operations / (seconds_of_thread() - t);
          t = seconds_of_thread();
          run(kernels, &p, n, causal);
          t = seconds_of_thread() - t;
          best = t < best ? t : best;
        }
        qsort(looks, (size_t)runs, sizeof *looks, ascending);
        const double peak = looks[runs * 9 / 10], pairs = causal ? (double)n * (double)(n + 1) / 2 : (double)n * (double)n;
        printf("%s D %3d N %5d %-6s %6.1f %% of %6.1f Gop/s\n", kernels->name, d, (int)n, causal ? "causal" : "full",
               100 * 4 * pairs * d / best / peak, 1e-9 * peak);
        fflush(stdout);
      }
    }
  return 0;
}
