// The text of the CUDA kernels, which travels inside the library.
#pragma once

#include <stdint.h>

#pragma GCC visibility push(hidden)

// Number of files.
int32_t intfa_cuda_text_count(void);
// Name and zero-terminated text of a file, 0 <= index < count.
const char *intfa_cuda_text_name(int32_t index);
const char *intfa_cuda_text(int32_t index);

#pragma GCC visibility pop
