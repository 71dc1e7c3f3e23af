#include "demo_activations.h"

// Accessors, since Swift does not import an array of unknown size.

static const unsigned char activations[] = {
#embed "smollm2_layer15.safetensors"
};

const unsigned char *intfa_demo_activations(void) { return activations; }

size_t intfa_demo_activations_size(void) { return sizeof activations; }
