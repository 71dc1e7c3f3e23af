// Outputs over different keys put together by their log-sum-exps: every element is a sum of two
// products in double precision, rounded once to float32 and once to the type of the target.
#include "merge_parts.h"

#include <math.h>

#include "number_formats.h"

void intfa_add_part(const intfa_merge_parts *a) {
  const int32_t d = a->dimension;
  const intfa_rows target = {a->target, a->target_stride, a->target_format};
  float part[INTFA_MAX_DIMENSION], whole[INTFA_MAX_DIMENSION];
  for (int64_t r = 0; r < a->rows; r++) {
    float *sum = a->log_sum_exp + r * a->log_sum_exp_stride;
    const double add = a->part_log_sum_exp[r * a->part_stride], keep = *sum;
    if (add == -INFINITY) continue;
    const double top = add > keep ? add : keep;
    const double total = exp(add - top) + exp(keep - top);
    const double add_weight = exp(add - top) / total, keep_weight = exp(keep - top) / total;
    load_row(&a->part, r, d, part);
    // What has no weight yet may hold anything.
    if (keep > -INFINITY)
      load_row(&target, r, d, whole);
    else
      memset(whole, 0, sizeof(float) * (size_t)d);
    for (int32_t c = 0; c < d; c++)
      store_element(a->target, r * a->target_stride + c,
                    (float)(part[c] * add_weight + whole[c] * keep_weight), a->target_format);
    *sum = (float)(top + log(total));
  }
}
