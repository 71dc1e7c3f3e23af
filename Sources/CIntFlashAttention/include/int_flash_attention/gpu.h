/* Attention to tensors in the memory of a GPU, in a CUDA stream of the caller. */
#ifndef INT_FLASH_ATTENTION_GPU_H
#define INT_FLASH_ATTENTION_GPU_H

#include "attention.h"
#include "types.h"

INTFA_BEGIN_DECLARATIONS

/* These take plans of backend "cuda" only; the tensors of intfa_plan_run are the host's there, too.

   Tensors, workspace and stream belong to the plan's context: the primary one of its GPU, which is
   that of the CUDA runtime, of PyTorch and of CuPy, or with INTFA_CURRENT_DEVICE whichever was
   current when the plan was made. Which one is current in the thread of a call does not matter. */

/* Bytes of device memory that a call of this plan works in. */
intfa_status intfa_plan_get_workspace_size(const intfa_plan *plan, int64_t *byte_count);

/* Puts attention into the work of a stream and returns; nothing waits, and no memory is allocated,
   so a CUDA graph can capture it.

   operands: as in intfa_plan_run, but with addresses in device memory; no mask, slopes or sinks.

   workspace: as many bytes as the plan needs, aligned to 256, with any contents. Nothing else may
   use them until the stream has come past the call; calls in one stream may share them.

   stream: a CUstream or cudaStream_t; NULL is the default stream.

   Elements that are not finite or too large are found on the device, so the call cannot report them;
   the output then means nothing, and intfa_plan_check says why. After INTFA_DEVICE_FAILURE part of
   the work may be in the stream. The plan may be destroyed at once. */
intfa_status intfa_plan_enqueue(const intfa_plan *plan, const intfa_operands *operands,
                                void *workspace, void *stream);

/* Waits for a stream. INTFA_NON_FINITE_INPUT or INTFA_VALUE_OUT_OF_RANGE where the last call that
   had this workspace, a call of this plan, was given what is refused. */
intfa_status intfa_plan_check(const intfa_plan *plan, const void *workspace, void *stream);

INTFA_END_DECLARATIONS

#endif
