#define _GNU_SOURCE
#include "stitch.h"

#include <dlfcn.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

/* ---- OpenCL, found at run time: any loader will do, since OpenCL's objects carry their own dispatch tables ---- */

typedef int32_t (*enqueue_kernel_fn)(void*, void*, uint32_t, const size_t*, const size_t*, const size_t*, uint32_t,
                                     const void*, void**);
typedef int32_t (*queue_fn)(void*);
typedef void* (*map_fn)(void*, void*, uint32_t, uint64_t, size_t, size_t, uint32_t, const void*, void**, int32_t*);
typedef int32_t (*unmap_fn)(void*, void*, void*, uint32_t, const void*, void**);
typedef int32_t (*rect_fn)(void*, void*, uint32_t, const size_t*, const size_t*, const size_t*, size_t, size_t, size_t,
                           size_t, void*, uint32_t, const void*, void**);
typedef int32_t (*marker_fn)(void*, uint32_t, const void*, void**);
typedef int32_t (*event_info_fn)(void*, uint32_t, size_t, void*, size_t*);
typedef int32_t (*release_event_fn)(void*);

static struct {
  enqueue_kernel_fn enqueue_kernel;
  queue_fn flush, finish;
  map_fn map;
  unmap_fn unmap;
  rect_fn read_rect, write_rect;
  marker_fn marker;
  event_info_fn event_info;
  release_event_fn release_event;
} cl;

enum { CL_MAP_READ_WRITE = 3, CL_EVENT_STATUS = 0x11D3, CL_COMPLETE_STATUS = 0 };

int coexec_open_opencl(const char* path) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) return -1;
  struct {
    const char* name;
    void** place;
  } wanted[] = {
      {"clEnqueueNDRangeKernel", (void**)&cl.enqueue_kernel}, {"clFlush", (void**)&cl.flush},
      {"clFinish", (void**)&cl.finish},                       {"clEnqueueMapBuffer", (void**)&cl.map},
      {"clEnqueueUnmapMemObject", (void**)&cl.unmap},         {"clEnqueueReadBufferRect", (void**)&cl.read_rect},
      {"clEnqueueWriteBufferRect", (void**)&cl.write_rect},   {"clEnqueueMarkerWithWaitList", (void**)&cl.marker},
      {"clGetEventInfo", (void**)&cl.event_info},             {"clReleaseEvent", (void**)&cl.release_event},
  };
  for (size_t i = 0; i < sizeof wanted / sizeof *wanted; ++i) {
    *wanted[i].place = dlsym(library, wanted[i].name);
    if (!*wanted[i].place) return -1;
  }
  return 0;
}

/* ---- what TVM's kernels call: defined here so that a module needs no TVM library ---- */

/* Scratch that kernels want for the time of one call, and free in the reverse order. A program keeps for each of its
   threads as much as a call has wanted, in huge pages where it is much: memory that is given back after each call is
   cleared for the next one, and small pages lie where they fall, some of them at the same place of a cache. */
enum { WORKSPACE_ALIGNMENT = 128, SMALL_PAGE = 1 << 12, HUGE_PAGE = 1 << 21, WORTH_A_HUGE_PAGE = 1 << 18 };
static _Thread_local coexec_workspace* workspace; /* that of the program that runs on this thread; or NULL */

void coexec_use_workspace(coexec_workspace* own) { workspace = own; }

static size_t rounded_up(size_t size, size_t unit) { return (size + unit - 1) & ~(unit - 1); }

static void workspace_grow(void) {
  size_t page = workspace->wanted < WORTH_A_HUGE_PAGE ? SMALL_PAGE : HUGE_PAGE;
  size_t size = rounded_up(workspace->wanted, page);
  free(workspace->start);
  workspace->start = aligned_alloc(page, size);
  workspace->size = workspace->start ? size : 0;
  if (workspace->start && page == HUGE_PAGE) madvise(workspace->start, size, MADV_HUGEPAGE);
}

/* Memory of its own, behind a word that says how much it is. */
static void* allocate_apart(size_t size) {
  char* block = aligned_alloc(WORKSPACE_ALIGNMENT, size + WORKSPACE_ALIGNMENT);
  if (!block) return NULL;
  memcpy(block, &size, sizeof size);
  return block + WORKSPACE_ALIGNMENT;
}

static void* workspace_alloc(int device_type, int device_id, uint64_t wanted, int code_hint, int bits_hint) {
  size_t size = rounded_up(wanted, WORKSPACE_ALIGNMENT);
  (void)device_type, (void)device_id, (void)code_hint, (void)bits_hint;
  if (!workspace) return allocate_apart(size);
  workspace->in_use += size;
  if (workspace->in_use > workspace->wanted) workspace->wanted = workspace->in_use;
  if (workspace->in_use == size && workspace->wanted > workspace->size) workspace_grow();
  if (size > workspace->size - workspace->used) return allocate_apart(size); /* the next call finds room */
  workspace->used += size;
  return workspace->start + workspace->used - size;
}

static int workspace_free(int device_type, int device_id, void* pointer) {
  (void)device_type, (void)device_id;
  uintptr_t start = workspace ? (uintptr_t)workspace->start : 0, place = (uintptr_t)pointer;
  if (workspace && place >= start && place < start + workspace->size) {
    workspace->in_use -= workspace->used - (place - start);
    workspace->used = place - start;
    return 0;
  }
  char* block = (char*)pointer - WORKSPACE_ALIGNMENT;
  size_t size;
  memcpy(&size, block, sizeof size);
  if (workspace) workspace->in_use -= size;
  free(block);
  return 0;
}

__attribute__((visibility("hidden"))) void* (*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = workspace_alloc;
__attribute__((visibility("hidden"))) int (*__TVMBackendFreeWorkspace)(int, int, void*) = workspace_free;

static _Thread_local char kernel_error[COEXEC_TEXT];

/* An argument is not what the kernel was compiled for. Hidden, so that it never replaces TVM's own. */
__attribute__((visibility("hidden"))) void TVMFFIErrorSetRaisedFromCStrParts(const char* kind, const char** parts,
                                                                            int32_t count) {
  int length = snprintf(kernel_error, sizeof kernel_error, "%s: ", kind);
  for (int32_t i = 0; i < count && length < (int)sizeof kernel_error; ++i)
    if (parts[i]) length += snprintf(kernel_error + length, sizeof kernel_error - (size_t)length, "%s", parts[i]);
}

void coexec_copy_error(char* text) { memcpy(text, kernel_error, sizeof kernel_error); }

int coexec_call_range(const coexec_call* call, int32_t begin, int32_t count) {
  if (count <= 0) return 0;
  if (workspace) workspace->used = workspace->in_use = 0; /* a kernel that failed may have freed nothing */
  coexec_argument arguments[call->argument_count], result = {0};
  memcpy(arguments, call->arguments, (size_t)call->argument_count * sizeof *arguments);
  arguments[call->argument_count - 2].value.integer = begin;
  arguments[call->argument_count - 1].value.integer = count;
  return call->kernel(NULL, arguments, call->argument_count, &result);
}

/* ---- the run ---- */

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static uint64_t now_ticks(void) {
#if defined(__x86_64__) || defined(__i386__)
  return __builtin_ia32_rdtsc();
#else
  return 0;
#endif
}

static inline void relax(int yields) {
  if (yields) {
    sched_yield();
    return;
  }
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
  __asm__ __volatile__("yield");
#endif
}

static _Atomic int32_t* flag(const coexec_program* p, int word) { return (_Atomic int32_t*)(p->flags + word); }

static int fail(coexec_program* p, int status, int step) {
  p->status = status;
  p->status_step = step;
  return status;
}

static int opencl_failed(coexec_program* p, int step, int32_t error) {
  p->opencl_error = error;
  return fail(p, COEXEC_OPENCL_FAILED, step);
}

/* The queue may be awake in a lingering kernel, which makes way as soon as there is something to make way for. */
static void set_active(const coexec_program* p, int32_t active) {
  if (p->active) atomic_store_explicit((_Atomic int32_t*)p->active, active, memory_order_release);
}

static void linger(const coexec_program* p) {
  static const size_t one[2] = {1, 1};
  set_active(p, 0);
  if (p->linger && !cl.enqueue_kernel(p->queue, p->linger, 2, NULL, one, one, 0, NULL, NULL)) cl.flush(p->queue);
}

static int enqueue(coexec_program* p, const coexec_operation* op) {
  for (int32_t i = op->first; i < op->last; ++i) {
    const coexec_command* c = &p->commands[i];
    void** event = p->events ? &p->events[i] : NULL;
    int32_t error = cl.enqueue_kernel(p->queue, c->kernel, 2, NULL, c->global, c->local, 0, NULL, event);
    if (error) return opencl_failed(p, op->step, error);
  }
  int32_t error = cl.flush(p->queue);
  set_active(p, 1);
  return error ? opencl_failed(p, op->step, error) : COEXEC_OK;
}

static int wait_for_gpu(coexec_program* p, const coexec_operation* op) {
  _Atomic int32_t* done = flag(p, COEXEC_GPU_DONE);
  int64_t deadline = 0;
  for (uint32_t spins = 1; atomic_load_explicit(done, memory_order_acquire) < op->step; ++spins) {
    relax(p->yields);
    if (spins % 4096) continue;
    int64_t now = now_ns();
    if (!deadline) deadline = now + p->timeout_ns;
    if (now > deadline) return fail(p, COEXEC_CPU_WAITED, op->step);
  }
  int32_t gave_up = atomic_load_explicit(flag(p, COEXEC_GPU_GAVE_UP), memory_order_acquire);
  return gave_up ? fail(p, COEXEC_GPU_WAITED, gave_up) : COEXEC_OK;
}

static int copy(coexec_program* p, rect_fn how, const coexec_exchange* x, const size_t* origin, const size_t* region) {
  if (!region[0]) return 0;
  return how(p->queue, x->buffer, 1, origin, origin, region, x->row_bytes, 0, x->row_bytes, 0, x->host, 0, NULL, NULL);
}

static int exchange(coexec_program* p, const coexec_operation* op) {
  const coexec_exchange* x = &p->exchanges[op->first];
  int32_t error = 0;
  if (x->unified) {
    void* pointer = cl.map(p->queue, x->buffer, 1, CL_MAP_READ_WRITE, 0, x->bytes, 0, NULL, NULL, &error);
    if (!error) error = cl.unmap(p->queue, x->buffer, pointer, 0, NULL, NULL);
  } else {
    error = copy(p, cl.read_rect, x, x->gpu_origin, x->gpu_region);
    if (!error) error = copy(p, cl.write_rect, x, x->cpu_origin, x->cpu_region);
  }
  return error ? opencl_failed(p, op->step, error) : COEXEC_OK;
}

static int call(coexec_program* p, const coexec_operation* op) {
  for (int32_t i = op->first; i < op->last; ++i) {
    const coexec_call* c = &p->calls[i];
    if (p->pool ? coexec_pool_call(p->pool, c) : coexec_call_range(c, c->begin, c->count)) {
      p->pool ? coexec_pool_copy_error(p->pool, p->text) : coexec_copy_error(p->text);
      return fail(p, COEXEC_KERNEL_FAILED, op->step);
    }
  }
  return COEXEC_OK;
}

static int operate(coexec_program* p, const coexec_operation* op) {
  int32_t error;
  switch (op->kind) {
    case COEXEC_ENQUEUE: return enqueue(p, op);
    case COEXEC_CALL: return call(p, op);
    case COEXEC_WAIT: return wait_for_gpu(p, op);
    case COEXEC_EXCHANGE: return exchange(p, op);
    case COEXEC_SIGNAL:
      atomic_store_explicit(flag(p, COEXEC_CPU_DONE), op->step, memory_order_release);
      return COEXEC_OK;
    default:
      error = cl.finish(p->queue);
      return error ? opencl_failed(p, op->step, error) : COEXEC_OK;
  }
}

/* After an error: let the GPU's waits fall through, and see the queue empty within the bound. */
static void drain(coexec_program* p) {
  void* event = NULL;
  if (p->flags) atomic_store_explicit(flag(p, COEXEC_ABORT), 1, memory_order_release);
  if (cl.marker(p->queue, 0, NULL, &event) || cl.flush(p->queue)) return;
  int64_t deadline = now_ns() + p->timeout_ns;
  int32_t status = 1;
  while (!cl.event_info(event, CL_EVENT_STATUS, sizeof status, &status, NULL) && status > CL_COMPLETE_STATUS) {
    relax(1);
    if (now_ns() > deadline) {
      p->status = COEXEC_GPU_HANGS;
      break;
    }
  }
  cl.release_event(event);
}

static void pin(const coexec_program* p, cpu_set_t* before) {
  cpu_set_t wanted;
  CPU_ZERO(&wanted);
  CPU_SET(p->cores[0], &wanted);
  if (sched_getaffinity(0, sizeof *before, before)) CPU_ZERO(before);
  if (!CPU_EQUAL(before, &wanted)) sched_setaffinity(0, sizeof wanted, &wanted);
}

/* The clock and the processor's counter at one moment: once more where the thread was interrupted between them. */
static void read_clocks(int64_t* ns, uint64_t* ticks) {
  int tries = 0;
  do {
    *ns = now_ns();
    *ticks = now_ticks();
  } while (now_ns() - *ns > 1000 && ++tries < 8);
}

int coexec_run(coexec_program* p) {
  cpu_set_t before;
  p->status = COEXEC_OK;
  p->opencl_error = 0;
  p->text[0] = 0;
  if (p->core_count) pin(p, &before);
  coexec_use_workspace(p->workspaces);
  if (p->pool) coexec_pool_wake(p->pool);
  if (p->flags)
    for (int word = 0; word < COEXEC_FLAG_WORDS; word += COEXEC_CPU_DONE - COEXEC_GPU_DONE)
      atomic_store_explicit(flag(p, word), 0, memory_order_release);
  read_clocks(&p->start_ns, &p->start_ticks);
  for (int32_t i = 0; i < p->operation_count; ++i) {
    if (p->operation_ns) p->operation_ns[2 * i] = now_ns() - p->start_ns;
    int status = operate(p, &p->operations[i]);
    if (p->operation_ns) p->operation_ns[2 * i + 1] = now_ns() - p->start_ns;
    if (status) {
      drain(p);
      break;
    }
  }
  read_clocks(&p->end_ns, &p->end_ticks);
  if (p->command_count) linger(p);
  if (p->pool) coexec_pool_sleep(p->pool);
  coexec_use_workspace(NULL);
  if (p->core_count && CPU_COUNT(&before)) sched_setaffinity(0, sizeof before, &before);
  return p->status;
}

static int32_t thread_count(const coexec_program* p) { return p->core_count > 1 ? p->core_count : 1; }

int coexec_start(coexec_program* p) {
  p->workspaces = calloc((size_t)thread_count(p), sizeof *p->workspaces);
  if (!p->workspaces) return -1;
  if (thread_count(p) == 1) return 0;
  p->pool = coexec_pool_start(p->cores, p->core_count, p->workspaces);
  return p->pool ? 0 : -1;
}

size_t coexec_held_bytes(const coexec_program* p) {
  size_t bytes = 0;
  for (int32_t i = 0; p->workspaces && i < thread_count(p); ++i) {
    const coexec_workspace* own = &p->workspaces[i];
    bytes += own->size > own->wanted ? own->size : own->wanted; /* a call that found too little makes room next time */
  }
  return bytes;
}

void coexec_stop(coexec_program* p) {
  if (p->pool) coexec_pool_stop(p->pool);
  p->pool = NULL;
  for (int32_t i = 0; p->workspaces && i < thread_count(p); ++i) free(p->workspaces[i].start);
  free(p->workspaces);
  p->workspaces = NULL;
}
