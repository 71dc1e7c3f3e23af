/* Tensors as codes and scales, quantised as the recipes of attention do it. */
#ifndef INT_FLASH_ATTENTION_QUANTIZATION_H
#define INT_FLASH_ATTENTION_QUANTIZATION_H

#include "types.h"

INTFA_BEGIN_DECLARATIONS

/* Which operand of attention: recipes treat them differently. */
typedef int32_t intfa_operand_kind;

enum { INTFA_QUERY = 0, INTFA_KEY = 1, INTFA_VALUE = 2 };

/* A quantised tensor: value = code * scale, rotated back and with the mean added where the recipe
   has them. */
typedef struct intfa_quantized intfa_quantized;

/* Quantises [B, H, N, D] or [H, N, D] in float32, float16 or bfloat16. precision: as in
   intfa_attention; one without codes for this operand is refused. */
intfa_status intfa_quantize(const intfa_tensor *tensor, const char *precision,
                            intfa_operand_kind operand, intfa_quantized **quantized);

typedef int32_t intfa_quantized_part;

enum {
  /* [B, H, N, D]: int8, int4 or float8. 4-bit codes of groups are stored as code - 8. */
  INTFA_CODES = 0,
  /* float32: [B, H, N] per token, [B, H, blocks] per block, [B, H] per tensor, [B, H, D] per
     channel. */
  INTFA_SCALES = 1,
  /* float32 [B, H, D]: the means that were subtracted; rank 0 where there are none. */
  INTFA_MEANS = 2,
  /* float32 [B, H, token groups, channel groups]: of 4-bit groups, whose INT8 code is
     (code + 8) * step + offset, clamped to -127...127; rank 0 where there are none. */
  INTFA_STEPS = 3,
  INTFA_OFFSETS = 4
};

/* Lets `tensor` describe a part, row-major. The memory belongs to `quantized`, is not to be written
   and is valid as long as it. tensor->struct_size is set by the caller. */
intfa_status intfa_quantized_get(const intfa_quantized *quantized, intfa_quantized_part part,
                                 intfa_tensor *tensor);

/* Whether rows were multiplied by the Hadamard matrix: 1 or 0. */
intfa_status intfa_quantized_is_rotated(const intfa_quantized *quantized, int32_t *is_rotated);

/* Writes the values that the codes stand for to [B, H, N, D] or [H, N, D], float32, float16 or
   bfloat16, of any strides that keep elements apart. */
intfa_status intfa_dequantize(const intfa_quantized *quantized, const intfa_tensor *output);

void intfa_quantized_destroy(intfa_quantized *quantized);

INTFA_END_DECLARATIONS

#endif
