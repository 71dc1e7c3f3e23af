/* Codes and scales. */
#include <math.h>

#include "test.h"

/* Element i of a row-major part. */
static double number(const intfa_tensor *part, int64_t i) {
  if (part->element_type == INTFA_FLOAT32) return ((const float *)part->data)[i];
  return ((const int8_t *)part->data)[i];
}

static void test_int8(void) {
  array x = make(INTFA_FLOAT32, TOKENS_FIRST, 4, (int64_t[]){2, 3, 33, 64});
  array y = make(INTFA_FLOAT32, GAPS, 4, x.shape);
  fill(&x, 1);
  intfa_quantized *quantized = NULL;
  /* int8Paper neither centres nor rotates, so the codes are plain. */
  OK(intfa_quantize(view(&x), "int8Paper", INTFA_KEY, &quantized));
  intfa_tensor codes = {.struct_size = sizeof codes}, scales = codes, means = codes;
  OK(intfa_quantized_get(quantized, INTFA_CODES, &codes));
  OK(intfa_quantized_get(quantized, INTFA_SCALES, &scales));
  OK(intfa_quantized_get(quantized, INTFA_MEANS, &means));
  CHECK(codes.element_type == INTFA_INT8 && codes.rank == 4 && codes.shape[2] == 33, "codes");
  CHECK(scales.element_type == INTFA_FLOAT32 && scales.rank == 3 && scales.strides[1] == 33,
        "scales");
  CHECK(means.rank == 0, "means");
  int32_t is_rotated = -1;
  OK(intfa_quantized_is_rotated(quantized, &is_rotated));
  CHECK(is_rotated == 0, "rotated %d", is_rotated);
  OK(intfa_dequantize(quantized, view(&y)));
  for (int64_t i = 0; i < count_of(&x); ++i) {
    double step = number(&scales, i / 64), decoded = number(&codes, i) * step;
    CHECK(fabs(get(&x, i) - decoded) <= 0.5001 * step, "code of %d", (int)i);
    CHECK(fabs(get(&y, i) - decoded) <= 1e-6 * fabs(decoded), "value of %d", (int)i);
  }
  intfa_quantized_destroy(quantized);
  drop(&x), drop(&y);
}

static void test_recipes(void) {
  static const struct {
    const char *precision;
    intfa_operand_kind operand;
    intfa_element_type codes;
    double bound;
  } cases[] = {
      {"int8", INTFA_QUERY, INTFA_INT8, 0.02},        {"int8", INTFA_KEY, INTFA_INT8, 0.02},
      {"int8", INTFA_VALUE, INTFA_INT8, 0.02},        {"int4", INTFA_KEY, INTFA_INT4, 0.2},
      {"int4KeyValue", INTFA_VALUE, INTFA_INT4, 0.2}, {"float8", INTFA_VALUE, INTFA_FLOAT8, 0.05},
  };
  array x = make3(INTFA_BFLOAT16, 2, 70, 64);
  fill(&x, 3);
  double exact[2 * 70 * 64];
  for (int64_t i = 0; i < count_of(&x); ++i) exact[i] = get(&x, i);
  for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
    intfa_quantized *quantized = NULL;
    OK(intfa_quantize(view(&x), cases[i].precision, cases[i].operand, &quantized));
    intfa_tensor codes = {.struct_size = sizeof codes}, steps = codes;
    OK(intfa_quantized_get(quantized, INTFA_CODES, &codes));
    OK(intfa_quantized_get(quantized, INTFA_STEPS, &steps));
    CHECK(codes.element_type == cases[i].codes, "%s: codes", cases[i].precision);
    CHECK((steps.rank == 4) == (cases[i].codes == INTFA_INT4), "%s: steps", cases[i].precision);
    array batched = make4(INTFA_FLOAT32, 1, 2, 70, 64);
    OK(intfa_dequantize(quantized, view(&batched)));
    CHECK(relative_error(&batched, exact) < cases[i].bound, "%s: %g", cases[i].precision,
          relative_error(&batched, exact));
    array other = make3(INTFA_FLOAT32, 2, 71, 64);
    EXPECT(INTFA_SHAPE_MISMATCH, "output", intfa_dequantize(quantized, view(&other)));
    drop(&batched), drop(&other);
    intfa_quantized_destroy(quantized);
  }
  intfa_quantized *none = NULL;
  EXPECT(INTFA_INVALID_ARGUMENT, "codes", intfa_quantize(view(&x), "float32", INTFA_KEY, &none));
  EXPECT(INTFA_INVALID_ARGUMENT, "codes",
         intfa_quantize(view(&x), "int8QueryKey", INTFA_VALUE, &none));
  EXPECT(INTFA_UNSUPPORTED, "blocks", intfa_quantize(view(&x), "int4QueryKey", INTFA_QUERY, &none));
  EXPECT(INTFA_INVALID_ARGUMENT, "operand is 3", intfa_quantize(view(&x), "int8", 3, &none));
  CHECK(!none, "a result despite an error");
  drop(&x);
}

void test_quantization(void) {
  test_int8();
  test_recipes();
}
