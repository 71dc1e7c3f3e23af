// Finds the kernels of an instruction set. The only place that asks the processor.
#include "portable.h"

static const intfa_cpu_kernels portable = {
    .name = "portable",
    .survey = intfa_survey__portable,
    .rotated_maxima = intfa_rotated_maxima__portable,
    .quantize = intfa_quantize__portable,
    .attend_tiles = intfa_attend_tiles__portable,
    .attend_running = intfa_attend_running__portable,
    .merge = intfa_merge__portable,
    .finish = intfa_finish__portable,
};

const intfa_cpu_kernels *intfa_cpu_kernels_for(intfa_isa isa) {
  return isa == INTFA_PORTABLE ? &portable : NULL;
}
