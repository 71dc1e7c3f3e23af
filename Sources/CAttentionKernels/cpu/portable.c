#include "attention_kernels.h"
int intfa_placeholder(void) { return 0; }
