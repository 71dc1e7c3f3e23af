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

static inline int32_t mask_element_bytes(intfa_mask_element element) {
  return element == INTFA_MASK_FLOAT32 ? 4 : element == INTFA_MASK_BOOLEAN ? 1 : 2;
}

// Rows of a mask lie far apart, so that a processor does not see by itself that a row's next keys are
// wanted with the next tile.
static inline void fetch_ahead_of(const void *elements, intfa_mask_element element, int64_t next,
                                  int32_t count) {
  const int32_t bytes = mask_element_bytes(element);
  const char *at = (const char *)elements + next * bytes;
  for (int32_t i = 0; i < count * bytes; i += 64) __builtin_prefetch(at + i, 0, 2);
}

// Changes the logits of `count` keys from `key` of row r. Hidden ones become -inf.
static inline void mask_row(const intfa_key_mask *m, int32_t r, int64_t key, int32_t count,
                            float *logit) {
  const int64_t first = key + m->first_key;
  if (m->slopes) {
    const float slope = m->slopes[r];
    const int32_t distance = (int32_t)(first - m->positions[r]);
    for (int32_t j = 0; j < count; j++)
      logit[j] -= slope * (float)(distance + j < 0 ? -(distance + j) : distance + j);
  }
  if (m->elements) {
    const void *row = m->elements[r];
    if (m->stride == 1) fetch_ahead_of(row, m->element, first + INTFA_MAX_TILE, count);
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

static inline __attribute__((always_inline)) bool any_shown(const void *elements,
                                                            intfa_mask_element element, int64_t first,
                                                            int64_t stride, int64_t count) {
  int32_t seen = 0;
  for (int64_t j = 0; j < count; j++)
    seen |= mask_float(elements, (first + j) * stride, element) > INTFA_HIDDEN;
  return seen;
}
static inline bool elements_show(const intfa_key_mask *m, int32_t r, int64_t first, int64_t end) {
  const void *row = m->elements[r];
  const int64_t count = end - first;
  switch (m->stride == 1 ? (int)m->element : -1) {
    case INTFA_MASK_FLOAT32: return any_shown(row, INTFA_MASK_FLOAT32, first, 1, count);
    case INTFA_MASK_FLOAT16: return any_shown(row, INTFA_MASK_FLOAT16, first, 1, count);
    case INTFA_MASK_BFLOAT16: return any_shown(row, INTFA_MASK_BFLOAT16, first, 1, count);
    case INTFA_MASK_BOOLEAN: return any_shown(row, INTFA_MASK_BOOLEAN, first, 1, count);
    default: return any_shown(row, m->element, first, m->stride, count);
  }
}

// Whether one of the rows sees one of the keys [first, end).
static inline bool mask_shows(const intfa_key_mask *m, int32_t first_row, int32_t end_row,
                              int64_t first, int64_t end) {
  if (!m->blocks && !m->elements) return true;
  first += m->first_key;
  end += m->first_key;
  for (int32_t r = first_row; r < end_row; r++)
    for (int64_t key = first, stop; key < end; key = stop) {
      stop = m->blocks ? (key / m->block_length + 1) * m->block_length : end;
      stop = stop < end ? stop : end;
      if (m->blocks && !m->blocks[r][key / m->block_length]) continue;
      if (!m->elements || elements_show(m, r, key, stop)) return true;
    }
  return false;
}
