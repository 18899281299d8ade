#include "program.h"

enum { ROW_BEGIN_TICKS = 5, ROW_END_TICKS = 6 };

static int64_t time_of(const coexec_program* p, int32_t launch, uint32_t what, int32_t* error) {
  uint64_t ns = 0;
  int32_t found = p->module->device->cl.event_times(p->run.events[launch], what, sizeof ns, &ns, NULL);
  if (found) *error = found;
  return (int64_t)ns;
}

/* What has to be taken from an event's times: the first command was queued when its operation began. */
static int64_t events_begin(const coexec_program* p, int32_t* error) {
  for (int32_t i = 0; i < p->run.operation_count; ++i)
    if (p->operations[i].kind == COEXEC_ENQUEUE)
      return time_of(p, 0, CL_TIME_QUEUED, error) - p->run.operation_ns[2 * i];
  return 0;
}

/* Chained kernels say themselves when they began, which is when what they await is there; for others it is their
   event. */
static int32_t fill_gpu(const coexec_program* p, coexec_span* spans) {
  const runnable* r = &p->run;
  int32_t error = 0;
  int64_t begin_ns = r->launch_count ? events_begin(p, &error) : 0;
  double ns_per_tick = r->end_ticks > r->start_ticks
                           ? (double)(r->end_ns - r->start_ns) / (double)(r->end_ticks - r->start_ticks)
                           : 0;
  for (int32_t i = 0; i < p->low.command_count; ++i) {
    const command* c = &p->low.commands[i];
    spans[i] = (coexec_span){1, c->kind, c->step, c->awaited, 0, 0};
    if (is_row(p, c)) {
      const uint64_t* row = row_of(p, i);
      spans[i].start_ns = (int64_t)((double)(int64_t)(row[ROW_BEGIN_TICKS] - r->start_ticks) * ns_per_tick);
      spans[i].end_ns = (int64_t)((double)(int64_t)(row[ROW_END_TICKS] - r->start_ticks) * ns_per_tick);
    } else {
      spans[i].start_ns = time_of(p, p->launched_as[i], CL_TIME_START, &error) - begin_ns;
      spans[i].end_ns = time_of(p, p->launched_as[i], CL_TIME_END, &error) - begin_ns;
    }
  }
  return error;
}

static coexec_status fill_spans(coexec_program* p, coexec_span* spans) {
  coexec_device* d = p->module->device;
  for (int32_t i = 0; i < p->low.operation_count; ++i) {
    const operation* op = &p->low.operations[i];
    spans[i] = (coexec_span){0, op->kind, op->step, 0, p->run.operation_ns[2 * i], p->run.operation_ns[2 * i + 1]};
  }
  if (!p->has_timeline || !p->low.command_count) return COEXEC_OK;
  int32_t error = d->cl.finish(d->timing_queue);
  if (!error) error = fill_gpu(p, spans + p->low.operation_count);
  return error ? fail(COEXEC_OPENCL_FAILED, "%s tells no times of its commands (OpenCL error %d)", d->name, (int)error)
               : COEXEC_OK;
}

static int32_t span_count(const coexec_program* p) {
  return p->low.operation_count + (p->has_timeline ? p->low.command_count : 0);
}

/* The patient form enqueues before every part, and has two commands where another has a signal and a wait in one. */
static int32_t most_spans(const coexec_program* p) {
  int32_t both = 0;
  for (int32_t i = 0; p->has_timeline && i < p->low.command_count; ++i)
    both += p->low.commands[i].kind == COEXEC_SIGNAL_WAIT;
  return span_count(p) + p->part_count + both;
}

coexec_status coexec_spans(coexec_program* p, coexec_span* spans, int32_t capacity, int32_t* count) {
  coexec_status status = enter_device(p->module->device);
  if (status) return status;
  p = p->last;
  *count = span_count(p);
  if (capacity < *count) status = fail(COEXEC_BAD_ARGUMENT, "there are %d spans, for which there is no room", (int)*count);
  else if (!p->has_run) status = fail(COEXEC_BAD_ARGUMENT, "the program has not run, or its last run failed");
  else status = fill_spans(p, spans);
  leave_device(p->module->device);
  return status;
}

void coexec_describe_program(const coexec_program* p, coexec_program_facts* facts) {
  *facts = (coexec_program_facts){count_syncs(&p->low), 1, most_spans(p)};
  for (int32_t i = 0; i < p->low.command_count; ++i) facts->timeline_is_faithful &= p->low.commands[i].kind == COEXEC_KERNEL;
}
