#define _GNU_SOURCE
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

struct thread_pool {
  pthread_t* threads;
  int32_t* cores;
  workspace* workspaces;        /* of the program that runs, one for each thread */
  int32_t thread_count, started; /* thread_count counts the calling thread */
  pthread_mutex_t mutex;
  pthread_cond_t changed;
  int quits;
  _Atomic int32_t awake, ticket, left, error;
  const kernel_call* call;
  char text[KERNEL_TEXT]; /* of the thread that failed first */
};

typedef struct {
  thread_pool* pool;
  int32_t index;
} worker;

/* Not by pthread_setaffinity_np, which Android has from API 36 on. */
void pin_thread(int32_t core) {
  cpu_set_t wanted;
  CPU_ZERO(&wanted);
  CPU_SET((size_t)core, &wanted);
  sched_setaffinity(0, sizeof wanted, &wanted);
}

static void compute_share(thread_pool* pool, int32_t index) {
  const kernel_call* c = pool->call;
  int32_t first = (int32_t)((int64_t)c->count * index / pool->thread_count);
  int32_t last = (int32_t)((int64_t)c->count * (index + 1) / pool->thread_count);
  use_workspace(&pool->workspaces[index]); /* each time: a thread may not have seen the last run end */
  int error = call_kernel(c, c->begin + first, last - first);
  int32_t none = 0;
  if (error && atomic_compare_exchange_strong(&pool->error, &none, error)) copy_kernel_error(pool->text);
}

/* Compute shares until the run is over; returns the ticket that was seen last. */
static int32_t serve(thread_pool* pool, int32_t index, int32_t seen) {
  for (uint32_t spins = 0; atomic_load_explicit(&pool->awake, memory_order_acquire); ++spins) {
    int32_t ticket = atomic_load_explicit(&pool->ticket, memory_order_acquire);
    if (ticket == seen) {
      relax(spins, 0);
      continue;
    }
    seen = ticket;
    spins = 0;
    compute_share(pool, index);
    atomic_fetch_sub_explicit(&pool->left, 1, memory_order_release);
  }
  return seen;
}

static void* work(void* argument) {
  worker me = *(worker*)argument;
  thread_pool* pool = me.pool;
  int32_t seen = 0;
  free(argument);
  pin_thread(pool->cores[me.index]);
  for (;;) {
    pthread_mutex_lock(&pool->mutex);
    while (!atomic_load(&pool->awake) && !pool->quits) pthread_cond_wait(&pool->changed, &pool->mutex);
    int quits = pool->quits;
    pthread_mutex_unlock(&pool->mutex);
    if (quits) return NULL;
    seen = serve(pool, me.index, seen);
  }
}

static int start_worker(thread_pool* pool, int32_t index) {
  worker* argument = malloc(sizeof *argument);
  if (!argument) return -1;
  *argument = (worker){pool, index};
  if (pthread_create(&pool->threads[index], NULL, work, argument)) {
    free(argument);
    return -1;
  }
  ++pool->started;
  return 0;
}

thread_pool* start_pool(const int32_t* cores, int32_t core_count) {
  thread_pool* pool = calloc(1, sizeof *pool);
  if (!pool) return NULL;
  pool->thread_count = core_count;
  pool->threads = calloc((size_t)core_count, sizeof *pool->threads);
  pool->cores = calloc((size_t)core_count, sizeof *pool->cores);
  pthread_mutex_init(&pool->mutex, NULL);
  pthread_cond_init(&pool->changed, NULL);
  int failed = !pool->threads || !pool->cores;
  for (int32_t i = 0; !failed && i < core_count; ++i) pool->cores[i] = cores[i];
  for (int32_t i = 1; !failed && i < core_count; ++i) failed = start_worker(pool, i);
  if (!failed) return pool;
  stop_pool(pool);
  return NULL;
}

static void set_awake(thread_pool* pool, int32_t awake) {
  pthread_mutex_lock(&pool->mutex);
  atomic_store(&pool->awake, awake);
  pthread_cond_broadcast(&pool->changed);
  pthread_mutex_unlock(&pool->mutex);
}

void wake_pool(thread_pool* pool, workspace* workspaces) {
  pool->workspaces = workspaces;
  set_awake(pool, 1);
}

void rest_pool(thread_pool* pool) { set_awake(pool, 0); }

int call_in_pool(thread_pool* pool, const kernel_call* call) {
  pool->call = call;
  atomic_store(&pool->error, 0);
  atomic_store_explicit(&pool->left, pool->thread_count - 1, memory_order_relaxed);
  atomic_fetch_add_explicit(&pool->ticket, 1, memory_order_release);
  compute_share(pool, 0);
  while (atomic_load_explicit(&pool->left, memory_order_acquire)) sched_yield();
  return atomic_load(&pool->error);
}

void copy_pool_error(const thread_pool* pool, char* text) { memcpy(text, pool->text, sizeof pool->text); }

void stop_pool(thread_pool* pool) {
  pthread_mutex_lock(&pool->mutex);
  pool->quits = 1;
  atomic_store(&pool->awake, 0);
  pthread_cond_broadcast(&pool->changed);
  pthread_mutex_unlock(&pool->mutex);
  for (int32_t i = 1; i <= pool->started; ++i) pthread_join(pool->threads[i], NULL);
  pthread_mutex_destroy(&pool->mutex);
  pthread_cond_destroy(&pool->changed);
  free(pool->threads);
  free(pool->cores);
  free(pool);
}
