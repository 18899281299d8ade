#define _GNU_SOURCE
#include "stitch.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* Threads that share the units of a call. They spin while a run is under way, and sleep between runs. */
struct coexec_pool {
  pthread_t* threads;
  int32_t* cores;
  coexec_workspace* workspaces; /* the program's, one for each thread */
  int32_t thread_count, started; /* thread_count counts the calling thread, which computes the first share */
  pthread_mutex_t mutex;
  pthread_cond_t changed;
  int quits;
  _Atomic int32_t awake, ticket, left, error;
  const coexec_call* call;
  char text[COEXEC_TEXT]; /* of the thread that failed first */
};

typedef struct {
  struct coexec_pool* pool;
  int32_t index;
} worker;

static void compute_share(struct coexec_pool* pool, int32_t index) {
  const coexec_call* c = pool->call;
  int32_t first = (int32_t)((int64_t)c->count * index / pool->thread_count);
  int32_t last = (int32_t)((int64_t)c->count * (index + 1) / pool->thread_count);
  int error = coexec_call_range(c, c->begin + first, last - first);
  if (error && !atomic_exchange(&pool->error, error)) coexec_copy_error(pool->text);
}

static void* work(void* argument) {
  worker me = *(worker*)argument;
  struct coexec_pool* pool = me.pool;
  int32_t seen = 0;
  free(argument);
  coexec_use_workspace(&pool->workspaces[me.index]);
  for (;;) {
    pthread_mutex_lock(&pool->mutex);
    while (!atomic_load(&pool->awake) && !pool->quits) pthread_cond_wait(&pool->changed, &pool->mutex);
    int quits = pool->quits;
    pthread_mutex_unlock(&pool->mutex);
    if (quits) return NULL;
    while (atomic_load_explicit(&pool->awake, memory_order_acquire)) {
      int32_t ticket = atomic_load_explicit(&pool->ticket, memory_order_acquire);
      if (ticket == seen) continue;
      seen = ticket;
      compute_share(pool, me.index);
      atomic_fetch_sub_explicit(&pool->left, 1, memory_order_release);
    }
  }
}

static int start_worker(struct coexec_pool* pool, int32_t index) {
  worker* argument = malloc(sizeof *argument);
  if (!argument) return -1;
  *argument = (worker){pool, index};
  if (pthread_create(&pool->threads[index], NULL, work, argument)) {
    free(argument);
    return -1;
  }
  cpu_set_t core;
  CPU_ZERO(&core);
  CPU_SET(pool->cores[index], &core);
  pthread_setaffinity_np(pool->threads[index], sizeof core, &core);
  ++pool->started;
  return 0;
}

struct coexec_pool* coexec_pool_start(const int32_t* cores, int32_t core_count, coexec_workspace* workspaces) {
  struct coexec_pool* pool = calloc(1, sizeof *pool);
  if (!pool) return NULL;
  pool->thread_count = core_count;
  pool->workspaces = workspaces;
  pool->threads = calloc((size_t)core_count, sizeof *pool->threads);
  pool->cores = calloc((size_t)core_count, sizeof *pool->cores);
  pthread_mutex_init(&pool->mutex, NULL);
  pthread_cond_init(&pool->changed, NULL);
  int failed = !pool->threads || !pool->cores;
  for (int32_t i = 0; !failed && i < core_count; ++i) pool->cores[i] = cores[i];
  for (int32_t i = 1; !failed && i < core_count; ++i) failed = start_worker(pool, i);
  if (!failed) return pool;
  coexec_pool_stop(pool);
  return NULL;
}

static void set_awake(struct coexec_pool* pool, int32_t awake) {
  pthread_mutex_lock(&pool->mutex);
  atomic_store(&pool->awake, awake);
  pthread_cond_broadcast(&pool->changed);
  pthread_mutex_unlock(&pool->mutex);
}

void coexec_pool_wake(struct coexec_pool* pool) { set_awake(pool, 1); }

void coexec_pool_sleep(struct coexec_pool* pool) { set_awake(pool, 0); }

int coexec_pool_call(struct coexec_pool* pool, const coexec_call* call) {
  pool->call = call;
  atomic_store(&pool->error, 0);
  atomic_store_explicit(&pool->left, pool->thread_count - 1, memory_order_relaxed);
  atomic_fetch_add_explicit(&pool->ticket, 1, memory_order_release);
  compute_share(pool, 0);
  while (atomic_load_explicit(&pool->left, memory_order_acquire)) sched_yield();
  return atomic_load(&pool->error);
}

void coexec_pool_copy_error(const struct coexec_pool* pool, char* text) { memcpy(text, pool->text, sizeof pool->text); }

void coexec_pool_stop(struct coexec_pool* pool) {
  pthread_mutex_lock(&pool->mutex);
  pool->quits = 1;
  atomic_store(&pool->awake, 0);
  pthread_cond_broadcast(&pool->changed);
  pthread_mutex_unlock(&pool->mutex);
  for (int32_t i = 1; i <= pool->started; ++i) pthread_join(pool->threads[i], NULL);
  free(pool->threads);
  free(pool->cores);
  free(pool);
}
