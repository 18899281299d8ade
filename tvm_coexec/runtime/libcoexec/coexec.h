/* libcoexec: runs a network whose layers are divided between the CPU and the OpenCL device of one machine.
 *
 *     coexec_device* device;
 *     coexec_module* module;
 *     coexec_device_open(NULL, &device);
 *     coexec_module_open(device, "resnet18.coexec", NULL, &module);
 *     coexec_write(module, coexec_input(module, 0), pixels, sizeof pixels);
 *     coexec_run(module);
 *     coexec_read(module, coexec_output(module, 0), scores, sizeof scores);
 *
 * Functions that can fail return a coexec_status, and coexec_last_error() then says in a sentence what was wrong and
 * what to do. Handles are independent of each other. Calls on one device or on modules of one device from several
 * threads are served one after the other.
 */
#ifndef COEXEC_H
#define COEXEC_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define COEXEC_API __attribute__((visibility("default")))

typedef struct coexec_device coexec_device;
typedef struct coexec_module coexec_module;
typedef struct coexec_program coexec_program;

typedef enum {
  COEXEC_OK = 0,
  COEXEC_CPU_WAITED = 1, /* the CPU waited in vain for the GPU */
  COEXEC_GPU_WAITED = 2, /* the GPU waited in vain for the CPU */
  COEXEC_KERNEL_FAILED = 3,
  COEXEC_OPENCL_FAILED = 4,
  COEXEC_GPU_HANGS = 5, /* the queue did not become empty after an error: the device is of no use in this process */
  COEXEC_BAD_FILE = 6,
  COEXEC_BAD_ARGUMENT = 7,
  COEXEC_NO_DEVICE = 8,
  COEXEC_NO_MEMORY = 9
} coexec_status;

/* What the last call on this thread that failed says; never NULL. */
COEXEC_API const char* coexec_last_error(void);

/* ---- devices ---- */

typedef enum {
  COEXEC_BEST = 0,  /* the best of the following that the device has */
  COEXEC_SVM = 1,   /* flags in fine-grained shared virtual memory */
  COEXEC_EVENT = 2, /* OpenCL's events, and buffers that are mapped or copied */
  COEXEC_CPU_ONLY = 3, /* no OpenCL: every layer runs whole on the CPU */
  /* Flags in buffers that stay mapped. OpenCL does not promise that one side sees there what the other writes while it
     runs: a device on which a probe finds a hand-over lost is refused. Never chosen by the library. */
  COEXEC_MAPPED = 4
} coexec_mechanism;

/* All that is zero or NULL is chosen by the library. */
typedef struct {
  const char* opencl_library; /* path or name of the OpenCL loader; NULL: it is searched for */
  const char* name;           /* part of the wanted device's or platform's name; NULL: the first GPU */
  void *context, *device, *queue; /* an OpenCL context, device and in-order queue of the caller's, all or none */
  int32_t mechanism;
  const int32_t* cores; /* processors for the CPU's threads, the calling thread on the first; NULL: where it runs */
  int32_t core_count;
  const char* cache_folder; /* where built OpenCL programs are kept from one process to the next; NULL: nowhere */
  int32_t separate_memory;  /* with COEXEC_EVENT: copy, even where the device shares the host's memory */
} coexec_device_options;

COEXEC_API coexec_status coexec_device_open(const coexec_device_options* options, coexec_device** device);
/* After the device's modules are closed. */
COEXEC_API void coexec_device_close(coexec_device* device);
COEXEC_API const char* coexec_device_name(const coexec_device* device);
COEXEC_API coexec_mechanism coexec_device_mechanism(const coexec_device* device);

/* Where the CPU's threads ran in the last run of all modules of the device: the processor of each, the calling thread's
 * first, -1 for one that had no work. Returns how many there are: one on each of the device's cores. A system may let
 * threads run elsewhere than was asked for. */
COEXEC_API int32_t coexec_threads_ran_on(coexec_device* device, int32_t* processors, int32_t capacity);

/* ---- modules ---- */

typedef struct {
  int64_t timeout_ns; /* bound on every wait of one processor for the other; 0: five seconds */
  int32_t yields;     /* give up the processor while waiting, at the price of a slower wake-up */
  int64_t first_launch_ns; /* bound on the first launch of a kernel, for which some drivers compile it; 0: ten minutes */
  int32_t adapts; /* move units toward the side that turns out faster than planned; see coexec_adaptation */
} coexec_module_options;

COEXEC_API coexec_status coexec_module_open(coexec_device* device, const char* path,
                                            const coexec_module_options* options, coexec_module** module);
/* The descriptor may be closed afterwards. */
COEXEC_API coexec_status coexec_module_open_fd(coexec_device* device, int descriptor,
                                               const coexec_module_options* options, coexec_module** module);
/* `content` is 64-byte aligned, and may be freed afterwards. */
COEXEC_API coexec_status coexec_module_open_memory(coexec_device* device, const void* content, size_t bytes,
                                                   const coexec_module_options* options, coexec_module** module);
COEXEC_API void coexec_module_close(coexec_module* module);

typedef enum { COEXEC_INT = 0, COEXEC_UINT = 1, COEXEC_FLOAT = 2, COEXEC_BOOL = 6 } coexec_type_code; /* as in DLPack */

enum { COEXEC_MAX_RANK = 8 };

/* A tensor as the model's user sees it, and where its elements lie. */
typedef struct {
  const char* name;
  int32_t type_code, type_bits;
  int32_t rank;
  int64_t shape[COEXEC_MAX_RANK];
  size_t bytes;       /* of all elements, one after the other in the user's order */
  int32_t counted_by; /* the tensor that says how many rows of this one count; -1: all do */
  /* The elements in memory, valid between runs: [rows, channels], or [batch, height, width, channels]. */
  void* data;
  int32_t view_rank;
  int64_t view_shape[4], view_strides[4]; /* strides in bytes */
} coexec_tensor;

COEXEC_API int32_t coexec_input_count(const coexec_module* module);
COEXEC_API int32_t coexec_output_count(const coexec_module* module);
/* Index of an input or output among the module's tensors; -1 where there is none. */
COEXEC_API int32_t coexec_input(const coexec_module* module, int32_t number);
COEXEC_API int32_t coexec_output(const coexec_module* module, int32_t number);
COEXEC_API int32_t coexec_tensor_count(const coexec_module* module);
COEXEC_API coexec_status coexec_describe_tensor(const coexec_module* module, int32_t tensor, coexec_tensor* described);
/* Copy a tensor's elements, `bytes` of them in the user's order, into or out of the module. */
COEXEC_API coexec_status coexec_write(coexec_module* module, int32_t tensor, const void* elements, size_t bytes);
COEXEC_API coexec_status coexec_read(coexec_module* module, int32_t tensor, void* elements, size_t bytes);

typedef struct {
  const char* name;
  int32_t units, cpu_units; /* of `units` the CPU computes the last `cpu_units`, the GPU the others */
  int32_t has_cpu, has_gpu; /* whether the module has kernels of that side */
} coexec_step;

COEXEC_API int32_t coexec_step_count(const coexec_module* module);
COEXEC_API coexec_status coexec_describe_step(const coexec_module* module, int32_t step, coexec_step* described);
/* The CPU's units of every step; nothing is compiled. */
COEXEC_API coexec_status coexec_set_splits(coexec_module* module, const int32_t* cpu_units, int32_t count);

COEXEC_API coexec_status coexec_run(coexec_module* module);
/* Copy all inputs in, run, and copy all outputs out, with no other thread's call between. The arrays are in the order of
 * inputs and outputs, of the bytes that coexec_describe_tensor says. */
COEXEC_API coexec_status coexec_call(coexec_module* module, const void* const* inputs, void* const* outputs);
/* Time whole runs after some that do not count; inputs and outputs stay where they are. */
COEXEC_API coexec_status coexec_benchmark(coexec_module* module, int32_t warmup, int32_t repeats, int64_t* latency_ns);

/* How splits have adapted; coexec_describe_step says what they are now. Whole runs alone count, not benchmarks. */
typedef struct {
  int32_t moves;       /* times that units were moved and runs became shorter by it */
  int32_t is_on_trial; /* whether the last move has still to show that */
  double pace;         /* the CPU's time over the GPU's for what each computed lately of divided layers; 0: unknown */
} coexec_adaptation;

COEXEC_API void coexec_describe_adaptation(const coexec_module* module, coexec_adaptation* described);

typedef struct {
  size_t weight_bytes, activation_bytes, scratch_bytes; /* scratch: that of the CPU's threads so far included */
} coexec_memory;

COEXEC_API void coexec_memory_use(const coexec_module* module, coexec_memory* use);

/* ---- programs: what measures, rather than uses, a module ---- */

/* A step of a program, whose two sides may leave units out: the GPU computes [0, gpu_units), the CPU what follows. */
typedef struct {
  int32_t step, cpu_units, gpu_units;
} coexec_part;

enum {
  COEXEC_TIMELINE = 1, /* every command of the GPU is timed */
  COEXEC_CHAIN = 2     /* every part reads the one before it; else the parts are all steps of the module, in order */
};

COEXEC_API coexec_status coexec_prepare(coexec_module* module, const coexec_part* parts, int32_t count, int32_t flags,
                                        coexec_program** program);
/* The module's own program for its present splits; it lives until these change or the module is closed. */
COEXEC_API coexec_status coexec_network_program(coexec_module* module, int32_t flags, coexec_program** program);
COEXEC_API void coexec_program_close(coexec_program* program); /* of a prepared one alone */
COEXEC_API coexec_status coexec_program_run(coexec_program* program);

typedef struct {
  int32_t sync_count; /* points of a run at which one side may wait for the other */
  int32_t timeline_is_faithful; /* whether the GPU does the same with a timeline as without */
  int32_t span_count;
} coexec_program_facts;

COEXEC_API void coexec_describe_program(const coexec_program* program, coexec_program_facts* facts);

typedef enum {
  COEXEC_ENQUEUE = 0,
  COEXEC_CALL = 1,
  COEXEC_SIGNAL = 2,
  COEXEC_WAIT = 3,
  COEXEC_TRANSFER = 4,
  COEXEC_KERNEL = 5,
  COEXEC_SIGNAL_WAIT = 6
} coexec_action;

/* What one side did in the last run; times from the run's start. `part` counts from 1 as flags do; 0: the inputs. */
typedef struct {
  int32_t is_gpu, action, part, awaited;
  int64_t start_ns, end_ns;
} coexec_span;

/* What the last run did: the CPU's operations in order, then, with a timeline, the GPU's commands in order. */
COEXEC_API coexec_status coexec_spans(coexec_program* program, coexec_span* spans, int32_t capacity, int32_t* count);

/* ---- memory, for tools that fill constants or poison activations ---- */

COEXEC_API int32_t coexec_block_count(const coexec_module* module);
COEXEC_API coexec_status coexec_block(const coexec_module* module, int32_t block, void** data, size_t* bytes);
/* Let the OpenCL device see what was written to a block while no program ran. */
COEXEC_API coexec_status coexec_publish(coexec_module* module, int32_t block);

#ifdef __cplusplus
}
#endif
#endif
