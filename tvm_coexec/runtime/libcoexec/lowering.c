#include "lowering.h"

#include <stdlib.h>
#include <string.h>

/* Steps whose GPU commands are enqueued before the CPU half of the current one: enough to keep the queue from idling,
   few enough that the CPU's first half starts at once. */
enum { LOOKAHEAD = 2 };

typedef enum { ON_CPU, ON_GPU } side;

/* What lowering finds out about each step, at its number. */
typedef struct {
  int32_t *waits[2];   /* by the side that waits: the other side's step that it waits for before its own; or 0 */
  int32_t *is_awaited[2]; /* whether the side that has to wait awaits this step of the other */
  int32_t* ends;       /* commands up to the step's end */
  int32_t* together;   /* the last step up to which the commands are enqueued with this one's */
} findings;

/* ---- which steps wait for which ---- */

/* Whether the half of one side reads what the other side's half wrote, or overwrites what it used. */
static int needs_other(side waiting, const work* reader, const work* writer, const coexec_read_record* read) {
  int local = reader->axis == writer->axis && (read->local >> reader->axis & 1);
  if (waiting == ON_CPU)
    return reader->cpu_units && writer->gpu_units && (!local || reader->gpu_units < writer->gpu_units);
  return reader->gpu_units && writer->cpu_units && (!local || reader->gpu_units > writer->gpu_units);
}

/* For each step before which a side has to wait: the other side's step that it waits for. A side that has waited for
   one knows that all before are done. */
static void find_waits(const work* works, int32_t count, side waiting, int32_t* waits, int32_t* is_awaited) {
  int32_t known = 0;
  for (int32_t number = 1; number <= count; ++number) {
    const work* reader = &works[number - 1];
    int32_t needed = 0;
    for (int32_t i = 0; i < reader->read_count; ++i) {
      const coexec_read_record* read = &reader->reads[i];
      if ((int32_t)read->step > needed && needs_other(waiting, reader, &works[read->step - 1], read))
        needed = (int32_t)read->step;
    }
    if (needed <= known) continue;
    waits[number] = known = needed;
    is_awaited[needed] = 1;
  }
}

/* ---- the two programs ---- */

static void operate(lowered* l, int32_t kind, int32_t step, int32_t first, int32_t last) {
  l->operations[l->operation_count++] = (operation){kind, step, first, last};
}

static void enqueue(lowered* l, int32_t step, int32_t first, int32_t last) {
  if (last > first) operate(l, COEXEC_ENQUEUE, step, first, last);
}

static void call(lowered* l, int32_t step, const work* work) {
  operate(l, COEXEC_CALL, step, l->call_count, l->call_count + work->cpu_launches);
  l->call_count += work->cpu_launches;
}

/* The first kernel awaits, the last one reports. */
static void add_kernels(lowered* l, int32_t number, const work* work, int32_t awaited, int32_t done) {
  int32_t last = work->gpu_launches - 1;
  for (int32_t launch = 0; launch <= last; ++launch)
    l->commands[l->command_count++] =
        (command){COEXEC_KERNEL, number, launch == last ? done : 0, launch, launch ? 0 : awaited};
}

/* One command instead of two behind a signal, if both are enqueued at once. */
static void add_wait(lowered* l, int32_t awaited, int when) {
  command* before = l->command_count && when != ENQUEUE_READY ? &l->commands[l->command_count - 1] : NULL;
  if (before && before->kind == COEXEC_SIGNAL) *before = (command){COEXEC_SIGNAL_WAIT, awaited, before->done, 0, 0};
  else l->commands[l->command_count++] = (command){COEXEC_WAIT, awaited, 0, 0, 0};
}

/* The GPU's commands, and for each step how many there are up to its end. */
static void add_commands(const work* works, int32_t count, int32_t last_gpu, int when, const findings* f,
                         lowered* l) {
  for (int32_t number = 1; number <= count; ++number) {
    const work* work = &works[number - 1];
    int32_t awaited = f->waits[ON_GPU][number];
    int32_t done = f->is_awaited[ON_CPU][number] || number == last_gpu ? number : 0;
    if (work->gpu_units && work->steps_itself) {
      add_kernels(l, number, work, awaited, done);
    } else if (work->gpu_units) {
      if (awaited) add_wait(l, awaited, when);
      add_kernels(l, number, work, 0, 0);
      if (done) l->commands[l->command_count++] = (command){COEXEC_SIGNAL, number, number, 0, 0};
    }
    f->ends[number] = l->command_count;
  }
}

/* Not across many steps of the CPU alone: the GPU would wait for all of these, and its waits are bounded. */
static void find_together(const work* works, int32_t count, int chains, int32_t* together) {
  int32_t following = 0;
  for (int32_t number = count; number; --number) {
    together[number] = number;
    if (!chains || !works[number - 1].gpu_units) continue;
    if (following && following - number <= LOOKAHEAD + 1) together[number] = together[following];
    following = number;
  }
  for (int32_t number = 2; number <= count; ++number)
    if (together[number] < together[number - 1]) together[number] = together[number - 1];
}

/* The commands up to which are enqueued before the CPU's half of a step, when all before that is done. */
static int32_t find_end(const findings* f, int32_t count, int32_t number, int when) {
  if (when != ENQUEUE_READY) return f->ends[f->together[number + LOOKAHEAD < count ? number + LOOKAHEAD : count]];
  int32_t last = number;
  while (last < count && f->waits[ON_GPU][last + 1] < number) ++last;
  return f->ends[last];
}

static void lower_flags(const work* works, int32_t count, int when, const findings* f, lowered* l) {
  int32_t last_gpu = 0, enqueued = 0;
  for (int32_t number = 1; number <= count; ++number)
    if (works[number - 1].gpu_units) last_gpu = number;
  find_waits(works, count, ON_CPU, f->waits[ON_CPU], f->is_awaited[ON_CPU]);
  find_waits(works, count, ON_GPU, f->waits[ON_GPU], f->is_awaited[ON_GPU]);
  add_commands(works, count, last_gpu, when, f, l);
  find_together(works, count, when == ENQUEUE_CHAINED, f->together);
  for (int32_t number = 1; number <= count; ++number) {
    int32_t end = find_end(f, count, number, when);
    enqueue(l, number, enqueued, end);
    if (end > enqueued) enqueued = end;
    if (!works[number - 1].cpu_units) continue;
    if (f->waits[ON_CPU][number]) operate(l, COEXEC_WAIT, f->waits[ON_CPU][number], 0, 0);
    call(l, number, &works[number - 1]);
    if (f->is_awaited[ON_GPU][number]) operate(l, COEXEC_SIGNAL, number, 0, 0);
  }
  if (last_gpu && !f->is_awaited[ON_CPU][last_gpu]) operate(l, COEXEC_WAIT, last_gpu, 0, 0);
}

/* To whom what a step computes has to travel: to a side that needs of it what the other side has computed. */
static void find_crossing(const work* works, int32_t count, int32_t* crosses) {
  for (int32_t number = 1; number <= count; ++number) {
    const work* reader = &works[number - 1];
    if (reader->is_output && reader->gpu_units) crosses[number] |= TO_CPU;
    for (int32_t i = 0; i < reader->read_count; ++i) {
      const coexec_read_record* read = &reader->reads[i];
      const work* writer = &works[read->step - 1];
      if (needs_other(ON_CPU, reader, writer, read)) crosses[read->step] |= TO_CPU;
      if (needs_other(ON_GPU, reader, writer, read)) crosses[read->step] |= TO_GPU;
    }
  }
}

/* Transfers of each step that the other side awaits, to the GPU as soon as the CPU's half is done, to the CPU before its
   next one. Unlike a flag, a transfer makes only its own tensor visible, so that every tensor that crosses has one. The
   next step's commands are enqueued between the two: where the GPU is still at its half, its queue does not fall asleep
   meanwhile, and nobody waits for it to wake up. */
static void lower_transfers(const work* works, int32_t count, int32_t inputs, const findings* f, lowered* l) {
  int32_t* crosses = f->is_awaited[ON_CPU];
  int uses_gpu = 0;
  find_crossing(works, count, crosses);
  for (int32_t number = 1; number <= count; ++number) uses_gpu |= works[number - 1].gpu_units > 0;
  for (int32_t input = 0; uses_gpu && input < inputs; ++input) operate(l, COEXEC_TRANSFER, 0, count + input, TO_GPU);
  for (int32_t number = 1; number <= count; ++number) {
    const work* work = &works[number - 1];
    int32_t first = l->command_count;
    if (work->gpu_units) add_kernels(l, number, work, 0, 0);
    enqueue(l, number, first, l->command_count);
    if (crosses[number - 1] & TO_CPU) operate(l, COEXEC_TRANSFER, number - 1, number - 2, TO_CPU);
    if (work->cpu_units) call(l, number, work);
    if (crosses[number] & TO_GPU) operate(l, COEXEC_TRANSFER, number, number - 1, TO_GPU);
  }
  if (crosses[count] & TO_CPU) operate(l, COEXEC_TRANSFER, count, count - 1, TO_CPU);
}

coexec_status lower(const work* works, int32_t count, int with_flags, int32_t inputs, int when, lowered* result) {
  size_t places = (size_t)count + 1, launches = 0;
  int32_t* memory = calloc(6 * places, sizeof *memory);
  findings f = {{memory, memory + places},
                {memory + 2 * places, memory + 3 * places},
                memory + 4 * places,
                memory + 5 * places};
  memset(result, 0, sizeof *result);
  for (int32_t i = 0; i < count; ++i) launches += (size_t)works[i].gpu_launches;
  result->operations = calloc(4 * places + (size_t)inputs, sizeof *result->operations);
  result->commands = calloc(launches + 2 * places, sizeof *result->commands);
  if (!memory || !result->operations || !result->commands) {
    free(memory);
    release_lowered(result);
    return fail(COEXEC_NO_MEMORY, "there is no memory for a program of %d steps", (int)count);
  }
  if (with_flags) lower_flags(works, count, when, &f, result);
  else lower_transfers(works, count, inputs, &f, result);
  free(memory);
  return COEXEC_OK;
}

void release_lowered(lowered* result) {
  free(result->operations);
  free(result->commands);
  memset(result, 0, sizeof *result);
}

/* A tensor that travels both ways does so at one point. */
int32_t count_syncs(const lowered* l) {
  int32_t syncs = 0, sent = 0;
  for (int32_t i = 0; i < l->operation_count; ++i) {
    const operation* op = &l->operations[i];
    if (op->kind == COEXEC_WAIT) ++syncs;
    if (op->kind != COEXEC_TRANSFER) continue;
    syncs += op->last == TO_GPU || op->step != sent;
    if (op->last == TO_GPU) sent = op->step;
  }
  for (int32_t i = 0; i < l->command_count; ++i)
    syncs += l->commands[i].kind == COEXEC_WAIT || l->commands[i].kind == COEXEC_SIGNAL_WAIT || l->commands[i].awaited > 0;
  return syncs;
}
