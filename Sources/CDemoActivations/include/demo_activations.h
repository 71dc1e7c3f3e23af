/// Real activations of one layer of a language model, embedded so that `intfa demo` needs no file.
///
/// A .safetensors file: q [6, 768, 64], k and v [2, 768, 64] in float16. Layer 15 of
/// SmolLM2-135M-Instruct (Hugging Face, Apache-2.0) on text of the Jargon File (public domain).
#ifndef INTFA_DEMO_ACTIVATIONS_H
#define INTFA_DEMO_ACTIVATIONS_H

#include <stddef.h>

#pragma GCC visibility push(hidden)

/// The first byte of the file.
const unsigned char *intfa_demo_activations(void);

/// Number of bytes of the file.
size_t intfa_demo_activations_size(void);

#pragma GCC visibility pop

#endif
