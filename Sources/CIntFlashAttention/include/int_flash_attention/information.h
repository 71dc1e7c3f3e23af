/* Version, processor and GPUs. */
#ifndef INT_FLASH_ATTENTION_INFORMATION_H
#define INT_FLASH_ATTENTION_INFORMATION_H

#include "types.h"

INTFA_BEGIN_DECLARATIONS

/* The version of this header. */
#define INTFA_VERSION "0.1.0"

/* The version of the library, "major.minor.patch". */
const char *intfa_version(void);

/* The processor as the library sees it. Strings are valid as long as the process. */
typedef struct intfa_information {
  uint32_t struct_size;
  /* Threads that a call uses unless told otherwise. */
  int32_t thread_count;
  /* Logical processors that the process may run on, and physical cores among them. */
  int32_t processor_count;
  int32_t core_count;
  /* Instruction sets that this machine has kernels for, the fastest last, separated by commas. */
  const char *instruction_sets;
  /* All precisions, separated by commas. */
  const char *precisions;
} intfa_information;

/* Writes the members that the caller's struct has. */
intfa_status intfa_get_information(intfa_information *information);

/* The instruction set that calls use unless told otherwise: that of INTFA_ISA, else the fastest.
   INTFA_UNAVAILABLE or INTFA_INVALID_ARGUMENT where INTFA_ISA names one that cannot be used. */
intfa_status intfa_get_instruction_set(const char **name);

/* The number of CUDA GPUs. Where there is no driver or no GPU, *count is 0 and the status
   INTFA_UNAVAILABLE, with a message that says what is missing. */
intfa_status intfa_get_device_count(int32_t *count);

/* A CUDA GPU. */
typedef struct intfa_device {
  uint32_t struct_size;
  int32_t multiprocessor_count;
  /* Compute capability. */
  int32_t major;
  int32_t minor;
  int64_t memory_byte_count;
  /* The driver's name for it; UTF-8, ends with 0. */
  char name[256];
} intfa_device;

/* Writes the members that the caller's struct has. */
intfa_status intfa_get_device(int32_t device, intfa_device *description);

INTFA_END_DECLARATIONS

#endif
