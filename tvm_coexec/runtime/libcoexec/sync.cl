/* Kernels that do nothing but store and await flags; flags.cl comes before. */

__kernel void coexec_signal(volatile __global int* flags, int step) { COEXEC_STORE(flags + COEXEC_GPU_DONE, step); }

__kernel void coexec_wait(volatile __global int* flags, int step, ulong limit) { coexec_wait_for(flags, step, limit); }

/* Between runs: keeps the queue from falling asleep until the next run becomes active, or for `limit` spins. */
__kernel void coexec_linger(volatile __global int* active, ulong limit) {
  for (ulong i = 0; i < limit && !COEXEC_LOAD(active); ++i) {
  }
}

/* One launch instead of two where a signal is followed by a wait. */
__kernel void coexec_signal_wait(volatile __global int* flags, int done, int step, ulong limit) {
  COEXEC_STORE(flags + COEXEC_GPU_DONE, done);
  coexec_wait_for(flags, step, limit);
}
