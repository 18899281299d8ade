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

/* The end of a wait, none at first. For as long as the process is stopped, as by Ctrl-Z for a second or more, it is put
   off. It is looked at once in every turn of the core that is offered to others, or it would be taken for stopped. */
typedef struct {
  int64_t end_ns, seen_ns;
} bound;

/* Whether a wait of `most_ns` is over, which begins with the first call. */
int is_over(bound* b, int64_t most_ns);

/* Wait until the GPU has done an operation's step. */
coexec_status wait_for_gpu(runnable* p, const operation* op);

/* Learn from a wait that has ended what the GPU takes from the wait before on. */
void learn_gpu_time(runnable* p, int32_t operation);

/* Wait until a command has ended, and let go of its event. */
coexec_status await_event(runnable* p, void* event, int32_t step);

/* Remember for some runs that others had the core for a part of one: between both calls. */
void begin_to_look(runnable* p);
void look_for_others(const runnable* p);

/* Let naps end on time, if there may be any; returns the thread's timer slack, to be set back, or 0. */
int make_naps_punctual(const runnable* p);
void set_back_slack(int slack_ns);

#endif
