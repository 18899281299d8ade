/* Between a module's CPU code, which is linked with kernel_support.c, and the library that loads it. */
#ifndef COEXEC_KERNEL_SUPPORT_H
#define COEXEC_KERNEL_SUPPORT_H

#include <stdint.h>

typedef struct {
  void* (*allocate)(uint64_t bytes); /* scratch for the time of a call, freed in the reverse order */
  void (*release)(void* pointer);
  void (*report)(const char* kind, const char** parts, int32_t count); /* why the kernel is about to fail */
} coexec_kernel_support;

typedef void (*coexec_bind_function)(const coexec_kernel_support* support);

#endif
