#include "program.h"

#include <stdio.h>

/* Runs a program, and again in its patient form where a wait of the GPU was cut: all that a run reads but does not write,
   which is the inputs and the constants, is as it was. */

enum { MOST_PATIENCE = 1024 };

static coexec_status describe_failure(coexec_program* p, coexec_status status) {
  const coexec_module* m = p->module;
  int32_t step = p->run.failed_step;
  const char* name = step > 0 && step <= p->part_count ? string_of(m, p->steps[step - 1]->name) : "the module's inputs";
  double bound_s = (double)m->timeout_ns / 1e9;
  char why[ERROR_TEXT];
  switch (status) {
    case COEXEC_CPU_WAITED:
      return fail(status, "layer '%s': the CPU waited %g s for the GPU half, which did not come; raise timeout_s if the "
                  "layer takes longer, else check %s with `tvm-coexec doctor`", name, bound_s, m->device->name);
    case COEXEC_GPU_WAITED:
      if (p->is_patient) /* it was given only what did not have to wait */
        return fail(status, "layer '%s': the GPU does not see what the CPU has signalled; check %s with `tvm-coexec "
                    "doctor`", name, m->device->name);
      return fail(status, "layer '%s': the GPU waited for longer than %g s for the CPU half, which did not come; raise "
                  "timeout_s if the layer takes longer", name, bound_s);
    case COEXEC_GPU_HANGS:
      bound_s = (double)drain_bound_ns(m->timeout_ns) / 1e9;
      snprintf(why, sizeof why, "layer '%s': the GPU does not finish within %g s, even after its waits were ended; a "
               "kernel hangs on %s: restart the process", name, bound_s, m->device->name);
      return give_up(m->device, why);
    case COEXEC_KERNEL_FAILED:
      return fail(status, "layer '%s': the CPU kernel failed: %s", name, p->run.text);
    default:
      return fail(status, "layer '%s': OpenCL error %d on %s", name, (int)p->run.opencl_error, m->device->name);
  }
}

static coexec_status run_alone(coexec_program* p) {
  drop_events(p);
  coexec_status status = run_once(&p->run);
  p->has_run = !status;
  return status;
}

/* For longer the sooner a wait is cut again: what cuts them may be a process that was stopped once, or halves of the CPU
   that take long in every run. */
static coexec_status become_patient(coexec_program* p) {
  coexec_status status = p->patient ? COEXEC_OK : make_patient(p);
  if (status) return status;
  if (p->calm_runs > p->patience) p->patience = 0;
  p->calm_runs = 0;
  p->patience = p->patience ? 2 * p->patience : 1;
  if (p->patience > MOST_PATIENCE) p->patience = MOST_PATIENCE;
  p->patient_runs = p->patience;
  return COEXEC_OK;
}

coexec_status run_program(coexec_program* p) {
  p->last = p;
  if (!p->patient_runs) {
    coexec_status status = run_alone(p);
    if (status == COEXEC_GPU_WAITED && p->module->cuts_waits) status = become_patient(p);
    else if (status) status = describe_failure(p, status);
    else if (p->calm_runs < INT32_MAX) ++p->calm_runs;
    if (status || !p->patient_runs) return status;
  }
  --p->patient_runs;
  p->has_run = 0;
  p->last = p->patient;
  coexec_status status = run_alone(p->patient);
  return status ? describe_failure(p->patient, status) : COEXEC_OK;
}
