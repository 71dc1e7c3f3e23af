// Operands of the loops, and the clock that they are timed by. Needs _GNU_SOURCE.
#pragma once
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double seconds_of_thread(void) {
  struct timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static uint64_t random_state = 88172645463325252u;
static float normal(void) {
  float sum = -6;
  for (int i = 0; i < 12; i++) {
    random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
    sum += (float)(random_state >> 32) * 0x1p-32f;
  }
  return sum;
}
static int8_t code(void) {
  const float x = 40 * normal();
  return (int8_t)(x > 127 ? 127 : x < -127 ? -127 : x);
}
static void *zeroed(int64_t bytes) {
  void *memory = NULL;
  const size_t padded = ((size_t)bytes + 4095) / 4096 * 4096;
  if (posix_memalign(&memory, 64, padded) != 0) exit(70);
  return memset(memory, 0, padded);
}
