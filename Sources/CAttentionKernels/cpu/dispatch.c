// Finds the kernels of an instruction set. The only place that asks the processor what it can do.
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#include "kernels.h"
#include "portable.h"

static const intfa_cpu_kernels portable = {
    .name = "portable",
    .survey = intfa_survey__portable,
    .load_rotary = intfa_load_rotary__portable,
    .quantize = intfa_quantize__portable,
    .key_bytes = intfa_key_bytes__portable,
    .value_bytes = intfa_value_bytes__portable,
    .pack_keys = intfa_pack_keys__portable,
    .pack_values = intfa_pack_values__portable,
    .open_key_unit = intfa_open_key_unit__portable,
    .open_value_unit = intfa_open_value_unit__portable,
    .attend_tiles = intfa_attend_tiles__portable,
    .running_key_bytes = intfa_running_key_bytes__portable,
    .running_value_bytes = intfa_running_value_bytes__portable,
    .pack_running_keys = intfa_pack_running_keys__portable,
    .pack_running_values = intfa_pack_running_values__portable,
    .attend_running = intfa_attend_running__portable,
    .merge = intfa_merge__portable,
    .finish = intfa_finish__portable,
};

#if defined(__x86_64__)
// Processors with bfloat16 products have another loop of the running maximum, with its packing.
#define AVX512VNNI_KERNELS(running)                                   \
  {                                                                   \
      .name = "avx512vnni",                                           \
      .survey = intfa_survey__avx512vnni,                             \
      .load_rotary = intfa_load_rotary__avx512vnni,                   \
      .quantize = intfa_quantize__avx512vnni,                         \
      .key_bytes = intfa_key_bytes__avx512vnni,                       \
      .value_bytes = intfa_value_bytes__avx512vnni,                   \
      .pack_keys = intfa_pack_keys__avx512vnni,                       \
      .pack_values = intfa_pack_values__avx512vnni,                   \
      .open_key_unit = intfa_open_key_unit__avx512vnni,               \
      .open_value_unit = intfa_open_value_unit__avx512vnni,           \
      .attend_tiles = intfa_attend_tiles__avx512vnni,                 \
      .running_key_bytes = intfa_running_key_bytes__##running,        \
      .running_value_bytes = intfa_running_value_bytes__##running,    \
      .pack_running_keys = intfa_pack_running_keys__##running,        \
      .pack_running_values = intfa_pack_running_values__##running,    \
      .attend_running = intfa_attend_running__##running,              \
      .merge = intfa_merge__avx512vnni,                               \
      .finish = intfa_finish__avx512vnni,                             \
      .peak = intfa_peak__avx512vnni,                                 \
  }
static const intfa_cpu_kernels avx512vnni = AVX512VNNI_KERNELS(avx512vnni);
static const intfa_cpu_kernels avx512vnni_bf16 = AVX512VNNI_KERNELS(avx512bf16);

// Both 256-bit sets: they differ in the products of 8-bit codes only.
#define AVX2_KERNELS(set)                                  \
  {                                                        \
      .name = #set,                                        \
      .survey = intfa_survey__avx2,                        \
      .load_rotary = intfa_load_rotary__avx2,              \
      .quantize = intfa_quantize__avx2,                    \
      .key_bytes = intfa_key_bytes__avx2,                  \
      .value_bytes = intfa_value_bytes__avx2,              \
      .pack_keys = intfa_pack_keys__avx2,                  \
      .pack_values = intfa_pack_values__##set,             \
      .open_key_unit = intfa_open_key_unit__avx2,          \
      .open_value_unit = intfa_open_value_unit__avx2,      \
      .attend_tiles = intfa_attend_tiles__##set,           \
      .running_key_bytes = intfa_running_key_bytes__avx2,  \
      .running_value_bytes = intfa_running_value_bytes__avx2, \
      .pack_running_keys = intfa_pack_running_keys__avx2,  \
      .pack_running_values = intfa_pack_running_values__avx2, \
      .attend_running = intfa_attend_running__##set,       \
      .merge = intfa_merge__portable,                      \
      .finish = intfa_finish__avx2,                        \
      .peak = intfa_peak__##set,                           \
  }
static const intfa_cpu_kernels avx2 = AVX2_KERNELS(avx2);
static const intfa_cpu_kernels avxvnni = AVX2_KERNELS(avxvnni);

static bool has_avx2(void) {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}
static bool has_avx512vnni(void) {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("f16c");
}
#endif

#if defined(__aarch64__)
// The two sets differ in the products of the integer tile loop and how these want their operands.
#define NEON_KERNELS(set)                                \
  {                                                      \
      .name = #set,                                      \
      .survey = intfa_survey__neon,                      \
      .load_rotary = intfa_load_rotary__neon,            \
      .quantize = intfa_quantize__neon,                  \
      .key_bytes = intfa_key_bytes__##set,               \
      .value_bytes = intfa_value_bytes__##set,           \
      .pack_keys = intfa_pack_keys__##set,               \
      .pack_values = intfa_pack_values__##set,           \
      .open_key_unit = intfa_open_key_unit__##set,         \
      .open_value_unit = intfa_open_value_unit__##set,     \
      .attend_tiles = intfa_attend_tiles__##set,         \
      .running_key_bytes = intfa_running_key_bytes__neon,      \
      .running_value_bytes = intfa_running_value_bytes__neon,  \
      .pack_running_keys = intfa_pack_running_keys__neon,      \
      .pack_running_values = intfa_pack_running_values__neon,  \
      .attend_running = intfa_attend_running__neon,      \
      .merge = intfa_merge__portable,                    \
      .finish = intfa_finish__neon,                      \
      .peak = intfa_peak__##set,                         \
  }
static const intfa_cpu_kernels neondotprod = NEON_KERNELS(neondotprod);
static const intfa_cpu_kernels neoni8mm = NEON_KERNELS(neoni8mm);

#if defined(__linux__)
static bool has_dotprod(void) { return getauxval(AT_HWCAP) & HWCAP_ASIMDDP; }
static bool has_i8mm(void) { return getauxval(AT_HWCAP2) & HWCAP2_I8MM; }
#elif defined(__APPLE__)
static bool has(const char *feature) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(feature, &value, &size, NULL, 0) == 0 && value;
}
static bool has_dotprod(void) { return has("hw.optional.arm.FEAT_DotProd"); }
static bool has_i8mm(void) { return has("hw.optional.arm.FEAT_I8MM"); }
#else
static bool has_dotprod(void) { return false; }
static bool has_i8mm(void) { return false; }
#endif
#endif

const intfa_cpu_kernels *intfa_cpu_kernels_for(intfa_isa isa) {
  switch (isa) {
    case INTFA_PORTABLE: return &portable;
#if defined(__x86_64__)
    case INTFA_AVX2: return has_avx2() ? &avx2 : NULL;
    case INTFA_AVX_VNNI:
      return has_avx2() && __builtin_cpu_supports("avxvnni") ? &avxvnni : NULL;
    case INTFA_AVX512_VNNI:
      if (!has_avx512vnni()) return NULL;
      return __builtin_cpu_supports("avx512bf16") ? &avx512vnni_bf16 : &avx512vnni;
#endif
#if defined(__aarch64__)
    case INTFA_NEON_DOTPROD: return has_dotprod() ? &neondotprod : NULL;
    case INTFA_NEON_I8MM: return has_i8mm() ? &neoni8mm : NULL;
#endif
    default: return NULL;
  }
}
