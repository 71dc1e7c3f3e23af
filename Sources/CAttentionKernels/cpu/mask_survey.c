// One pass over a mask before anything is computed: elements that no mask may have, and where nothing
// is seen, so that tiles without a visible key are never touched.
#include "key_mask.h"

// `element` and mostly `stride` are constants where this is inlined.
static inline __attribute__((always_inline)) void survey_keys(const void *elements,
                                                              intfa_mask_element element, int64_t first,
                                                              int64_t stride, int64_t count,
                                                              uint8_t *shown, bool *is_bad) {
  int32_t seen = 0, bad = 0;
  for (int64_t j = 0; j < count; j++) {
    const float x = mask_float(elements, first + j * stride, element);
    seen |= x > INTFA_HIDDEN;
    bad |= !(x < -INTFA_HIDDEN);
  }
  *shown |= (uint8_t)seen;
  *is_bad |= bad;
}

static bool survey_unit(const intfa_mask_survey *s, int64_t first, int64_t count, uint8_t *shown) {
  const int64_t stride = s->key_stride;
  bool is_bad = false;
  switch (s->element) {
    case INTFA_MASK_FLOAT32:
      if (stride == 1)
        survey_keys(s->elements, INTFA_MASK_FLOAT32, first, 1, count, shown, &is_bad);
      else
        survey_keys(s->elements, INTFA_MASK_FLOAT32, first, stride, count, shown, &is_bad);
      break;
    case INTFA_MASK_FLOAT16:
      survey_keys(s->elements, INTFA_MASK_FLOAT16, first, stride, count, shown, &is_bad);
      break;
    case INTFA_MASK_BFLOAT16:
      survey_keys(s->elements, INTFA_MASK_BFLOAT16, first, stride, count, shown, &is_bad);
      break;
    case INTFA_MASK_BOOLEAN:
      survey_keys(s->elements, INTFA_MASK_BOOLEAN, first, stride, count, shown, &is_bad);
      break;
  }
  return is_bad;
}

void intfa_survey_mask(intfa_mask_survey *s) {
  const int64_t unit = INTFA_PACK_UNIT;
  s->first_bad = -1;
  memset(s->shown, 0, (size_t)((s->keys + unit - 1) / unit));
  for (int64_t row = 0; row < s->rows; row++)
    for (int64_t key = 0; key < s->keys; key += unit) {
      const int64_t count = s->keys - key < unit ? s->keys - key : unit;
      const int64_t first = row * s->row_stride + key * s->key_stride;
      if (!survey_unit(s, first, count, s->shown + key / unit) || s->first_bad >= 0) continue;
      for (int64_t j = count - 1; j >= 0; j--)
        if (!(mask_float(s->elements, first + j * s->key_stride, s->element) < -INTFA_HIDDEN))
          s->first_bad = row * s->keys + key + j;
    }
}
