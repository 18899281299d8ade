/* Threads that run modules on the stub for OpenCL, each with inputs of its own: all results are right, and a sanitizer
 * sees every access of both sides.
 *
 *     races MODULE OPENCL MECHANISM HANDLES RUNS REFUSED      with HANDLES `one` for all threads, or `own` for each its
 *                                                             own, and then several threads for each CPU half, all on
 *                                                             one processor; one command of REFUSED fails, or none */
#define _GNU_SOURCE
#include "../../tvm_coexec/runtime/libcoexec/coexec.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { THREADS = 8, NUMBERS = ROWS * WIDTH };

static coexec_device* device;
static coexec_module* modules[THREADS];
static float inputs[THREADS][NUMBERS], expected[THREADS][NUMBERS];
static int runs, refused;
static _Atomic int failures;

static void check(coexec_status status) {
  if (!status) return;
  fprintf(stderr, "status %d: %s\n", (int)status, coexec_last_error());
  exit(1);
}

static void split(coexec_module* module, int32_t cpu_units) {
  int32_t count = coexec_step_count(module), splits[64];
  for (int32_t i = 0; i < count; ++i) splits[i] = cpu_units < 0 ? (int32_t)(random() % (WIDTH / 32 + 1)) : cpu_units;
  check(coexec_set_splits(module, splits, count));
}

/* Whether a module gave a result: it may fail where commands are refused. */
static int run(coexec_module* module, int number, float* result) {
  const void* in[] = {inputs[number]};
  void* out[] = {result};
  coexec_status status = coexec_call(module, in, out);
  if (!refused || status != COEXEC_OPENCL_FAILED) check(status);
  return !status;
}

static void* work(void* given) {
  int number = *(int*)given;
  coexec_module* module = modules[number];
  for (int i = 0; i < runs; ++i) {
    float result[NUMBERS];
    if (i % 4 == 3) split(module, -1);
    if (!run(module, number, result)) {
      atomic_fetch_add(&failures, 1);
    } else if (memcmp(result, expected[number], sizeof result)) {
      fprintf(stderr, "thread %d has another result in run %d\n", number, i);
      exit(1);
    }
  }
  return NULL;
}

int main(int count, char** arguments) {
  if (count != 7) return 2;
  coexec_device_options options = {.opencl_library = arguments[2], .mechanism = atoi(arguments[3])};
  coexec_module_options waits = {.timeout_ns = INT64_C(120000000000)};
  int is_one = !strcmp(arguments[4], "one"), numbers[THREADS];
  int32_t here = sched_getcpu(), cores[] = {here, here, here};
  pthread_t threads[THREADS];
  runs = atoi(arguments[5]);
  if (!is_one) options.cores = cores, options.core_count = sizeof cores / sizeof *cores;
  check(coexec_device_open(&options, &device));
  for (int i = 0; i < THREADS; ++i) {
    if (i && is_one) modules[i] = modules[0];
    else check(coexec_module_open(device, arguments[1], &waits, &modules[i]));
    for (int n = 0; n < NUMBERS; ++n) inputs[i][n] = (float)(random() % 1000) / 1000 - 0.5f;
    split(modules[i], WIDTH / 32); /* the CPU alone says what is right */
    run(modules[i], i, expected[i]);
    split(modules[i], WIDTH / 64);
  }
  refused = atoi(arguments[6]);
  atomic_store((_Atomic uint32_t*)dlsym(dlopen(arguments[2], RTLD_NOW), "refused_part"), (uint32_t)refused);
  for (int i = 0; i < THREADS; ++i) {
    numbers[i] = i;
    pthread_create(&threads[i], NULL, work, &numbers[i]);
  }
  for (int i = 0; i < THREADS; ++i) pthread_join(threads[i], NULL);
  for (int i = 0; i < (is_one ? 1 : THREADS); ++i) coexec_module_close(modules[i]);
  coexec_device_close(device);
  printf("%d threads, %d runs each, %s failed\n", THREADS, runs, atomic_load(&failures) ? "some" : "none");
  return 0;
}
