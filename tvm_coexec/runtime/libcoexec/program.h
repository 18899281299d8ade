/* A program: a sequence of steps, each divided at some place, with every array that a run reads. */
#ifndef COEXEC_PROGRAM_H
#define COEXEC_PROGRAM_H

#include "lowering.h"
#include "module.h"
#include "run.h"

struct coexec_program {
  coexec_module* module;
  int32_t part_count;
  const coexec_step_record** steps; /* of each part */
  work* works;                      /* of each part */
  coexec_read_record* chain_reads;  /* each part's, where every part reads the one before it */
  lowered low;
  operation* operations; /* as they are run: what they enqueue are launches, of which one may be many commands */
  gpu_launch* launches;
  int32_t* launched_as; /* for each command its launch */
  kernel_call* calls;
  transfer* transfers;
  void** kernels; /* all of the launches, each once, and the lingering one */
  int32_t kernel_count;
  memory_block table; /* of chained commands, a row for each command */
  int32_t flags; /* of coexec_prepare */
  int has_timeline;
  int has_run; /* whether the last run was a whole one, so that it has spans */
  runnable run;
  int is_patient; /* whether the GPU is given nothing that it would have to wait for */
  coexec_program* patient;        /* the same that is; NULL until a wait of the GPU was cut */
  int32_t patient_runs, patience; /* how many runs it still makes, and how many it made in a row when waits were cut last */
  int32_t calm_runs;              /* whole runs without it since then */
  coexec_program* last; /* which of both made the last run */
};

/* Make a program's patient form. */
coexec_status make_patient(coexec_program* program);

/* The launch of a command of the kind COEXEC_KERNEL. */
const coexec_launch_record* launch_of(const coexec_program* program, const command* c);
/* Whether a command is a row of the table. */
int is_row(const coexec_program* program, const command* c);
/* A command's row of the table. */
uint64_t* row_of(const coexec_program* program, int32_t command);

/* transfers.c: what travels after each part, then each input of the module. */
void fill_transfers(coexec_program* program);
/* Let go of the events of the last run. */
void drop_events(coexec_program* program);

#endif
