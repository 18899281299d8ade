#define _GNU_SOURCE
#include "device.h"
#include "pool.h"
#include "remote.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

/* How the host asks for a number or a text of the OpenCL device. */
typedef struct {
  const char* key;
  uint32_t what;
  uint32_t bytes; /* of a number; 0: a text */
} question;

static const question questions[] = {
    {"vendor", 0x102C, 0},
    {"driver_version", CL_DRIVER_VERSION, 0},
    {"opencl_version", CL_DEVICE_VERSION, 0},
    {"opencl_c_version", 0x103D, 0},
    {"extensions", 0x1030, 0},
    {"compute_units", 0x1002, 4},
    {"max_clock_mhz", 0x100C, 4},
    {"max_group_size", 0x1004, sizeof(size_t)},
    {"global_memory_bytes", 0x101F, 8},
    {"global_cache_bytes", 0x101E, 8},
    {"local_memory_bytes", 0x1023, 8},
    {"local_memory_type", 0x1022, 4},
    {"max_allocation_bytes", 0x1010, 8},
    {"max_constant_bytes", 0x1020, 8},
    {"image_support", 0x1016, 4},
    {"half_config", 0x1033, 8},
    {"unified_memory", CL_DEVICE_UNIFIED, 4},
};

static void say_text(const coexec_device* d, const question* q, answer* to) {
  size_t bytes = 0;
  if (d->cl.device_info(d->device, q->what, 0, NULL, &bytes) || !bytes) return;
  char* text = calloc(bytes + 1, 1);
  if (text && !d->cl.device_info(d->device, q->what, bytes, text, NULL)) say_line(to, q->key, text);
  free(text);
}

static void say_number(const coexec_device* d, const question* q, answer* to) {
  uint64_t number = 0; /* little-endian */
  if (!d->cl.device_info(d->device, q->what, q->bytes, &number, NULL))
    say(to, "%s=%llu\n", q->key, (unsigned long long)number);
}

/* Most rows of an image over a buffer; nothing where the device makes none. */
static void say_images(const coexec_device* d, answer* to) {
  static const question rows = {"image_rows", 0x1012, sizeof(size_t)};
  if (has_extension(d, "cl_khr_image2d_from_buffer")) say_number(d, &rows, to);
}

static void say_kind(const coexec_device* d, answer* to) {
  uint64_t type = 0, svm = 0;
  void* platform = NULL;
  char text[DEVICE_TEXT] = "";
  d->cl.device_info(d->device, CL_DEVICE_TYPE, sizeof type, &type, NULL);
  say(to, "device_type=%s\n", type & CL_DEVICE_TYPE_GPU ? "gpu" : type & CL_DEVICE_TYPE_CPU ? "cpu" : "accelerator");
  if (d->cl.device_info(d->device, CL_DEVICE_SVM, sizeof svm, &svm, NULL)) svm = 0;
  say(to, "svm=%s%s%s%s\n", svm & 1 ? "coarse " : "", svm & 2 ? "fine " : "", svm & 4 ? "fine-system " : "",
      svm & 8 ? "atomics" : "");
  if (!d->cl.device_info(d->device, CL_DEVICE_PLATFORM, sizeof platform, &platform, NULL))
    d->cl.platform_info(platform, CL_PLATFORM_NAME, sizeof text - 1, text, NULL);
  say_line(to, "platform", text);
  memset(text, 0, sizeof text);
  d->cl.device_info(d->device, CL_DEVICE_NAME, sizeof text - 1, text, NULL);
  say_line(to, "device_name", text);
}

static void say_machine(answer* to) {
  struct utsname about;
  cpu_set_t usable;
  if (!uname(&about)) say(to, "machine=%s\nkernel=%s\n", about.machine, about.release);
  say(to, "page_bytes=%ld\nmemory_bytes=%lld\ncores=", sysconf(_SC_PAGESIZE),
      (long long)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE));
  if (!sched_getaffinity(0, sizeof usable, &usable))
    for (int core = 0, found = 0; core < CPU_SETSIZE; ++core)
      if (CPU_ISSET((size_t)core, &usable)) say(to, "%s%d", found++ ? "," : "", core);
  say(to, "\n");
#ifdef __ANDROID__
  say(to, "is_android=1\n");
#endif
}

/* Those of the device's cores on which a thread that is asked there really runs: Android lets what is in the background
   run on others, whatever was asked for. */
static void say_held_cores(const coexec_device* d, answer* to) {
  cpu_set_t before;
  if (!d->core_count || sched_getaffinity(0, sizeof before, &before)) return;
  say(to, "held_cores=");
  for (int32_t i = 0, found = 0; i < d->core_count; ++i) {
    pin_thread(d->cores[i]);
    sched_yield();
    if (sched_getcpu() == d->cores[i]) say(to, "%s%d", found++ ? "," : "", (int)d->cores[i]);
  }
  say(to, "\n");
  sched_setaffinity(0, sizeof before, &before);
}

void say_facts(const coexec_device* d, answer* to) {
  say_line(to, "name", d->name);
  say(to, "mechanism=%s\n", mechanism_names[d->mechanism]);
  if (d->device) {
    say_kind(d, to);
    say_images(d, to);
    for (size_t i = 0; i < sizeof questions / sizeof *questions; ++i) {
      if (questions[i].bytes) say_number(d, &questions[i], to);
      else say_text(d, &questions[i], to);
    }
  }
  say_machine(to);
  say_held_cores(d, to);
}
