/* The CPU code of a module of linear layers, which a sanitizer sees; SYMBOLS lists its functions as F(name). */
#include "../../tvm_coexec/runtime/libcoexec/kernel_support.h"
#include "../../tvm_coexec/runtime/libcoexec/kernels.h"
#include "linear.h"

void coexec_bind_support(const coexec_kernel_support* support) { (void)support; }

static int call(const kernel_argument* arguments, int32_t count) {
  float* memory[5];
  for (int32_t i = 0; i < count - 2; ++i) memory[i] = ((kernel_tensor*)arguments[i].value.pointer)->data;
  linear(memory, count - 2, (int)arguments[count - 2].value.integer, (int)arguments[count - 1].value.integer);
  return 0;
}

#define F(name)                                                                                        \
  int name(void* self, const kernel_argument* arguments, int32_t count, kernel_argument* result) {     \
    (void)self, (void)result;                                                                          \
    return call(arguments, count);                                                                     \
  }
SYMBOLS
