#include "adapt.h"

#include "flags.h"
#include "program.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double BALANCED = 1.12;     /* a pace up to which, or down to 1 / which, nothing is moved */
static const double DAMPING = 0.8;       /* exponent: a pace that was measured while something disturbed it overshoots */
static const double HELPS = 1.0;         /* length over that before a move, from which on it is taken back */
static const double CUT_PACE = 4;        /* of a run whose wait for the CPU was cut, which tells nothing else */
static const double LEAST_SHARE = 0.05;  /* of a run for which the GPU is taken to work at least */
enum { SETTLING_RUNS = 2, FIRST_PATIENCE = 3, MOST_PATIENCE = 96 };

coexec_status start_adapting(coexec_module* m) {
  if (!uses_flags(m))
    return fail(COEXEC_BAD_ARGUMENT, "splits adapt by what flags show, and %s has none; open the module without adapting",
                m->device->name);
  m->adapting.earlier = calloc(m->file.step_count, sizeof *m->adapting.earlier);
  if (!m->adapting.earlier) return fail(COEXEC_NO_MEMORY, "there is no memory to open the module");
  m->adapting.enabled = 1;
  m->adapting.settling = SETTLING_RUNS;
  m->adapting.patience = FIRST_PATIENCE;
  return COEXEC_OK;
}

static int is_divided(const coexec_program* p, int32_t step) {
  return step > 0 && step <= p->part_count && p->works[step - 1].cpu_units && p->works[step - 1].gpu_units;
}

/* For how long the GPU has waited until the CPU had done a step. */
static double waited_ns(const coexec_program* p, int32_t step) {
  return 1e9 * p->run.flags[FLAG_WAITED + step % WAITED_STEPS] / p->module->device->flags.rounds_per_s;
}

/* The CPU's time over the GPU's. Both begin and end together, so that each has worked for what it has not waited; only
   waits for divided steps count, since for others a side has to wait whatever the splits are. While others have its
   core, the CPU does not wait for the GPU: it is slow. */
static double pace_of(const coexec_program* p) {
  const runnable* r = &p->run;
  double cpu_ns = 0, cpu_waited_ns = 0, gpu_waited_ns = 0;
  for (int32_t i = 0; i < r->operation_count; ++i) {
    const operation* op = &r->operations[i];
    double took_ns = (double)(r->operation_ns[2 * i + 1] - r->operation_ns[2 * i]);
    if (!is_divided(p, op->step)) continue;
    if (op->kind == COEXEC_WAIT) cpu_waited_ns += took_ns;
    if (op->kind != COEXEC_CALL) continue;
    cpu_ns += took_ns;
    gpu_waited_ns += waited_ns(p, op->step);
  }
  if (cpu_ns <= 0) return 1;
  double both_ns = cpu_ns + cpu_waited_ns;
  return fmin(cpu_ns + (double)r->displaced_ns, both_ns) / fmax(both_ns - gpu_waited_ns, LEAST_SHARE * both_ns);
}

static int by_size(const void* one, const void* other) {
  double a = *(const double*)one, b = *(const double*)other;
  return (a > b) - (a < b);
}

static double median(const double* values) {
  double sorted[ADAPT_WINDOW];
  memcpy(sorted, values, sizeof sorted);
  qsort(sorted, ADAPT_WINDOW, sizeof *sorted, by_size);
  return sorted[ADAPT_WINDOW / 2];
}

/* Give every divided step the split at which both sides would take as long; returns whether any changes. */
static int rebalance(coexec_module* m, double pace) {
  int changes = 0;
  for (uint64_t i = 0; i < m->file.step_count; ++i) {
    int32_t units = (int32_t)m->file.steps[i].units, now = m->splits[i];
    if (now <= 0 || now >= units) continue; /* what the plan leaves to one side stays there */
    double share = (double)now / units, wanted = share / (share + (1 - share) * pow(pace, DAMPING));
    int32_t next = (int32_t)lround(units * wanted);
    next = next < 1 ? 1 : next > units - 1 ? units - 1 : next;
    changes |= next != now;
    m->splits[i] = next;
  }
  return changes;
}

/* Keep the move on trial if runs are shorter by it; else take it back, and wait for longer before the next. */
static void judge(coexec_module* m, double length) {
  adaptation* a = &m->adapting;
  if (length < HELPS * a->before) {
    ++a->moves;
    a->patience = FIRST_PATIENCE;
  } else {
    memcpy(m->splits, a->earlier, m->file.step_count * sizeof *m->splits);
    drop_programs(m);
    a->settling = SETTLING_RUNS;
    a->quiet = a->patience;
    if (a->patience < MOST_PATIENCE) a->patience *= 2;
  }
  a->before = 0;
}

static void look_at_window(coexec_module* m) {
  adaptation* a = &m->adapting;
  double length = median(a->length);
  a->last_pace = median(a->pace);
  if (a->before > 0) {
    judge(m, length);
    return;
  }
  if (a->quiet > 0) {
    --a->quiet;
    return;
  }
  if (a->last_pace < BALANCED && a->last_pace > 1 / BALANCED) return;
  memcpy(a->earlier, m->splits, m->file.step_count * sizeof *m->splits);
  if (!rebalance(m, a->last_pace)) {
    a->quiet = FIRST_PATIENCE;
    return;
  }
  drop_programs(m);
  a->before = length;
  a->settling = SETTLING_RUNS;
}

void forget_runs(coexec_module* m) {
  adaptation* a = &m->adapting;
  a->count = a->quiet = 0;
  a->before = a->last_pace = 0;
  a->settling = SETTLING_RUNS;
  a->patience = FIRST_PATIENCE;
}

void forget_waits(coexec_module* m) { memset(words_of(&m->flags) + FLAG_WAITED, 0, WAITED_STEPS * sizeof(int32_t)); }

void adapt_splits(coexec_module* m) {
  adaptation* a = &m->adapting;
  const coexec_program* p = m->programs[0] ? m->programs[0]->last : NULL;
  if (!p || !p->has_run) return;
  if (a->settling > 0) {
    --a->settling;
    return;
  }
  a->pace[a->count] = p->is_patient ? CUT_PACE : pace_of(p);
  a->length[a->count] = (double)(p->run.end_ns - p->run.start_ns);
  if (++a->count < ADAPT_WINDOW) return;
  a->count = 0;
  look_at_window(m);
}

void coexec_describe_adaptation(const coexec_module* m, coexec_adaptation* described) {
  pthread_mutex_lock(&m->device->mutex);
  *described = (coexec_adaptation){m->adapting.moves, m->adapting.before > 0, m->adapting.last_pace};
  pthread_mutex_unlock(&m->device->mutex);
}
