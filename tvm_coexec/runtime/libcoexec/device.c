#define _GNU_SOURCE
#include "device.h"

#include "flags.h"
#include "probe.h"

#include <ctype.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_DEVICES = 64, CALIBRATION_ROUNDS = 4000, CALIBRATION_TRIES = 6, NEVER = 1 << 30 };

/* ---- which device ---- */

typedef struct {
  void* device;
  char name[DEVICE_TEXT]; /* the platform's and the device's */
  int is_gpu;
} found_device;

static void read_text(int32_t (*info)(void*, uint32_t, size_t, void*, size_t*), void* object, uint32_t what,
                      char* text, size_t bytes) {
  size_t length = 0;
  if (info(object, what, bytes - 1, text, &length)) length = 0;
  text[length < bytes ? length : bytes - 1] = 0;
  for (size_t i = strlen(text); i && isspace((unsigned char)text[i - 1]); --i) text[i - 1] = 0;
}

static int32_t find_devices(const opencl* cl, found_device* found) {
  void *platforms[MAX_DEVICES], *devices[MAX_DEVICES];
  uint32_t platform_count = 0, device_count;
  int32_t count = 0;
  if (cl->get_platforms(MAX_DEVICES, platforms, &platform_count)) return 0;
  for (uint32_t p = 0; p < platform_count && p < MAX_DEVICES; ++p) {
    char platform[DEVICE_TEXT / 2 - 2], name[DEVICE_TEXT / 2 - 2];
    device_count = 0;
    if (cl->get_devices(platforms[p], CL_ALL_DEVICE_TYPES, MAX_DEVICES, devices, &device_count)) continue;
    read_text(cl->platform_info, platforms[p], CL_PLATFORM_NAME, platform, sizeof platform);
    for (uint32_t d = 0; d < device_count && d < MAX_DEVICES && count < MAX_DEVICES; ++d) {
      uint64_t type = 0;
      read_text(cl->device_info, devices[d], CL_DEVICE_NAME, name, sizeof name);
      cl->device_info(devices[d], CL_DEVICE_TYPE, sizeof type, &type, NULL);
      found_device* one = &found[count++];
      one->device = devices[d];
      one->is_gpu = (type & CL_DEVICE_TYPE_GPU) != 0;
      snprintf(one->name, sizeof one->name, "%s: %s", platform, name);
    }
  }
  return count;
}

static int contains(const char* text, const char* part) {
  for (; *text; ++text)
    if (!strncasecmp(text, part, strlen(part))) return 1;
  return !*part;
}

/* The first that fits the name; without a name the first GPU, else the first of all. */
static const found_device* choose(const found_device* found, int32_t count, const char* name) {
  for (int32_t i = 0; i < count; ++i)
    if (name ? contains(found[i].name, name) : found[i].is_gpu) return &found[i];
  return name || !count ? NULL : &found[0];
}

int has_extension(const coexec_device* d, const char* name) {
  size_t bytes = 0;
  if (d->cl.device_info(d->device, CL_DEVICE_EXTENSIONS, 0, NULL, &bytes) || !bytes) return 0;
  char* all = calloc(bytes + 1, 1);
  int found = all && !d->cl.device_info(d->device, CL_DEVICE_EXTENSIONS, bytes, all, NULL) && strstr(all, name);
  free(all);
  return found;
}

/* A GPU that computes for us, or waits for the CPU, draws no screen: where the driver takes the hint, that comes first. */
static void* open_queue(coexec_device* d, uint64_t how, int32_t* error) {
  const uint64_t hinted[] = {CL_QUEUE_HOW, how, CL_QUEUE_PRIORITY, CL_PRIORITY_LOW, 0};
  if (d->cl.create_queue_with && has_extension(d, "cl_khr_priority_hints")) {
    void* queue = d->cl.create_queue_with(d->context, d->device, hinted, error);
    if (!*error && queue) return queue;
  }
  return d->cl.create_queue(d->context, d->device, how, error);
}

static coexec_status open_found(coexec_device* d, const char* name) {
  found_device* found = calloc(MAX_DEVICES, sizeof *found);
  if (!found) return fail(COEXEC_NO_MEMORY, "there is no memory to look for devices");
  const found_device* chosen = choose(found, find_devices(&d->cl, found), name);
  int32_t error = 0;
  if (chosen) {
    d->device = chosen->device;
    snprintf(d->name, sizeof d->name, "%s", chosen->name);
    d->context = d->cl.create_context(NULL, 1, &d->device, NULL, NULL, &error);
    if (!error) d->queue = open_queue(d, 0, &error);
  }
  free(found);
  if (!chosen && name) return fail(COEXEC_NO_DEVICE, "no OpenCL device is called '%s'", name);
  if (!chosen) return fail(COEXEC_NO_DEVICE, "no OpenCL device was found; install the device's OpenCL driver");
  if (error)
    return fail(COEXEC_NO_DEVICE, "%s cannot be opened (OpenCL error %d); end other programs that use it, or reinstall "
                "its driver", d->name, (int)error);
  return COEXEC_OK;
}

/* Keep what the caller has opened; its name is the caller's word for it. */
static coexec_status take_given(coexec_device* d, const coexec_device_options* o) {
  if (!o->context || !o->device || !o->queue)
    return fail(COEXEC_BAD_ARGUMENT, "give an OpenCL context, device and queue, or none of them");
  if (d->cl.retain_context(o->context)) return fail(COEXEC_NO_DEVICE, "what was given is no OpenCL context");
  d->context = o->context;
  if (d->cl.retain_queue(o->queue)) return fail(COEXEC_NO_DEVICE, "what was given is no OpenCL queue");
  d->queue = o->queue;
  d->device = o->device;
  if (o->name) snprintf(d->name, sizeof d->name, "%s", o->name);
  else read_text(d->cl.device_info, d->device, CL_DEVICE_NAME, d->name, sizeof d->name);
  return COEXEC_OK;
}

/* ---- how the sides synchronise ---- */

const char* const mechanism_names[MECHANISMS] = {"best", "svm", "event", "cpu", "mapped"};

static coexec_status choose_mechanism(coexec_device* d, const coexec_device_options* o) {
  uint64_t svm = 0, type = 0, wanted = CL_SVM_FINE_BUFFER | CL_SVM_ATOMICS_CAPABILITY;
  uint32_t unified = 0;
  int has_functions = d->cl.svm_alloc && d->cl.svm_free && d->cl.set_svm_argument && d->cl.exec_info;
  d->cl.device_info(d->device, CL_DEVICE_UNIFIED, sizeof unified, &unified, NULL);
  d->cl.device_info(d->device, CL_DEVICE_TYPE, sizeof type, &type, NULL);
  d->is_unified = unified && !o->separate_memory;
  d->is_coherent = d->is_unified && (type & CL_DEVICE_TYPE_CPU);
  if (d->cl.device_info(d->device, CL_DEVICE_SVM, sizeof svm, &svm, NULL)) svm = 0; /* OpenCL 1.2 cannot be asked */
  int has_flags = has_functions && (svm & wanted) == wanted;
  if (o->mechanism == COEXEC_SVM && !has_flags)
    return fail(COEXEC_NO_DEVICE, "%s has no fine-grained shared virtual memory with atomics, which the mechanism 'svm' "
                "needs; use 'event'", d->name);
  int wants_buffers = o->mechanism == COEXEC_EVENT || o->mechanism == COEXEC_MAPPED;
  d->mechanism = wants_buffers ? (coexec_mechanism)o->mechanism : has_flags ? COEXEC_SVM : COEXEC_EVENT;
  return d->mechanism == COEXEC_MAPPED ? need_flags(d, NULL) : COEXEC_OK;
}

/* ---- opening and closing ---- */

static coexec_status copy_options(coexec_device* d, const coexec_device_options* o) {
  if (o->core_count < 0 || (o->core_count && !o->cores))
    return fail(COEXEC_BAD_ARGUMENT, "core_count counts the processors in cores, of which there are none");
  d->cores = calloc((size_t)o->core_count + 1, sizeof *d->cores);
  d->cache_folder = o->cache_folder ? strdup(o->cache_folder) : NULL;
  if (!d->cores || (o->cache_folder && !d->cache_folder)) return fail(COEXEC_NO_MEMORY, "there is no memory for a device");
  for (int32_t i = 0; i < o->core_count; ++i) {
    if (o->cores[i] < 0 || o->cores[i] >= CPU_SETSIZE) return fail(COEXEC_BAD_ARGUMENT, "there is no processor %d", o->cores[i]);
    d->cores[i] = o->cores[i];
  }
  d->core_count = o->core_count;
  return COEXEC_OK;
}

static coexec_status open_opencl_device(coexec_device* d, const coexec_device_options* o) {
  coexec_status status = open_opencl(o->opencl_library, &d->cl);
  if (!status) status = o->context || o->device || o->queue ? take_given(d, o) : open_found(d, o->name);
  return status ? status : choose_mechanism(d, o);
}

coexec_status coexec_device_open(const coexec_device_options* options, coexec_device** device) {
  static const coexec_device_options nothing;
  const coexec_device_options* o = options ? options : &nothing;
  if (o->mechanism < COEXEC_BEST || o->mechanism > COEXEC_MAPPED)
    return fail(COEXEC_BAD_ARGUMENT, "there is no mechanism %d", o->mechanism);
  coexec_device* d = calloc(1, sizeof *d);
  if (!d) return fail(COEXEC_NO_MEMORY, "there is no memory for a device");
  pthread_mutex_init(&d->mutex, NULL);
  d->process = getpid();
  d->ran_on = -1;
  coexec_status status = copy_options(d, o);
  if (!status && o->mechanism != COEXEC_CPU_ONLY) {
    status = open_opencl_device(d, o);
    if (status == COEXEC_NO_DEVICE && o->mechanism == COEXEC_BEST && !o->name && !o->context && !o->opencl_library) {
      snprintf(d->name, sizeof d->name, "the CPU alone (%.200s)", coexec_last_error());
      d->mechanism = COEXEC_CPU_ONLY;
      status = COEXEC_OK;
    }
  } else if (!status) {
    snprintf(d->name, sizeof d->name, "the CPU alone");
    d->mechanism = COEXEC_CPU_ONLY;
  }
  if (status) coexec_device_close(d);
  else *device = d;
  return status;
}

/* Let lingering kernels end before the word that they watch is freed. */
static void release_flags(coexec_device* d) {
  if (!d->flags.block.host) return;
  atomic_store((_Atomic int32_t*)words_of(&d->flags.block), 1);
  d->cl.finish(d->queue);
  if (d->timing_queue) d->cl.finish(d->timing_queue);
  release_blocks(d, &d->flags.block, 1);
  if (d->flags.program) d->cl.release_program(d->flags.program);
}

void coexec_device_close(coexec_device* d) {
  if (!d || is_forked(d)) return;
  if (d->pool) stop_pool(d->pool);
  if (!d->hangs) { /* else what its kernels may still touch has to stay */
    release_flags(d);
    release_built(d);
    if (d->timing_queue) d->cl.release_queue(d->timing_queue);
    if (d->queue) d->cl.release_queue(d->queue);
    if (d->context) d->cl.release_context(d->context);
  }
  pthread_mutex_destroy(&d->mutex);
  free(d->cores);
  free(d->cache_folder);
  free(d);
}

const char* coexec_device_name(const coexec_device* device) { return device->name; }

coexec_mechanism coexec_device_mechanism(const coexec_device* device) { return device->mechanism; }

int32_t coexec_threads_ran_on(coexec_device* d, int32_t* processors, int32_t capacity) {
  int32_t threads = d->core_count > 1 ? d->core_count : 1;
  for (int32_t i = 0; i < threads && i < capacity; ++i) processors[i] = -1;
  if (is_forked(d)) return threads; /* whoever held the lock is in the other process */
  pthread_mutex_lock(&d->mutex);
  for (int32_t i = 0; i < threads && i < capacity; ++i)
    processors[i] = i ? (d->shared_calls ? thread_ran_on(d->pool, i) : -1) : d->ran_on;
  pthread_mutex_unlock(&d->mutex);
  return threads;
}

/* ---- for the rest of the library ---- */

int is_forked(const coexec_device* device) { return getpid() != device->process; }

coexec_status enter_device(coexec_device* device) {
  if (is_forked(device))
    return fail(COEXEC_NO_DEVICE, "the device was opened before this process was forked, and no driver survives that; "
                "start processes with multiprocessing's method 'spawn', or open devices and load modules in the forked "
                "process alone");
  pthread_mutex_lock(&device->mutex);
  if (!device->hangs) return COEXEC_OK;
  pthread_mutex_unlock(&device->mutex);
  return fail(COEXEC_GPU_HANGS, "%s", device->hang);
}

void leave_device(coexec_device* device) { pthread_mutex_unlock(&device->mutex); }

coexec_status give_up(coexec_device* device, const char* why) {
  device->hangs = 1;
  snprintf(device->hang, sizeof device->hang, "%s", why);
  return fail(COEXEC_GPU_HANGS, "%s", device->hang);
}

coexec_status need_timing_queue(coexec_device* d) {
  int32_t error = 0;
  if (!d->timing_queue) d->timing_queue = open_queue(d, CL_QUEUE_TIMES, &error);
  return error ? fail(COEXEC_OPENCL_FAILED, "%s times no commands (OpenCL error %d)", d->name, (int)error) : COEXEC_OK;
}

coexec_status need_pool(coexec_device* d) {
  if (d->pool) return COEXEC_OK;
  d->pool = start_pool(d->cores, d->core_count);
  return d->pool ? COEXEC_OK
                 : fail(COEXEC_NO_MEMORY, "the CPU threads cannot be started; ask for fewer --cpu-cores");
}

/* Nanoseconds that a launch took, by its own event: how long a busy machine lets it wait does not count. */
static int32_t time_launch(coexec_device* d, void* kernel, int64_t* ns) {
  static const size_t one[2] = {1, 1};
  uint64_t start = 0, end = 0;
  void* event = NULL;
  int32_t error = d->cl.enqueue_kernel(d->timing_queue, kernel, 2, NULL, one, one, 0, NULL, &event);
  if (!error) error = d->cl.finish(d->timing_queue);
  if (!error) error = d->cl.event_times(event, CL_TIME_START, sizeof start, &start, NULL);
  if (!error) error = d->cl.event_times(event, CL_TIME_END, sizeof end, &end, NULL);
  if (event) d->cl.release_event(event);
  *ns = end > start ? (int64_t)(end - start) : 1;
  return error;
}

/* Rounds of a wait in a second. The shortest of several times: in the others another process may have had the core. */
static coexec_status calibrate(coexec_device* d, void* kernel) {
  int32_t step = NEVER, error = set_block(d, kernel, 0, &d->flags.block);
  uint32_t limit = CALIBRATION_ROUNDS;
  int64_t best_ns = INT64_MAX;
  if (!error) error = d->cl.set_argument(kernel, 1, sizeof step, &step);
  if (!error) error = d->cl.set_argument(kernel, 2, sizeof limit, &limit);
  for (int i = 0; !error && i < CALIBRATION_TRIES; ++i) {
    int64_t ns = INT64_MAX;
    error = time_launch(d, kernel, &ns);
    if (ns < best_ns) best_ns = ns;
    clear_flags(words_of(&d->flags.block));
  }
  d->flags.rounds_per_s = 1e9 * CALIBRATION_ROUNDS / (double)best_ns;
  return error ? fail(COEXEC_OPENCL_FAILED, "%s runs no flag kernel (OpenCL error %d); use the mechanism 'event'",
                      d->name, (int)error)
               : COEXEC_OK;
}

/* Some drivers compile a kernel when it is created: what is stored before has no code of it. */
static coexec_status create_all(coexec_device* d) {
  static const char* const names[] = {"coexec_signal", "coexec_signal_wait", "coexec_linger", "coexec_hand_over"};
  int32_t error = 0;
  for (size_t i = 0; !error && i < sizeof names / sizeof *names; ++i) {
    void* kernel = d->cl.create_kernel(d->flags.program, names[i], &error);
    if (kernel) d->cl.release_kernel(kernel);
  }
  return error ? fail(COEXEC_OPENCL_FAILED, "%s has no flag kernel (OpenCL error %d)", d->name, (int)error) : COEXEC_OK;
}

/* A module's program has them too, and building another takes some drivers as long as all else: they read the same
   headers again. */
static coexec_status take_flag_program(coexec_device* d, void* module_program) {
  if (module_program) {
    d->cl.retain_program(d->flags.program = module_program);
    return COEXEC_OK;
  }
  if (!build_program(d, "", 0, BUILD_NEWEST | BUILD_WITH_FLAGS, &d->flags.program)) return COEXEC_OK;
  return fail(COEXEC_KERNEL_FAILED, "%s builds no flag kernel (%.400s); use the mechanism 'event'", d->name,
              coexec_last_error());
}

coexec_status need_flags(coexec_device* d, void* module_program) {
  if (d->flags.program) return COEXEC_OK;
  int32_t error = 0;
  void* kernel = NULL;
  coexec_status status = d->flags.block.host ? COEXEC_OK : allocate_flags(d, &d->flags.block);
  if (!status) status = take_flag_program(d, module_program);
  if (status) return status;
  status = need_timing_queue(d);
  if (!status) kernel = d->cl.create_kernel(d->flags.program, "coexec_wait", &error);
  if (error) status = fail(COEXEC_OPENCL_FAILED, "%s has no flag kernel (OpenCL error %d)", d->name, (int)error);
  if (!status) status = calibrate(d, kernel);
  if (kernel) d->cl.release_kernel(kernel);
  if (!status && d->mechanism == COEXEC_MAPPED) status = probe_mapped_memory(d);
  if (!status) status = create_all(d);
  if (!status && !module_program) store_program(d, d->flags.program); /* that of a module is stored with all kernels */
  if (status) {
    d->cl.release_program(d->flags.program);
    d->flags.program = NULL;
  }
  return status;
}
