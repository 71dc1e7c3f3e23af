#include <math.h>

#include "test.h"

int failures = 0;

void expect(const char *file, int line, const char *what, intfa_status expected, const char *text,
            intfa_status status) {
  if (status == expected && (status == INTFA_OK || strstr(intfa_last_error(), text))) return;
  ++failures;
  printf("%s:%d: %s\n  is %s (%s), expected %s (%s)\n", file, line, what, intfa_status_name(status),
         status == INTFA_OK ? "" : intfa_last_error(), intfa_status_name(expected), text);
}

static size_t size_of(intfa_element_type type) {
  return type == INTFA_FLOAT32 ? 4 : type == INTFA_FLOAT16 || type == INTFA_BFLOAT16 ? 2 : 1;
}

array make(intfa_element_type type, layout layout, int64_t rank, const int64_t *shape) {
  array a = {{sizeof(intfa_tensor), type, NULL, rank, NULL, NULL}, {0}, {0}, NULL};
  int64_t order[4] = {0, 1, 2, 3}, count = 1;
  if (layout == TOKENS_FIRST) order[rank - 3] = rank - 2, order[rank - 2] = rank - 3;
  for (int64_t i = rank; i-- > 0;) {
    int64_t axis = order[i];
    a.shape[axis] = shape[axis];
    a.strides[axis] = count;
    count *= shape[axis] + (layout == GAPS && axis == rank - 1 ? 3 : 0);
  }
  size_t bytes = (size_t)count * size_of(type);
  a.memory = calloc(bytes ? bytes : 1, 1);
  a.tensor.data = a.memory;
  if (layout == REVERSED && count > 0) {
    int64_t axis = rank - 2;
    a.tensor.data =
        (char *)a.memory + (size_t)(a.strides[axis] * (shape[axis] - 1)) * size_of(type);
    a.strides[axis] = -a.strides[axis];
  }
  return a;
}

array make4(intfa_element_type type, int64_t a, int64_t b, int64_t c, int64_t d) {
  return make(type, ROW_MAJOR, 4, (int64_t[]){a, b, c, d});
}

array make3(intfa_element_type type, int64_t a, int64_t b, int64_t c) {
  return make(type, ROW_MAJOR, 3, (int64_t[]){a, b, c});
}

void drop(array *a) { free(a->memory); }

const intfa_tensor *view(array *a) {
  a->tensor.shape = a->shape;
  a->tensor.strides = a->strides;
  return &a->tensor;
}

int64_t count_of(const array *a) {
  int64_t count = 1;
  for (int64_t i = 0; i < a->tensor.rank; ++i) count *= a->shape[i];
  return count;
}

static void *place(const array *a, int64_t index) {
  int64_t offset = 0;
  for (int64_t i = a->tensor.rank; i-- > 0; index /= a->shape[i])
    offset += index % a->shape[i] * a->strides[i];
  return (char *)a->tensor.data + offset * (int64_t)size_of(a->tensor.element_type);
}

double get(const array *a, int64_t index) {
  const void *p = place(a, index);
  uint16_t half;
  switch (a->tensor.element_type) {
    case INTFA_FLOAT32:
      return *(const float *)p;
    case INTFA_FLOAT16:
      return (double)*(const _Float16 *)p;
    case INTFA_BFLOAT16:
      memcpy(&half, p, 2);
      uint32_t bits = (uint32_t)half << 16;
      float value;
      memcpy(&value, &bits, 4);
      return value;
    default:
      return *(const int8_t *)p;
  }
}

void set(array *a, int64_t index, double value) {
  void *p = place(a, index);
  float single = (float)value;
  uint32_t bits;
  switch (a->tensor.element_type) {
    case INTFA_FLOAT32:
      *(float *)p = single;
      break;
    case INTFA_FLOAT16:
      *(_Float16 *)p = (_Float16)value;
      break;
    case INTFA_BFLOAT16:
      memcpy(&bits, &single, 4);
      bits = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
      *(uint16_t *)p = (uint16_t)bits;
      break;
    default:
      *(int8_t *)p = (int8_t)value;
  }
}

void fill(array *a, uint64_t seed) {
  uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
  for (int64_t i = 0; i < count_of(a); ++i) {
    double sum = -6;
    for (int k = 0; k < 12; ++k) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      sum += (double)(state >> 40) / (1 << 24);
    }
    set(a, i, sum);
  }
}

int same(const array *a, const array *b) {
  for (int64_t i = 0; i < count_of(a); ++i) {
    double x = get(a, i), y = get(b, i);
    if (memcmp(&x, &y, sizeof x)) return 0;
  }
  return 1;
}

array tokens(const array *a, int64_t begin, int64_t end) {
  array part = *a;
  int64_t axis = a->tensor.rank - 2;
  part.tensor.data =
      (char *)a->tensor.data + begin * a->strides[axis] * (int64_t)size_of(a->tensor.element_type);
  part.shape[axis] = end - begin;
  part.memory = NULL;
  return part;
}

intfa_kv_pool *make_pool(const char *precision, int64_t kv_heads, int64_t d, int64_t capacity) {
  intfa_kv_pool_shape shape = {.struct_size = sizeof shape,
                               .key_value_head_count = kv_heads,
                               .head_dimension = d,
                               .value_dimension = d,
                               .capacity = capacity,
                               .page_length = 64};
  intfa_kv_pool *pool = NULL;
  OK(intfa_kv_pool_create(&shape, precision, NULL, &pool));
  return pool;
}

array attend(const intfa_kv_pool *pool, const intfa_kv_cache *cache, array *queries,
             const intfa_options *options, const intfa_rotary *rotary) {
  array output = make(INTFA_FLOAT32, ROW_MAJOR, 3, queries->shape);
  intfa_kv_operands operands = {.struct_size = sizeof operands,
                                .query = view(queries),
                                .output = view(&output),
                                .caches = &cache,
                                .cache_count = 1,
                                .rotary = rotary};
  OK(intfa_kv_cache_run(pool, &operands, options));
  return output;
}

static int sees(const intfa_options *options, int64_t position, int64_t key) {
  switch (options->mask) {
    case INTFA_MASK_CAUSAL:
      return key <= position;
    case INTFA_MASK_SLIDING:
      return (!options->window_left || key >= position - *options->window_left) &&
             (!options->window_right || key <= position + *options->window_right);
    case INTFA_MASK_PREFIX_CAUSAL:
      return key <= position || key < options->prefix;
    default:
      return 1;
  }
}

void naive(const array *query, const array *key, const array *value, const array *mask,
           const array *slopes, const array *sinks, const intfa_options *options, double *output,
           double *log_sum_exp) {
  int64_t heads = query->shape[1], queries = query->shape[2], d = query->shape[3];
  int64_t kv_heads = key->shape[1], keys = key->shape[2], dv = value->shape[3];
  double scale = options->softmax_scale ? *options->softmax_scale : 1 / sqrt((double)d);
  double *logits = malloc(sizeof(double) * (size_t)(keys + 1));
  for (int64_t row = 0; row < query->shape[0] * heads * queries; ++row) {
    int64_t h = row / queries % heads, position = row % queries + keys - queries;
    int64_t first_key = (row / queries / heads * kv_heads + h / (heads / kv_heads)) * keys;
    double sum = 0, largest = sinks ? get(sinks, h) : -INFINITY;
    for (int64_t j = 0; j < keys; ++j) {
      double dot = 0;
      for (int64_t c = 0; c < d; ++c)
        dot += get(query, row * d + c) * get(key, (first_key + j) * d + c);
      dot *= scale;
      if (options->softcap) dot = *options->softcap * tanh(dot / *options->softcap);
      if (slopes) dot -= get(slopes, h) * fabs((double)(position - j));
      int visible = sees(options, position, j);
      if (mask && mask->tensor.element_type == INTFA_BOOL)
        visible = visible && get(mask, row * keys + j) != 0;
      else if (mask)
        dot += get(mask, row * keys + j);
      logits[j] = visible ? dot : -INFINITY;
      if (logits[j] > largest) largest = logits[j];
    }
    for (int64_t c = 0; c < dv; ++c) output[row * dv + c] = 0;
    log_sum_exp[row] = -INFINITY;
    if (largest == -INFINITY) continue;
    if (sinks) sum = exp(get(sinks, h) - largest);
    for (int64_t j = 0; j < keys; ++j) sum += exp(logits[j] - largest);
    for (int64_t j = 0; j < keys; ++j) {
      double p = exp(logits[j] - largest) / sum;
      for (int64_t c = 0; c < dv; ++c)
        output[row * dv + c] += p * get(value, (first_key + j) * dv + c);
    }
    log_sum_exp[row] = log(sum) + largest;
  }
  free(logits);
}

void show_blocks(array *mask, const intfa_visible_blocks *blocks, int64_t rows, int64_t keys) {
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t row = i / blocks->query_block_length;
    for (int64_t j = blocks->offsets[row]; j < blocks->offsets[row + 1]; ++j) {
      const int64_t first = blocks->visible[j] * blocks->key_block_length;
      for (int64_t x = first; x < first + blocks->key_block_length && x < keys; ++x)
        set(mask, i * keys + x, 1);
    }
  }
}

double relative_error(const array *a, const double *exact) {
  double difference = 0, magnitude = 0;
  for (int64_t i = 0; i < count_of(a); ++i) {
    double x = get(a, i);
    if (x == exact[i] && isinf(x)) continue;
    difference += fabs(x - exact[i]);
    magnitude += fabs(exact[i]);
  }
  return difference == 0 ? 0 : difference / magnitude;
}
