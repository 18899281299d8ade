/* An OpenCL of one device whose queues are threads, and whose layers are linear ones: what the GPU does is C that a
 * sanitizer sees. Of kernels it knows the library's own, and takes all others for layers. STUB_LOSES in the environment
 * makes it lose data once in the probe of mapped memory, STUB_SVM=0 hides its shared virtual memory, STUB_OFFSET is
 * how many bytes behind an aligned address its buffers begin, and STUB_TELLS lets it tell the priority of its queues. */
#define _GNU_SOURCE
#include "../../tvm_coexec/runtime/libcoexec/flags.h"
#include "../../tvm_coexec/runtime/libcoexec/opencl.h"
#include "linear.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MOST_ARGUMENTS = 16, LOST_ROUND = 4321, PATIENCE = 10000, OUT_OF_HOST_MEMORY = -6 };

typedef struct {
  char *host, *base; /* what was allocated; NULL where the memory is the user's */
  size_t bytes;
} buffer;

typedef struct {
  char name[128];
  int count;
  union {
    int32_t number;
    uint32_t limit;
    char* memory;
  } arguments[MOST_ARGUMENTS];
} kernel;

typedef struct {
  atomic_int references, status;
} event;

typedef struct command {
  struct command* next;
  kernel work;                       /* without a name: a copy of rows */
  char *from, *to;
  size_t row_bytes, origin, bytes, rows;
  event* done;
} command;

typedef struct {
  pthread_t thread;
  pthread_mutex_t mutex;
  pthread_cond_t changed;
  command *first, **last;
  int busy, ends, references;
} queue;

static int32_t load(char* flags, int word) {
  return atomic_load_explicit((_Atomic int32_t*)(void*)flags + word, memory_order_acquire);
}

static void store(char* flags, int word, int32_t value) {
  atomic_store_explicit((_Atomic int32_t*)(void*)flags + word, value, memory_order_release);
}

/* ---- what kernels do, as flags.c says it in OpenCL C ---- */

static void wait_for(char* flags, int32_t step, uint32_t limit) {
  for (uint32_t round = 0; load(flags, FLAG_CPU_DONE) < step; ++round) {
    if (load(flags, FLAG_ABORT)) return;
    if (round == limit) {
      store(flags, FLAG_GPU_GAVE_UP, step);
      store(flags, FLAG_ABORT, 1);
      return;
    }
    if (round > PATIENCE) sched_yield();
  }
}

static void hand_over(const kernel* k) {
  char* flags = k->arguments[0].memory;
  const uint32_t* sent = (uint32_t*)(void*)k->arguments[1].memory;
  uint32_t* answered = (uint32_t*)(void*)k->arguments[2].memory;
  for (int32_t number = k->arguments[3].number; number < k->arguments[4].number; ++number) {
    wait_for(flags, number, k->arguments[5].limit);
    if (load(flags, FLAG_ABORT)) return;
    for (int word = 0, at = number % 256 * 32; word < 32; ++word, ++at)
      if (number != LOST_ROUND || word != 7 || !getenv("STUB_LOSES")) answered[at] = ~sent[at];
    store(flags, FLAG_GPU_DONE, number);
  }
}

static void compute(const kernel* k) {
  char* own = k->arguments[0].memory;
  if (!strcmp(k->name, "coexec_signal")) store(own, FLAG_GPU_DONE, k->arguments[1].number);
  else if (!strcmp(k->name, "coexec_wait")) wait_for(own, k->arguments[1].number, k->arguments[2].limit);
  else if (!strcmp(k->name, "coexec_hand_over")) hand_over(k);
  else if (!strcmp(k->name, "coexec_signal_wait")) {
    store(own, FLAG_GPU_DONE, k->arguments[1].number);
    wait_for(own, k->arguments[2].number, k->arguments[3].limit);
  } else if (strcmp(k->name, "coexec_linger")) {
    float* memory[5];
    int buffers = 4 + (k->count == 5 + 6 || k->count == 5 + 2), has_flags = k->count == buffers + 6;
    for (int i = 0; i < buffers; ++i) memory[i] = (float*)(void*)k->arguments[i].memory;
    int begin = k->arguments[buffers].number, units = k->arguments[buffers + 1].number;
    char* flags = has_flags ? k->arguments[buffers + 2].memory : NULL;
    if (has_flags && k->arguments[buffers + 3].number)
      wait_for(flags, k->arguments[buffers + 3].number, k->arguments[buffers + 5].limit);
    linear(memory, buffers, begin, units);
    if (has_flags && k->arguments[buffers + 4].number) store(flags, FLAG_GPU_DONE, k->arguments[buffers + 4].number);
  }
}

/* ---- queues ---- */

static void release_event(event* e) {
  if (atomic_fetch_sub(&e->references, 1) == 1) free(e);
}

_Atomic uint32_t refused_part; /* one command of so many is refused, as by a driver without memory; 0 for none */

static void perform(command* c) {
  if (atomic_load(&refused_part)) nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL); /* what failed is not over */
  if (c->work.name[0]) compute(&c->work);
  for (size_t row = 0; row < c->rows; ++row)
    memcpy(c->to + row * c->row_bytes + c->origin, c->from + row * c->row_bytes + c->origin, c->bytes);
  if (c->done) {
    atomic_store(&c->done->status, CL_STATUS_COMPLETE);
    release_event(c->done);
  }
  free(c);
}

static void* serve(void* given) {
  queue* q = given;
  pthread_mutex_lock(&q->mutex);
  for (;;) {
    while (!q->first && !q->ends) pthread_cond_wait(&q->changed, &q->mutex);
    command* c = q->first;
    if (!c) break;
    q->first = c->next;
    if (!q->first) q->last = &q->first;
    q->busy = 1;
    pthread_mutex_unlock(&q->mutex);
    perform(c);
    pthread_mutex_lock(&q->mutex);
    q->busy = 0;
    pthread_cond_broadcast(&q->changed);
  }
  pthread_mutex_unlock(&q->mutex);
  return NULL;
}

static int is_refused(void) {
  uint32_t part = atomic_load(&refused_part);
  return part && (uint32_t)random() % part == 0;
}

static int32_t append(queue* q, command content, void** told) {
  if (is_refused()) return OUT_OF_HOST_MEMORY;
  command* c = malloc(sizeof *c);
  *c = content;
  c->next = NULL;
  c->done = NULL;
  if (told) {
    c->done = calloc(1, sizeof *c->done);
    atomic_store(&c->done->references, 2);
    atomic_store(&c->done->status, 1);
    *told = c->done;
  }
  pthread_mutex_lock(&q->mutex);
  *q->last = c;
  q->last = &c->next;
  pthread_cond_broadcast(&q->changed);
  pthread_mutex_unlock(&q->mutex);
  return 0;
}

int32_t clFinish(queue* q) {
  pthread_mutex_lock(&q->mutex);
  while (q->first || q->busy) pthread_cond_wait(&q->changed, &q->mutex);
  pthread_mutex_unlock(&q->mutex);
  return 0;
}

void* clCreateCommandQueue(void* context, void* device, uint64_t how, int32_t* error) {
  (void)context, (void)device, (void)how;
  queue* q = calloc(1, sizeof *q);
  pthread_mutex_init(&q->mutex, NULL);
  pthread_cond_init(&q->changed, NULL);
  q->last = &q->first;
  *error = pthread_create(&q->thread, NULL, serve, q);
  return q;
}

void* clCreateCommandQueueWithProperties(void* context, void* device, const uint64_t* wanted, int32_t* error) {
  if (getenv("STUB_TELLS")) fprintf(stderr, "a queue of priority %d\n", wanted[2] == CL_QUEUE_PRIORITY ? (int)wanted[3] : 0);
  return clCreateCommandQueue(context, device, wanted[1], error);
}

int32_t clReleaseCommandQueue(queue* q) {
  clFinish(q);
  pthread_mutex_lock(&q->mutex);
  q->ends = 1;
  pthread_cond_broadcast(&q->changed);
  pthread_mutex_unlock(&q->mutex);
  pthread_join(q->thread, NULL);
  pthread_cond_destroy(&q->changed);
  pthread_mutex_destroy(&q->mutex);
  free(q);
  return 0;
}

/* ---- facts ---- */

static int32_t tell(const void* value, size_t bytes, size_t room, void* place, size_t* length) {
  if (length) *length = bytes;
  if (place && room < bytes) return -30;
  if (place) memcpy(place, value, bytes);
  return 0;
}

int32_t clGetPlatformIDs(uint32_t room, void** found, uint32_t* count) {
  static int platform;
  if (room) found[0] = &platform;
  *count = 1;
  return 0;
}

int32_t clGetDeviceIDs(void* platform, uint64_t kind, uint32_t room, void** found, uint32_t* count) {
  static int device;
  (void)platform, (void)kind;
  if (room) found[0] = &device;
  *count = 1;
  return 0;
}

int32_t clGetPlatformInfo(void* platform, uint32_t what, size_t room, void* place, size_t* length) {
  (void)platform, (void)what;
  return tell("stub", 5, room, place, length);
}

int32_t clGetDeviceInfo(void* device, uint32_t what, size_t room, void* place, size_t* length) {
  const char* svm = getenv("STUB_SVM");
  uint64_t bits = what == CL_DEVICE_TYPE ? CL_DEVICE_TYPE_GPU : CL_SVM_FINE_BUFFER | CL_SVM_ATOMICS_CAPABILITY;
  uint32_t unified = 1;
  (void)device;
  if (what == CL_DEVICE_UNIFIED) return tell(&unified, sizeof unified, room, place, length);
  if (what == CL_DEVICE_SVM && svm && *svm == '0') return -30;
  if (what == CL_DEVICE_EXTENSIONS) return tell("cl_khr_priority_hints", 22, room, place, length);
  if (what == CL_DEVICE_TYPE || what == CL_DEVICE_SVM) return tell(&bits, sizeof bits, room, place, length);
  return tell("stub", 5, room, place, length);
}

/* ---- programs and kernels ---- */

static int nothing;

void* clCreateContext(const intptr_t* p, uint32_t n, void* const* d, opencl_callback c, void* u, int32_t* error) {
  (void)p, (void)n, (void)d, (void)c, (void)u;
  *error = 0;
  return &nothing;
}
int32_t clRetainContext(void* context) { return context ? 0 : -34; }
int32_t clReleaseContext(void* context) { return context ? 0 : -34; }
int32_t clRetainCommandQueue(queue* q) { return q ? 0 : -36; }
void* clCreateProgramWithSource(void* context, uint32_t n, const char** text, const size_t* bytes, int32_t* error) {
  (void)n, (void)text, (void)bytes;
  *error = 0;
  return context;
}
void* clCreateProgramWithBinary(void* c, uint32_t n, void* const* d, const size_t* b, const unsigned char** t, int32_t* s,
                                int32_t* error) {
  (void)c, (void)n, (void)d, (void)b, (void)t, (void)s;
  *error = -44;
  return NULL;
}
int32_t clBuildProgram(void* p, uint32_t n, void* const* d, const char* o, opencl_callback c, void* u) {
  (void)n, (void)d, (void)o, (void)c, (void)u;
  return p ? 0 : -44;
}
int32_t clGetProgramBuildInfo(void* p, void* d, uint32_t what, size_t room, void* place, size_t* length) {
  (void)p, (void)d, (void)what;
  return tell("", 1, room, place, length);
}
int32_t clGetProgramInfo(void* p, uint32_t what, size_t room, void* place, size_t* length) {
  (void)p, (void)what, (void)room, (void)place, (void)length;
  return -30;
}
int32_t clRetainProgram(void* program) { return program ? 0 : -44; }
int32_t clReleaseProgram(void* program) { return program ? 0 : -44; }
void* clCreateKernel(void* program, const char* name, int32_t* error) {
  kernel* k = calloc(1, sizeof *k);
  (void)program;
  strncpy(k->name, name, sizeof k->name - 1);
  *error = 0;
  return k;
}
int32_t clReleaseKernel(kernel* k) {
  free(k);
  return 0;
}
int32_t clSetKernelArg(kernel* k, uint32_t number, size_t bytes, const void* value) {
  if (number >= MOST_ARGUMENTS) return -49;
  if (bytes == sizeof(buffer*)) k->arguments[number].memory = (*(buffer* const*)value)->host;
  else memcpy(&k->arguments[number], value, bytes);
  if ((int)number >= k->count) k->count = (int)number + 1;
  return 0;
}
int32_t clSetKernelArgSVMPointer(kernel* k, uint32_t number, const void* memory) {
  if (number >= MOST_ARGUMENTS) return -49;
  k->arguments[number].memory = (char*)(uintptr_t)memory;
  if ((int)number >= k->count) k->count = (int)number + 1;
  return 0;
}
int32_t clSetKernelExecInfo(kernel* k, uint32_t what, size_t bytes, const void* value) {
  (void)what, (void)bytes, (void)value;
  return k ? 0 : -48;
}

/* ---- memory ---- */

void* clCreateBuffer(void* context, uint64_t how, size_t bytes, void* host, int32_t* error) {
  buffer* b = calloc(1, sizeof *b);
  (void)context;
  b->bytes = bytes;
  const char* offset = getenv("STUB_OFFSET");
  if (!(how & CL_USE_HOST)) {
    b->base = aligned_alloc(128, ((bytes + 127) & ~(size_t)127) + 128);
    b->host = b->base + (offset ? atoi(offset) : 0);
  } else {
    b->host = host;
  }
  if (how & CL_COPY_HOST) memcpy(b->host, host, bytes);
  *error = 0;
  return b;
}
void* clCreateImage(void* c, uint64_t h, const image_format* f, const image_description* d, void* m, int32_t* error) {
  (void)c, (void)h, (void)f, (void)d, (void)m;
  return *error = -59, NULL;
}
int32_t clReleaseMemObject(buffer* b) {
  free(b->base);
  free(b);
  return 0;
}
void* clSVMAlloc(void* context, uint64_t how, size_t bytes, uint32_t alignment) {
  (void)context, (void)how;
  return aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
}
void clSVMFree(void* context, void* memory) { (void)context, free(memory); }

/* ---- commands ---- */

int32_t clEnqueueNDRangeKernel(queue* q, const kernel* k, uint32_t n, const size_t* o, const size_t* g, const size_t* l,
                               uint32_t events, void* const* awaited, void** told) {
  (void)n, (void)o, (void)g, (void)l, (void)events, (void)awaited;
  return append(q, (command){.work = *k}, told);
}
int32_t clFlush(queue* q) { return q ? 0 : -36; }
void* clEnqueueMapBuffer(queue* q, buffer* b, uint32_t blocks, uint64_t how, size_t offset, size_t bytes, uint32_t n,
                         void* const* awaited, void** told, int32_t* error) {
  (void)blocks, (void)how, (void)bytes, (void)n, (void)awaited;
  *error = append(q, (command){.rows = 0}, told);
  return b->host + offset;
}
int32_t clEnqueueUnmapMemObject(queue* q, buffer* b, void* m, uint32_t n, void* const* awaited, void** told) {
  (void)b, (void)m, (void)n, (void)awaited;
  return append(q, (command){.rows = 0}, told);
}
int32_t clEnqueueWriteBuffer(queue* q, buffer* b, uint32_t blocks, size_t offset, size_t bytes, const void* from,
                             uint32_t n, void* const* awaited, void** told) {
  (void)n, (void)awaited;
  int32_t error = append(q, (command){.from = (char*)(uintptr_t)from, .to = b->host + offset, .bytes = bytes, .rows = 1},
                         told);
  return blocks ? clFinish(q) : error;
}
static int32_t copy_rows(queue* q, char* from, char* to, const size_t* origin, const size_t* region, size_t row_bytes,
                         void** told) {
  size_t before = origin[1] * row_bytes;
  return append(q, (command){.from = from + before, .to = to + before, .row_bytes = row_bytes, .origin = origin[0],
                             .bytes = region[0], .rows = region[1]}, told);
}
int32_t clEnqueueReadBufferRect(queue* q, buffer* b, uint32_t blocks, const size_t* o, const size_t* h, const size_t* r,
                                size_t row, size_t s, size_t host_row, size_t host_s, void* to, uint32_t n,
                                void* const* awaited, void** told) {
  (void)blocks, (void)h, (void)s, (void)host_row, (void)host_s, (void)n, (void)awaited;
  return copy_rows(q, b->host, to, o, r, row, told);
}
int32_t clEnqueueWriteBufferRect(queue* q, buffer* b, uint32_t blocks, const size_t* o, const size_t* h, const size_t* r,
                                 size_t row, size_t s, size_t host_row, size_t host_s, const void* from, uint32_t n,
                                 void* const* awaited, void** told) {
  (void)blocks, (void)h, (void)s, (void)host_row, (void)host_s, (void)n, (void)awaited;
  return copy_rows(q, (char*)(uintptr_t)from, b->host, o, r, row, told);
}
int32_t clEnqueueMarkerWithWaitList(queue* q, uint32_t n, void* const* awaited, void** told) {
  (void)n, (void)awaited;
  return append(q, (command){.rows = 0}, told);
}
int32_t clGetEventInfo(event* e, uint32_t what, size_t room, void* place, size_t* length) {
  int32_t status = atomic_load(&e->status);
  (void)what;
  return tell(&status, sizeof status, room, place, length);
}
int32_t clGetEventProfilingInfo(event* e, uint32_t what, size_t room, void* place, size_t* length) {
  uint64_t ns = what == CL_TIME_END ? 1000000 : 0;
  (void)e;
  return tell(&ns, sizeof ns, room, place, length);
}
int32_t clRetainEvent(event* e) { return (void)atomic_fetch_add(&e->references, 1), 0; }
int32_t clReleaseEvent(event* e) { return release_event(e), 0; }
