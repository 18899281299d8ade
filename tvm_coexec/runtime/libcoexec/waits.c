#define _GNU_SOURCE
#include "waits.h"

#include "flags.h"

#include <stdatomic.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>

enum { CLOCK_INTERVAL = 1024, EVENT_INTERVAL = 16 }; /* looks at a flag, or an event, between two at the clock */
enum { EVENT_PAUSES = 8 };                           /* between two looks at an event */

/* While others want its core, a thread that spins or yields pays with its share of it, or with a turn of the scheduler's.
   Asleep it saves the share, and is let in soon after it wakes: once, shortly before the GPU is expected to be done.
   These numbers were chosen on two cores of a shared Zen 3 server under Linux, beside one program that worked on the
   CPU's core all the time. */
static const int64_t EARLY_NS = 15000;       /* before the GPU is expected to be done a nap ends */
static const int64_t LEAST_NAP_NS = 30000;   /* shorter ones are not worth a turn of the scheduler's */
static const int64_t SHORT_NAP_NS = 50000;   /* between two looks, where the GPU is late */
static const int64_t MOST_NAP_NS = 100000000;
static const int64_t WAKING_NS = 500000;     /* that a core may take to wake up which nobody wants: no sign of others */
/* Others want the core if they had it for so long in a run, and for so large a part of it: for as many runs from then on. */
static const int64_t LEAST_DISPLACED_NS = 50000;
enum { DISPLACED_SHARE = 16, CROWDED_RUNS = 32 };
/* What the GPU takes is raised by so small a part at each wait, that it be forgotten, and lowered where a nap was too long. */
enum { FORGETTING = 64, SHORTENING = 8 };

/* No thread waits for a core for so long between two looks at the clock, with one turn of the others between them: the
   whole process was stopped. */
static const int64_t STOPPED_NS = 1000000000;

/* Grows while this thread has no core. */
static int64_t off_core_ns(void) { return now_ns() - thread_ns(); }

/* How often others took its core from this thread. A driver that lets it sleep takes nothing. */
static int64_t preemptions(void) {
  struct rusage usage;
  return getrusage(RUSAGE_THREAD, &usage) ? 0 : usage.ru_nivcsw;
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* A signal may end it early. */
static void nap(runnable* p, int64_t ns) {
  struct timespec t = {ns / 1000000000, ns % 1000000000};
  int64_t off_core = off_core_ns();
  nanosleep(&t, NULL);
  int64_t away_ns = off_core_ns() - off_core, meant_ns = least(away_ns, ns + WAKING_NS);
  p->napped_ns += meant_ns;
  p->late_ns += away_ns - meant_ns;
}

static int is_done(const runnable* p, const operation* op) {
  return atomic_load_explicit(flag(p, FLAG_GPU_DONE), memory_order_acquire) >= op->step;
}

/* Sleep until shortly before the GPU is expected to be done, if it began when both sides were done before. */
static void sleep_for_gpu(runnable* p, const operation* op) {
  int64_t gpu_ns = p->gpu_ns[op - p->operations];
  int64_t left_ns = gpu_ns ? p->start_ns + p->both_done_ns + gpu_ns - EARLY_NS - now_ns() : 0;
  if (left_ns <= LEAST_NAP_NS || is_done(p, op)) return;
  nap(p, least(left_ns, least(MOST_NAP_NS, p->timeout_ns)));
  p->has_overslept = is_done(p, op);
}

int is_over(bound* b, int64_t most_ns) {
  int64_t now = now_ns();
  if (!b->end_ns) b->end_ns = now + most_ns;
  else if (now - b->seen_ns > STOPPED_NS) b->end_ns += now - b->seen_ns;
  b->seen_ns = now;
  return now > b->end_ns;
}

/* Whether each round offers the core to others, who may keep it for long: the clock is looked at in each of these. */
static int offers_core(const runnable* p, uint32_t spins) { return p->yields || spins > PATIENT_SPINS; }

coexec_status wait_for_gpu(runnable* p, const operation* op) {
  int is_crowded = p->device->crowded_runs > 0;
  int64_t off_core = is_crowded ? off_core_ns() : 0, napped_ns = p->napped_ns;
  bound end = {0};
  if (is_crowded) is_over(&end, p->timeout_ns);
  p->has_overslept = 0;
  if (is_crowded) sleep_for_gpu(p, op);
  for (uint32_t spins = 1; !is_done(p, op); ++spins) {
    if (spins == PATIENT_SPINS && !off_core) off_core = off_core_ns();
    if (is_crowded && spins > PATIENT_SPINS) nap(p, SHORT_NAP_NS);
    else relax(spins, p->yields);
    if (!offers_core(p, spins) && spins % CLOCK_INTERVAL) continue;
    if (is_over(&end, p->timeout_ns)) return failed(p, COEXEC_CPU_WAITED, op->step);
  }
  if (off_core) p->displaced_ns += off_core_ns() - off_core - (p->napped_ns - napped_ns);
  int32_t gave_up = atomic_load_explicit(flag(p, FLAG_GPU_GAVE_UP), memory_order_acquire);
  return gave_up ? failed(p, COEXEC_GPU_WAITED, gave_up) : COEXEC_OK;
}

/* From when both sides were done before until now is the most that the GPU took. What was the least lately is what it
   takes; where it was done before this thread woke up, nobody knows since when, and the next nap is shorter. A first run
   tells nothing: drivers compile in it. */
void learn_gpu_time(runnable* p, int32_t operation) {
  int64_t end_ns = p->operation_ns[2 * operation + 1], took_ns = end_ns - p->both_done_ns, *known = &p->gpu_ns[operation];
  *known += p->has_overslept ? -(*known / SHORTENING) : *known / FORGETTING;
  if (p->has_run && (!*known || took_ns < *known)) *known = took_ns;
  p->both_done_ns = end_ns;
}

/* See a command end, spinning: a driver that waits in our place sleeps, and wakes up tens of microseconds later. */
coexec_status await_event(runnable* p, void* event, int32_t step) {
  const opencl* cl = &p->device->cl;
  bound end = {0};
  int32_t state = 1, error = cl->flush(p->queue);
  coexec_status status = COEXEC_OK;
  for (uint32_t spins = 1; !error && !status; ++spins) {
    error = cl->event_info(event, CL_EVENT_STATUS, sizeof state, &state, NULL);
    if (error || state <= CL_STATUS_COMPLETE) break;
    int pauses = offers_core(p, spins) ? 1 : EVENT_PAUSES; /* the driver locks its events */
    while (pauses--) relax(spins, p->yields);
    if (!offers_core(p, spins) && spins % EVENT_INTERVAL) continue;
    if (is_over(&end, p->timeout_ns)) status = failed(p, COEXEC_CPU_WAITED, step);
  }
  if (!error && state < 0) error = state;
  cl->release_event(event);
  return error ? opencl_failed(p, step, error) : status;
}

void begin_to_look(runnable* p) {
  p->preemptions = p->device->was_away ? preemptions() : 0; /* which takes a while */
  p->off_core_ns = off_core_ns();
}

void look_for_others(const runnable* p) {
  int64_t away_ns = off_core_ns() - p->off_core_ns - p->napped_ns;
  coexec_device* d = p->device;
  int is_away = away_ns > LEAST_DISPLACED_NS && away_ns > (p->end_ns - p->start_ns) / DISPLACED_SHARE;
  if (is_away && (p->late_ns || (d->was_away && preemptions() > p->preemptions))) d->crowded_runs = CROWDED_RUNS;
  else if (d->crowded_runs) --d->crowded_runs;
  d->was_away = is_away;
}

int make_naps_punctual(const runnable* p) {
  int slack = p->device->crowded_runs ? prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0) : 0;
  if (slack > 0) prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);
  return slack > 0 ? slack : 0;
}

void set_back_slack(int slack_ns) {
  if (slack_ns) prctl(PR_SET_TIMERSLACK, (unsigned long)slack_ns, 0, 0, 0);
}
