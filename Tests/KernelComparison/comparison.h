// Inputs, guarded memory and comparison for the kernel comparison. See comparison.c.
#pragma once
#pragma STDC FP_CONTRACT OFF  // inputs have to be the same on every machine

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attention_kernels.h"

// ---------------------------------------------------------------------------------- inputs

// A fixed sequence on every machine, so that a failure repeats.
typedef struct {
  uint64_t state;
} generator;

uint32_t random_bits(generator *);
// 0 ..< count
int32_t random_below(generator *, int32_t count);
// A multiple of 2^-24 in [low, high), by exact operations for bounds that are small integers.
float random_between(generator *, float low, float high);
// -127 ... 127
int8_t random_code(generator *);

// ---------------------------------------------------------------------------------- memory

// Memory of exactly the size that a kernel may touch, 64-aligned. It starts filled with 0xFF bytes: NaN
// as floats, so that what is not written shows. Reading or writing past the next multiple of 64 bytes
// ends the process with the case's name.
void *take(size_t bytes);
// Fails the case where a byte beside any memory taken so far was written; frees all of it.
void release_all(void);

// ---------------------------------------------------------------------------------- comparison

typedef struct {
  const intfa_cpu_kernels *kernels[8];  // the first is the portable table
  int count;
} kernel_sets;

// What is under comparison; named in the message of a failure.
void begin_case(const char *format, ...) __attribute__((format(printf, 1, 2)));
// Prints the case and the message, and ends the process with status 1.
void fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

// Every bit of `rows` rows of `count` floats that lie `stride` apart.
void compare_floats(const char *set, const char *name, const float *actual, const float *expected,
                    int64_t rows, int64_t count, int64_t stride);
// Every byte.
void compare_bytes(const char *set, const char *name, const void *actual, const void *expected,
                   int64_t count);
// Adds to the digest of all portable results, which is the same on every architecture.
void digest(const void *bytes, size_t count);

// ---------------------------------------------------------------------------------- masks

// Elements of every kind (of which some hide their key), blocks and slopes, each present or absent.
intfa_key_mask *random_mask(generator *, int32_t rows, int64_t keys, float unit);

// ---------------------------------------------------------------------------------- suites

void compare_prepass(const kernel_sets *);
void compare_units(const kernel_sets *);
void compare_attend_tiles(const kernel_sets *);
void compare_attend_running(const kernel_sets *);
