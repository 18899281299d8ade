#define _GNU_SOURCE
#include "probe.h"

#include "flags.h"
#include "run.h"

#include <string.h>

/* Data goes round a window that is larger than a first-level cache is associative, so that lines are met in all states.
   A launch is short, and waits for little in it: a GPU that draws the screen too has no patience with kernels that spin. */
enum { HAND_OVERS = 100000, IN_A_LAUNCH = 1000, PARTS = 256, PART_WORDS = 32, MOST_DELAYS = 50 };
static const double GPU_WAIT_S = 0.1;
static const int64_t CPU_WAIT_NS = INT64_C(2000000000);

/* What is handed over: the CPU's data and the GPU's answers, each word telling the round and its index. */
enum { SENT = 0, ANSWERED, MEMORIES };

typedef struct {
  coexec_device* device;
  memory_block memory[MEMORIES];
  void* kernel;
} hand_over;

typedef enum { ALL_SEEN, DELAYED, LOST } outcome;

static _Atomic int32_t* flag(const hand_over* h, int word) {
  return (_Atomic int32_t*)words_of(&h->device->flags.block) + word;
}

static uint32_t* words_at(const hand_over* h, int memory, int32_t number) {
  return (uint32_t*)(void*)h->memory[memory].host + (size_t)(number % PARTS) * PART_WORDS;
}

/* One round: data and a flag to the GPU, data and a flag back. */
static outcome go_round(const hand_over* h, int32_t number) {
  uint32_t *sent = words_at(h, SENT, number), *answered = words_at(h, ANSWERED, number);
  int64_t deadline = 0;
  for (uint32_t word = 0; word < PART_WORDS; ++word) sent[word] = (uint32_t)number * PART_WORDS + word;
  atomic_store_explicit(flag(h, FLAG_CPU_DONE), number, memory_order_release);
  for (uint32_t spins = 1; atomic_load_explicit(flag(h, FLAG_GPU_DONE), memory_order_acquire) != number; ++spins) {
    relax(spins, 0);
    if (spins % 64) continue;
    if (atomic_load_explicit(flag(h, FLAG_GPU_GAVE_UP), memory_order_acquire)) return DELAYED;
    if (!deadline) deadline = now_ns() + CPU_WAIT_NS;
    if (now_ns() > deadline) return DELAYED;
  }
  for (uint32_t word = 0; word < PART_WORDS; ++word)
    if (answered[word] != ~((uint32_t)number * PART_WORDS + word)) return LOST;
  return ALL_SEEN;
}

/* Rounds from one number on; it then says which is next. */
static outcome launch(const hand_over* h, int32_t* number, int32_t* error) {
  static const size_t one[2] = {1, 1};
  const opencl* cl = &h->device->cl;
  int32_t last = *number + IN_A_LAUNCH;
  outcome seen = ALL_SEEN;
  clear_flags(words_of(&h->device->flags.block));
  *error = cl->set_argument(h->kernel, 3, sizeof *number, number);
  if (!*error) *error = cl->set_argument(h->kernel, 4, sizeof last, &last);
  if (!*error) *error = cl->enqueue_kernel(h->device->queue, h->kernel, 2, NULL, one, one, 0, NULL, NULL);
  if (!*error) *error = cl->flush(h->device->queue);
  if (*error) return LOST;
  while (seen == ALL_SEEN && *number < last) {
    seen = go_round(h, *number);
    *number += seen == ALL_SEEN;
  }
  atomic_store_explicit(flag(h, FLAG_ABORT), 1, memory_order_release); /* its waits are over, if any are left */
  *error = cl->finish(h->device->queue);
  return seen;
}

/* A delay is no loss where it was another process that had the core: the same round is tried again. */
static coexec_status hand_all_over(const hand_over* h) {
  int32_t number = 1, delays = 0, error = 0;
  outcome seen = ALL_SEEN;
  while (!error && number <= HAND_OVERS && (seen == ALL_SEEN || (seen == DELAYED && ++delays <= MOST_DELAYS)))
    seen = launch(h, &number, &error);
  const char* name = h->device->name;
  if (error)
    return fail(COEXEC_OPENCL_FAILED, "%s runs no probe of mapped memory (OpenCL error %d); use the mechanism 'event'", name,
                (int)error);
  if (seen == ALL_SEEN) return COEXEC_OK;
  return fail(COEXEC_NO_DEVICE, "%s %s in mapped memory, in hand-over %d of %d; use the mechanism 'event'", name,
              seen == LOST ? "loses data" : "does not see flags", (int)number, HAND_OVERS);
}

coexec_status probe_mapped_memory(coexec_device* d) {
  static const size_t nothing[MEMORIES];
  size_t bytes = (size_t)PARTS * PART_WORDS * sizeof(uint32_t);
  hand_over h = {.device = d, .memory = {{.bytes = bytes}, {.bytes = bytes}}};
  uint32_t limit = (uint32_t)(GPU_WAIT_S * d->flags.rounds_per_s);
  cpu_set_t before;
  int32_t error = 0;
  int was_moved = move_to_first_core(d, &before);
  coexec_status status = allocate_blocks(d, h.memory, MEMORIES, nothing);
  if (!status) status = create_buffers(d, h.memory, MEMORIES);
  if (!status) h.kernel = d->cl.create_kernel(d->flags.program, "coexec_hand_over", &error);
  if (!status && !error) error = set_block(d, h.kernel, 0, &d->flags.block);
  for (uint32_t i = 0; !status && !error && i < MEMORIES; ++i) error = set_block(d, h.kernel, 1 + i, &h.memory[i]);
  if (!status && !error) error = d->cl.set_argument(h.kernel, 5, sizeof limit, &limit);
  if (error) status = fail(COEXEC_OPENCL_FAILED, "%s takes no probe of mapped memory (OpenCL error %d)", d->name, (int)error);
  if (!status) status = hand_all_over(&h);
  if (h.kernel) d->cl.release_kernel(h.kernel);
  release_blocks(d, h.memory, MEMORIES);
  clear_flags(words_of(&d->flags.block));
  if (was_moved) sched_setaffinity(0, sizeof before, &before);
  return status;
}
