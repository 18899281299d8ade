#define _GNU_SOURCE
#include "run.h"

#include "flags.h"
#include "waits.h"

#include <sched.h>
#include <stdatomic.h>
#include <string.h>

static const int64_t LEAST_DRAIN_NS = 5000000000;

/* The queue may be awake in a lingering kernel, which makes way as soon as there is something to make way for. */
static void set_active(const runnable* p, int32_t active) {
  _Atomic int32_t* word = (_Atomic int32_t*)words_of(&p->device->flags.block);
  if (word) atomic_store_explicit(word, active, memory_order_release);
}

static void linger(const runnable* p) {
  static const size_t one[2] = {1, 1};
  const opencl* cl = &p->device->cl;
  set_active(p, 0);
  if (p->linger && !cl->enqueue_kernel(p->queue, p->linger, 2, NULL, one, one, 0, NULL, NULL)) cl->flush(p->queue);
}

/* Copy a part of what is in the device's memory and in the host's from one to the other, the event being its end. */
static int32_t copy_part(const runnable* p, const transfer* t, int to_host, void** event) {
  const opencl* cl = &p->device->cl;
  const size_t *origin = to_host ? t->gpu_origin : t->cpu_origin, *region = to_host ? t->gpu_region : t->cpu_region;
  if (!region[0] || !region[1]) return 0;
  if (*event) cl->release_event(*event);
  *event = NULL;
  return to_host ? cl->read_rect(p->queue, t->buffer, 0, origin, origin, region, t->row_bytes, 0, t->row_bytes, 0,
                                 t->host, 0, NULL, event)
                 : cl->write_rect(p->queue, t->buffer, 0, origin, origin, region, t->row_bytes, 0, t->row_bytes, 0,
                                  t->host, 0, NULL, event);
}

static coexec_status enqueue(runnable* p, const operation* op) {
  const opencl* cl = &p->device->cl;
  transfer* t = p->transfers && p->transfers[op->step - 1].reads_ahead ? &p->transfers[op->step - 1] : NULL;
  int32_t error = 0;
  for (int32_t i = op->first; i < op->last; ++i) {
    const gpu_launch* l = &p->launches[i];
    int is_awaited = t && t->is_shared && i + 1 == op->last;
    void** event = p->events ? &p->events[i] : is_awaited ? &t->read : NULL;
    error = cl->enqueue_kernel(p->queue, l->kernel, 2, NULL, l->global, l->local, 0, NULL, event);
    if (!error && is_awaited && p->events) error = cl->retain_event(t->read = p->events[i]);
    if (error) return opencl_failed(p, op->step, error);
  }
  if (t && !t->is_shared) error = copy_part(p, t, 1, &t->read);
  if (!error) error = cl->flush(p->queue);
  set_active(p, 1);
  return error ? opencl_failed(p, op->step, error) : COEXEC_OK;
}

/* A copy to the device reads the host's memory until it ends: nobody waits for it but who writes there next, which may be
   the user. NULL stands for all memory. */
static coexec_status await_writes(runnable* p, const char* host, int32_t step) {
  coexec_status status = COEXEC_OK;
  for (int32_t i = 0; !status && i < p->transfer_count; ++i) {
    transfer* t = &p->transfers[i];
    void* event = t->written;
    if (!event || (host && t->host != host)) continue;
    t->written = NULL;
    status = await_event(p, event, step);
  }
  return status;
}

static coexec_status carry(runnable* p, const operation* op) {
  transfer* t = &p->transfers[op->first];
  void* event = NULL;
  int32_t error = 0;
  if (op->last == TO_GPU) {
    if (!t->is_shared) error = copy_part(p, t, 0, &t->written);
  } else {
    event = t->read;
    t->read = NULL;
    if (!event && !t->is_shared) error = copy_part(p, t, 1, &event);
  }
  if (!error) return event ? await_event(p, event, op->step) : COEXEC_OK;
  if (event) p->device->cl.release_event(event);
  return opencl_failed(p, op->step, error);
}

static coexec_status call(runnable* p, const operation* op) {
  thread_pool* pool = p->device->pool;
  coexec_status status = p->transfers ? await_writes(p, p->transfers[op->step - 1].host, op->step) : COEXEC_OK;
  if (status) return status;
  for (int32_t i = op->first; i < op->last; ++i) {
    const kernel_call* c = &p->calls[i];
    int is_shared = c->threads > 1;
    if (is_shared ? call_in_pool(pool, c) : call_kernel(c, c->begin, c->count)) {
      if (is_shared) copy_pool_error(pool, p->text);
      else copy_kernel_error(p->text);
      return failed(p, COEXEC_KERNEL_FAILED, op->step);
    }
  }
  return COEXEC_OK;
}

static coexec_status operate(runnable* p, const operation* op) {
  switch (op->kind) {
    case COEXEC_ENQUEUE: return enqueue(p, op);
    case COEXEC_CALL: return call(p, op);
    case COEXEC_WAIT: return wait_for_gpu(p, op);
    case COEXEC_TRANSFER: return carry(p, op);
    default: /* COEXEC_SIGNAL: release, so that who acquires the step's number sees what the CPU has computed */
      atomic_store_explicit(flag(p, FLAG_CPU_DONE), op->step, memory_order_release);
      return COEXEC_OK;
  }
}

/* After an error: let go of what nobody awaits any more. */
static void drop_copies(runnable* p) {
  for (int32_t i = 0; i < p->transfer_count; ++i) {
    transfer* t = &p->transfers[i];
    if (t->read) p->device->cl.release_event(t->read);
    if (t->written) p->device->cl.release_event(t->written);
    t->read = t->written = NULL;
  }
}

/* A kernel that is well may take longer than a short bound on waits, and a device that hangs is of no more use. */
int64_t drain_bound_ns(int64_t timeout_ns) { return timeout_ns > LEAST_DRAIN_NS ? timeout_ns : LEAST_DRAIN_NS; }

/* Whether a marker behind all that was queued has been reached; it is queued as soon as the driver takes it, which it may
   refuse at first for the same reason as what failed. */
static int is_reached(runnable* p, void** marker) {
  const opencl* cl = &p->device->cl;
  int32_t state = 1;
  if (!*marker && (cl->marker(p->queue, 0, NULL, marker) || cl->flush(p->queue))) return 0;
  return !cl->event_info(*marker, CL_EVENT_STATUS, sizeof state, &state, NULL) && state <= CL_STATUS_COMPLETE;
}

/* After an error: let the GPU's waits fall through, and see the queue empty. What is left in it would else write results
   and flags of the next run. */
static coexec_status drain(runnable* p, coexec_status status) {
  void* marker = NULL;
  bound end = {0};
  if (p->flags) atomic_store_explicit(flag(p, FLAG_ABORT), 1, memory_order_release);
  while (p->queue && !is_reached(p, &marker)) {
    relax(0, 1);
    if (is_over(&end, drain_bound_ns(p->timeout_ns))) {
      status = COEXEC_GPU_HANGS;
      break;
    }
  }
  if (marker) p->device->cl.release_event(marker);
  return status;
}

int move_to_first_core(const coexec_device* d, cpu_set_t* before) {
  cpu_set_t wanted;
  if (!d->core_count || sched_getaffinity(0, sizeof *before, before)) return 0;
  CPU_ZERO(&wanted);
  CPU_SET((size_t)d->cores[0], &wanted);
  return !CPU_EQUAL(before, &wanted) && !sched_setaffinity(0, sizeof wanted, &wanted);
}

/* The clock and the processor's counter at one moment: once more where the thread was interrupted between them. */
static void read_clocks(int64_t* ns, uint64_t* ticks) {
  int tries = 0;
  do {
    *ns = now_ns();
    *ticks = now_ticks();
  } while (now_ns() - *ns > 1000 && ++tries < 8);
}

static coexec_status run_operations(runnable* p) {
  coexec_status status = COEXEC_OK;
  for (int32_t i = 0; !status && i < p->operation_count; ++i) {
    p->operation_ns[2 * i] = now_ns() - p->start_ns;
    status = operate(p, &p->operations[i]);
    p->operation_ns[2 * i + 1] = now_ns() - p->start_ns;
    if (!status && p->operations[i].kind == COEXEC_WAIT) learn_gpu_time(p, i);
  }
  if (!status) status = await_writes(p, NULL, 0);
  if (!status) return COEXEC_OK;
  drop_copies(p);
  return drain(p, status);
}

coexec_status run_once(runnable* p) {
  cpu_set_t before;
  p->opencl_error = p->failed_step = 0;
  p->text[0] = 0;
  p->displaced_ns = p->napped_ns = p->late_ns = p->both_done_ns = 0;
  int slack_ns = make_naps_punctual(p);
  int was_moved = move_to_first_core(p->device, &before);
  use_workspace(p->workspaces);
  if (p->threads > 1) wake_pool(p->device->pool, p->workspaces, p->threads);
  if (p->flags) clear_flags(p->flags);
  if (p->flags) begin_to_look(p);
  read_clocks(&p->start_ns, &p->start_ticks);
  coexec_status status = run_operations(p);
  read_clocks(&p->end_ns, &p->end_ticks);
  if (p->flags) look_for_others(p);
  set_back_slack(slack_ns);
  if (!status) p->has_run = 1;
  if (p->launch_count) linger(p);
  if (p->threads > 1) rest_pool(p->device->pool);
  p->device->shared_calls = p->threads > 1;
  p->device->ran_on = sched_getcpu();
  use_workspace(NULL);
  if (was_moved) sched_setaffinity(0, sizeof before, &before);
  return status;
}
