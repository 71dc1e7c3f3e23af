// What a mask does to the logits of a row, for every instruction set: a multiplication and an
// addition per key, never fused, so that all have the same bits.
#pragma once
#include "number_formats.h"

static inline float mask_float(const void *elements, int64_t i, intfa_mask_element element) {
  switch (element) {
    case INTFA_MASK_FLOAT32: return ((const float *)elements)[i];
    case INTFA_MASK_FLOAT16: return float_from_half(((const uint16_t *)elements)[i]);
    case INTFA_MASK_BFLOAT16: return float_of((uint32_t)((const uint16_t *)elements)[i] << 16);
    case INTFA_MASK_BOOLEAN: return ((const uint8_t *)elements)[i] ? 0.0f : -__builtin_inff();
  }
  return 0;
}

// `element` and, mostly, `stride` are constants where this is inlined.
static inline __attribute__((always_inline)) void add_elements(const void *elements,
                                                               intfa_mask_element element, int64_t first,
                                                               int64_t stride, float unit, int32_t count,
                                                               float *logit) {
  for (int32_t j = 0; j < count; j++) {
    const float x = mask_float(elements, (first + j) * stride, element);
    logit[j] = x > INTFA_HIDDEN ? logit[j] + x * unit : -__builtin_inff();
  }
}
static inline __attribute__((always_inline)) void add_row(const void *elements, intfa_mask_element element,
                                                          int64_t first, int64_t stride, float unit,
                                                          int32_t count, float *logit) {
  if (stride == 1)
    add_elements(elements, element, first, 1, unit, count, logit);
  else
    add_elements(elements, element, first, stride, unit, count, logit);
}

// Changes the logits of `count` keys from `first` of row r. Hidden ones become -inf.
static inline void mask_row(const intfa_key_mask *m, int32_t r, int64_t first, int32_t count,
                            float *logit) {
  if (m->slopes) {
    const float slope = m->slopes[r];
    const int32_t distance = (int32_t)(first - m->positions[r]);
    for (int32_t j = 0; j < count; j++)
      logit[j] -= slope * (float)(distance + j < 0 ? -(distance + j) : distance + j);
  }
  if (m->elements) {
    const void *row = m->elements[r];
    switch (m->element) {
      case INTFA_MASK_FLOAT32:
        add_row(row, INTFA_MASK_FLOAT32, first, m->stride, m->unit, count, logit);
        break;
      case INTFA_MASK_FLOAT16:
        add_row(row, INTFA_MASK_FLOAT16, first, m->stride, m->unit, count, logit);
        break;
      case INTFA_MASK_BFLOAT16:
        add_row(row, INTFA_MASK_BFLOAT16, first, m->stride, m->unit, count, logit);
        break;
      case INTFA_MASK_BOOLEAN:
        add_row(row, INTFA_MASK_BOOLEAN, first, m->stride, m->unit, count, logit);
        break;
    }
  }
  if (m->blocks) {
    const int32_t length = m->block_length;
    for (int32_t j = 0, stop; j < count; j = stop) {
      const int64_t block = (first + j) / length, left = (block + 1) * length - first;
      stop = left < count ? (int32_t)left : count;
      if (m->blocks[r][block]) continue;
      for (int32_t i = j; i < stop; i++) logit[i] = -__builtin_inff();
    }
  }
}

// Whether one of the rows sees one of the keys [first, end).
static inline bool mask_shows(const intfa_key_mask *m, int32_t first_row, int32_t end_row,
                              int64_t first, int64_t end) {
  for (int32_t r = first_row; r < end_row; r++)
    for (int64_t key = first; key < end; key++) {
      if (m->blocks && !m->blocks[r][key / m->block_length]) continue;
      if (!m->elements || mask_float(m->elements[r], key * m->stride, m->element) > INTFA_HIDDEN)
        return true;
    }
  return false;
}
