/* Calls of the CPU's kernels, and the scratch memory that they ask for. */
#ifndef COEXEC_KERNELS_H
#define COEXEC_KERNELS_H

#include "common.h"
#include "kernel_support.h"

#include <stddef.h>

/* The structures of TVM's calling convention that kernels take (tvm_ffi/c_api.h, dlpack.h). */
typedef struct {
  int32_t type_index;
  uint32_t padding;
  union {
    int64_t integer;
    void* pointer;
  } value;
} kernel_argument;

typedef struct {
  void* data;
  int32_t device_type, device_id, rank;
  uint8_t type_code, type_bits;
  uint16_t lanes;
  const int64_t *shape, *strides;
  uint64_t byte_offset;
} kernel_tensor;

enum { ARGUMENT_INTEGER = 1, ARGUMENT_TENSOR = 7, TENSOR_ON_CPU = 1 };

typedef int (*kernel_function)(void* self, const kernel_argument* arguments, int32_t count, kernel_argument* result);

typedef struct {
  kernel_function function;
  const kernel_argument* arguments; /* the last two stand for begin and count */
  int32_t argument_count, begin, count;
  int32_t threads; /* that share it */
} kernel_call;

enum { KERNEL_TEXT = 256 };

/* Scratch memory for the kernels of one thread. */
typedef struct {
  char* start;
  size_t size, used;     /* of that memory, in bytes */
  size_t in_use, wanted; /* bytes that kernels use now, there or elsewhere, and the most that they have used at a time */
} workspace;

/* What the code of every module is bound to. */
extern const coexec_kernel_support kernel_support;

/* Compute some units; 0 or the kernel's error. */
int call_kernel(const kernel_call* call, int32_t begin, int32_t count);
/* What the last kernel that failed on this thread said; `text` has room for KERNEL_TEXT characters. */
void copy_kernel_error(char* text);
/* Let kernels on this thread find their scratch memory there; NULL: wherever there is some. */
void use_workspace(workspace* own);
/* Bytes that a thread holds for its kernels, or will. */
size_t workspace_bytes(const workspace* own);
void release_workspace(workspace* own);

#endif
