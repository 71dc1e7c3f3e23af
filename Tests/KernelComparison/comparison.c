// Compares the kernels of every instruction set that this machine has with the portable ones, bit for
// bit: what the Swift tests do where there is Swift. Needs a C compiler only, so that kernels for
// another processor run under emulation; see .ci/kernels.
//
//   comparison                       all sets that are available
//   comparison --expect NAME...      the same; fails unless exactly these are available beside portable
//
// Prints the number of cases and a digest of the portable results, which has to be the same on every
// architecture. Ends with status 1 at the first difference.
#define _GNU_SOURCE
#include "comparison.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

static char case_name[512];
static int64_t case_count, element_count;
static uint64_t digest_state = 0xcbf29ce484222325u;

void begin_case(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(case_name, sizeof case_name, format, arguments);
  va_end(arguments);
  case_count++;
}

void fail(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fprintf(stderr, "case %lld, %s:\n  ", (long long)case_count, case_name);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  va_end(arguments);
  exit(1);
}

// ---------------------------------------------------------------------------------- inputs

uint32_t random_bits(generator *g) {
  g->state = g->state * 6364136223846793005u + 1442695040888963407u;
  uint64_t x = g->state ^ g->state >> 33;
  return (uint32_t)(x * 0xff51afd7ed558ccdu >> 32);
}
int32_t random_below(generator *g, int32_t count) {
  return (int32_t)((uint64_t)random_bits(g) * (uint64_t)count >> 32);
}
float random_between(generator *g, float low, float high) {
  float unit = (float)(random_bits(g) >> 8) * 0x1p-24f;
  return low + unit * (high - low);
}
int8_t random_code(generator *g) { return (int8_t)(random_below(g, 255) - 127); }

// ---------------------------------------------------------------------------------- memory

enum { GUARD = 256, GUARD_BYTE = 0xA5, LARGEST_COUNT = 64 };

// [guard bytes][the block][guard bytes up to 64][a page that cannot be touched]
typedef struct {
  uint8_t *pages, *begin, *end;
  size_t mapped;
} block;
static block blocks[LARGEST_COUNT];
static int block_count;

void *take(size_t bytes) {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE), padded = (bytes + 63) / 64 * 64;
  const size_t readable = (GUARD + padded + page - 1) / page * page;
  block b = {.mapped = readable + page};
  b.pages = mmap(NULL, b.mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (b.pages == MAP_FAILED || block_count == LARGEST_COUNT ||
      mprotect(b.pages + readable, page, PROT_NONE) != 0)
    fail("no memory for %zu bytes", bytes);
  b.begin = b.pages + readable - padded;
  b.end = b.begin + bytes;
  memset(b.pages, GUARD_BYTE, readable);
  memset(b.begin, 0xFF, bytes);
  blocks[block_count++] = b;
  return b.begin;
}

void release_all(void) {
  for (int i = 0; i < block_count; i++) {
    const block *b = &blocks[i];
    const size_t bytes = (size_t)(b->end - b->begin);
    for (const uint8_t *x = b->begin - GUARD; x < b->begin; x++)
      if (*x != GUARD_BYTE) fail("a kernel wrote before a block of %zu bytes", bytes);
    for (const uint8_t *x = b->end; x < b->begin + (bytes + 63) / 64 * 64; x++)
      if (*x != GUARD_BYTE) fail("a kernel wrote behind a block of %zu bytes", bytes);
    munmap(b->pages, b->mapped);
  }
  block_count = 0;
}

static void report_fault(int signal) {
  (void)signal;
  fail("a kernel touched memory that is not its own");
}
static void report_illegal(int signal) {
  (void)signal;
  fail("an instruction that this processor does not have");
}

// ---------------------------------------------------------------------------------- masks

intfa_key_mask *random_mask(generator *g, int32_t rows, int64_t keys, float unit) {
  const intfa_mask_element element = (intfa_mask_element)random_below(g, 4);
  const int64_t stride = 1 + random_below(g, 2), blocks = (keys + 31) / 32;
  const size_t bytes = element == INTFA_MASK_FLOAT32 ? 4 : element == INTFA_MASK_BOOLEAN ? 1 : 2;
  const size_t row_bytes = (size_t)(keys * stride) * bytes;
  uint8_t *all_elements = take(row_bytes * (size_t)rows), *all_blocks = take((size_t)(blocks * rows));
  const void **elements = take(sizeof(void *) * (size_t)rows);
  const uint8_t **shown = take(sizeof(void *) * (size_t)rows);
  float *slopes = take(sizeof(float) * (size_t)rows);
  int32_t *positions = take(sizeof(int32_t) * (size_t)rows);
  const int32_t hiding = random_below(g, 4);  // rows that see nothing among them
  for (int32_t r = 0; r < rows; r++) {
    uint8_t *row = all_elements + (size_t)r * row_bytes, *block = all_blocks + r * blocks;
    for (int64_t i = 0; i < keys * stride; i++) {
      const bool hides = random_below(g, 4) < hiding || (hiding && r % 7 == 3);
      float x = hides ? -__builtin_inff() : random_between(g, -2, 2);
      uint32_t bits;
      memcpy(&bits, &x, sizeof bits);
      uint16_t half = hides ? 0xFC00 : (uint16_t)(random_below(g, 2) << 15 | random_below(g, 0x4000));
      if (element == INTFA_MASK_BFLOAT16) half = (uint16_t)(bits >> 16);
      const uint8_t shows = !hides;
      const void *source = bytes == 4 ? (void *)&bits : bytes == 2 ? (void *)&half : (void *)&shows;
      memcpy(row + (size_t)i * bytes, source, bytes);
    }
    for (int64_t b = 0; b < blocks; b++) block[b] = random_below(g, 3) > 0;
    elements[r] = row;
    shown[r] = block;
    slopes[r] = random_between(g, 0, unit);
    positions[r] = random_below(g, (int32_t)keys);
  }
  const int32_t parts = 1 + random_below(g, 7);
  intfa_key_mask *m = take(sizeof *m);
  *m = (intfa_key_mask){
      .elements = parts & 1 ? elements : NULL,
      .stride = stride,
      .element = element,
      .unit = unit,
      .blocks = parts & 2 ? shown : NULL,
      .block_length = 32,
      .slopes = parts & 4 ? slopes : NULL,
      .positions = positions,
  };
  return m;
}

// ---------------------------------------------------------------------------------- comparison

void compare_floats(const char *set, const char *name, const float *actual, const float *expected,
                    int64_t rows, int64_t count, int64_t stride) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < count; c++) {
      const float *x = actual + r * stride + c, *y = expected + r * stride + c;
      uint32_t bits, wanted;
      memcpy(&bits, x, sizeof bits);
      memcpy(&wanted, y, sizeof wanted);
      if (bits != wanted)
        fail("%s, %s[%lld][%lld] is %.9g (%08x), portable has %.9g (%08x)", set, name, (long long)r,
             (long long)c, (double)*x, bits, (double)*y, wanted);
    }
  element_count += rows * count;
}

void compare_bytes(const char *set, const char *name, const void *actual, const void *expected,
                   int64_t count) {
  const uint8_t *x = actual, *y = expected;
  for (int64_t i = 0; i < count; i++)
    if (x[i] != y[i])
      fail("%s, byte %lld of %s is %d, portable has %d", set, (long long)i, name, x[i], y[i]);
  element_count += count;
}

void digest(const void *bytes, size_t count) {
  for (size_t i = 0; i < count; i++)
    digest_state = (digest_state ^ ((const uint8_t *)bytes)[i]) * 0x100000001b3u;
}

// ---------------------------------------------------------------------------------- sets

static const char *const names[] = {
    [INTFA_PORTABLE] = "portable",     [INTFA_AVX2] = "avx2",
    [INTFA_AVX_VNNI] = "avxvnni",      [INTFA_AVX512_VNNI] = "avx512vnni",
    [INTFA_NEON_DOTPROD] = "neondotprod", [INTFA_NEON_I8MM] = "neoni8mm",
};
enum { NAME_COUNT = sizeof names / sizeof names[0] };

static bool is_expected(const char *name, int count, char **expected) {
  for (int i = 0; i < count; i++)
    if (strcmp(expected[i], name) == 0) return true;
  return false;
}

static kernel_sets available_sets(bool has_expectation, int expected_count, char **expected) {
  kernel_sets sets = {.count = 0};
  begin_case("instruction sets");
  for (int isa = 0; isa < NAME_COUNT; isa++) {
    const intfa_cpu_kernels *kernels = intfa_cpu_kernels_for((intfa_isa)isa);
    bool wanted = isa == INTFA_PORTABLE || is_expected(names[isa], expected_count, expected);
    if (has_expectation && wanted != (kernels != NULL))
      fail("%s is %s", names[isa], kernels ? "available, which was not expected" : "not available");
    if (kernels && strcmp(kernels->name, names[isa]) != 0)
      fail("the kernels of %s say that they are %s", names[isa], kernels->name);
    if (kernels) sets.kernels[sets.count++] = kernels;
  }
  return sets;
}

// The instruction whose rate is measured has to run where the set is available.
static void run_peaks(const kernel_sets *sets) {
  for (int i = 1; i < sets->count; i++) {
    begin_case("peak of %s", sets->kernels[i]->name);
    int64_t once = sets->kernels[i]->peak(INTFA_PEAK_INT8, 1);
    if (once <= 0 || sets->kernels[i]->peak(INTFA_PEAK_INT8, 3) != 3 * once)
      fail("operations of three rounds are not three times those of one, %lld", (long long)once);
  }
}

int main(int count, char **arguments) {
  bool has_expectation = count > 1 && strcmp(arguments[1], "--expect") == 0;
  if (count > 1 && !has_expectation) {
    fprintf(stderr, "usage: comparison [--expect NAME...]\n");
    return 64;
  }
  signal(SIGSEGV, report_fault);
  signal(SIGILL, report_illegal);
  kernel_sets sets = available_sets(has_expectation, count - 2, arguments + 2);
  printf("sets:");
  for (int i = 0; i < sets.count; i++) printf(" %s", sets.kernels[i]->name);
  printf("\n");
  fflush(stdout);
  run_peaks(&sets);
  compare_prepass(&sets);
  compare_units(&sets);
  compare_attend_tiles(&sets);
  compare_attend_running(&sets);
  printf("%lld cases, %lld values compared, no difference\n", (long long)case_count,
         (long long)element_count);
  printf("digest of the portable results: %016llx\n", (unsigned long long)digest_state);
  return 0;
}
