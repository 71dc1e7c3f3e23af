// Scales of values that ride on the logits, and the rule that selects the row sum; one place for all
// instruction sets, since it is a few operations per token. Defined by FoldedValueScales in Swift.
#include <math.h>

#include "portable.h"

enum { LARGEST_WEIGHT = 127 };
#define FLOOR_DIVISOR 8.0f  // the unit is the mean of the maxima over this
#define OUTLIER_LIMIT 4.0f  // a maximum that is so many times the mean is an outlier

static float at_least_smallest(float x) { return x > SMALLEST_MAXIMUM ? x : SMALLEST_MAXIMUM; }

// The mean of the maxima up to `limit`: block sums in order.
static float mean_up_to(const intfa_fold *a, float limit) {
  float sum = 0;
  int64_t count = 0;
  for (int64_t begin = 0; begin < a->count; begin += INTFA_SUM_BLOCK) {
    const int64_t end = begin + INTFA_SUM_BLOCK < a->count ? begin + INTFA_SUM_BLOCK : a->count;
    float block = 0;
    for (int64_t j = begin; j < end; j++) {
      const float maximum = at_least_smallest(a->maxima[j]);
      if (maximum > limit) continue;
      block += maximum;
      count++;
    }
    sum += block;
  }
  return at_least_smallest(sum / (float)(count > 1 ? count : 1));
}

// log2 of 1...127, rounded from double precision; the first entry is unused.
static const float logarithms[LARGEST_WEIGHT + 1] = {
    0.0f, 0.0f, 1.0f, 1.58496249f, 2.0f, 2.32192802f, 2.58496261f, 2.80735493f,
    3.0f, 3.16992497f, 3.32192802f, 3.45943165f, 3.58496261f, 3.70043969f, 3.80735493f, 3.90689063f,
    4.0f, 4.0874629f, 4.16992521f, 4.24792767f, 4.32192802f, 4.3923173f, 4.45943165f, 4.52356195f,
    4.58496237f, 4.64385605f, 4.70043993f, 4.75488758f, 4.80735493f, 4.8579812f, 4.90689039f, 4.95419645f,
    5.0f, 5.04439402f, 5.0874629f, 5.12928295f, 5.16992521f, 5.20945358f, 5.24792767f, 5.2854023f,
    5.32192802f, 5.35755205f, 5.3923173f, 5.42626476f, 5.45943165f, 5.49185324f, 5.52356195f, 5.55458879f,
    5.58496237f, 5.61470985f, 5.64385605f, 5.67242527f, 5.70043993f, 5.72792053f, 5.75488758f, 5.78135967f,
    5.80735493f, 5.83289003f, 5.8579812f, 5.88264322f, 5.90689039f, 5.9307375f, 5.95419645f, 5.97728014f,
    6.0f, 6.02236795f, 6.04439402f, 6.06608915f, 6.0874629f, 6.10852432f, 6.12928295f, 6.14974689f,
    6.16992521f, 6.18982458f, 6.20945358f, 6.22881889f, 6.24792767f, 6.26678658f, 6.2854023f, 6.30378056f,
    6.32192802f, 6.33984995f, 6.35755205f, 6.37503958f, 6.3923173f, 6.40939093f, 6.42626476f, 6.44294357f,
    6.45943165f, 6.47573328f, 6.49185324f, 6.50779486f, 6.52356195f, 6.53915882f, 6.55458879f, 6.56985569f,
    6.58496237f, 6.59991264f, 6.61470985f, 6.62935638f, 6.64385605f, 6.65821171f, 6.67242527f, 6.68650055f,
    6.70043993f, 6.71424532f, 6.72792053f, 6.741467f, 6.75488758f, 6.76818419f, 6.78135967f, 6.79441595f,
    6.80735493f, 6.82017899f, 6.83289003f, 6.84548998f, 6.8579812f, 6.87036467f, 6.88264322f, 6.89481783f,
    6.90689039f, 6.9188633f, 6.9307375f, 6.94251442f, 6.95419645f, 6.96578407f, 6.97728014f, 6.98868465f,
};
static float logarithm(float n) {
  const int32_t whole = (int32_t)n;
  return n == (float)whole && whole >= 1 ? logarithms[whole] : (float)log2(n);
}

void intfa_fold_values(intfa_fold *a) {
  float mean = mean_up_to(a, INFINITY);
  const float limit = OUTLIER_LIMIT * mean;
  a->has_outlier = false;
  for (int64_t j = 0; j < a->count; j++)
    a->has_outlier |= at_least_smallest(a->maxima[j]) > limit;
  if (a->has_outlier) mean = mean_up_to(a, limit);
  a->unit = mean / FLOOR_DIVISOR;
  a->has_integers = a->integers && !a->has_outlier;

  const float largest = (float)LARGEST_WEIGHT * a->unit;
  for (int64_t j = 0; j < a->count; j++) {
    float n = largest / at_least_smallest(a->maxima[j]);
    n = n < (float)LARGEST_WEIGHT ? n : (float)LARGEST_WEIGHT;
    if (a->has_integers) {
      const int32_t whole = n > 1 ? (int32_t)n : 1;
      a->weights[j] = (int8_t)whole;
      n = (float)whole;
    } else {
      a->real_weights[j] = n;
    }
    a->multipliers[j] = n / a->unit;
    a->logarithms[j] = -64.0f * logarithm(n);
  }
}
