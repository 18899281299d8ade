/* Paces of threads that are interrupted at random, after a million calls: prints the least, the largest and their sum. */
#include "pool.c"

#include <stdio.h>

enum { THREADS = 3, CALLS = 1000000 };

int main(void) {
  share shares[THREADS];
  thread_pool pool = {.shares = shares};
  kernel_call call = {.count = 40, .threads = THREADS};
  uint64_t random = 1;
  for (int i = 0; i < THREADS; ++i) shares[i].pace = 1;
  for (int number = 0; number < CALLS; ++number) {
    divide(&pool, &call);
    for (int i = 0; i < THREADS; ++i) {
      random = random * 6364136223846793005u + 1442695040888963407u;
      /* the last one is half as fast, and each is interrupted now and then */
      int64_t cost_ns = (i + 1 < THREADS ? 100 : 200) * ((random >> 33) % 16 ? 1 : 50);
      shares[i].ns = cost_ns * (shares[i].last - shares[i].first);
    }
    learn_paces(&pool, THREADS);
  }
  double least = shares[0].pace, most = least, sum = 0;
  for (int i = 0; i < THREADS; ++i) {
    if (shares[i].pace < least) least = shares[i].pace;
    if (shares[i].pace > most) most = shares[i].pace;
    sum += shares[i].pace;
  }
  printf("%.17g %.17g %.17g\n", least, most, sum);
  return 0;
}
