/* Rotary position embedding: pairs of channels turned by angles that grow with the position. */
#ifndef INT_FLASH_ATTENTION_ROTARY_H
#define INT_FLASH_ATTENTION_ROTARY_H

#include "types.h"

INTFA_BEGIN_DECLARATIONS

/* Which channels form pairs; R is the number of rotary channels, the first ones of a head. */
typedef int32_t intfa_rotary_style;

enum {
  /* Channels p and R/2 + p: Llama, GPT-NeoX, Phi, Qwen. */
  INTFA_ROTARY_HALF_SPLIT = 0,
  /* Channels 2p and 2p + 1: GPT-J. */
  INTFA_ROTARY_INTERLEAVED = 1
};

/* The angles: either the usual ones, position * base^(-2p / R), or tables of their cosines and
   sines. */
typedef struct intfa_rotary_angles {
  uint32_t struct_size;
  intfa_rotary_style style;
  /* R, even, 2 to 256; 0 with tables, which have R/2 columns. */
  int64_t rotary_dimension;
  /* Positions that are needed, at least 1: the longest sequence; 0 with tables, which have as many
     rows. */
  int64_t position_count;
  /* Theta of the model, positive. NULL is 10000. */
  const double *base;
  /* [positions, R/2], both or none; float32, float16 or bfloat16, finite; copied. */
  const intfa_tensor *cosines;
  const intfa_tensor *sines;
} intfa_rotary_angles;

/* An embedding with its tables; it may be used by several threads at once. */
typedef struct intfa_rotary intfa_rotary;

intfa_status intfa_rotary_create(const intfa_rotary_angles *angles, intfa_rotary **rotary);

/* Writes rows [B, H, N, D] or [H, N, D], turned, to an output of the same shape, which may be rows
   itself; each float32, float16 or bfloat16. Token i stands at first_position + i. Caches that are
   given the embedding do the same while they read the rows. */
intfa_status intfa_rotary_apply(const intfa_rotary *rotary, const intfa_tensor *rows,
                                int64_t first_position, const intfa_tensor *output);

void intfa_rotary_destroy(intfa_rotary *rotary);

INTFA_END_DECLARATIONS

#endif
