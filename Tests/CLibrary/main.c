#include "test.h"

int main(void) {
  test_errors();
  test_attention();
  test_caches();
  test_rotary();
  test_snapshots();
  test_quantization();
  test_gpu();
  test_threads();
  printf("%d failures\n", failures);
  return failures != 0;
}
