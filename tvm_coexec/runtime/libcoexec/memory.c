#define _DEFAULT_SOURCE /* madvise */
#include "memory.h"

#include "flags.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { SVM_ALIGNMENT = 128, PAGE = 1 << 14, HUGE_PAGE = 1 << 21 };

/* A multiple of a page, which drivers want to use the host's memory as it is. */
static size_t rounded_up(size_t bytes) { return (bytes + PAGE - 1) & ~(size_t)(PAGE - 1); }

static void* reserve(coexec_device* d, size_t bytes) {
  if (d->mechanism == COEXEC_SVM)
    return d->cl.svm_alloc(d->context, CL_READ_WRITE | CL_SVM_FINE, bytes ? bytes : SVM_ALIGNMENT, SVM_ALIGNMENT);
  return aligned_alloc(bytes >= HUGE_PAGE ? HUGE_PAGE : PAGE,
                       bytes >= HUGE_PAGE ? (bytes + HUGE_PAGE - 1) & ~(size_t)(HUGE_PAGE - 1) : rounded_up(bytes + 1));
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
    blocks[i].host = reserve(d, blocks[i].bytes);
    if (!blocks[i].host)
      status = fail(COEXEC_NO_MEMORY, "the OpenCL device gives no %zu bytes of memory; run a smaller network, or end "
                    "other programs that use the device", blocks[i].bytes);
  }
  for (int32_t i = 0; !status && i < count; ++i) prefer_huge_pages(&blocks[i]);
  for (int32_t i = 0; !status && i < count; ++i) memset(blocks[i].host + filled[i], 0, blocks[i].bytes - filled[i]);
  for (int32_t i = 0; !status && d->mechanism == COEXEC_EVENT && i < count; ++i) {
    size_t bytes = blocks[i].bytes ? blocks[i].bytes : SVM_ALIGNMENT;
    int32_t error = 0;
    blocks[i].buffer = d->cl.create_buffer(d->context, CL_READ_WRITE | (d->is_unified ? CL_USE_HOST : CL_COPY_HOST),
                                           bytes, blocks[i].host, &error);
    if (error)
      status = fail(COEXEC_NO_MEMORY, "the OpenCL device gives no %zu bytes of memory (error %d); run a smaller network, "
                    "or end other programs that use the device", bytes, (int)error);
  }
  if (status) release_blocks(d, blocks, count);
  return status;
}

void release_blocks(coexec_device* d, memory_block* blocks, int32_t count) {
  for (int32_t i = 0; i < count; ++i) {
    if (blocks[i].buffer) d->cl.release_memory(blocks[i].buffer);
    if (blocks[i].host && d->mechanism == COEXEC_SVM) d->cl.svm_free(d->context, blocks[i].host);
    else free(blocks[i].host);
    blocks[i].host = blocks[i].buffer = NULL;
  }
}

coexec_status publish_block(coexec_device* d, const memory_block* block) {
  if (!block->buffer || !block->bytes) return COEXEC_OK;
  int32_t error = d->cl.write(d->queue, block->buffer, CL_TRUE_VALUE, 0, block->bytes, block->host, 0, NULL, NULL);
  return error ? fail(COEXEC_OPENCL_FAILED, "%s takes no data (OpenCL error %d)", d->name, (int)error) : COEXEC_OK;
}

int32_t set_block(const coexec_device* d, void* kernel, uint32_t number, const memory_block* block) {
  if (block->buffer) return d->cl.set_argument(kernel, number, sizeof block->buffer, &block->buffer);
  return d->cl.set_svm_argument(kernel, number, block->host);
}

int32_t* allocate_flags(coexec_device* d) {
  size_t bytes = FLAG_BLOCK_WORDS * sizeof(int32_t);
  int32_t* flags = d->cl.svm_alloc(d->context, CL_READ_WRITE | CL_SVM_FINE | CL_SVM_ATOMIC, bytes, SVM_ALIGNMENT);
  if (flags) memset(flags, 0, bytes);
  return flags;
}
