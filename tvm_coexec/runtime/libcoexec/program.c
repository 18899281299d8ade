#include "program.h"

#include <stdio.h>

#include <stdlib.h>
#include <string.h>

enum { ROW_CASE = 0, ROW_AWAITED, ROW_DONE, ROW_COLUMNS, ROW_LINES }; /* words of a row of the table */

/* ---- parts ---- */

coexec_status check_split(const coexec_module* m, int32_t step, int32_t cpu_units) {
  const coexec_step_record* s = &m->file.steps[step];
  if (cpu_units >= 0 && cpu_units <= (int32_t)s->units) return COEXEC_OK;
  return fail(COEXEC_BAD_ARGUMENT, "layer '%s' has %u units; the CPU cannot compute %d of them", string_of(m, s->name),
              (unsigned)s->units, (int)cpu_units);
}

static coexec_status check_part(const coexec_module* m, const coexec_part* part) {
  if (part->step < 0 || (uint64_t)part->step >= m->file.step_count)
    return fail(COEXEC_BAD_ARGUMENT, "the module has no step %d", (int)part->step);
  const coexec_step_record* s = &m->file.steps[part->step];
  const char* name = string_of(m, s->name);
  if (part->cpu_units < 0 || part->gpu_units < 0 || (int64_t)part->cpu_units + part->gpu_units > (int64_t)s->units)
    return fail(COEXEC_BAD_ARGUMENT, "layer '%s' has %u units; the CPU cannot compute %d of them and the GPU %d", name,
                (unsigned)s->units, (int)part->cpu_units, (int)part->gpu_units);
  if (part->cpu_units && !s->cpu_launch_count)
    return fail(COEXEC_KERNEL_FAILED, "layer '%s' was built without a CPU half; build it with another split", name);
  if (part->gpu_units && !s->gpu_launch_count)
    return fail(COEXEC_KERNEL_FAILED, "layer '%s' was built without a GPU half; build it with another split", name);
  if (part->gpu_units && m->device->mechanism == COEXEC_CPU_ONLY)
    return fail(COEXEC_BAD_ARGUMENT, "layer '%s' cannot be divided: there is no OpenCL device", name);
  return COEXEC_OK;
}

/* Whether all kernels of a step's half have entries of that kind or of one behind it. */
static int all_have(const coexec_module* m, const coexec_step_record* s, uint32_t entry) {
  for (uint32_t i = 0; i < s->gpu_launch_count; ++i)
    if (m->file.launches[s->gpu_launch + i].entry < entry) return 0;
  return uses_steps(m);
}

/* Returns whether the part's kernels are all chained, of which there may be none. */
static int fill_work(coexec_program* p, int32_t number, const coexec_part* part, int is_chain) {
  const coexec_module* m = p->module;
  const coexec_step_record* s = p->steps[number] = &m->file.steps[part->step];
  int chained = !part->gpu_units || all_have(m, s, COEXEC_ENTRY_CHAINED);
  work* w = &p->works[number];
  *w = (work){.cpu_units = part->cpu_units,
              .gpu_units = part->gpu_units,
              .cpu_launches = part->cpu_units ? (int32_t)s->cpu_launch_count : 0,
              .gpu_launches = part->gpu_units ? (int32_t)s->gpu_launch_count : 0,
              .axis = s->axis,
              /* in a chain the other parts' outputs are what the next one reads */
              .is_output = number == p->part_count - 1 || (s->is_output && !is_chain)};
  /* an event of a kernel by itself must not hold its wait */
  w->steps_itself = part->gpu_units && (chained || !p->has_timeline) && all_have(m, s, COEXEC_ENTRY_STEP);
  if (!is_chain) {
    w->reads = m->file.reads + s->first_read;
    w->read_count = (int32_t)s->read_count;
  } else if (number) {
    p->chain_reads[number] = (coexec_read_record){(uint32_t)number, 0};
    w->reads = &p->chain_reads[number];
    w->read_count = 1;
  }
  return chained;
}

/* ---- launches ---- */

const coexec_launch_record* launch_of(const coexec_program* p, const command* c) {
  return &p->module->file.launches[p->steps[c->step - 1]->gpu_launch + (uint32_t)c->launch];
}

int is_row(const coexec_program* p, const command* c) {
  return c->kind == COEXEC_KERNEL && is_chained(p->module, launch_of(p, c));
}

uint64_t* row_of(const coexec_program* p, int32_t command) {
  return (uint64_t*)(void*)p->table.host + (size_t)command * p->module->file.facts->chain_row_words;
}

static void fill_row(coexec_program* p, int32_t number) {
  const coexec_module* m = p->module;
  const command* c = &p->low.commands[number];
  const coexec_launch_record* l = launch_of(p, c);
  int32_t units = p->works[c->step - 1].gpu_units;
  uint64_t* row = row_of(p, number);
  size_t grid[2];
  grid_of(l, units, grid);
  row[ROW_CASE] = l->chained;
  row[ROW_AWAITED] = (uint64_t)c->awaited;
  row[ROW_DONE] = (uint64_t)c->done;
  row[ROW_COLUMNS] = grid[0];
  row[ROW_LINES] = grid[1];
  uint64_t* argument = row + COEXEC_CHAIN_HEAD_WORDS;
  for (uint32_t i = 0; i < l->argument_count; ++i)
    *argument++ = (uintptr_t)m->blocks[m->file.arguments[l->first_argument + i].block].host;
  argument[0] = 0;
  argument[1] = (uint64_t)units;
}

static void keep_kernel(coexec_program* p, void* kernel) { p->kernels[p->kernel_count++] = kernel; }

/* One launch for the commands [first, last), all of which are rows of the table. */
static coexec_status launch_rows(coexec_program* p, int32_t first, int32_t last) {
  void* kernel;
  coexec_status status = chain_kernel(p->module, &p->table, first, last, &kernel);
  if (status) return status;
  keep_kernel(p, kernel);
  for (int32_t number = first; number < last; ++number) {
    fill_row(p, number);
    p->launched_as[number] = p->run.launch_count;
  }
  p->launches[p->run.launch_count++] = (gpu_launch){kernel, {1, 1}, {1, 1}};
  return COEXEC_OK;
}

/* A command before that agrees with one in all arguments of its kernel; or NULL. */
static const gpu_launch* same_as(const coexec_program* p, int32_t number) {
  const command* c = &p->low.commands[number];
  for (int32_t i = number - 1; i >= 0; --i) {
    const command* o = &p->low.commands[i];
    if (o->kind != COEXEC_KERNEL || o->awaited != c->awaited || o->done != c->done || is_row(p, o)) continue;
    if (launch_of(p, o) == launch_of(p, c) && p->works[o->step - 1].gpu_units == p->works[c->step - 1].gpu_units)
      return &p->launches[p->launched_as[i]];
  }
  return NULL;
}

static coexec_status launch_command(coexec_program* p, int32_t number) {
  const command* c = &p->low.commands[number];
  gpu_launch* made = &p->launches[p->run.launch_count];
  coexec_status status = COEXEC_OK;
  *made = (gpu_launch){NULL, {1, 1}, {1, 1}};
  if (c->kind == COEXEC_KERNEL) {
    const coexec_launch_record* l = launch_of(p, c);
    const gpu_launch* same = same_as(p, number);
    int32_t units = p->works[c->step - 1].gpu_units;
    if (same) *made = *same;
    else status = layer_kernel(p->module, l, units, c->awaited, c->done, &made->kernel);
    if (!status && !same) keep_kernel(p, made->kernel);
    grid_of(l, units, made->global);
    for (int axis = 0; axis < 2; ++axis) made->global[axis] *= made->local[axis] = l->group[axis];
  } else {
    status = flag_kernel(p->module, c->kind, c->step, c->done, &made->kernel);
    if (!status) keep_kernel(p, made->kernel);
  }
  p->launched_as[number] = p->run.launch_count++;
  return status;
}

/* Let an operation enqueue launches instead of commands: one for all neighbours that are rows of the table. */
static coexec_status launch_commands(coexec_program* p, operation* op) {
  int32_t first = p->run.launch_count;
  coexec_status status = COEXEC_OK;
  for (int32_t number = op->first; !status && number < op->last;) {
    int32_t end = number;
    while (end < op->last && is_row(p, &p->low.commands[end])) ++end;
    if (end > number) status = launch_rows(p, number, end);
    else status = launch_command(p, end++);
    number = end;
  }
  op->first = first;
  op->last = p->run.launch_count;
  return status;
}

static coexec_status make_launches(coexec_program* p) {
  static const size_t nothing = 0;
  coexec_status status = COEXEC_OK;
  int has_rows = 0;
  for (int32_t i = 0; i < p->low.command_count; ++i) has_rows |= is_row(p, &p->low.commands[i]);
  p->table.bytes = (size_t)p->low.command_count * p->module->file.facts->chain_row_words * sizeof(uint64_t);
  if (has_rows) status = allocate_blocks(p->module->device, &p->table, 1, &nothing);
  for (int32_t i = 0; !status && i < p->low.operation_count; ++i) {
    p->operations[i] = p->low.operations[i];
    if (p->operations[i].kind == COEXEC_ENQUEUE) status = launch_commands(p, &p->operations[i]);
  }
  return status;
}

/* Threads that compute the CPU's half of a part: those that the module names, as far as the device has cores. */
static int32_t threads_of(const coexec_program* p, int32_t part) {
  uint32_t named = p->steps[part]->cpu_threads;
  int32_t cores = p->module->device->core_count;
  if (cores < 2) return 1;
  return named && named < (uint32_t)cores ? (int32_t)named : cores;
}

/* A half of few units has no work for more threads. */
static void fill_calls(coexec_program* p) {
  int32_t next = 0;
  p->run.threads = 1;
  for (int32_t i = 0; i < p->part_count; ++i) {
    int32_t units = p->works[i].cpu_units, threads = threads_of(p, i);
    if (threads > units) threads = units;
    if (threads > p->run.threads) p->run.threads = threads;
    for (int32_t launch = 0; launch < p->works[i].cpu_launches; ++launch) {
      uint32_t number = p->steps[i]->cpu_launch + (uint32_t)launch;
      const cpu_kernel* kernel = &p->module->kernels[number];
      p->calls[next++] = (kernel_call){kernel->function, kernel->arguments,
                                       (int32_t)p->module->file.launches[number].argument_count + 2,
                                       p->works[i].gpu_units, units, threads};
    }
  }
}

/* ---- the whole ---- */

static coexec_status no_memory(void) { return fail(COEXEC_NO_MEMORY, "there is no memory for a program"); }

static coexec_status allocate_parts(coexec_program* p) {
  size_t parts = (size_t)p->part_count;
  p->steps = calloc(parts, sizeof *p->steps);
  p->works = calloc(parts, sizeof *p->works);
  p->chain_reads = calloc(parts, sizeof *p->chain_reads);
  return p->steps && p->works && p->chain_reads ? COEXEC_OK : no_memory();
}

static coexec_status allocate_arrays(coexec_program* p) {
  size_t operations = (size_t)p->low.operation_count + 1, commands = (size_t)p->low.command_count + 1;
  size_t threads = p->module->device->core_count > 1 ? (size_t)p->module->device->core_count : 1;
  p->operations = calloc(operations, sizeof *p->operations);
  p->launches = calloc(commands, sizeof *p->launches);
  p->launched_as = calloc(commands, sizeof *p->launched_as);
  p->kernels = calloc(commands + 1, sizeof *p->kernels);
  p->calls = calloc((size_t)p->low.call_count + 1, sizeof *p->calls);
  p->transfers = calloc((size_t)p->part_count + p->module->file.input_count, sizeof *p->transfers);
  p->run.operation_ns = calloc(2 * operations, sizeof *p->run.operation_ns);
  p->run.gpu_ns = calloc(operations, sizeof *p->run.gpu_ns);
  p->run.workspaces = calloc(threads, sizeof *p->run.workspaces);
  if (p->has_timeline) p->run.events = calloc(commands, sizeof *p->run.events);
  return p->operations && p->launches && p->launched_as && p->kernels && p->calls && p->transfers &&
                 p->run.operation_ns && p->run.gpu_ns && p->run.workspaces && (p->run.events || !p->has_timeline)
             ? COEXEC_OK
             : no_memory();
}

static coexec_status fill_runnable(coexec_program* p) {
  coexec_module* m = p->module;
  runnable* r = &p->run;
  coexec_status status = COEXEC_OK;
  r->device = m->device;
  r->operations = p->operations;
  r->operation_count = p->low.operation_count;
  r->launches = p->launches;
  r->calls = p->calls;
  if (m->device->mechanism == COEXEC_EVENT) {
    r->transfers = p->transfers;
    r->transfer_count = p->part_count + (int32_t)m->file.input_count;
  }
  r->queue = p->has_timeline ? m->device->timing_queue : m->device->queue;
  r->flags = words_of(&m->flags);
  r->timeout_ns = m->timeout_ns;
  r->yields = m->yields;
  if (uses_flags(m) && !m->yields) status = linger_kernel(m, &r->linger);
  if (r->linger) keep_kernel(p, r->linger);
  return status;
}

static coexec_status fill_program(coexec_program* p, const coexec_part* parts) {
  coexec_device* device = p->module->device;
  int chains = 1;
  coexec_status status = allocate_parts(p);
  for (int32_t i = 0; !status && i < p->part_count; ++i) {
    status = check_part(p->module, &parts[i]);
    if (!status && !fill_work(p, i, &parts[i], p->flags & COEXEC_CHAIN)) chains = 0;
  }
  if (!status)
    status = lower(p->works, p->part_count, device->mechanism != COEXEC_EVENT, (int32_t)p->module->file.input_count,
                   p->is_patient ? ENQUEUE_READY : chains ? ENQUEUE_CHAINED : ENQUEUE_AHEAD, &p->low);
  if (!status) status = allocate_arrays(p);
  if (!status) status = make_launches(p);
  if (!status && device->mechanism == COEXEC_EVENT) fill_transfers(p);
  if (!status && p->has_timeline && device->mechanism != COEXEC_CPU_ONLY) status = need_timing_queue(device);
  if (status) return status;
  fill_calls(p);
  if (p->run.threads > 1) status = need_pool(device);
  return status ? status : fill_runnable(p);
}

static coexec_status new_program(coexec_module* m, const coexec_part* parts, int32_t count, int32_t flags,
                                 int is_patient, coexec_program** program) {
  coexec_program* p = calloc(1, sizeof *p);
  if (!p) return no_memory();
  p->module = m;
  p->part_count = count;
  p->flags = flags;
  p->has_timeline = (flags & COEXEC_TIMELINE) != 0;
  p->is_patient = is_patient;
  p->last = p;
  coexec_status status = fill_program(p, parts);
  if (status) free_program(p);
  else *program = p;
  return status;
}

coexec_status make_program(coexec_module* m, const coexec_part* parts, int32_t count, int32_t flags,
                           coexec_program** program) {
  if (count < 1 || !parts || flags & ~(COEXEC_TIMELINE | COEXEC_CHAIN))
    return fail(COEXEC_BAD_ARGUMENT, "a program needs at least one part");
  if (!(flags & COEXEC_CHAIN) && (uint64_t)count != m->file.step_count)
    return fail(COEXEC_BAD_ARGUMENT, "the module has %llu steps, and so must a program that is no chain",
                (unsigned long long)m->file.step_count);
  for (int32_t i = 0; !(flags & COEXEC_CHAIN) && i < count; ++i)
    if (parts[i].step != i)
      return fail(COEXEC_BAD_ARGUMENT, "the parts of a program that is no chain are the module's steps, in order");
  return new_program(m, parts, count, flags, 0, program);
}

coexec_status make_patient(coexec_program* p) {
  coexec_part* parts = calloc((size_t)p->part_count, sizeof *parts);
  if (!parts) return no_memory();
  for (int32_t i = 0; i < p->part_count; ++i)
    parts[i] = (coexec_part){(int32_t)(p->steps[i] - p->module->file.steps), p->works[i].cpu_units, p->works[i].gpu_units};
  coexec_status status = new_program(p->module, parts, p->part_count, p->flags, 1, &p->patient);
  free(parts);
  return status;
}

coexec_status make_network(coexec_module* m, int32_t flags, coexec_program** program) {
  coexec_program** kept = &m->programs[(flags & COEXEC_TIMELINE) != 0];
  coexec_status status = COEXEC_OK;
  if (!*kept) {
    coexec_part* parts = calloc(m->file.step_count, sizeof *parts);
    if (!parts) return no_memory();
    for (uint64_t i = 0; i < m->file.step_count; ++i)
      parts[i] = (coexec_part){(int32_t)i, m->splits[i], (int32_t)m->file.steps[i].units - m->splits[i]};
    status = make_program(m, parts, (int32_t)m->file.step_count, flags & COEXEC_TIMELINE, kept);
    free(parts);
  }
  if (!status) *program = *kept;
  return status;
}

void drop_events(coexec_program* p) {
  for (int32_t i = 0; p->run.events && i < p->run.launch_count; ++i)
    if (p->run.events[i]) {
      p->module->device->cl.release_event(p->run.events[i]);
      p->run.events[i] = NULL;
    }
}

/* A launch that is done with its work may still read its table: the queue ends before that is freed. */
void free_program(coexec_program* p) {
  coexec_device* d = p->module->device;
  if (p->patient) free_program(p->patient);
  drop_events(p);
  if (p->table.host && !d->hangs) {
    d->cl.finish(p->has_timeline ? d->timing_queue : d->queue);
    release_blocks(d, &p->table, 1);
  }
  for (int32_t i = 0; i < p->kernel_count; ++i) d->cl.release_kernel(p->kernels[i]);
  size_t threads = d->core_count > 1 ? (size_t)d->core_count : 1;
  for (size_t i = 0; p->run.workspaces && i < threads; ++i) release_workspace(&p->run.workspaces[i]);
  release_lowered(&p->low);
  free(p->steps);
  free(p->works);
  free(p->chain_reads);
  free(p->operations);
  free(p->launches);
  free(p->launched_as);
  free(p->calls);
  free(p->transfers);
  free(p->kernels);
  free(p->run.operation_ns);
  free(p->run.gpu_ns);
  free(p->run.workspaces);
  free(p->run.events);
  free(p);
}

void drop_programs(coexec_module* m) {
  for (int i = 0; i < 2; ++i) {
    if (m->programs[i]) free_program(m->programs[i]);
    m->programs[i] = NULL;
  }
}

size_t held_by_threads(const coexec_program* p) {
  size_t bytes = 0, threads = p->module->device->core_count > 1 ? (size_t)p->module->device->core_count : 1;
  for (size_t i = 0; i < threads; ++i) bytes += workspace_bytes(&p->run.workspaces[i]);
  return p->patient ? bytes + held_by_threads(p->patient) : bytes;
}
