// Finds out how many threads are worth starting: affinity, physical cores, control groups.
#ifdef __linux__
#define _GNU_SOURCE
#include <sched.h>
#endif
#ifdef __APPLE__
#include <sys/sysctl.h>
#endif
#include "processors.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// ---------------------------------------------------------------------------------- sets

bool intfa_has_processor(const intfa_processor_set *set, int32_t processor) {
  if (processor < 0 || processor >= INTFA_MAX_PROCESSORS) return false;
  return set->words[processor / 64] >> (processor % 64) & 1;
}

static void add_processor(intfa_processor_set *set, long processor) {
  if (processor < INTFA_MAX_PROCESSORS) set->words[processor / 64] |= 1ull << (processor % 64);
}

int32_t intfa_processor_set_count(const intfa_processor_set *set) {
  int32_t count = 0;
  for (int32_t i = 0; i < INTFA_MAX_PROCESSORS / 64; i++)
    count += __builtin_popcountll(set->words[i]);
  return count;
}

// ---------------------------------------------------------------------------------- text

// A whole number without sign at *text, which moves behind it; -1 where there is none.
static long take_number(const char **text) {
  if (**text < '0' || **text > '9') return -1;
  char *end;
  errno = 0;
  long number = strtol(*text, &end, 10);
  *text = end;
  return errno ? -1 : number;
}

bool intfa_parse_processor_list(const char *text, intfa_processor_set *set) {
  memset(set, 0, sizeof *set);
  while (true) {
    long first = take_number(&text), last = first;
    if (*text == '-') {
      text++;
      last = take_number(&text);
    }
    if (first < 0 || last < first) break;
    for (long i = first; i <= last && i < INTFA_MAX_PROCESSORS; i++) add_processor(set, i);
    if (*text == '\0' || *text == '\n') return true;
    if (*text++ != ',') break;
  }
  memset(set, 0, sizeof *set);
  return false;
}

static double ratio(double quota, double period) {
  return quota > 0 && period > 0 ? quota / period : 0;
}

double intfa_parse_cpu_max(const char *text) {
  double quota = 0, period = 0;
  return sscanf(text, "%lf %lf", &quota, &period) == 2 ? ratio(quota, period) : 0;
}

double intfa_parse_cfs_quota(const char *quota, const char *period) {
  return ratio(atof(quota), atof(period));
}

// ---------------------------------------------------------------------------------- files

// The text of a file, cut where the buffer ends. Returns false where it cannot be read.
static bool read_text(const char *path, char *text, size_t capacity) {
  FILE *file = fopen(path, "r");
  if (!file) return false;
  size_t count = fread(text, 1, capacity - 1, file);
  fclose(file);
  text[count] = '\0';
  return count > 0;
}

static bool read_siblings(const char *directory, int32_t processor, intfa_processor_set *siblings) {
  static const char *const names[] = {"core_cpus_list", "thread_siblings_list"};
  char path[INTFA_MAX_PATH], text[INTFA_MAX_PATH];
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    snprintf(path, sizeof path, "%s/cpu%d/topology/%s", directory, (int)processor, names[i]);
    if (read_text(path, text, sizeof text)) return intfa_parse_processor_list(text, siblings);
  }
  return false;
}

int32_t intfa_count_cores(const intfa_processor_set *allowed, const char *directory) {
  int32_t cores = 0;
  for (int32_t processor = 0; processor < INTFA_MAX_PROCESSORS; processor++) {
    if (!intfa_has_processor(allowed, processor)) continue;
    // The first allowed processor of a core stands for it.
    bool is_first = true;
    intfa_processor_set siblings;
    if (read_siblings(directory, processor, &siblings))
      for (int32_t other = 0; other < processor && is_first; other++)
        is_first = !intfa_has_processor(&siblings, other) || !intfa_has_processor(allowed, other);
    cores += is_first;
  }
  return cores;
}

// ---------------------------------------------------------------------------------- control groups

// Whether a comma-separated list has a word.
static bool lists(const char *list, const char *word) {
  size_t length = strlen(word);
  for (const char *at = list; at; at = strchr(at, ',')) {
    at += *at == ',';
    if (strncmp(at, word, length) == 0 && (at[length] == ',' || at[length] == '\0')) return true;
  }
  return false;
}

// The line at *text without its end, cut to the buffer; *text moves to the next line. Returns false
// at the end of the text.
static bool take_line(const char **text, char *line, size_t capacity) {
  if (**text == '\0') return false;
  size_t length = strcspn(*text, "\n"), kept = length < capacity ? length : capacity - 1;
  memcpy(line, *text, kept);
  line[kept] = '\0';
  *text += length + ((*text)[length] == '\n');
  return true;
}

// The group of the process in the hierarchy of version 2, or of version 1's controller `cpu`.
static bool find_group(const char *membership, bool is_version2, char *group) {
  char line[INTFA_MAX_PATH];
  while (take_line(&membership, line, sizeof line)) {
    // "ID:CONTROLLERS:PATH"; version 2 names no controllers.
    char *controllers = strchr(line, ':');
    char *path = controllers ? strchr(controllers + 1, ':') : NULL;
    if (!path) continue;
    controllers++;
    *path++ = '\0';
    if (is_version2 ? *controllers != '\0' : !lists(controllers, "cpu")) continue;
    strcpy(group, path);
    return true;
  }
  return false;
}

// The limit that the files of one group state.
static double read_limit(const char *directory, bool is_version2) {
  char path[2 * INTFA_MAX_PATH + 32], first[128], second[128];
  if (is_version2) {
    snprintf(path, sizeof path, "%s/cpu.max", directory);
    return read_text(path, first, sizeof first) ? intfa_parse_cpu_max(first) : 0;
  }
  snprintf(path, sizeof path, "%s/cpu.cfs_quota_us", directory);
  if (!read_text(path, first, sizeof first)) return 0;
  snprintf(path, sizeof path, "%s/cpu.cfs_period_us", directory);
  return read_text(path, second, sizeof second) ? intfa_parse_cfs_quota(first, second) : 0;
}

static double smaller_limit(double a, double b) {
  if (a == 0 || b == 0) return a + b;
  return a < b ? a : b;
}

// The smallest limit of `group` and the groups above it in a hierarchy whose group `root` is mounted
// at `point`.
static double mounted_limit(const char *point, const char *root, const char *group,
                            bool is_version2) {
  // In a container the mount may begin at the container's group.
  size_t hidden = strcmp(root, "/") == 0 ? 0 : strlen(root);
  bool is_below = strncmp(group, root, hidden) == 0 &&
                  (group[hidden] == '/' || group[hidden] == '\0');
  char directory[2 * INTFA_MAX_PATH];
  snprintf(directory, sizeof directory, "%s%s", point, is_below ? group + hidden : "");
  size_t shortest = strlen(point), length = strlen(directory);
  while (length > shortest && directory[length - 1] == '/') directory[--length] = '\0';
  double limit = read_limit(directory, is_version2);
  while (length > shortest) {
    while (length > shortest && directory[length - 1] != '/') length--;
    while (length > shortest && directory[length - 1] == '/') length--;
    directory[length] = '\0';
    limit = smaller_limit(limit, read_limit(directory, is_version2));
  }
  return limit;
}

double intfa_control_group_limit(const char *membership, const char *mounts) {
  double limit = 0;
  char line[INTFA_MAX_PATH], group[INTFA_MAX_PATH];
  while (take_line(&mounts, line, sizeof line)) {
    // "ID PARENT DEVICE ROOT POINT OPTIONS … - TYPE SOURCE SUPEROPTIONS"
    char *type = strstr(line, " - ");
    if (!type) continue;
    *type = '\0';
    type += 3;
    char *source = strchr(type, ' '), *options = source ? strchr(source + 1, ' ') : NULL;
    if (!options) continue;
    *source = '\0';
    options++;
    bool is_version2 = strcmp(type, "cgroup2") == 0;
    if (!is_version2 && (strcmp(type, "cgroup") != 0 || !lists(options, "cpu"))) continue;
    char root[INTFA_MAX_PATH], point[INTFA_MAX_PATH];
    if (sscanf(line, "%*s %*s %*s %4095s %4095s", root, point) != 2) continue;
    if (!find_group(membership, is_version2, group)) continue;
    limit = smaller_limit(limit, mounted_limit(point, root, group, is_version2));
  }
  return limit;
}

// ---------------------------------------------------------------------------------- the machine

static int32_t online_processors(void) {
  long online = sysconf(_SC_NPROCESSORS_ONLN);
  return online > 0 ? (int32_t)online : 1;
}

#if defined(__linux__)
intfa_processors intfa_find_processors(void) {
  intfa_processors found = {online_processors(), 0, 0};
  intfa_processor_set allowed = {0};
  if (sched_getaffinity(0, sizeof allowed, (cpu_set_t *)&allowed) == 0 &&
      intfa_processor_set_count(&allowed) > 0) {
    found.allowed = intfa_processor_set_count(&allowed);
    found.cores = intfa_count_cores(&allowed, "/sys/devices/system/cpu");
  } else {
    found.cores = found.allowed;
  }
  // Mounts of a machine with many containers fill pages; what is cut off states no limit.
  static const size_t capacity = 1 << 18;
  char membership[2 * INTFA_MAX_PATH];
  char *mounts = malloc(capacity);
  if (mounts && read_text("/proc/self/cgroup", membership, sizeof membership) &&
      read_text("/proc/self/mountinfo", mounts, capacity))
    found.limit = intfa_control_group_limit(membership, mounts);
  free(mounts);
  return found;
}
#elif defined(__APPLE__)
static int32_t system_number(const char *name) {
  int32_t number = 0;
  size_t size = sizeof number;
  return sysctlbyname(name, &number, &size, NULL, 0) == 0 ? number : 0;
}

intfa_processors intfa_find_processors(void) {
  int32_t allowed = online_processors();
  int32_t cores = system_number("hw.perflevel0.physicalcpu");
  if (cores < 1) cores = system_number("hw.physicalcpu");
  return (intfa_processors){allowed, cores < 1 || cores > allowed ? allowed : cores, 0};
}
#else
intfa_processors intfa_find_processors(void) {
  return (intfa_processors){online_processors(), online_processors(), 0};
}
#endif

int32_t intfa_default_thread_count(intfa_processors found) {
  int32_t threads = found.cores;
  if (found.limit > 0 && found.limit < threads) {
    threads = (int32_t)found.limit;
    threads += threads < found.limit;
  }
  return threads;
}
