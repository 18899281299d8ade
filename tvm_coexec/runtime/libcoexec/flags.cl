/* The GPU's half of the flags, for flag kernels and for layers' kernels. The words' places are those of stitch.h. */

/* OpenCL C 3.0 made the scope of all devices optional. */
#if __OPENCL_C_VERSION__ == 200 || defined(__opencl_c_atomic_scope_all_devices)
#define COEXEC_LOAD(word) \
  atomic_load_explicit((volatile __global atomic_int*)(word), memory_order_acquire, memory_scope_all_svm_devices)
#define COEXEC_STORE(word, value) \
  atomic_store_explicit((volatile __global atomic_int*)(word), value, memory_order_release, memory_scope_all_svm_devices)
#define COEXEC_INCREMENT(word) \
  atomic_fetch_add_explicit((volatile __global atomic_int*)(word), 1, memory_order_acq_rel, memory_scope_all_svm_devices)
#define COEXEC_GROUP_BARRIER work_group_barrier(CLK_GLOBAL_MEM_FENCE, memory_scope_all_svm_devices)
#else
inline int coexec_load_word(volatile __global int* word) {
  int value = *word;
  read_mem_fence(CLK_GLOBAL_MEM_FENCE);
  return value;
}
#define COEXEC_LOAD(word) coexec_load_word(word)
#define COEXEC_STORE(word, value)                   \
  do {                                       \
    write_mem_fence(CLK_GLOBAL_MEM_FENCE);   \
    atomic_xchg(word, value);                \
  } while (0)
inline int coexec_increment_word(volatile __global int* word) {
  mem_fence(CLK_GLOBAL_MEM_FENCE);
  int before = atomic_inc(word);
  mem_fence(CLK_GLOBAL_MEM_FENCE);
  return before;
}
#define COEXEC_INCREMENT(word) coexec_increment_word(word)
#define COEXEC_GROUP_BARRIER barrier(CLK_GLOBAL_MEM_FENCE)
#endif

#define COEXEC_GPU_DONE 0
#define COEXEC_CPU_DONE 32
#define COEXEC_ABORT 64
#define COEXEC_GPU_GAVE_UP 96
#define COEXEC_GROUPS_DONE 128

void coexec_wait_for(volatile __global int* flags, int step, ulong limit) {
  for (ulong i = 0; COEXEC_LOAD(flags + COEXEC_CPU_DONE) < step; ++i) {
    if (COEXEC_LOAD(flags + COEXEC_ABORT)) return;
    if (i == limit) {
      COEXEC_STORE(flags + COEXEC_GPU_GAVE_UP, step);
      COEXEC_STORE(flags + COEXEC_ABORT, 1);
      return;
    }
  }
}

/* By the first work-item of each group, at its end: the last group reports for all. */
void coexec_report(volatile __global int* flags, int done) {
  int groups = (int)(get_num_groups(0) * get_num_groups(1));
  if (groups > 1) {
    if (COEXEC_INCREMENT(flags + COEXEC_GROUPS_DONE) != groups - 1) return;
    COEXEC_STORE(flags + COEXEC_GROUPS_DONE, 0);
  }
  COEXEC_STORE(flags + COEXEC_GPU_DONE, done);
}
