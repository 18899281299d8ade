/* What all parts of the library share: errors, clocks, and how one waits. */
#ifndef COEXEC_COMMON_H
#define COEXEC_COMMON_H

#include "coexec.h"

#include <sched.h>
#include <stdint.h>

enum { ERROR_TEXT = 1024 };

/* Set what coexec_last_error says on this thread, and return the status. */
coexec_status fail(coexec_status status, const char* format, ...) __attribute__((format(printf, 2, 3)));

int64_t now_ns(void);
int64_t thread_ns(void); /* for how long this thread has had a core */

/* The processor's own counter, by which chained kernels are timed; 0 where kernels cannot read it. */
uint64_t now_ticks(void);

enum { PATIENT_SPINS = 4096 };

/* Wait a moment for another processor. After some 100 us the core is offered to others between two looks: that costs
   next to nothing where nobody wants it, and lets more processes than cores make progress. */
static inline void relax(uint32_t spins, int yields) {
  if (yields || spins > PATIENT_SPINS) {
    sched_yield();
    return;
  }
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
  __asm__ __volatile__("yield");
#endif
}

#endif
