#define _DEFAULT_SOURCE /* madvise */
#include "kernels.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Scratch that kernels want for the time of one call, and free in the reverse order. A program keeps for each of its
   threads as much as a call has wanted, in huge pages where it is much: memory that is given back after each call is
   cleared for the next one, and small pages lie where they fall, some of them at the same place of a cache. */
enum { ALIGNMENT = 128, SMALL_PAGE = 1 << 12, HUGE_PAGE = 1 << 21, WORTH_A_HUGE_PAGE = 1 << 18 };
static _Thread_local workspace* current; /* that of the program that runs on this thread; or NULL */
static _Thread_local char kernel_error[KERNEL_TEXT];

void use_workspace(workspace* own) { current = own; }

static size_t rounded_up(size_t size, size_t unit) { return (size + unit - 1) & ~(unit - 1); }

static void grow(void) {
  size_t page = current->wanted < WORTH_A_HUGE_PAGE ? SMALL_PAGE : HUGE_PAGE;
  size_t size = rounded_up(current->wanted, page);
  free(current->start);
  current->start = aligned_alloc(page, size);
  current->size = current->start ? size : 0;
#ifdef MADV_HUGEPAGE
  if (current->start && page == HUGE_PAGE) madvise(current->start, size, MADV_HUGEPAGE);
#endif
}

/* Memory of its own, behind a word that says how much it is. */
static void* allocate_apart(size_t size) {
  char* block = aligned_alloc(ALIGNMENT, size + ALIGNMENT);
  if (!block) return NULL;
  memcpy(block, &size, sizeof size);
  return block + ALIGNMENT;
}

static void* allocate(uint64_t wanted) {
  size_t size = rounded_up(wanted, ALIGNMENT);
  if (!current) return allocate_apart(size);
  current->in_use += size;
  if (current->in_use > current->wanted) current->wanted = current->in_use;
  if (current->in_use == size && current->wanted > current->size) grow();
  if (size > current->size - current->used) return allocate_apart(size); /* the next call finds room */
  current->used += size;
  return current->start + current->used - size;
}

static void release(void* pointer) {
  uintptr_t start = current ? (uintptr_t)current->start : 0, place = (uintptr_t)pointer;
  if (current && place >= start && place < start + current->size) {
    current->in_use -= current->used - (place - start);
    current->used = place - start;
    return;
  }
  char* block = (char*)pointer - ALIGNMENT;
  size_t size;
  memcpy(&size, block, sizeof size);
  if (current) current->in_use -= size;
  free(block);
}

/* An argument is not what the kernel was compiled for. */
static void report(const char* kind, const char** parts, int32_t count) {
  int length = snprintf(kernel_error, sizeof kernel_error, "%s: ", kind);
  for (int32_t i = 0; i < count && length < (int)sizeof kernel_error; ++i)
    if (parts[i]) length += snprintf(kernel_error + length, sizeof kernel_error - (size_t)length, "%s", parts[i]);
}

const coexec_kernel_support kernel_support = {allocate, release, report};

void copy_kernel_error(char* text) { memcpy(text, kernel_error, sizeof kernel_error); }

int call_kernel(const kernel_call* call, int32_t begin, int32_t count) {
  if (count <= 0) return 0;
  if (current) current->used = current->in_use = 0; /* a kernel that failed may have freed nothing */
  kernel_argument arguments[call->argument_count], result = {0};
  memcpy(arguments, call->arguments, (size_t)call->argument_count * sizeof *arguments);
  arguments[call->argument_count - 2].value.integer = begin;
  arguments[call->argument_count - 1].value.integer = count;
  return call->function(NULL, arguments, call->argument_count, &result);
}

size_t workspace_bytes(const workspace* own) {
  return own->size > own->wanted ? own->size : own->wanted; /* a call that found too little makes room next time */
}

void release_workspace(workspace* own) {
  free(own->start);
  memset(own, 0, sizeof *own);
}
