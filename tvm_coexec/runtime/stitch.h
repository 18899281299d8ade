/* The stitch: runs a network's CPU program in step with its GPU program. Plain C11; knows nothing of Python.
 *
 * Whoever sets up a program fills the structures below; the CPU program is a list of operations, the GPU program a list
 * of commands for one in-order OpenCL queue, which the CPU program enqueues ahead of need.
 */
#ifndef TVM_COEXEC_STITCH_H
#define TVM_COEXEC_STITCH_H

#include <stddef.h>
#include <stdint.h>

/* The two structures of TVM's calling convention that kernels take (tvm_ffi/c_api.h, dlpack.h). */
typedef struct {
  int32_t type_index;
  uint32_t padding;
  union {
    int64_t integer;
    void* pointer;
  } value;
} coexec_argument;

typedef int (*coexec_kernel)(void* self, const coexec_argument* arguments, int32_t count, coexec_argument* result);

enum { COEXEC_TEXT = 256 };

/* Words of the flag block, each on a cache line pair of its own. */
enum {
  COEXEC_GPU_DONE = 0,
  COEXEC_CPU_DONE = 32,
  COEXEC_ABORT = 64,
  COEXEC_GPU_GAVE_UP = 96,
  COEXEC_GROUPS_DONE = 128, /* the GPU's own: work-groups of the kernel under way that have ended */
  COEXEC_FLAG_WORDS = 160
};

typedef enum {
  COEXEC_ENQUEUE = 0,  /* commands [first, last) of the GPU program */
  COEXEC_CALL = 1,     /* calls [first, last), one after the other */
  COEXEC_SIGNAL = 2,   /* tell the GPU that step `step` of the CPU is done */
  COEXEC_WAIT = 3,     /* until the GPU has done step `step` */
  COEXEC_EXCHANGE = 4, /* exchange `first`: wait for the queue and make memory consistent on both sides */
  COEXEC_FINISH = 5    /* until the queue is empty */
} coexec_operation_kind;

typedef struct {
  int32_t kind, step, first, last;
} coexec_operation;

typedef struct {
  coexec_kernel kernel;
  coexec_argument* arguments; /* the last two are begin and count */
  int32_t argument_count, begin, count, padding;
} coexec_call;

typedef struct {
  void* kernel; /* cl_kernel with its arguments set */
  size_t global[2], local[2];
} coexec_command;

/* Scratch memory for the kernels of one thread. */
typedef struct {
  char* start;
  size_t size, used;     /* of that memory, in bytes */
  size_t in_use, wanted; /* bytes that kernels use now, there or elsewhere, and the most that they have used at a time */
} coexec_workspace;

/* What has to travel between host and device memory after a step, where they are not one. */
typedef struct {
  void* buffer; /* cl_mem */
  void* host;
  size_t bytes;
  int32_t unified, padding; /* unified: map and unmap; otherwise the rectangles below are copied */
  size_t row_bytes;
  size_t gpu_origin[3], gpu_region[3]; /* written by the GPU, wanted by the CPU; region 0: nothing */
  size_t cpu_origin[3], cpu_region[3];
} coexec_exchange;

typedef enum {
  COEXEC_OK = 0,
  COEXEC_CPU_WAITED = 1, /* the CPU waited in vain for the GPU */
  COEXEC_GPU_WAITED = 2, /* the GPU waited in vain for the CPU */
  COEXEC_KERNEL_FAILED = 3,
  COEXEC_OPENCL_FAILED = 4,
  COEXEC_GPU_HANGS = 5 /* the queue did not become empty after an error */
} coexec_status;

typedef struct {
  const coexec_operation* operations;
  const coexec_command* commands;
  const coexec_call* calls;
  const coexec_exchange* exchanges;
  int32_t operation_count, command_count;
  void* queue;     /* cl_command_queue */
  int32_t* flags;  /* COEXEC_FLAG_WORDS in fine-grained SVM, or NULL where no operation uses them */
  int32_t* active; /* a word in SVM, the device's own: 1 while a run is under way; or NULL */
  void* linger;    /* cl_kernel that keeps the queue awake after a run while `active` is 0; or NULL */
  int64_t timeout_ns;
  const int32_t* cores; /* processors that compute the CPU halves; the calling thread runs on the first */
  int32_t core_count;
  int32_t yields;          /* give up the processor while waiting */
  int64_t* operation_ns;   /* start and end of each operation, or NULL */
  void** events;           /* cl_event of each command, or NULL */
  int64_t start_ns, end_ns;       /* of the last run */
  uint64_t start_ticks, end_ticks; /* the same by the processor's counter, by which chained kernels are timed; or 0 */
  int32_t status, status_step, opencl_error, padding;
  char text[COEXEC_TEXT];
  struct coexec_pool* pool;
  coexec_workspace* workspaces; /* one for each thread; coexec_stop frees them */
} coexec_program;

/* Find OpenCL's functions in the library at `path`; 0, or -1 with no such library or function. */
int coexec_open_opencl(const char* path);
/* Start the threads of program->cores beyond the first; 0 or -1. */
int coexec_start(coexec_program* program);
/* Run once; returns program->status. Not to be called for one program by two threads at a time. */
int coexec_run(coexec_program* program);
/* Scratch memory that the threads' kernels have wanted so far. Not to be called during a run. */
size_t coexec_held_bytes(const coexec_program* program);
void coexec_stop(coexec_program* program);

/* The pool of CPU threads, used by the stitch alone. */
struct coexec_pool* coexec_pool_start(const int32_t* cores, int32_t core_count, coexec_workspace* workspaces);
void coexec_pool_wake(struct coexec_pool* pool);
void coexec_pool_sleep(struct coexec_pool* pool);
/* Compute one call, its units divided among the threads; 0 or the kernel's error. */
int coexec_pool_call(struct coexec_pool* pool, const coexec_call* call);
/* What the thread said that failed first in the last call; `text` has room for COEXEC_TEXT characters. */
void coexec_pool_copy_error(const struct coexec_pool* pool, char* text);
void coexec_pool_stop(struct coexec_pool* pool);
int coexec_call_range(const coexec_call* call, int32_t begin, int32_t count);
/* Let kernels on this thread find their scratch memory there; NULL: wherever there is some. */
void coexec_use_workspace(coexec_workspace* workspace);
/* What the last kernel that failed on this thread said; room as above. */
void coexec_copy_error(char* text);

#endif
