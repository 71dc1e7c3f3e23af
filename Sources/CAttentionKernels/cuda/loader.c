#define _GNU_SOURCE
#include "cuda_loader.h"

#include <stdio.h>
#include <string.h>

#if defined(__linux__)

#include <dlfcn.h>
#include <glob.h>

#define INTFA_BIND(RESULT, NAME, SYMBOL, ...)                        \
  symbol = dlsym(library, SYMBOL);                                   \
  if (!symbol) {                                                     \
    snprintf(message, capacity, "%s lacks %s", name, SYMBOL);        \
    return 2;                                                        \
  }                                                                  \
  memcpy(&table->NAME, &symbol, sizeof symbol);
#define INTFA_BIND_OPTIONAL(RESULT, NAME, SYMBOL, ...) \
  symbol = dlsym(library, SYMBOL);                     \
  memcpy(&table->NAME, &symbol, sizeof symbol);

// Libraries stay open as long as the process: their functions are in tables that live as long.

int intfa_load_cuda_driver(intfa_cuda_driver *table, char *message, size_t capacity) {
  const char *name = "libcuda.so.1";
  void *symbol, *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  memset(table, 0, sizeof *table);
  if (!library) {
    snprintf(message, capacity, "%s", dlerror());
    return 1;
  }
  INTFA_CUDA_DRIVER(INTFA_BIND)
  INTFA_CUDA_DRIVER_OPTIONAL(INTFA_BIND_OPTIONAL)
  return 0;
}

// NVRTC opens its builtins by bare name at the first compilation, and some packages of it do not say
// where: they are found if they are in the process already.
static void open_builtins_beside(void *function) {
  Dl_info place;
  char pattern[4096];
  glob_t found;
  if (!dladdr(function, &place) || !place.dli_fname) return;
  const char *slash = strrchr(place.dli_fname, '/');
  if (!slash || slash - place.dli_fname > 4000) return;
  snprintf(pattern, sizeof pattern, "%.*s/libnvrtc-builtins.so.*", (int)(slash - place.dli_fname),
           place.dli_fname);
  if (glob(pattern, 0, NULL, &found) == 0) {
    for (size_t i = 0; i < found.gl_pathc; i++) {
      if (dlopen(found.gl_pathv[i], RTLD_NOW | RTLD_LOCAL)) break;
    }
  }
  globfree(&found);
}

int intfa_load_nvrtc(intfa_nvrtc *table, char *message, size_t capacity) {
  static const char *const names[] = {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"};
  const char *name = NULL;
  void *symbol, *library = NULL;
  memset(table, 0, sizeof *table);
  for (int i = 0; i < 3 && !library; i++) library = dlopen(name = names[i], RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    snprintf(message, capacity, "%s, %s and %s: no such library", names[0], names[1], names[2]);
    return 1;
  }
  INTFA_NVRTC(INTFA_BIND)
  open_builtins_beside(symbol);
  return 0;
}

#else

int intfa_load_cuda_driver(intfa_cuda_driver *table, char *message, size_t capacity) {
  memset(table, 0, sizeof *table);
  snprintf(message, capacity, "there is no CUDA for this system");
  return 1;
}

int intfa_load_nvrtc(intfa_nvrtc *table, char *message, size_t capacity) {
  memset(table, 0, sizeof *table);
  snprintf(message, capacity, "there is no NVRTC for this system");
  return 1;
}

#endif
