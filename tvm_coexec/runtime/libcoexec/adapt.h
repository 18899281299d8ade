/* Splits that follow the device: units move toward the side that is faster than planned, as long as runs get shorter. */
#ifndef COEXEC_ADAPT_H
#define COEXEC_ADAPT_H

#include "common.h"

enum { ADAPT_WINDOW = 6 };

/* What is known of the runs since the splits were last looked at. */
typedef struct {
  int32_t enabled, count;
  double pace[ADAPT_WINDOW];   /* the CPU's time over the GPU's for what each computes of the divided steps */
  double length[ADAPT_WINDOW]; /* of runs, in nanoseconds */
  int32_t settling; /* runs that do not count: the first ones after a move are not warm */
  int32_t quiet;    /* windows in which nothing is moved */
  int32_t patience; /* windows of quiet after the next move that does not help */
  double before;    /* length of runs before the last move, which is on trial; or 0 */
  int32_t* earlier; /* the splits before it */
  int32_t moves;    /* that were kept */
  double last_pace; /* of the last whole window; 0: none yet */
} adaptation;

coexec_status start_adapting(coexec_module* module);
/* Other splits were set: what is known of earlier runs says nothing of these. */
void forget_runs(coexec_module* module);
/* Before a run: the GPU counts anew for how long it waits. */
void forget_waits(coexec_module* module);
/* After a run of the module's own program, which is dropped where units move. */
void adapt_splits(coexec_module* module);

#endif
