/* What TVM's kernels call, so that a module needs no TVM library. Linked into each module's CPU code. */
#include "kernel_support.h"

static const coexec_kernel_support* support;

__attribute__((visibility("default"))) void coexec_bind_support(const coexec_kernel_support* given) { support = given; }

static void* allocate(int device_type, int device_id, uint64_t bytes, int code_hint, int bits_hint) {
  (void)device_type, (void)device_id, (void)code_hint, (void)bits_hint;
  return support->allocate(bytes);
}

static int release(int device_type, int device_id, void* pointer) {
  (void)device_type, (void)device_id;
  support->release(pointer);
  return 0;
}

#define HIDDEN __attribute__((visibility("hidden"))) /* so that they never replace TVM's own */

HIDDEN void* (*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = allocate;
HIDDEN int (*__TVMBackendFreeWorkspace)(int, int, void*) = release;

HIDDEN void TVMFFIErrorSetRaisedFromCStrParts(const char* kind, const char** parts, int32_t count) {
  support->report(kind, parts, count);
}
