#define _GNU_SOURCE
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* How long threads spin after a run before they sleep: a core that sleeps loses its clock, and gets it back slowly. */
static const int64_t LINGER_NS = 200000;

enum { THREAD_BITS = 16 }; /* of a ticket: how many threads share the call, below the call's number */

static const double SLOW_CHANGE = 1.0 / 16, FORGETTING = 1.0 / 256, MOST_CHANGE = 2.0;

/* What a thread does of a call. Its pace is relative to the others': units in a time, as calls lately went. */
typedef struct {
  int32_t first, last;
  int32_t ran_on; /* the processor of its first share in the last run; or -1 */
  int64_t ns;
  double pace;
} share;

struct thread_pool {
  pthread_t* threads;
  int32_t* cores;
  share* shares;
  workspace* workspaces;         /* of the program that runs, one for each thread */
  int32_t thread_count, started; /* thread_count counts the calling thread */
  pthread_mutex_t mutex;
  pthread_cond_t changed;
  int quits;
  _Atomic int32_t awake, left, error; /* awake: how many threads the run wants */
  _Atomic uint64_t ticket;
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

/* Units go to threads in proportion to their paces: cores of a phone are not alike, and equal ones may be shared. */
static void divide(thread_pool* pool, const kernel_call* c) {
  double whole = 0, before = 0;
  for (int32_t i = 0; i < c->threads; ++i) whole += pool->shares[i].pace;
  for (int32_t i = 0, next = 0; i < c->threads; ++i) {
    share* own = &pool->shares[i];
    before += own->pace;
    own->first = next;
    own->last = next = i + 1 < c->threads ? (int32_t)(c->count * (before / whole) + 0.5) : c->count;
  }
}

/* After a call: a pace draws near what the call showed of it, as the mean of the paces stays; that of a thread that had
   no unit draws near the mean, so that it gets one again. */
static void learn_paces(thread_pool* pool, int32_t threads) {
  double units = 0, ns = 0, mean = 0;
  for (int32_t i = 0; i < threads; ++i) {
    const share* own = &pool->shares[i];
    units += own->last - own->first;
    ns += (double)own->ns;
    mean += own->pace / threads;
  }
  for (int32_t i = 0; i < threads; ++i) {
    share* own = &pool->shares[i];
    int32_t computed = own->last - own->first;
    if (!computed || own->ns <= 0) {
      own->pace += (mean - own->pace) * FORGETTING;
      continue;
    }
    double seen = mean * computed / units * ns / (double)own->ns;
    if (seen > MOST_CHANGE * own->pace) seen = MOST_CHANGE * own->pace; /* the thread or another was interrupted */
    if (seen < own->pace / MOST_CHANGE) seen = own->pace / MOST_CHANGE;
    own->pace += (seen - own->pace) * SLOW_CHANGE;
  }
  double new_mean = 0; /* without the next lines what is cut off above would add up, until a pace is no number */
  for (int32_t i = 0; i < threads; ++i) new_mean += pool->shares[i].pace / threads;
  for (int32_t i = 0; i < threads; ++i) pool->shares[i].pace *= mean / new_mean;
}

static void compute_share(thread_pool* pool, int32_t index) {
  const kernel_call* c = pool->call;
  share* own = &pool->shares[index];
  int64_t start_ns = now_ns();
  use_workspace(&pool->workspaces[index]); /* each time: a thread may not have seen the last run end */
  int error = call_kernel(c, c->begin + own->first, own->last - own->first);
  int32_t none = 0;
  if (error && atomic_compare_exchange_strong(&pool->error, &none, error)) copy_kernel_error(pool->text);
  own->ns = now_ns() - start_ns;
  if (own->ran_on < 0) own->ran_on = sched_getcpu();
}

static int is_wanted(thread_pool* pool, int32_t index) {
  return index < atomic_load_explicit(&pool->awake, memory_order_acquire);
}

/* Compute shares until the run is over; returns the ticket that was seen last. A thread that has no share of a call may
   look at nothing but its ticket: nobody waits for it. */
static uint64_t serve(thread_pool* pool, int32_t index, uint64_t seen) {
  for (uint32_t spins = 0; is_wanted(pool, index); ++spins) {
    uint64_t ticket = atomic_load_explicit(&pool->ticket, memory_order_acquire);
    if (ticket == seen) {
      relax(spins, 0);
      continue;
    }
    seen = ticket;
    spins = 0;
    if (index >= (int32_t)(ticket & ((1 << THREAD_BITS) - 1))) continue;
    compute_share(pool, index);
    atomic_fetch_sub_explicit(&pool->left, 1, memory_order_release);
  }
  return seen;
}

/* Spin for a while after a run, in case the next one is near. */
static int is_wanted_soon(thread_pool* pool, int32_t index) {
  int64_t until = now_ns() + LINGER_NS;
  for (uint32_t spins = 0; !is_wanted(pool, index) && now_ns() < until; ++spins) relax(spins, 0);
  return is_wanted(pool, index);
}

static void* work(void* argument) {
  worker me = *(worker*)argument;
  thread_pool* pool = me.pool;
  uint64_t seen = 0;
  free(argument);
  pin_thread(pool->cores[me.index]);
  for (;;) {
    pthread_mutex_lock(&pool->mutex);
    while (!is_wanted(pool, me.index) && !pool->quits) pthread_cond_wait(&pool->changed, &pool->mutex);
    int quits = pool->quits;
    pthread_mutex_unlock(&pool->mutex);
    if (quits) return NULL;
    do seen = serve(pool, me.index, seen);
    while (is_wanted_soon(pool, me.index));
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
  pool->shares = calloc((size_t)core_count, sizeof *pool->shares);
  pthread_mutex_init(&pool->mutex, NULL);
  pthread_cond_init(&pool->changed, NULL);
  int failed = !pool->threads || !pool->cores || !pool->shares;
  for (int32_t i = 0; !failed && i < core_count; ++i) {
    pool->cores[i] = cores[i];
    pool->shares[i].pace = 1;
  }
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

void wake_pool(thread_pool* pool, workspace* workspaces, int32_t threads) {
  pool->workspaces = workspaces;
  for (int32_t i = 0; i < pool->thread_count; ++i) pool->shares[i].ran_on = -1;
  set_awake(pool, threads);
}

void rest_pool(thread_pool* pool) { set_awake(pool, 0); }

int call_in_pool(thread_pool* pool, const kernel_call* call) {
  uint64_t number = (atomic_load_explicit(&pool->ticket, memory_order_relaxed) >> THREAD_BITS) + 1;
  pool->call = call;
  divide(pool, call);
  atomic_store(&pool->error, 0);
  atomic_store_explicit(&pool->left, call->threads - 1, memory_order_relaxed);
  atomic_store_explicit(&pool->ticket, number << THREAD_BITS | (uint64_t)call->threads, memory_order_release);
  compute_share(pool, 0);
  while (atomic_load_explicit(&pool->left, memory_order_acquire)) sched_yield(); /* it may need this core */
  learn_paces(pool, call->threads);
  return atomic_load(&pool->error);
}

int32_t thread_ran_on(const thread_pool* pool, int32_t index) { return pool->shares[index].ran_on; }

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
  free(pool->shares);
  free(pool);
}
