/* Threads that share the units of a call. They spin while a run is under way and a while longer, and then sleep. */
#ifndef COEXEC_POOL_H
#define COEXEC_POOL_H

#include "kernels.h"

typedef struct thread_pool thread_pool;

/* The calling thread counts as the first of `cores`, and computes the first share; NULL where threads cannot start. */
thread_pool* start_pool(const int32_t* cores, int32_t core_count);
/* Before a run whose calls want at most so many threads, with scratch memory for each thread. */
void wake_pool(thread_pool* pool, workspace* workspaces, int32_t threads);
void rest_pool(thread_pool* pool);
/* Compute one call, its units divided among its threads, the first of the pool's; 0 or the kernel's error. */
int call_in_pool(thread_pool* pool, const kernel_call* call);
/* The processor on which a thread had its first share in the last run; -1: it had none. */
int32_t thread_ran_on(const thread_pool* pool, int32_t index);
/* What the thread said that failed first in the last call; `text` has room for KERNEL_TEXT characters. */
void copy_pool_error(const thread_pool* pool, char* text);
void stop_pool(thread_pool* pool);

/* Let this thread run on one processor alone. */
void pin_thread(int32_t core);

#endif
