// Kernels of the instruction sets beside the portable ones, for the table in dispatch.c.
#pragma once
#include "attention_kernels.h"

#pragma GCC visibility push(hidden)

void intfa_survey__avx512vnni(const intfa_survey *);
void intfa_quantize__avx512vnni(const intfa_quantize *);
void intfa_load_rotary__avx512vnni(const intfa_load_rotary *);
void intfa_merge__avx512vnni(const intfa_merge *);
void intfa_finish__avx512vnni(const intfa_finish *);
int64_t intfa_running_key_bytes__avx512vnni(const intfa_running_formats *, int64_t, int32_t);
int64_t intfa_running_value_bytes__avx512vnni(const intfa_running_formats *, int64_t, int32_t);
void intfa_pack_running_keys__avx512vnni(const intfa_pack_running *);
void intfa_pack_running_values__avx512vnni(const intfa_pack_running *);
void intfa_attend_running__avx512vnni(const intfa_attend_running *);
int64_t intfa_running_key_bytes__avx512bf16(const intfa_running_formats *, int64_t, int32_t);
int64_t intfa_running_value_bytes__avx512bf16(const intfa_running_formats *, int64_t, int32_t);
void intfa_pack_running_keys__avx512bf16(const intfa_pack_running *);
void intfa_pack_running_values__avx512bf16(const intfa_pack_running *);
void intfa_attend_running__avx512bf16(const intfa_attend_running *);
int64_t intfa_key_bytes__avx512vnni(int64_t tokens, int32_t dimension, bool int4);
int64_t intfa_value_bytes__avx512vnni(int64_t tokens, int32_t dimension, bool int4);
void intfa_pack_keys__avx512vnni(const intfa_pack *);
void intfa_pack_values__avx512vnni(const intfa_pack *);
void intfa_open_key_unit__avx512vnni(const void *int4_unit, int32_t dimension, void *unit);
void intfa_open_value_unit__avx512vnni(const void *int4_unit, int32_t dimension, void *unit);
void intfa_attend_tiles__avx512vnni(const intfa_attend_tiles *);
int64_t intfa_peak__avx512vnni(intfa_peak_kind, int64_t rounds);

void intfa_survey__avx2(const intfa_survey *);
void intfa_quantize__avx2(const intfa_quantize *);
void intfa_load_rotary__avx2(const intfa_load_rotary *);
void intfa_finish__avx2(const intfa_finish *);
int64_t intfa_key_bytes__avx2(int64_t tokens, int32_t dimension, bool int4);
int64_t intfa_value_bytes__avx2(int64_t tokens, int32_t dimension, bool int4);
void intfa_pack_keys__avx2(const intfa_pack *);
void intfa_open_key_unit__avx2(const void *int4_unit, int32_t dimension, void *unit);
void intfa_open_value_unit__avx2(const void *int4_unit, int32_t dimension, void *unit);
void intfa_pack_values__avx2(const intfa_pack *);
void intfa_attend_tiles__avx2(const intfa_attend_tiles *);
int64_t intfa_running_key_bytes__avx2(const intfa_running_formats *, int64_t tokens, int32_t dimension);
int64_t intfa_running_value_bytes__avx2(const intfa_running_formats *, int64_t tokens, int32_t dimension);
void intfa_pack_running_keys__avx2(const intfa_pack_running *);
void intfa_pack_running_values__avx2(const intfa_pack_running *);
void intfa_attend_running__avx2(const intfa_attend_running *);
int64_t intfa_peak__avx2(intfa_peak_kind, int64_t rounds);
void intfa_pack_values__avxvnni(const intfa_pack *);
void intfa_attend_tiles__avxvnni(const intfa_attend_tiles *);
void intfa_attend_running__avxvnni(const intfa_attend_running *);
int64_t intfa_peak__avxvnni(intfa_peak_kind, int64_t rounds);

void intfa_survey__neon(const intfa_survey *);
void intfa_quantize__neon(const intfa_quantize *);
void intfa_load_rotary__neon(const intfa_load_rotary *);
void intfa_finish__neon(const intfa_finish *);
int64_t intfa_running_key_bytes__neon(const intfa_running_formats *, int64_t tokens, int32_t dimension);
int64_t intfa_running_value_bytes__neon(const intfa_running_formats *, int64_t tokens, int32_t dimension);
void intfa_pack_running_keys__neon(const intfa_pack_running *);
void intfa_pack_running_values__neon(const intfa_pack_running *);
void intfa_attend_running__neon(const intfa_attend_running *);

int64_t intfa_key_bytes__neondotprod(int64_t tokens, int32_t dimension, bool int4);
int64_t intfa_value_bytes__neondotprod(int64_t tokens, int32_t dimension, bool int4);
void intfa_pack_keys__neondotprod(const intfa_pack *);
void intfa_open_key_unit__neondotprod(const void *int4_unit, int32_t dimension, void *unit);
void intfa_open_value_unit__neondotprod(const void *int4_unit, int32_t dimension, void *unit);
void intfa_pack_values__neondotprod(const intfa_pack *);
void intfa_attend_tiles__neondotprod(const intfa_attend_tiles *);
int64_t intfa_peak__neondotprod(intfa_peak_kind, int64_t rounds);

int64_t intfa_key_bytes__neoni8mm(int64_t tokens, int32_t dimension, bool int4);
int64_t intfa_value_bytes__neoni8mm(int64_t tokens, int32_t dimension, bool int4);
void intfa_pack_keys__neoni8mm(const intfa_pack *);
void intfa_open_key_unit__neoni8mm(const void *int4_unit, int32_t dimension, void *unit);
void intfa_open_value_unit__neoni8mm(const void *int4_unit, int32_t dimension, void *unit);
void intfa_pack_values__neoni8mm(const intfa_pack *);
void intfa_attend_tiles__neoni8mm(const intfa_attend_tiles *);
int64_t intfa_peak__neoni8mm(intfa_peak_kind, int64_t rounds);

#pragma GCC visibility pop
