#define _DEFAULT_SOURCE /* madvise */
#include "device.h"
#include "flags.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* The CPU's kernels read whole vectors, at most of 64 bytes, from where they are aligned. */
enum { VECTOR = 64, SVM_ALIGNMENT = 128, PAGE = 1 << 14, HUGE_PAGE = 1 << 21 };

/* A multiple of a page, which drivers want to use the host's memory as it is. */
static size_t rounded_up(size_t bytes, size_t unit) { return (bytes + unit - 1) & ~(unit - 1); }

/* Memory that stays mapped: since both sides use it at once, or since a GPU with memory of its own copies such by
   itself. A driver may map it anywhere: what is not aligned is of no use. */
static void reserve_pinned(coexec_device* d, memory_block* block) {
  int32_t error = 0;
  block->pinned = d->cl.create_buffer(d->context, CL_READ_WRITE | CL_ALLOC_HOST, block->bytes, NULL, &error);
  if (!block->pinned) return;
  block->host = d->cl.map(d->queue, block->pinned, CL_TRUE_VALUE, CL_MAP_READING | CL_MAP_WRITING, 0, block->bytes, 0,
                          NULL, NULL, &error);
  int is_there = !error && block->host;
  if (is_there && (uintptr_t)block->host % VECTOR == 0) return;
  if (is_there) d->cl.unmap(d->queue, block->pinned, block->host, 0, NULL, NULL);
  d->cl.release_memory(block->pinned);
  block->host = block->pinned = NULL;
}

static void reserve(coexec_device* d, memory_block* block) {
  size_t bytes = block->bytes;
  if (d->mechanism == COEXEC_SVM) {
    block->host = d->cl.svm_alloc(d->context, CL_READ_WRITE | CL_SVM_FINE, bytes ? bytes : SVM_ALIGNMENT, SVM_ALIGNMENT);
    return;
  }
  int stays_mapped = d->mechanism == COEXEC_MAPPED || (d->mechanism == COEXEC_EVENT && !d->is_unified);
  if (stays_mapped && !block->is_fixed && bytes) reserve_pinned(d, block);
  if (block->host) return;
  size_t unit = bytes >= HUGE_PAGE ? HUGE_PAGE : PAGE;
  block->host = aligned_alloc(unit, bytes ? rounded_up(bytes, unit) : unit);
}

/* Without huge pages, finding a weight's page takes longer than reading it. A system that has none, or memory that
   belongs to a driver, refuses, and nothing is lost. */
static void prefer_huge_pages(const memory_block* block) {
#ifdef MADV_HUGEPAGE
  uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), start = (uintptr_t)block->host & ~(page - 1);
  if (block->bytes >= page) madvise((void*)start, (uintptr_t)block->host + block->bytes - start, MADV_HUGEPAGE);
#else
  (void)block;
#endif
}

/* Whether the machine has so much at all: a system that promises more than it has ends the process that takes it. */
static coexec_status check_size(const memory_block* blocks, int32_t count) {
  uint64_t all = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE), bytes = 0;
  for (int32_t i = 0; i < count; ++i) bytes += blocks[i].bytes;
  if (bytes <= all) return COEXEC_OK;
  return fail(COEXEC_NO_MEMORY, "this machine gives no %llu bytes of memory, it has %llu; run a smaller network",
              (unsigned long long)bytes, (unsigned long long)all);
}

/* None is touched before all is there: a huge page may then reach from one block into its neighbour. */
coexec_status allocate_blocks(coexec_device* d, memory_block* blocks, int32_t count, const size_t* filled) {
  coexec_status status = check_size(blocks, count);
  for (int32_t i = 0; !status && i < count; ++i) {
    reserve(d, &blocks[i]);
    if (!blocks[i].host)
      status = fail(COEXEC_NO_MEMORY, "the OpenCL device gives no %zu bytes of memory; run a smaller network, or end "
                    "other programs that use the device", blocks[i].bytes);
  }
  for (int32_t i = 0; !status && i < count; ++i) prefer_huge_pages(&blocks[i]);
  for (int32_t i = 0; !status && i < count; ++i) memset(blocks[i].host + filled[i], 0, blocks[i].bytes - filled[i]);
  if (status) release_blocks(d, blocks, count);
  return status;
}

/* Kernels and the CPU may use one buffer at a time only while it is mapped, by OpenCL's promise; so they do where the
   device is a CPU too, whose caches agree, or where what was written before the buffer was made stays as it is. */
coexec_status create_buffers(coexec_device* d, memory_block* blocks, int32_t count) {
  if (d->mechanism != COEXEC_EVENT && d->mechanism != COEXEC_MAPPED) return COEXEC_OK;
  for (int32_t i = 0; i < count; ++i) {
    memory_block* b = &blocks[i];
    int32_t error = 0;
    b->is_shared = d->is_unified && (d->is_coherent || b->is_fixed);
    if (d->mechanism == COEXEC_MAPPED && b->bytes && !b->is_fixed) {
      b->buffer = b->pinned;
      if (b->buffer) continue;
      return fail(COEXEC_NO_MEMORY, "%s maps no buffer of %zu bytes at an aligned address; use the mechanism 'event'",
                  d->name, b->bytes);
    }
    b->buffer = d->cl.create_buffer(d->context, CL_READ_WRITE | (b->is_shared ? CL_USE_HOST : CL_COPY_HOST),
                                    b->bytes ? b->bytes : SVM_ALIGNMENT, b->host, &error);
    if (error)
      return fail(COEXEC_NO_MEMORY, "the OpenCL device gives no %zu bytes of memory (error %d); run a smaller network, or "
                  "end other programs that use the device", b->bytes, (int)error);
  }
  return COEXEC_OK;
}

coexec_status create_image(coexec_device* d, memory_block* b, size_t width) {
  static const image_format format = {CL_FOUR_CHANNELS, CL_FLOATS};
  size_t row_bytes = width * 4 * sizeof(float);
  int32_t error = 0;
  if (b->image) return COEXEC_OK;
  if (!b->buffer) b->viewed = d->cl.create_buffer(d->context, CL_READ_WRITE | CL_USE_HOST, b->bytes, b->host, &error);
  image_description description = {.kind = CL_IMAGE_2D, .width = width, .height = b->bytes / row_bytes,
                                   .row_pitch = row_bytes, .buffer = b->buffer ? b->buffer : b->viewed};
  if (!error) b->image = d->cl.create_image(d->context, CL_READ_ONLY, &format, &description, NULL, &error);
  if (b->image) return COEXEC_OK;
  return fail(COEXEC_OPENCL_FAILED, "%s makes no image of %zu bytes of memory (OpenCL error %d), which the module reads "
              "weights from; build the module for this device", d->name, b->bytes, (int)error);
}

void release_blocks(coexec_device* d, memory_block* blocks, int32_t count) {
  for (int32_t i = 0; i < count; ++i) {
    memory_block* b = &blocks[i];
    if (b->image) d->cl.release_memory(b->image);
    if (b->viewed) d->cl.release_memory(b->viewed);
    if (b->buffer && b->buffer != b->pinned) d->cl.release_memory(b->buffer);
    if (b->pinned) {
      d->cl.unmap(d->queue, b->pinned, b->host, 0, NULL, NULL);
      d->cl.release_memory(b->pinned);
    } else if (b->host && d->mechanism == COEXEC_SVM) {
      d->cl.svm_free(d->context, b->host);
    } else {
      free(b->host);
    }
    b->host = b->buffer = b->pinned = b->image = b->viewed = NULL;
  }
}

/* What a buffer over shared memory shows of it, where it need not be the memory itself: nothing is brought from there. */
static coexec_status publish_view(coexec_device* d, const memory_block* b) {
  int32_t error = 0;
  void* place = d->cl.map(d->queue, b->viewed, CL_TRUE_VALUE, CL_MAP_WRITING_ANEW, 0, b->bytes, 0, NULL, NULL,
                         &error);
  if (!error) error = d->cl.unmap(d->queue, b->viewed, place, 0, NULL, NULL);
  if (!error) error = d->cl.finish(d->queue);
  return error ? fail(COEXEC_OPENCL_FAILED, "%s takes no data (OpenCL error %d)", d->name, (int)error) : COEXEC_OK;
}

coexec_status publish_block(coexec_device* d, const memory_block* block) {
  if (block->viewed) return publish_view(d, block);
  if (!block->buffer || block->buffer == block->pinned || !block->bytes) return COEXEC_OK;
  /* The buffer is the host's memory, and caches agree: there is nothing to do. And if it is written to from itself,
     Intel's CPU runtime may still copy when a blocking write has returned, over what was computed meanwhile. */
  if (block->is_shared && d->is_coherent) return COEXEC_OK;
  int32_t error = d->cl.write(d->queue, block->buffer, CL_TRUE_VALUE, 0, block->bytes, block->host, 0, NULL, NULL);
  return error ? fail(COEXEC_OPENCL_FAILED, "%s takes no data (OpenCL error %d)", d->name, (int)error) : COEXEC_OK;
}

int32_t set_image(const coexec_device* d, void* kernel, uint32_t number, const memory_block* block) {
  return d->cl.set_argument(kernel, number, sizeof block->image, &block->image);
}

int32_t set_block(const coexec_device* d, void* kernel, uint32_t number, const memory_block* block) {
  if (block->buffer) return d->cl.set_argument(kernel, number, sizeof block->buffer, &block->buffer);
  return d->cl.set_svm_argument(kernel, number, block->host);
}

coexec_status allocate_flags(coexec_device* d, memory_block* flags) {
  static const size_t nothing = 0;
  coexec_status status = COEXEC_OK;
  *flags = (memory_block){.bytes = FLAG_BLOCK_WORDS * sizeof(int32_t)};
  if (d->mechanism == COEXEC_SVM) {
    flags->host = d->cl.svm_alloc(d->context, CL_READ_WRITE | CL_SVM_FINE | CL_SVM_ATOMIC, flags->bytes, SVM_ALIGNMENT);
    if (flags->host) memset(flags->host, 0, flags->bytes);
  } else {
    status = allocate_blocks(d, flags, 1, &nothing);
    if (!status) status = create_buffers(d, flags, 1);
  }
  if (!status && flags->host) return COEXEC_OK;
  release_blocks(d, flags, 1);
  if (status) return status;
  return fail(COEXEC_NO_MEMORY, "%s gives no shared memory for flags; use the mechanism 'event'", d->name);
}
