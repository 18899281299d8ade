/* Runs the CPU's operations, which enqueue the GPU's commands ahead of need. */
#ifndef COEXEC_RUN_H
#define COEXEC_RUN_H

#include "device.h"
#include "kernels.h"
#include "lowering.h"

/* A launch, with all arguments of its kernel set. */
typedef struct {
  void* kernel;
  size_t global[2], local[2];
} gpu_launch;

/* What has to travel between host and device memory after a step, where they are not one. */
typedef struct {
  void* buffer;
  char* host;
  size_t row_bytes;
  int is_shared; /* one memory, of which a kernel's end tells enough; otherwise the rectangles below are copied */
  size_t gpu_origin[3], gpu_region[3]; /* written by the GPU, wanted by the CPU; a region of 0 bytes: nothing */
  size_t cpu_origin[3], cpu_region[3];
  int reads_ahead; /* what the GPU writes is wanted: read back behind its kernels, while the CPU computes its half */
  void* read;      /* the end of that, or of the last kernel where memory is shared; NULL once it is awaited */
  void* written;   /* the end of a copy to the device that is not awaited yet; or NULL */
} transfer;

/* A program as it is run. Whoever fills it keeps all that it points at. */
typedef struct {
  coexec_device* device;
  const operation* operations;
  const gpu_launch* launches;
  const kernel_call* calls;
  transfer* transfers; /* of each step, then of each input; NULL with flags */
  int32_t operation_count, launch_count, transfer_count;
  void* queue;
  int32_t* flags; /* FLAG_BLOCK_WORDS in shared memory; NULL without flags */
  void* linger;   /* kernel that keeps the queue awake after a run; or NULL */
  workspace* workspaces; /* one for each of the CPU's threads */
  int32_t threads;       /* of the CPU that the calls want at most, the calling one counted */
  int64_t timeout_ns;
  int32_t yields;
  int64_t* operation_ns; /* start and end of each operation */
  void** events;         /* of each launch; or NULL */
  /* When the last run began and ended, the ticks by the processor's counter, by which chained kernels are timed; or 0. */
  int64_t start_ns, end_ns;
  int64_t displaced_ns; /* of its long waits, for how long others had the core */
  int64_t napped_ns;    /* for how long it slept because it meant to */
  int64_t late_ns;      /* for how long others had the core when it meant to wake up */
  int64_t off_core_ns, preemptions; /* of the thread until the run began */
  int64_t both_done_ns; /* from the start to the end of the last wait */
  int32_t has_run, has_overslept; /* at least once; in the last wait, until after the GPU was done */
  int64_t* gpu_ns;      /* of each operation that is a wait, what the GPU takes from the end of the one before; 0: not known */
  uint64_t start_ticks, end_ticks;
  int32_t failed_step, opencl_error;
  char text[KERNEL_TEXT];
} runnable;

/* Let the calling thread run on the device's first core, if it does not already; returns whether it has to be put back. */
int move_to_first_core(const coexec_device* device, cpu_set_t* before);
/* Run once. The device is the caller's for the time. */
coexec_status run_once(runnable* program);

/* How long after an error the queue may take to become empty, for a bound on waits. */
int64_t drain_bound_ns(int64_t timeout_ns);

#endif
