/* The GPU's half of the flags. The words' places are those of stitch.h. */

/* OpenCL C 3.0 made the scope of all devices optional. */
#if __OPENCL_C_VERSION__ == 200 || defined(__opencl_c_atomic_scope_all_devices)
#define LOAD(word) \
  atomic_load_explicit((volatile __global atomic_int*)(word), memory_order_acquire, memory_scope_all_svm_devices)
#define STORE(word, value) \
  atomic_store_explicit((volatile __global atomic_int*)(word), value, memory_order_release, memory_scope_all_svm_devices)
#else
inline int load_word(volatile __global int* word) {
  int value = *word;
  read_mem_fence(CLK_GLOBAL_MEM_FENCE);
  return value;
}
#define LOAD(word) load_word(word)
#define STORE(word, value)                   \
  do {                                       \
    write_mem_fence(CLK_GLOBAL_MEM_FENCE);   \
    atomic_xchg(word, value);                \
  } while (0)
#endif

#define GPU_DONE 0
#define CPU_DONE 32
#define ABORT 64
#define GPU_GAVE_UP 96

void wait_for(volatile __global int* flags, int step, ulong limit) {
  for (ulong i = 0; LOAD(flags + CPU_DONE) < step; ++i) {
    if (LOAD(flags + ABORT)) return;
    if (i == limit) {
      STORE(flags + GPU_GAVE_UP, step);
      STORE(flags + ABORT, 1);
      return;
    }
  }
}

__kernel void coexec_signal(volatile __global int* flags, int step) { STORE(flags + GPU_DONE, step); }

__kernel void coexec_wait(volatile __global int* flags, int step, ulong limit) { wait_for(flags, step, limit); }

/* Between runs: keeps the queue from falling asleep until the next run becomes active, or for `limit` spins. */
__kernel void coexec_linger(volatile __global int* active, ulong limit) {
  for (ulong i = 0; i < limit && !LOAD(active); ++i) {
  }
}

/* One launch instead of two where a signal is followed by a wait. */
__kernel void coexec_signal_wait(volatile __global int* flags, int done, int step, ulong limit) {
  STORE(flags + GPU_DONE, done);
  wait_for(flags, step, limit);
}
