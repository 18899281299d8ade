#define _POSIX_C_SOURCE 200809L
#include "module.h"

#include "constants.h"
#include "program.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const int64_t TIMEOUT_NS = INT64_C(5000000000);
static const int64_t FIRST_LAUNCH_NS = INT64_C(600000000000);
static const int64_t MAX_TIMEOUT_NS = INT64_C(1000000000000000); /* eleven days */
enum { LEAST_BESIDE_BYTES = 1 << 20 }; /* of constants, from which on a thread of their own is worth its start */

/* ---- opening ---- */

static coexec_status take_options(coexec_module* m, const coexec_module_options* options) {
  static const coexec_module_options nothing;
  const coexec_module_options* o = options ? options : &nothing;
  if (o->timeout_ns < 0 || o->timeout_ns > MAX_TIMEOUT_NS || o->first_launch_ns < 0)
    return fail(COEXEC_BAD_ARGUMENT, "the bound on waits is no positive number of nanoseconds");
  m->timeout_ns = o->timeout_ns ? o->timeout_ns : TIMEOUT_NS;
  m->first_launch_ns = o->first_launch_ns ? o->first_launch_ns : FIRST_LAUNCH_NS;
  m->yields = o->yields;
  return COEXEC_OK;
}

static coexec_status choose_splits(coexec_module* m) {
  m->splits = calloc(m->file.step_count, sizeof *m->splits);
  if (!m->splits) return fail(COEXEC_NO_MEMORY, "there is no memory to open the module");
  for (uint64_t i = 0; i < m->file.step_count; ++i) {
    const coexec_step_record* s = &m->file.steps[i];
    m->splits[i] = (int32_t)(m->device->mechanism == COEXEC_CPU_ONLY ? s->units : s->cpu_units);
    if (m->device->mechanism == COEXEC_CPU_ONLY && !s->cpu_launch_count)
      return fail(COEXEC_NO_DEVICE, "layer '%s' has no CPU half, and there is no OpenCL device: %s", string_of(m, s->name),
                  m->device->name);
  }
  return COEXEC_OK;
}

static coexec_status allocate_memory(coexec_module* m) {
  size_t count = m->file.block_count, *filled = calloc(count + 1, sizeof *filled);
  m->blocks = calloc(count + 1, sizeof *m->blocks);
  coexec_status status = m->blocks && filled ? COEXEC_OK : fail(COEXEC_NO_MEMORY, "there is no memory to open the module");
  for (size_t i = 0; !status && i < count; ++i) {
    m->blocks[i].bytes = m->file.blocks[i].bytes;
    m->blocks[i].is_fixed = m->file.blocks[i].kind == COEXEC_BLOCK_CONSTANT && m->file.blocks[i].constant_bytes;
    filled[i] = coexec_content_bytes(&m->file.blocks[i]);
  }
  if (!status) status = allocate_blocks(m->device, m->blocks, (int32_t)count, filled);
  free(filled);
  return status;
}

/* The constants, which a thread reads while OpenCL starts, and then both: each takes tens of milliseconds. */
typedef struct {
  constant_pieces pieces;
  pthread_t thread;
  int has_thread;
  coexec_status status;
  char text[ERROR_TEXT]; /* a thread's last error is its own */
} constant_reader;

static void* read_beside(void* given) {
  constant_reader* r = given;
  r->status = read_pieces(&r->pieces);
  if (r->status) snprintf(r->text, sizeof r->text, "%s", coexec_last_error());
  return NULL;
}

static coexec_status begin_reading(constant_reader* r, coexec_module* m) {
  *r = (constant_reader){.has_thread = 0};
  void** places = calloc(m->file.block_count + 1, sizeof *places);
  if (!places) return fail(COEXEC_NO_MEMORY, "there is no memory to open the module");
  for (uint64_t i = 0; i < m->file.block_count; ++i) places[i] = m->blocks[i].host;
  coexec_status status = prepare_pieces(&r->pieces, &m->file, places);
  free(places);
  int is_worth_it = !status && m->file.sections[COEXEC_SECTION_CONSTANTS - 1].bytes >= LEAST_BESIDE_BYTES;
  r->has_thread = is_worth_it && !pthread_create(&r->thread, NULL, read_beside, r);
  return status;
}

/* Read what is left; damage counts for more than what failed meanwhile. */
static coexec_status end_reading(constant_reader* r, coexec_status meanwhile) {
  coexec_status status = read_pieces(&r->pieces);
  if (r->has_thread) pthread_join(r->thread, NULL);
  if (!status && r->status) status = fail(r->status, "%s", r->text);
  if (!status) status = check_pieces(&r->pieces);
  return status ? status : meanwhile;
}

static coexec_status open_entered(coexec_module* m, const byte_source* source, const coexec_module_options* options) {
  coexec_status status = take_options(m, options);
  if (!status) status = read_file(source, &m->file);
  if (!status) status = choose_splits(m);
  if (!status) status = allocate_memory(m);
  if (status) return status;
  constant_reader reader;
  status = begin_reading(&reader, m);
  if (!status) {
    status = load_code(m);
    if (!status) status = build_opencl(m);
    status = end_reading(&reader, status);
  }
  release_pieces(&reader.pieces);
  if (!status) status = create_buffers(m->device, m->blocks, (int32_t)m->file.block_count);
  if (!status) status = start_opencl(m);
  if (!status && options && options->adapts) status = start_adapting(m);
  return status;
}

/* Nothing may run any more where memory is freed: a kernel that has told that it is done may not have ended. */
static void release(coexec_module* m) {
  coexec_device* d = m->device;
  drop_programs(m);
  if (d->hangs) return; /* what the GPU's kernels may still touch has to stay, and what else the module has with it */
  if (d->flags.block.host) atomic_store((_Atomic int32_t*)words_of(&d->flags.block), 1);
  if (d->queue) d->cl.finish(d->queue);
  if (d->timing_queue) d->cl.finish(d->timing_queue);
  if (m->opencl) d->cl.release_program(m->opencl);
  if (m->flags.host) release_blocks(d, &m->flags, 1);
  if (m->blocks) release_blocks(d, m->blocks, (int32_t)m->file.block_count);
  unload_code(m);
  release_file(&m->file);
  free(m->blocks);
  free(m->adapting.earlier);
  free(m->splits);
  free(m);
}

static coexec_status open_source(coexec_device* device, const byte_source* source, const coexec_module_options* options,
                                 coexec_module** module) {
  coexec_status status = enter_device(device);
  if (status) return status;
  coexec_module* m = calloc(1, sizeof *m);
  if (m) {
    m->device = device;
    status = open_entered(m, source, options);
    m->file.source = (byte_source){.descriptor = -1};
  } else {
    status = fail(COEXEC_NO_MEMORY, "there is no memory to open the module");
  }
  if (status && m) release(m);
  else *module = m;
  leave_device(device);
  return status;
}

coexec_status coexec_module_open_fd(coexec_device* device, int descriptor, const coexec_module_options* options,
                                    coexec_module** module) {
  struct stat about;
  if (fstat(descriptor, &about)) return fail(COEXEC_BAD_FILE, "the module cannot be read (%s)", strerror(errno));
  if (!S_ISREG(about.st_mode)) /* a pipe is waited for, and /dev/zero read for ever */
    return fail(COEXEC_BAD_FILE, "this is no file; name a module, as `tvm-coexec build` writes it");
  byte_source source = {descriptor, NULL, (uint64_t)about.st_size};
  return open_source(device, &source, options, module);
}

coexec_status coexec_module_open(coexec_device* device, const char* path, const coexec_module_options* options,
                                 coexec_module** module) {
  int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0 && errno == ENOENT)
    return fail(COEXEC_BAD_FILE, "there is no module at %s; make one with `tvm-coexec build`", path);
  if (descriptor < 0) return fail(COEXEC_BAD_FILE, "%s cannot be opened (%s)", path, strerror(errno));
  coexec_status status = coexec_module_open_fd(device, descriptor, options, module);
  close(descriptor);
  return status;
}

coexec_status coexec_module_open_memory(coexec_device* device, const void* content, size_t bytes,
                                        const coexec_module_options* options, coexec_module** module) {
  byte_source source = {-1, content, bytes};
  return open_source(device, &source, options, module);
}

void coexec_module_close(coexec_module* m) {
  if (!m || is_forked(m->device)) return; /* a fork has no queue to wait for */
  coexec_device* device = m->device;
  pthread_mutex_lock(&device->mutex);
  release(m);
  pthread_mutex_unlock(&device->mutex);
}

/* ---- steps ---- */

int32_t coexec_step_count(const coexec_module* m) { return (int32_t)m->file.step_count; }

coexec_status coexec_describe_step(const coexec_module* m, int32_t step, coexec_step* described) {
  if (step < 0 || (uint64_t)step >= m->file.step_count)
    return fail(COEXEC_BAD_ARGUMENT, "the module has no step %d", (int)step);
  const coexec_step_record* s = &m->file.steps[step];
  pthread_mutex_lock(&m->device->mutex);
  *described = (coexec_step){string_of(m, s->name), (int32_t)s->units, m->splits[step], s->cpu_launch_count > 0,
                             s->gpu_launch_count > 0};
  pthread_mutex_unlock(&m->device->mutex);
  return COEXEC_OK;
}

coexec_status coexec_set_splits(coexec_module* m, const int32_t* cpu_units, int32_t count) {
  if (count < 0 || (uint64_t)count != m->file.step_count)
    return fail(COEXEC_BAD_ARGUMENT, "the module has %d steps, not %d", (int)m->file.step_count, (int)count);
  for (int32_t i = 0; i < count; ++i) {
    coexec_status status = check_split(m, i, cpu_units[i]);
    if (status) return status;
  }
  coexec_status status = enter_device(m->device);
  if (status) return status;
  if (memcmp(m->splits, cpu_units, (size_t)count * sizeof *cpu_units)) {
    drop_programs(m);
    forget_runs(m);
  }
  memcpy(m->splits, cpu_units, (size_t)count * sizeof *cpu_units);
  leave_device(m->device);
  return COEXEC_OK;
}

/* ---- runs ---- */

static coexec_status run_network(coexec_module* m) {
  coexec_program* program;
  coexec_status status = make_network(m, 0, &program);
  if (status) return status;
  if (m->adapting.enabled) forget_waits(m);
  status = run_program(program);
  if (!status && m->adapting.enabled) adapt_splits(m);
  return status;
}

coexec_status coexec_run(coexec_module* m) {
  coexec_status status = enter_device(m->device);
  if (status) return status;
  status = run_network(m);
  leave_device(m->device);
  return status;
}

coexec_status coexec_call(coexec_module* m, const void* const* inputs, void* const* outputs) {
  coexec_status status = enter_device(m->device);
  if (status) return status;
  copy_inputs(m, inputs);
  status = run_network(m);
  if (!status) copy_outputs(m, outputs);
  leave_device(m->device);
  return status;
}

coexec_status coexec_benchmark(coexec_module* m, int32_t warmup, int32_t repeats, int64_t* latency_ns) {
  coexec_program* program;
  coexec_status status = enter_device(m->device);
  if (status) return status;
  status = make_network(m, 0, &program);
  for (int32_t i = 0; !status && i < warmup; ++i) status = run_program(program);
  for (int32_t i = 0; !status && i < repeats; ++i) {
    int64_t start_ns = now_ns();
    status = run_program(program);
    latency_ns[i] = now_ns() - start_ns;
  }
  leave_device(m->device);
  return status;
}

void coexec_memory_use(const coexec_module* m, coexec_memory* use) {
  *use = (coexec_memory){0, 0, 0};
  pthread_mutex_lock(&m->device->mutex);
  for (uint64_t i = 0; i < m->file.block_count; ++i) {
    const coexec_block_record* b = &m->file.blocks[i];
    if (b->kind == COEXEC_BLOCK_CONSTANT) use->weight_bytes += b->bytes;
    else if (b->kind == COEXEC_BLOCK_ACTIVATION) use->activation_bytes += b->bytes;
    else use->scratch_bytes += b->bytes;
  }
  for (int i = 0; i < 2; ++i)
    if (m->programs[i]) use->scratch_bytes += held_by_threads(m->programs[i]);
  pthread_mutex_unlock(&m->device->mutex);
}

/* ---- programs ---- */

coexec_status coexec_prepare(coexec_module* m, const coexec_part* parts, int32_t count, int32_t flags,
                             coexec_program** program) {
  coexec_status status = enter_device(m->device);
  if (status) return status;
  status = make_program(m, parts, count, flags, program);
  leave_device(m->device);
  return status;
}

coexec_status coexec_network_program(coexec_module* m, int32_t flags, coexec_program** program) {
  coexec_status status = enter_device(m->device);
  if (status) return status;
  status = make_network(m, flags, program);
  leave_device(m->device);
  return status;
}

void coexec_program_close(coexec_program* program) {
  if (!program || is_forked(program->module->device)) return;
  coexec_device* device = program->module->device;
  pthread_mutex_lock(&device->mutex);
  free_program(program);
  pthread_mutex_unlock(&device->mutex);
}

coexec_status coexec_program_run(coexec_program* program) {
  coexec_status status = enter_device(program->module->device);
  if (status) return status;
  status = run_program(program);
  leave_device(program->module->device);
  return status;
}

/* ---- memory ---- */

int32_t coexec_block_count(const coexec_module* m) { return (int32_t)m->file.block_count; }

static coexec_status check_block(const coexec_module* m, int32_t block) {
  if (block >= 0 && (uint64_t)block < m->file.block_count) return COEXEC_OK;
  return fail(COEXEC_BAD_ARGUMENT, "the module has no block %d", (int)block);
}

coexec_status coexec_block(const coexec_module* m, int32_t block, void** data, size_t* bytes) {
  coexec_status status = check_block(m, block);
  if (status) return status;
  *data = m->blocks[block].host;
  *bytes = m->blocks[block].bytes;
  return COEXEC_OK;
}

coexec_status coexec_publish(coexec_module* m, int32_t block) {
  coexec_status status = check_block(m, block);
  if (!status) status = enter_device(m->device);
  if (status) return status;
  status = publish_block(m->device, &m->blocks[block]);
  leave_device(m->device);
  return status;
}
