/* int-flash-attention: scaled dot-product attention with quantised operands. The C interface.

   Link with -lint_flash_attention. C99 or C++; 64-bit systems.

   Status. Every function that can fail returns an intfa_status; intfa_last_error() has the sentence
   for a person. After an error nothing has been written, except where a function says so. No call
   raises a signal, throws, or ends the process because of its arguments; pointers must be NULL or
   point to what the declaration says.

   Structs begin with struct_size, which the caller sets to sizeof. Members that the caller's struct
   does not have count as zero, so programs keep working with later versions of the library. All
   other members may be zero; zero and NULL are the defaults where there is one.

   Memory. The caller owns all tensors and strings that it passes; they are read during the call
   only, those of int_flash_attention/gpu.h until the stream has come past it. Handles are destroyed by their functions, which accept NULL.

   Threads. Any function may be called from any thread. A plan, a pool and a rotary embedding may be
   used by several threads at once, a cache by one at a time. */
#ifndef INT_FLASH_ATTENTION_H
#define INT_FLASH_ATTENTION_H

#include "int_flash_attention/attention.h"
#include "int_flash_attention/gpu.h"
#include "int_flash_attention/information.h"
#include "int_flash_attention/kv_cache.h"
#include "int_flash_attention/quantization.h"
#include "int_flash_attention/rotary.h"
#include "int_flash_attention/types.h"

#endif
