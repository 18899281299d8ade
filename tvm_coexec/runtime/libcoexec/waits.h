/* The CPU's waits for the GPU: it spins, and sleeps where others want its core. */
#ifndef COEXEC_WAITS_H
#define COEXEC_WAITS_H

#include "run.h"

static inline _Atomic int32_t* flag(const runnable* p, int word) { return (_Atomic int32_t*)(p->flags + word); }

static inline coexec_status failed(runnable* p, coexec_status status, int32_t step) {
  p->failed_step = step;
  return status;
}

static inline coexec_status opencl_failed(runnable* p, int32_t step, int32_t error) {
  p->opencl_error = error;
  return failed(p, COEXEC_OPENCL_FAILED, step);
}

/* Wait until the GPU has done an operation's step. */
coexec_status wait_for_gpu(runnable* p, const operation* op);

/* Learn from a wait that has ended what the GPU takes from the wait before on. */
void learn_gpu_time(runnable* p, int32_t operation);

/* Wait until a command has ended, and let go of its event. */
coexec_status await_event(runnable* p, void* event, int32_t step);

/* Grows while this thread has no core. */
int64_t off_core_ns(void);

/* Remember for some runs that others had the core for a part of one. */
void look_for_others(const runnable* p, int64_t off_core_ns);

/* Let naps end on time, if there may be any; returns the thread's timer slack, to be set back, or 0. */
int make_naps_punctual(const runnable* p);
void set_back_slack(int slack_ns);

#endif
