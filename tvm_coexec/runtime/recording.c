#include "stitch.h"

#include <stdint.h>
#include <stdlib.h>

/* The GPU program as one cl_khr_command_buffer: enqueued by one call, where every command takes microseconds alone. */

typedef void* (*create_fn)(uint32_t, void* const*, const uint64_t*, int32_t*);
typedef int32_t (*record_kernel_fn)(void*, void*, const void*, void*, uint32_t, const size_t*, const size_t*,
                                    const size_t*, uint32_t, const void*, void*, void*);
typedef int32_t (*buffer_fn)(void*);
typedef int32_t (*enqueue_buffer_fn)(uint32_t, void* const*, void*, uint32_t, const void*, void**);

enum { COMMAND_BUFFER_FLAGS = 0x1293, SIMULTANEOUS_USE = 1 };

struct coexec_recording {
  void* buffer;
  enqueue_buffer_fn enqueue;
  buffer_fn release;
};

static int fill(const coexec_program* p, struct coexec_recording* r, coexec_find_extension find) {
  create_fn create = (create_fn)find(p->platform, "clCreateCommandBufferKHR");
  record_kernel_fn record = (record_kernel_fn)find(p->platform, "clCommandNDRangeKernelKHR");
  buffer_fn finalize = (buffer_fn)find(p->platform, "clFinalizeCommandBufferKHR");
  r->enqueue = (enqueue_buffer_fn)find(p->platform, "clEnqueueCommandBufferKHR");
  r->release = (buffer_fn)find(p->platform, "clReleaseCommandBufferKHR");
  if (!create || !record || !finalize || !r->enqueue || !r->release) return -1;
  /* A run ends when its last flag is seen, which may be before its last command counts as complete. */
  const uint64_t properties[] = {COMMAND_BUFFER_FLAGS, SIMULTANEOUS_USE, 0};
  void* queues[] = {p->queue};
  int32_t error = 0;
  r->buffer = create(1, queues, properties, &error);
  if (error || !r->buffer) return -1;
  for (int32_t i = 0; i < p->command_count; ++i) {
    const coexec_command* c = &p->commands[i];
    if (record(r->buffer, NULL, NULL, c->kernel, 2, NULL, c->global, c->local, 0, NULL, NULL, NULL)) return -1;
  }
  return finalize(r->buffer) ? -1 : 0;
}

struct coexec_recording* coexec_record(const coexec_program* p, coexec_find_extension find) {
  struct coexec_recording* r = calloc(1, sizeof *r);
  if (r && fill(p, r, find)) {
    coexec_recording_free(r);
    r = NULL;
  }
  return r;
}

int32_t coexec_recording_enqueue(struct coexec_recording* r) { return r->enqueue(0, NULL, r->buffer, 0, NULL, NULL); }

void coexec_recording_free(struct coexec_recording* r) {
  if (r->buffer) r->release(r->buffer);
  free(r);
}
