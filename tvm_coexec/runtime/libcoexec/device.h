/* A CPU and an OpenCL device that work side by side. */
#ifndef COEXEC_DEVICE_H
#define COEXEC_DEVICE_H

#include "memory.h"
#include "opencl.h"
#include "pool.h"

#include <pthread.h>
#include <sys/types.h>

enum { KEPT_PROGRAMS = 32, DEVICE_TEXT = 256 };

/* A built OpenCL program, kept for modules that are opened again and again. */
typedef struct {
  char* source; /* with the options before it */
  size_t bytes;
  void* program;
  int is_stored; /* in the cache's folder, or not to be */
} built_program;

/* What every program on a device with flags shares. */
typedef struct {
  void* program;      /* the flag kernels; NULL until a module needs them */
  double rounds_per_s; /* of a wait of the GPU, which has no clock */
  memory_block block; /* whose first word is 1 while a run is under way */
} device_flags;

/* The names of coexec_mechanism's values. */
enum { MECHANISMS = COEXEC_MAPPED + 1 };
extern const char* const mechanism_names[MECHANISMS];

struct coexec_device {
  opencl cl;
  void *context, *device, *queue;
  void* timing_queue; /* its events carry times; NULL until a program wants them */
  char name[DEVICE_TEXT];
  coexec_mechanism mechanism;
  int is_unified;  /* whether buffers can lie in the host's memory */
  int is_coherent; /* whether the two sides see there what the other writes without being told */
  int32_t* cores;
  int32_t core_count;
  char* cache_folder; /* or NULL */
  pthread_mutex_t mutex;
  pid_t process; /* that opened it: a fork has none of the driver's threads */
  int hangs;     /* a kernel did not end: nothing that is enqueued may be waited for any more */
  char hang[ERROR_TEXT];
  built_program built[KEPT_PROGRAMS]; /* the one that was asked for last comes last */
  int32_t built_count;
  device_flags flags;
  thread_pool* pool; /* NULL until a program has work for several threads */
  int32_t ran_on;    /* the processor on which the last run ended; -1: there was none */
  int shared_calls;  /* whether several threads took part in it */
  int32_t crowded_runs; /* for how many runs it is still assumed that others want the CPU's core */
  int32_t was_away;     /* the last run's thread had no core for long, for whatever reason */
};

/* Before anything else is done with a device: no other thread uses it until leave_device. */
coexec_status enter_device(coexec_device* device);
void leave_device(coexec_device* device);
/* Whether this process is a fork of the one that opened the device, where nothing can be waited for or freed. */
int is_forked(const coexec_device* device);
/* A kernel hangs: remember it, so that no later run begins; returns COEXEC_GPU_HANGS. */
coexec_status give_up(coexec_device* device, const char* why);

/* Whether the OpenCL device lists an extension. */
int has_extension(const coexec_device* device, const char* name);
/* Make the queue whose events carry times, if there is none yet. */
coexec_status need_timing_queue(coexec_device* device);
/* Start the threads beyond the first, on a device of several cores. */
coexec_status need_pool(coexec_device* device);
/* Build the flag kernels, and see how fast they spin, if that was not done yet; a module's program, which has them if it
   was built with flags, spares the building. */
coexec_status need_flags(coexec_device* device, void* module_program);

/* How a program is built. */
enum { BUILD_NEWEST = 1, BUILD_WITH_FLAGS = 2, BUILD_WITHOUT_FLAGS = 4 };

/* The program of a source, which the caller releases. BUILD_NEWEST: for the newest OpenCL C that has C11's atomics. */
coexec_status build_program(coexec_device* device, const char* source, size_t bytes, int how, void** program);
/* Keep a program in the cache's folder: once all its kernels were created and launched, since some drivers compile them
   only then. */
void store_program(coexec_device* device, const void* program);
/* Let go of all programs that are kept. */
void release_built(coexec_device* device);

#endif
