// What the process may use of the machine's processors, and a pause for waiting loops.
//
// The functions that read text or a list of paths are pure, so that they can be tested with any
// machine's files.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#pragma GCC visibility push(hidden)

enum { INTFA_MAX_PROCESSORS = 8192, INTFA_MAX_PATH = 4096 };

// A set of logical processors by number; numbers from INTFA_MAX_PROCESSORS on are ignored.
typedef struct {
  uint64_t words[INTFA_MAX_PROCESSORS / 64];
} intfa_processor_set;

typedef struct {
  int32_t allowed;  // logical processors that the process may run on, at least 1
  int32_t cores;    // physical cores among them (on Apple silicon: performance cores), at least 1
  double limit;     // processors' worth of time that control groups grant; 0 for no limit
} intfa_processors;

// Asks the system.
intfa_processors intfa_find_processors(void);

// Threads that computation should use: one per core, but no more than the limit, rounded up, feeds.
int32_t intfa_default_thread_count(intfa_processors found);

bool intfa_has_processor(const intfa_processor_set *set, int32_t processor);
int32_t intfa_processor_set_count(const intfa_processor_set *set);

// Reads a list as Linux writes it, "0-3,8,10-11". Returns false, with an empty set, where the text is
// anything else.
bool intfa_parse_processor_list(const char *text, intfa_processor_set *set);

// Physical cores among the allowed processors, from the files
// `directory`/cpuN/topology/core_cpus_list (before Linux 5.3 thread_siblings_list). A processor whose
// files cannot be read counts as a core.
int32_t intfa_count_cores(const intfa_processor_set *allowed, const char *directory);

// Processors that a version 2 `cpu.max` grants ("200000 100000" is 2); 0 for no limit ("max 100000")
// and for anything that cannot be read.
double intfa_parse_cpu_max(const char *text);

// The same from version 1's `cpu.cfs_quota_us` and `cpu.cfs_period_us`; a quota of -1 is no limit.
double intfa_parse_cfs_quota(const char *quota, const char *period);

// The smallest limit of the control group of a process and of all groups above it, 0 for none.
// `membership` is the text of /proc/self/cgroup, `mounts` that of /proc/self/mountinfo.
double intfa_control_group_limit(const char *membership, const char *mounts);

// Tells the processor that this thread waits for another one.
static inline void intfa_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  // `yield` is a no-op on most cores; `isb` waits about as long as x86's pause.
  __asm__ volatile("isb" ::: "memory");
#endif
}

#pragma GCC visibility pop
