#define _POSIX_C_SOURCE 200809L
#include "remote.h"

#include "device.h"
#include "format.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- what a session has open ---- */

enum { KEPT_MODULES = 16, MAX_CORES = 256, MAX_COUNT = 1 << 20 };

typedef struct {
  coexec_header header;
  long bytes;
} file_identity;

typedef struct {
  char* path;
  file_identity identity; /* of the file when it was opened: the host may have sent another by that name */
  coexec_module* module;
} open_module;

static coexec_device* device;
static open_module modules[KEPT_MODULES]; /* the one that was named last comes last */
static int32_t module_count;

static coexec_status no_memory(void) { return fail(COEXEC_NO_MEMORY, "there is no memory to answer"); }

static void close_number(int32_t number) {
  coexec_module_close(modules[number].module);
  free(modules[number].path);
  --module_count;
  memmove(&modules[number], &modules[number + 1], (size_t)(module_count - number) * sizeof *modules);
}

static void close_all(void) {
  while (module_count) close_number(module_count - 1);
}

static int32_t read_cores(const char* request, int32_t* cores) {
  size_t bytes;
  const char* list = find_value(request, "cores", &bytes);
  int32_t count = 0;
  for (int64_t core; list && count < MAX_CORES && next_number(&list, &core);) cores[count++] = (int32_t)core;
  return count;
}

static int32_t read_mechanism(const char* request) {
  char* name = copy_value(request, "mechanism");
  int32_t mechanism = name ? -1 : COEXEC_BEST;
  for (int32_t i = 0; name && i < MECHANISMS; ++i)
    if (!strcmp(name, mechanism_names[i])) mechanism = i;
  free(name);
  return mechanism;
}

static coexec_status open_device(const char* request) {
  int32_t cores[MAX_CORES];
  char *library = copy_value(request, "opencl"), *name = copy_value(request, "device");
  char* cache = copy_value(request, "cache");
  coexec_device_options options = {.opencl_library = library,
                                   .name = name,
                                   .mechanism = read_mechanism(request),
                                   .cores = cores,
                                   .core_count = read_cores(request, cores),
                                   .cache_folder = cache};
  close_all();
  if (device) coexec_device_close(device);
  device = NULL;
  coexec_status status = coexec_device_open(&options, &device);
  free(library);
  free(name);
  free(cache);
  return status;
}

/* Headers have a checksum of all else, by which whole files are told apart, and their size tells those that were cut
   off: times would not do, since two may be sent within the clock's step. */
static coexec_status read_identity(const char* path, file_identity* found) {
  FILE* file = fopen(path, "rb");
  memset(found, 0, sizeof *found);
  if (!file) return fail(COEXEC_BAD_FILE, "there is no module at %s", path);
  size_t count = fread(&found->header, sizeof found->header, 1, file);
  found->bytes = fseek(file, 0, SEEK_END) ? -1 : ftell(file);
  fclose(file);
  return count ? COEXEC_OK : fail(COEXEC_BAD_FILE, "%s is too short for a module", path);
}

coexec_status find_module(const char* request, path_finder find_path, coexec_module** module) {
  file_identity identity;
  char* name = copy_value(request, "module");
  if (!name) return fail(COEXEC_BAD_ARGUMENT, "the request names no module");
  char* path = find_path(name);
  free(name);
  coexec_status status = !path ? COEXEC_BAD_ARGUMENT : device ? COEXEC_OK : open_device("");
  if (!status) status = read_identity(path, &identity);
  for (int32_t i = 0; !status && i < module_count; ++i)
    if (!strcmp(modules[i].path, path)) {
      open_module found = modules[i];
      if (memcmp(&found.identity, &identity, sizeof identity)) {
        close_number(i);
        break;
      }
      memmove(&modules[i], &modules[i + 1], (size_t)(module_count - i - 1) * sizeof found);
      modules[module_count - 1] = found;
      *module = found.module;
      free(path);
      return COEXEC_OK;
    }
  coexec_module_options options = {.timeout_ns = 1000 * number_of(request, "timeout_us", 0)};
  if (!status && module_count == KEPT_MODULES) close_number(0);
  if (!status) status = coexec_module_open(device, path, &options, module);
  if (!status) modules[module_count++] = (open_module){path, identity, *module};
  else free(path);
  return status;
}

/* ---- what a host asks for ---- */

coexec_status remote_facts(const char* request, path_finder find_path, answer* to) {
  (void)find_path;
  coexec_status status = open_device(request);
  if (!status) say_facts(device, to);
  return status;
}

coexec_status remote_close(const char* request, path_finder find_path, answer* to) {
  char* name = copy_value(request, "module");
  (void)to;
  if (!name) {
    close_all();
    return COEXEC_OK;
  }
  char* path = find_path(name);
  for (int32_t i = module_count; path && i--;)
    if (!strcmp(modules[i].path, path)) close_number(i);
  free(name);
  coexec_status status = path ? COEXEC_OK : COEXEC_BAD_ARGUMENT;
  free(path);
  return status;
}

static void describe_tensor(const coexec_module* m, int32_t number, answer* to) {
  coexec_tensor t;
  if (coexec_describe_tensor(m, number, &t)) return;
  say(to, "tensor=%d:%s:%d:%d:", (int)number, t.name, (int)t.type_code, (int)t.type_bits);
  for (int32_t i = 0; i < t.rank; ++i) say(to, "%s%lld", i ? "x" : "", (long long)t.shape[i]);
  say(to, ":%zu\n", t.bytes);
}

coexec_status remote_describe(const char* request, path_finder find_path, answer* to) {
  coexec_module* m;
  coexec_step step;
  size_t bytes;
  void* data;
  coexec_status status = find_module(request, find_path, &m);
  if (status) return status;
  for (int32_t i = 0; i < coexec_tensor_count(m); ++i) describe_tensor(m, i, to);
  for (int32_t i = 0; i < coexec_input_count(m); ++i) say(to, "input=%d\n", (int)coexec_input(m, i));
  for (int32_t i = 0; i < coexec_output_count(m); ++i) say(to, "output=%d\n", (int)coexec_output(m, i));
  for (int32_t i = 0; i < coexec_step_count(m); ++i)
    if (!coexec_describe_step(m, i, &step))
      say(to, "step=%d:%s:%d:%d:%d:%d\n", (int)i, step.name, (int)step.units, (int)step.cpu_units, (int)step.has_cpu,
          (int)step.has_gpu);
  for (int32_t i = 0; i < coexec_block_count(m); ++i)
    if (!coexec_block(m, i, &data, &bytes)) say(to, "block=%d:%zu\n", (int)i, bytes);
  return COEXEC_OK;
}

/* ---- programs ---- */

/* The parts of a request, STEP:CPU:GPU,…; none: the network. */
static coexec_status read_parts(const char* request, coexec_part** parts, int32_t* count) {
  size_t bytes;
  const char* list = find_value(request, "parts", &bytes);
  int64_t numbers[3];
  *parts = NULL;
  *count = 0;
  if (!list || !bytes) return COEXEC_OK;
  *parts = calloc(bytes / 2 + 1, sizeof **parts);
  if (!*parts) return no_memory();
  while (next_number(&list, &numbers[0])) {
    if (!next_number(&list, &numbers[1]) || !next_number(&list, &numbers[2]))
      return fail(COEXEC_BAD_ARGUMENT, "parts are STEP:CPU_UNITS:GPU_UNITS, with commas between");
    for (int i = 0; i < 3; ++i)
      if (numbers[i] < 0 || numbers[i] > INT32_MAX) return fail(COEXEC_BAD_ARGUMENT, "a part has no such step or units");
    (*parts)[(*count)++] = (coexec_part){(int32_t)numbers[0], (int32_t)numbers[1], (int32_t)numbers[2]};
  }
  return COEXEC_OK;
}

static coexec_status say_run(coexec_program* program, coexec_span* spans, int32_t room, answer* to) {
  int32_t count = 0;
  int64_t end_ns = 0;
  coexec_status status = coexec_spans(program, spans, room, &count);
  if (status) return status;
  for (int32_t i = 0; i < count; ++i)
    if (!spans[i].is_gpu && spans[i].end_ns > end_ns) end_ns = spans[i].end_ns;
  say(to, "run=%lld\nspans=", (long long)end_ns);
  for (int32_t i = 0; i < count; ++i)
    say(to, "%s%d:%d:%d:%d:%lld:%lld", i ? "," : "", (int)spans[i].is_gpu, (int)spans[i].action, (int)spans[i].part,
        (int)spans[i].awaited, (long long)spans[i].start_ns, (long long)spans[i].end_ns);
  say(to, "\n");
  return COEXEC_OK;
}

static coexec_status run_program_often(coexec_program* program, const char* request, answer* to) {
  int64_t warm_ns = 1000 * number_of(request, "warm_us", 0), runs = number_of(request, "runs", 1), start = now_ns();
  coexec_program_facts facts;
  coexec_describe_program(program, &facts);
  say(to, "sync_count=%d\ntimeline_is_faithful=%d\n", (int)facts.sync_count, (int)facts.timeline_is_faithful);
  coexec_span* spans = calloc((size_t)facts.span_count + 1, sizeof *spans);
  coexec_status status = spans ? COEXEC_OK : no_memory();
  for (int64_t i = 0; !status && i < runs && i < MAX_COUNT; ++i) {
    do status = coexec_program_run(program); /* the first one that counts ends when all is warm */
    while (!status && now_ns() - start < warm_ns);
    if (!status) status = say_run(program, spans, facts.span_count, to);
  }
  free(spans);
  return status;
}

coexec_status remote_program(const char* request, path_finder find_path, answer* to) {
  coexec_module* m;
  coexec_program* program = NULL;
  coexec_part* parts = NULL;
  int32_t count = 0, flags = number_of(request, "timeline", 0) ? COEXEC_TIMELINE : 0;
  coexec_status status = find_module(request, find_path, &m);
  if (!status) status = read_parts(request, &parts, &count);
  if (!status && count && number_of(request, "chain", 0)) flags |= COEXEC_CHAIN;
  if (!status)
    status = count ? coexec_prepare(m, parts, count, flags, &program) : coexec_network_program(m, flags, &program);
  if (!status) status = run_program_often(program, request, to);
  if (count && program) coexec_program_close(program);
  free(parts);
  return status;
}

/* ---- whole runs ---- */

static coexec_status take_splits(coexec_module* m, const char* request) {
  size_t bytes;
  const char* list = find_value(request, "splits", &bytes);
  if (!list || !bytes) return COEXEC_OK;
  int32_t count = 0, *splits = calloc(bytes / 2 + 1, sizeof *splits);
  if (!splits) return no_memory();
  for (int64_t units; next_number(&list, &units);) splits[count++] = units < 0 || units > INT32_MAX ? -1 : (int32_t)units;
  coexec_status status = coexec_set_splits(m, splits, count);
  free(splits);
  return status;
}

static void say_threads(answer* to) {
  int32_t processors[MAX_CORES], threads = coexec_threads_ran_on(device, processors, MAX_CORES);
  say(to, "threads=");
  for (int32_t i = 0; i < threads && i < MAX_CORES; ++i) say(to, "%s%d", i ? "," : "", (int)processors[i]);
  say(to, "\n");
}

coexec_status remote_run(const char* request, path_finder find_path, answer* to) {
  coexec_module* m;
  int64_t warmup = number_of(request, "warmup", 0), repeats = number_of(request, "repeats", 1);
  if (warmup < 0 || repeats < 1 || warmup > MAX_COUNT || repeats > MAX_COUNT)
    return fail(COEXEC_BAD_ARGUMENT, "warmup and repeats are numbers of runs");
  coexec_status status = find_module(request, find_path, &m);
  if (!status) status = take_splits(m, request);
  if (status) return status;
  int64_t* latency_ns = calloc((size_t)repeats, sizeof *latency_ns);
  if (!latency_ns) return no_memory();
  status = coexec_benchmark(m, (int32_t)warmup, (int32_t)repeats, latency_ns);
  if (!status) say(to, "latency_ns=");
  for (int64_t i = 0; !status && i < repeats; ++i) say(to, "%s%lld", i ? "," : "", (long long)latency_ns[i]);
  if (!status) say(to, "\n");
  if (!status) say_threads(to);
  free(latency_ns);
  return status;
}
