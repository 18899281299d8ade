/* Memory that the CPU and the OpenCL device share: fine-grained SVM, or buffers for devices without it. */
#ifndef COEXEC_MEMORY_H
#define COEXEC_MEMORY_H

#include "common.h"

#include <stddef.h>

/* A piece of memory. With SVM one address is both sides'. Else the GPU has a buffer: where the two caches agree by
   themselves, or nobody writes, the host's memory is the buffer; otherwise each side has memory of its own. Where
   buffers stay mapped, what both sides write is the buffer's own memory. */
typedef struct {
  char* host;
  size_t bytes;
  void* buffer; /* cl_mem; or NULL */
  void* image;  /* cl_mem, an image over the buffer, or over one of the same memory where there is none; or NULL */
  void* viewed; /* cl_mem over shared memory, which an image needs; or NULL */
  void* pinned; /* cl_mem whose memory the host's is, mapped, which a GPU copies without help; or NULL */
  int is_shared; /* whether the host's memory is the buffer */
  int is_fixed; /* whether nobody writes once the buffer is there */
} memory_block;

/* Host memory for blocks whose bytes are set; `filled` counts those at each block's begin that the caller writes, which
   are not zeroed. What is there already is released after a failure. */
coexec_status allocate_blocks(coexec_device* device, memory_block* blocks, int32_t count, const size_t* filled);
/* The device's buffers, if it has any, with what the host's memory holds. */
coexec_status create_buffers(coexec_device* device, memory_block* blocks, int32_t count);
void release_blocks(coexec_device* device, memory_block* blocks, int32_t count);
/* An image of rows of a width, whose pixels are four floats, over a block that never changes once it is there. */
coexec_status create_image(coexec_device* device, memory_block* block, size_t width);
/* Let the device have its own buffer of a block, from what the host has written. */
coexec_status publish_block(coexec_device* device, const memory_block* block);
/* Give a block to a kernel, or its image; OpenCL's error or 0. */
int32_t set_block(const coexec_device* device, void* kernel, uint32_t number, const memory_block* block);
int32_t set_image(const coexec_device* device, void* kernel, uint32_t number, const memory_block* block);
/* Zeroed words for flags, which both sides see. */
coexec_status allocate_flags(coexec_device* device, memory_block* flags);
static inline int32_t* words_of(const memory_block* flags) { return (int32_t*)(void*)flags->host; }

#endif
