// Kernels of the instruction sets beside the portable ones, for the table in dispatch.c.
#pragma once
#include "attention_kernels.h"

#pragma GCC visibility push(hidden)

int64_t intfa_key_bytes__avx512vnni(int64_t tokens, int32_t dimension, bool int4);
int64_t intfa_value_bytes__avx512vnni(int64_t tokens, int32_t dimension, bool int4);
void intfa_pack_keys__avx512vnni(const intfa_pack *);
void intfa_pack_values__avx512vnni(const intfa_pack *);
void intfa_attend_tiles__avx512vnni(const intfa_attend_tiles *);

#pragma GCC visibility pop
