// Attention over different keys, put together.
#pragma once

#include "attention_kernels.h"

#pragma GCC visibility push(hidden)

// Adds the output of one part of the keys to the mean that `target` holds, weighted by denominators.
typedef struct {
  int64_t rows;
  int32_t dimension;              // at most INTFA_MAX_DIMENSION
  intfa_rows part;
  const float *part_log_sum_exp;  // [rows], part_stride apart; below infinity
  int64_t part_stride;
  void *target;                   // read unless its log-sum-exp is -inf
  int64_t target_stride;          // elements
  intfa_format target_format;
  float *log_sum_exp;             // [rows], log_sum_exp_stride apart; below infinity
  int64_t log_sum_exp_stride;
} intfa_merge_parts;

void intfa_add_part(const intfa_merge_parts *merge);

#pragma GCC visibility pop
