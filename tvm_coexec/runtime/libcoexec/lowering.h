/* Lowers steps, with a split for each, to the CPU's operations and the GPU's commands. Steps count from 1 as flags do. */
#ifndef COEXEC_LOWERING_H
#define COEXEC_LOWERING_H

#include "common.h"
#include "format.h"

/* One step as far as its order matters: who computes it, and the steps whose results it reads or whose memory it
   overwrites. A half may be several kernels, one after the other. */
typedef struct {
  int32_t cpu_units, gpu_units, cpu_launches, gpu_launches;
  uint32_t axis;
  int32_t is_output;
  int32_t steps_itself; /* whether the GPU's kernels can await and report steps */
  const coexec_read_record* reads;
  int32_t read_count;
} work;

/* An operation of the CPU: COEXEC_ENQUEUE of the commands, or COEXEC_CALL of the calls, [first, last); COEXEC_SIGNAL
   that the CPU has done a step; COEXEC_WAIT until the GPU has; COEXEC_TRANSFER number `first`, `last` being to whom. */
typedef struct {
  int32_t kind, step, first, last;
} operation;

enum { TO_CPU = 1, TO_GPU = 2 };

/* A command of the GPU: COEXEC_KERNEL, one of a step's launches, which may itself await a step of the CPU before it
   starts and report one at its end; or COEXEC_SIGNAL, COEXEC_WAIT or COEXEC_SIGNAL_WAIT, whose `step` is the one that a
   wait is for. 0 is none. */
typedef struct {
  int32_t kind, step, done, launch, awaited;
} command;

/* Both programs. Calls are counted through: those of a step's half follow those of the half before. */
typedef struct {
  operation* operations;
  command* commands;
  int32_t operation_count, command_count, call_count;
} lowered;

/* With flags: how early the GPU's commands are enqueued. */
enum {
  ENQUEUE_READY = 0,  /* once all is done that they await, so that the GPU never waits */
  ENQUEUE_AHEAD = 1,  /* a few steps ahead of the CPU */
  ENQUEUE_CHAINED = 2 /* of many steps at once, since one launch computes them */
};

/* With flags, or with transfers of what crosses: number i < count of step i + 1's output, then the module's `inputs`. */
coexec_status lower(const work* works, int32_t count, int with_flags, int32_t inputs, int when, lowered* result);
void release_lowered(lowered* result);
/* Points at which one side may wait for the other. */
int32_t count_syncs(const lowered* result);

#endif
