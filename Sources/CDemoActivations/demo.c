#include "demo_activations.h"
int intfa_demo_placeholder(void){return 0;}
