/* The CPU's waits on a clock that a test moves, for a GPU that takes as long as it says. */
#define _GNU_SOURCE
#define now_ns simulated_ns
#define thread_ns simulated_thread_ns
#define nanosleep simulated_nap
#define getrusage simulated_usage
#define sched_yield simulated_yield
#include "waits.c"
#include "run.c"

enum { LOOK_NS = 1000 }; /* what a look at the clock takes */

int64_t gpu_takes_ns, wakes_late_ns, nap_ends_after_ns = INT64_MAX, slack_while_napping;
int64_t stops_after_ns, stopped_ns; /* once in a run, the GPU's side too */
int64_t is_preempted;               /* by another thread, when it stops */
int64_t others_take_ns;             /* of the core, when it is offered to them */

static _Alignas(128) int32_t flags[FLAG_BLOCK_WORDS];
static int64_t clock_ns = 1000000000, asleep_ns, gpu_done_ns, stops_at_ns, preempted, operation_ns[2], gpu_ns[1];
static const operation wait = {COEXEC_WAIT, 1, 0, 0};
static coexec_device device;
static runnable program = {.device = &device, .operations = &wait, .operation_count = 1, .flags = flags, .threads = 1,
                           .operation_ns = operation_ns, .gpu_ns = gpu_ns};

static void pass(int64_t ns) {
  clock_ns += ns;
  if (stops_at_ns && clock_ns >= stops_at_ns) {
    clock_ns += stopped_ns;
    gpu_done_ns += stopped_ns;
    asleep_ns += stopped_ns;
    preempted += is_preempted;
    stops_at_ns = 0;
  }
  if (clock_ns >= gpu_done_ns) atomic_store((_Atomic int32_t*)flags + FLAG_GPU_DONE, 1);
}

int64_t simulated_ns(void) {
  pass(LOOK_NS);
  return clock_ns;
}

int64_t simulated_thread_ns(void) { return clock_ns - asleep_ns; }

int simulated_nap(const struct timespec* wanted, struct timespec* left) {
  int64_t ns = wanted->tv_sec * 1000000000 + wanted->tv_nsec;
  (void)left;
  slack_while_napping = prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0);
  ns = least(ns + wakes_late_ns, nap_ends_after_ns);
  asleep_ns += ns;
  pass(ns);
  return 0;
}

int simulated_yield(void) {
  asleep_ns += others_take_ns;
  pass(others_take_ns);
  return 0;
}

int simulated_usage(int who, struct rusage* usage) {
  (void)who;
  usage->ru_nivcsw = preempted;
  return 0;
}

/* Forget all runs. */
void begin(int64_t timeout_ns, int32_t yields) {
  program.yields = yields;
  program.timeout_ns = timeout_ns;
  program.has_run = 0;
  gpu_ns[0] = 0;
}

/* For so many runs it is assumed that others want the core; negative: as those before have left it. */
int32_t run(int32_t crowded_runs) {
  if (crowded_runs >= 0) device.crowded_runs = crowded_runs;
  gpu_done_ns = clock_ns + gpu_takes_ns;
  stops_at_ns = stopped_ns ? clock_ns + stops_after_ns : 0;
  return run_once(&program);
}

int64_t length_ns(void) { return program.end_ns - program.start_ns; }
int64_t displaced_ns(void) { return program.displaced_ns; }
int32_t crowded_runs(void) { return device.crowded_runs; }
int64_t slack_ns(void) { return prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0); }
