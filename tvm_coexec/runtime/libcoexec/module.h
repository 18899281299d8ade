/* A module that is open on a device: its tables, code and memory. */
#ifndef COEXEC_MODULE_H
#define COEXEC_MODULE_H

#include "adapt.h"
#include "device.h"
#include "file.h"
#include "kernels.h"
#include "memory.h"

/* A launch of the CPU: its function, and its arguments but for begin and count. */
typedef struct {
  kernel_function function;
  kernel_argument* arguments; /* NULL for a launch of the GPU */
} cpu_kernel;

struct coexec_module {
  coexec_device* device;
  module_file file;
  void* code;               /* dlopen's; NULL without code */
  int code_descriptor;      /* of the memory that it was loaded from; or -1 */
  cpu_kernel* kernels;      /* one for each launch of the file */
  kernel_tensor* tensors;   /* one for each argument of the file */
  kernel_argument* arguments; /* of all CPU kernels */
  memory_block* blocks;
  void* opencl;  /* the built program; NULL where nothing runs on the GPU */
  memory_block flags; /* without memory where there are none */
  uint32_t limit; /* bound on a wait of the GPU, in rounds of looks at the flag */
  int cuts_waits; /* whether that is shorter than what the other side is given, so that a run is made again */
  int64_t timeout_ns, first_launch_ns;
  int32_t yields;
  int32_t* splits;               /* the CPU's units of each step */
  coexec_program* programs[2];   /* of all steps for these splits, without and with a timeline; or NULL */
  adaptation adapting;
};

static inline const char* string_of(const coexec_module* module, uint32_t string) {
  return module->file.strings + string;
}

static inline int uses_flags(const coexec_module* module) {
  return module->device->mechanism == COEXEC_SVM || module->device->mechanism == COEXEC_MAPPED;
}

/* Whether kernels await and report steps themselves. The chained entry needs addresses, which buffers have none of: the
   kernels of a module with such are plain ones there, beside kernels that do nothing but wait and signal. */
static inline int uses_steps(const coexec_module* module) {
  return uses_flags(module) && (module->device->mechanism == COEXEC_SVM || !module->file.facts->chain_row_words);
}

/* Whether a launch is a row of the chained entry's table on this device. */
static inline int is_chained(const coexec_module* module, const coexec_launch_record* launch) {
  return uses_steps(module) && launch->entry == COEXEC_ENTRY_CHAINED;
}

/* code.c: load the CPU's code and find its kernels. */
coexec_status load_code(coexec_module* module);
void unload_code(coexec_module* module);

/* launches.c: kernels of the GPU with their arguments. */
coexec_status layer_kernel(const coexec_module* module, const coexec_launch_record* launch, int32_t units,
                           int32_t awaited, int32_t done, void** kernel);
coexec_status flag_kernel(const coexec_module* module, int32_t kind, int32_t step, int32_t done, void** kernel);
coexec_status linger_kernel(const coexec_module* module, void** kernel);
coexec_status chain_kernel(const coexec_module* module, const memory_block* table, int32_t first, int32_t last,
                           void** kernel);
/* Work-groups on both axes for a number of units. */
void grid_of(const coexec_launch_record* launch, int32_t units, size_t grid[2]);
/* Build the OpenCL code, for which memory need not be filled yet. */
coexec_status build_opencl(coexec_module* module);
/* Launch all kernels once, for which some drivers compile them. */
coexec_status start_opencl(coexec_module* module);

/* tensors.c: copy the user's elements in, or what was computed out, with the device entered. */
void copy_inputs(coexec_module* module, const void* const* inputs);
void copy_outputs(const coexec_module* module, void* const* outputs);

/* program.c: what the API's programs are made of, with the device entered. */
coexec_status make_program(coexec_module* module, const coexec_part* parts, int32_t count, int32_t flags,
                           coexec_program** program);
coexec_status make_network(coexec_module* module, int32_t flags, coexec_program** program);
coexec_status run_program(coexec_program* program);
void free_program(coexec_program* program);
/* Let go of the module's own programs, whose splits have changed. */
void drop_programs(coexec_module* module);
size_t held_by_threads(const coexec_program* program);
coexec_status check_split(const coexec_module* module, int32_t step, int32_t cpu_units);

#endif
