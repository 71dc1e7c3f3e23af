// Finds the kernels of an instruction set and what the process may use of the machine. The only
// place that asks the processor.
#ifdef __linux__
#define _GNU_SOURCE
#include <sched.h>
#endif
#include <unistd.h>

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

int32_t intfa_processor_count(void) {
#ifdef __linux__
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return CPU_COUNT(&allowed);
#endif
  long online = sysconf(_SC_NPROCESSORS_ONLN);
  return online > 0 ? (int32_t)online : 1;
}
