// Regions of functions for an instruction set: clang and gcc spell them differently.
#pragma once

#define ARM_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define TARGET_DOTPROD \
  ARM_PRAGMA(clang attribute push(__attribute__((target("dotprod"))), apply_to = function))
#define TARGET_I8MM \
  ARM_PRAGMA(clang attribute push(__attribute__((target("i8mm"))), apply_to = function))
#define TARGET_END ARM_PRAGMA(clang attribute pop)
#define UNROLL ARM_PRAGMA(clang loop unroll(full))
#define KEEP_LOOP ARM_PRAGMA(clang loop unroll(disable))
#else
#define TARGET_DOTPROD \
  ARM_PRAGMA(GCC push_options) ARM_PRAGMA(GCC target("arch=armv8.2-a+dotprod"))
#define TARGET_I8MM ARM_PRAGMA(GCC push_options) ARM_PRAGMA(GCC target("arch=armv8.2-a+i8mm"))
#define TARGET_END ARM_PRAGMA(GCC pop_options)
#define UNROLL ARM_PRAGMA(GCC unroll 16)
#define KEEP_LOOP ARM_PRAGMA(GCC unroll 1)
#endif
#define INLINE static inline __attribute__((always_inline))
