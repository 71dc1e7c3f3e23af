/* Status, tensors, and where a call is computed. */
#ifndef INT_FLASH_ATTENTION_TYPES_H
#define INT_FLASH_ATTENTION_TYPES_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#define INTFA_BEGIN_DECLARATIONS extern "C" {
#define INTFA_END_DECLARATIONS }
#else
#define INTFA_BEGIN_DECLARATIONS
#define INTFA_END_DECLARATIONS
#endif

INTFA_BEGIN_DECLARATIONS

/* What became of a call. */
typedef int32_t intfa_status;

enum {
  INTFA_OK = 0,
  /* A pointer, count, size, stride or option is outside its range by itself. */
  INTFA_INVALID_ARGUMENT = 1,
  /* Two arguments do not fit each other. */
  INTFA_SHAPE_MISMATCH = 2,
  /* An element type that this argument cannot have. */
  INTFA_UNSUPPORTED_ELEMENT_TYPE = 3,
  /* A combination that this backend does not compute. */
  INTFA_UNSUPPORTED = 4,
  /* A query, key or value is NaN or infinite. */
  INTFA_NON_FINITE_INPUT = 5,
  /* A finite input is so large that float32 arithmetic on it would overflow. */
  INTFA_VALUE_OUT_OF_RANGE = 6,
  /* An output shares memory with an input, with itself or with another output. */
  INTFA_OVERLAPPING_OUTPUT = 7,
  /* A device or an instruction set that this machine does not have. */
  INTFA_UNAVAILABLE = 8,
  /* Memory for the call could not be had. */
  INTFA_OUT_OF_MEMORY = 9,
  /* A GPU, its driver or its compiler reported a failure. */
  INTFA_DEVICE_FAILURE = 10,
  /* A pool of cached tokens has too few free pages. */
  INTFA_OUT_OF_PAGES = 11,
  /* A file cannot be opened, read or written. */
  INTFA_FILE_FAILURE = 12,
  /* A file is damaged, of another kind or version, or has sizes that cannot be read. */
  INTFA_MALFORMED_FILE = 13
};

/* Why the last failed call of this thread failed: it names the argument, its value and the rule.
   UTF-8, never NULL, "" before the first failure; valid until another call of this thread fails. */
const char *intfa_last_error(void);

/* The name of a status, for instance "INTFA_SHAPE_MISMATCH"; "unknown status" for other numbers. */
const char *intfa_status_name(intfa_status status);

/* How an element is stored. 0 is none. */
typedef int32_t intfa_element_type;

enum {
  INTFA_FLOAT32 = 1,
  INTFA_FLOAT16 = 2,
  INTFA_BFLOAT16 = 3,
  /* FP8 E4M3 without infinities; quantised codes only. */
  INTFA_FLOAT8 = 4,
  /* Two's complement; quantised codes, or as INTFA_BOOL. */
  INTFA_INT8 = 5,
  /* Two's complement, two to a byte, the first in the low half, rows rounded up to whole bytes;
     quantised codes only. */
  INTFA_INT4 = 6,
  /* A byte, 0 for false and anything else for true; masks only. */
  INTFA_BOOL = 7
};

/* Elements in memory of the caller. Inputs are not written, although data is not const. */
typedef struct intfa_tensor {
  uint32_t struct_size;
  intfa_element_type element_type;
  /* The first element, [0, 0, ...], aligned to its type; NULL only where a size is 0. */
  void *data;
  /* Number of dimensions, 1 to 4. */
  int64_t rank;
  /* Sizes, outermost first. */
  const int64_t *shape;
  /* Distance between neighbours along each dimension, in elements; may be negative, for inputs also
     0. NULL is row-major without gaps. */
  const int64_t *strides;
} intfa_tensor;

enum {
  /* The GPU whose CUDA context is current in the calling thread, and that context, primary or not. A
     context that is not the primary one must live as long as what is made in it here. */
  INTFA_CURRENT_DEVICE = -1
};

/* Where and with what a call is computed. NULL for the struct is all defaults. */
typedef struct intfa_backend {
  uint32_t struct_size;
  /* The GPU, by its number, or INTFA_CURRENT_DEVICE; backend "cuda" only. */
  int32_t device;
  /* "cpu" (NULL), "cuda", or "reference": slow, in double precision, every precision. */
  const char *name;
  /* "portable", "avx2", "avxvnni", "avx512vnni", "neondotprod", "neoni8mm"; NULL is what the
     environment variable INTFA_ISA names, else the fastest of this machine. Backend "cpu" only. */
  const char *instruction_set;
  /* Threads that a call may use, at least 1; NULL is one per physical core that the process may run
     on. Backend "cpu" only. */
  const int32_t *thread_count;
} intfa_backend;

INTFA_END_DECLARATIONS

#endif
