#include "cuda_text.h"

static const char parameters[] = {
#embed "../include/cuda_parameters.h" suffix(, 0)
};
static const char primitives[] = {
#embed "primitives.cuh" suffix(, 0)
};
static const char rows[] = {
#embed "rows.cuh" suffix(, 0)
};
static const char prepass[] = {
#embed "prepass.cuh" suffix(, 0)
};
static const char values[] = {
#embed "values.cuh" suffix(, 0)
};
static const char cache[] = {
#embed "cache.cuh" suffix(, 0)
};
static const char mask[] = {
#embed "mask.cuh" suffix(, 0)
};
static const char output[] = {
#embed "output.cuh" suffix(, 0)
};
static const char tiles[] = {
#embed "tiles.cuh" suffix(, 0)
};
static const char attention_float16_sm80[] = {
#embed "attention_float16_sm80.cuh" suffix(, 0)
};
static const char primitives_sm90[] = {
#embed "primitives_sm90.cuh" suffix(, 0)
};
static const char attention_int8_sm90[] = {
#embed "attention_int8_sm90.cuh" suffix(, 0)
};
static const char attention_int8_sm80[] = {
#embed "attention_int8_sm80.cuh" suffix(, 0)
};

static const struct {
  const char *name, *text;
} files[] = {
    {"cuda_parameters.h", parameters},
    {"primitives.cuh", primitives},
    {"rows.cuh", rows},
    {"prepass.cuh", prepass},
    {"values.cuh", values},
    {"cache.cuh", cache},
    {"mask.cuh", mask},
    {"output.cuh", output},
    {"tiles.cuh", tiles},
    {"attention_float16_sm80.cuh", attention_float16_sm80},
    {"attention_int8_sm80.cuh", attention_int8_sm80},
    {"primitives_sm90.cuh", primitives_sm90},
    {"attention_int8_sm90.cuh", attention_int8_sm90},
};

int32_t intfa_cuda_text_count(void) { return sizeof files / sizeof *files; }
const char *intfa_cuda_text_name(int32_t index) { return files[index].name; }
const char *intfa_cuda_text(int32_t index) { return files[index].text; }
