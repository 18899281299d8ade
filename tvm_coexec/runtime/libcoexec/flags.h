/* The flags by which the two sides tell each other how far they are, and what the GPU does with them in OpenCL C. */
#ifndef COEXEC_FLAGS_H
#define COEXEC_FLAGS_H

#include <stdatomic.h>
#include <stdint.h>

/* Words of the flag block, each on a cache line pair of its own. */
enum {
  FLAG_GPU_DONE = 0,
  FLAG_CPU_DONE = 32,
  FLAG_ABORT = 64,
  FLAG_GPU_GAVE_UP = 96,
  FLAG_GROUPS_DONE = 128, /* the GPU's own: work-groups of the kernel under way that have ended */
  FLAG_WORDS = 160,
  FLAG_DISTANCE = 32,
  FLAG_WAITED = FLAG_WORDS, /* behind these: for how many rounds of looks the GPU has waited for a step, at its number */
  WAITED_STEPS = 1024,      /* numbers are counted modulo this */
  FLAG_BLOCK_WORDS = FLAG_WAITED + WAITED_STEPS
};

static inline void clear_flags(int32_t* flags) {
  for (int word = 0; word < FLAG_WORDS; word += FLAG_DISTANCE)
    atomic_store_explicit((_Atomic int32_t*)flags + word, 0, memory_order_release);
}

/* What stands before the OpenCL C of a module whose kernels await and report steps: functions for these, and the kernels
   coexec_signal, coexec_wait, coexec_signal_wait, coexec_linger and coexec_hand_over. */
extern const char flag_source[];

#endif
