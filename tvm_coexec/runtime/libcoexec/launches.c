#define _POSIX_C_SOURCE 200809L
#include "module.h"

#include "flags.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const double LINGER_S = 1e-3; /* the queue stays awake after a run: waking it costs tens of microseconds */
static const double LONGEST_WAIT_S = 0.15; /* of the GPU: drivers reset one whose kernel takes half a second or more */
enum { POLL_NS = 50000, PATIENT_NS = 200000 };

static const char chain_entry[] = "coexec_chain";

/* ---- kernels with their arguments ---- */

/* Sets a kernel's arguments one after the other, and keeps the first error. */
typedef struct {
  const opencl* cl;
  void* kernel;
  uint32_t next;
  int32_t error;
} setter;

static void set(setter* s, size_t bytes, const void* value) {
  if (!s->error) s->error = s->cl->set_argument(s->kernel, s->next++, bytes, value);
}

static void set_int(setter* s, int32_t value) { set(s, sizeof value, &value); }

static void set_limit(setter* s, uint32_t limit) { set(s, sizeof limit, &limit); }

static void set_memory(const coexec_module* m, setter* s, const memory_block* block) {
  if (!s->error) s->error = set_block(m->device, s->kernel, s->next++, block);
}

static void set_operand(const coexec_module* m, setter* s, const coexec_argument_record* argument) {
  const memory_block* block = &m->blocks[argument->block];
  if (!argument->is_image) set_memory(m, s, block);
  else if (!s->error) s->error = set_image(m->device, s->kernel, s->next++, block);
}

static coexec_status create(const coexec_module* m, void* program, const char* name, setter* s) {
  *s = (setter){.cl = &m->device->cl};
  s->kernel = s->cl->create_kernel(program, name, &s->error);
  if (s->kernel) return COEXEC_OK;
  return fail(COEXEC_BAD_FILE, "the module's OpenCL code has no kernel '%s' (OpenCL error %d); build it again", name,
              (int)s->error);
}

static coexec_status finished(const coexec_module* m, setter* s, const char* name, void** kernel) {
  *kernel = s->kernel;
  if (!s->error) return COEXEC_OK;
  s->cl->release_kernel(s->kernel);
  *kernel = NULL;
  return fail(COEXEC_BAD_FILE, "the kernel '%s' takes other arguments than the module says (OpenCL error %d on %s); build "
              "it again", name, (int)s->error, m->device->name);
}

coexec_status layer_kernel(const coexec_module* m, const coexec_launch_record* l, int32_t units, int32_t awaited,
                           int32_t done, void** kernel) {
  const char* name = string_of(m, l->symbol);
  setter s;
  coexec_status status = create(m, m->opencl, name, &s);
  if (status) return status;
  for (uint32_t i = 0; i < l->argument_count; ++i)
    set_operand(m, &s, &m->file.arguments[l->first_argument + i]);
  set_int(&s, 0);
  set_int(&s, units);
  if (uses_steps(m) && l->entry == COEXEC_ENTRY_STEP) {
    set_memory(m, &s, &m->flags);
    set_int(&s, awaited);
    set_int(&s, done);
    set_limit(&s, m->limit);
  }
  return finished(m, &s, name, kernel);
}

coexec_status flag_kernel(const coexec_module* m, int32_t kind, int32_t step, int32_t done, void** kernel) {
  const char* name = kind == COEXEC_SIGNAL ? "coexec_signal" : kind == COEXEC_WAIT ? "coexec_wait" : "coexec_signal_wait";
  setter s;
  coexec_status status = create(m, m->device->flags.program, name, &s);
  if (status) return status;
  set_memory(m, &s, &m->flags);
  if (kind != COEXEC_WAIT) set_int(&s, done);
  if (kind != COEXEC_SIGNAL) set_int(&s, step);
  if (kind != COEXEC_SIGNAL) set_limit(&s, m->limit);
  return finished(m, &s, name, kernel);
}

coexec_status linger_kernel(const coexec_module* m, void** kernel) {
  setter s;
  coexec_status status = create(m, m->device->flags.program, "coexec_linger", &s);
  if (status) return status;
  set_memory(m, &s, &m->device->flags.block);
  set_limit(&s, (uint32_t)(LINGER_S * m->device->flags.rounds_per_s));
  return finished(m, &s, "coexec_linger", kernel);
}

/* Tell the driver which memory a kernel reaches by addresses that are no arguments of its own. */
static coexec_status reach_blocks(const coexec_module* m, setter* s) {
  const void** addresses = calloc(m->file.block_count + 1, sizeof *addresses);
  if (!addresses) return fail(COEXEC_NO_MEMORY, "there is no memory for a kernel");
  for (uint64_t i = 0; i < m->file.block_count; ++i) addresses[i] = m->blocks[i].host;
  int32_t error = s->cl->exec_info(s->kernel, CL_EXEC_SVM_POINTERS, m->file.block_count * sizeof *addresses, addresses);
  free(addresses);
  if (!error) return COEXEC_OK;
  s->cl->release_kernel(s->kernel);
  return fail(COEXEC_OPENCL_FAILED, "the OpenCL driver does not take addresses in shared memory (clSetKernelExecInfo "
              "failed with %d); update the driver, or use the mechanism 'event'", (int)error);
}

coexec_status chain_kernel(const coexec_module* m, const memory_block* table, int32_t first, int32_t last,
                           void** kernel) {
  setter s;
  coexec_status status = create(m, m->opencl, chain_entry, &s);
  if (!status) status = reach_blocks(m, &s);
  if (status) return status;
  set_memory(m, &s, table);
  set_int(&s, first);
  set_int(&s, last);
  set_memory(m, &s, &m->flags);
  set_limit(&s, m->limit);
  return finished(m, &s, chain_entry, kernel);
}

void grid_of(const coexec_launch_record* l, int32_t units, size_t grid[2]) {
  for (int32_t axis = 0; axis < 2; ++axis) {
    grid[axis] = l->grid[axis];
    if (axis == l->unit_axis) grid[axis] = (grid[axis] * (size_t)units + l->together - 1) / l->together;
  }
}

/* ---- the first launches ---- */

static coexec_status cannot_run(const coexec_module* m, int32_t error) {
  return fail(COEXEC_KERNEL_FAILED, "%s cannot run the module's OpenCL code (OpenCL error %d); build it with other "
              "variants", m->device->name, (int)error);
}

/* See a launch end within the bound, and without an error. */
static coexec_status await_first(coexec_module* m, void* event, const char* name) {
  const opencl* cl = &m->device->cl;
  const struct timespec pause = {0, POLL_NS};
  int32_t state = 1, error = 0;
  for (int64_t start = now_ns(); !error; nanosleep(&pause, NULL)) {
    do error = cl->event_info(event, CL_EVENT_STATUS, sizeof state, &state, NULL);
    while (!error && state > CL_STATUS_COMPLETE && now_ns() - start < PATIENT_NS);
    if (state <= CL_STATUS_COMPLETE) break;
    if (now_ns() - start < m->first_launch_ns) continue;
    char why[ERROR_TEXT];
    snprintf(why, sizeof why, "the kernel %s is neither compiled nor done on %s within %g s: restart the process, and "
             "build the module with other variants", name, m->device->name, (double)m->first_launch_ns / 1e9);
    return give_up(m->device, why);
  }
  return error || state < CL_STATUS_COMPLETE ? cannot_run(m, error ? error : state) : COEXEC_OK;
}

/* Takes the kernel. */
static coexec_status launch_alone(coexec_module* m, void* kernel, const size_t global[2], const size_t local[2],
                                  const char* name) {
  const opencl* cl = &m->device->cl;
  void* event = NULL;
  int32_t error = cl->enqueue_kernel(m->device->queue, kernel, 2, NULL, global, local, 0, NULL, &event);
  if (!error) error = cl->flush(m->device->queue);
  coexec_status status = error ? cannot_run(m, error) : await_first(m, event, name);
  if (event) cl->release_event(event);
  cl->release_kernel(kernel);
  return status;
}

static coexec_status launch_layer(coexec_module* m, const coexec_launch_record* l) {
  void* kernel;
  size_t grid[2], local[2] = {l->group[0], l->group[1]};
  coexec_status status = layer_kernel(m, l, 1, 0, 0, &kernel);
  if (status) return status;
  grid_of(l, 1, grid);
  size_t global[2] = {grid[0] * local[0], grid[1] * local[1]};
  return launch_alone(m, kernel, global, local, string_of(m, l->symbol));
}

static coexec_status launch_chain(coexec_module* m) {
  static const size_t one[2] = {1, 1}, nothing = 0;
  memory_block table = {.bytes = m->file.facts->chain_row_words * sizeof(uint64_t)};
  void* kernel;
  coexec_status status = allocate_blocks(m->device, &table, 1, &nothing);
  if (status) return status;
  status = chain_kernel(m, &table, 0, 0, &kernel);
  if (!status) status = launch_alone(m, kernel, one, one, chain_entry);
  if (!m->device->hangs) release_blocks(m->device, &table, 1);
  return status;
}

/* Whether a launch before has the same symbol. */
static int is_known(const coexec_module* m, uint64_t launch) {
  const coexec_launch_record* l = m->file.launches;
  for (uint64_t i = 0; i < launch; ++i)
    if (l[i].symbol == l[launch].symbol && l[i].entry != COEXEC_ENTRY_CPU) return 1;
  return 0;
}

/* Some drivers compile a kernel when it is first launched, for seconds that no bound on waits allows for. */
static coexec_status launch_once(coexec_module* m) {
  int chains = 0;
  coexec_status status = COEXEC_OK;
  for (uint64_t i = 0; !status && i < m->file.launch_count; ++i) {
    const coexec_launch_record* l = &m->file.launches[i];
    if (l->entry == COEXEC_ENTRY_CPU) continue;
    if (is_chained(m, l)) chains = 1;
    else if (!is_known(m, i)) status = launch_layer(m, l);
  }
  return status || !chains ? status : launch_chain(m);
}

static int has_gpu(const coexec_module* m) {
  for (uint64_t i = 0; i < m->file.launch_count; ++i)
    if (m->file.launches[i].entry != COEXEC_ENTRY_CPU) return 1;
  return 0;
}

static coexec_status prepare_flags(coexec_module* m, int is_built_with_flags) {
  coexec_status status = need_flags(m->device, is_built_with_flags ? m->opencl : NULL);
  if (status) return status;
  status = allocate_flags(m->device, &m->flags);
  if (status) return status;
  /* a little more than the CPU's own bound, so that the CPU reports first */
  double wait_s = 1.5e-9 * (double)m->timeout_ns;
  m->cuts_waits = wait_s > LONGEST_WAIT_S;
  double rounds = (m->cuts_waits ? LONGEST_WAIT_S : wait_s) * m->device->flags.rounds_per_s;
  m->limit = rounds < 1 ? 1 : rounds > UINT32_MAX ? UINT32_MAX : (uint32_t)rounds;
  return COEXEC_OK;
}

coexec_status build_opencl(coexec_module* m) {
  if (m->device->mechanism == COEXEC_CPU_ONLY) return COEXEC_OK;
  uint32_t needs = m->file.facts->needs;
  int steps = has_gpu(m) && (needs & COEXEC_NEEDS_STEPS), how = 0;
  if (steps) how = uses_steps(m) ? BUILD_NEWEST | BUILD_WITH_FLAGS : BUILD_WITHOUT_FLAGS;
  if (needs & COEXEC_NEEDS_FENCES) how |= BUILD_NEWEST;
  coexec_status status = COEXEC_OK;
  if (has_gpu(m)) status = build_program(m->device, m->file.opencl, m->file.opencl_bytes, how, &m->opencl);
  return !status && uses_flags(m) ? prepare_flags(m, how & BUILD_WITH_FLAGS) : status;
}

/* The images that kernels read. A module without a GPU's part makes none. */
static coexec_status create_images(coexec_module* m) {
  coexec_status status = COEXEC_OK;
  for (uint64_t i = 0; !status && i < m->file.argument_count; ++i) {
    const coexec_argument_record* argument = &m->file.arguments[i];
    if (argument->is_image) status = create_image(m->device, &m->blocks[argument->block], COEXEC_IMAGE_WIDTH);
  }
  return status;
}

coexec_status start_opencl(coexec_module* m) {
  if (!m->opencl) return COEXEC_OK;
  coexec_status status = create_images(m);
  if (!status) status = launch_once(m);
  if (!status) store_program(m->device, m->opencl);
  return status;
}
