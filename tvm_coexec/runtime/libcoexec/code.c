#define _GNU_SOURCE
#include "module.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The code lies in a file that only this process sees, since the loader takes nothing but files. */

enum { CLOSE_ON_EXEC = 1, MAY_BE_RUN = 0x10 };

/* Android's C library has the function since version 11, its kernel has the call since long before. */
static int create_memory(void) {
  long descriptor = syscall(SYS_memfd_create, "coexec-kernels", CLOSE_ON_EXEC | MAY_BE_RUN);
  if (descriptor < 0) descriptor = syscall(SYS_memfd_create, "coexec-kernels", CLOSE_ON_EXEC); /* Linux before 6.3 */
  return (int)descriptor;
}

static int write_all(int descriptor, const char* content, size_t bytes) {
  while (bytes) {
    ssize_t count = write(descriptor, content, bytes);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return -1;
    content += count;
    bytes -= (size_t)count;
  }
  return 0;
}

enum { REASON_TEXT = 300 };

typedef struct {
  char text[REASON_TEXT];
  int is_loaders;
} reason;

/* Why code is not there: what the loader says, or else the system. */
static void keep_reason(reason* why) {
  int number = errno;
  const char* said = dlerror();
  why->is_loaders = said != NULL;
  snprintf(why->text, sizeof why->text, "%s", said ? said : strerror(number));
}

static void* load_file(const module_file* file, int descriptor, const char* path, reason* why) {
  void* code = write_all(descriptor, file->code, file->code_bytes) ? NULL : dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!code) keep_reason(why);
  return code;
}

/* The descriptor stays open as long as the code is loaded: the loader knows a library by its path, and would take the
   next one of the same descriptor for this one. */
static void* load_from_memory(const module_file* file, int* kept, reason* why) {
  int descriptor = create_memory();
  if (descriptor < 0) return keep_reason(why), NULL;
  char path[64];
  snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
  void* code = load_file(file, descriptor, path, why);
  if (code) *kept = descriptor;
  else close(descriptor);
  return code;
}

/* Where memory may hold no code, a file that is removed at once. */
static void* load_from_folder(const module_file* file, const char* folder, reason* why) {
  char path[4096];
  snprintf(path, sizeof path, "%s/coexec-kernels-XXXXXX", folder);
  int descriptor = mkostemp(path, O_CLOEXEC);
  if (descriptor < 0) return keep_reason(why), NULL;
  void* code = load_file(file, descriptor, path, why);
  close(descriptor);
  unlink(path);
  return code;
}

static coexec_status load_library(coexec_module* m) {
  reason in_memory, in_folder;
  struct statvfs about;
  const char* folder = m->device->cache_folder ? m->device->cache_folder : getenv("TMPDIR");
  if (!folder) folder = "/tmp";
  m->code_descriptor = -1;
  m->code = load_from_memory(&m->file, &m->code_descriptor, &in_memory);
  if (m->code) return COEXEC_OK;
  m->code = load_from_folder(&m->file, folder, &in_folder);
  if (m->code) return COEXEC_OK;
  if (!statvfs(folder, &about) && about.f_flag & ST_NOEXEC)
    return fail(COEXEC_NO_DEVICE, "no code may be run in memory (%s), nor in %s, where the module's is put while it is "
                "used; let TMPDIR name another folder", in_memory.text, folder);
  if (!in_memory.is_loaders && !in_folder.is_loaders)
    return fail(COEXEC_NO_DEVICE, "the module's CPU code cannot be put into memory (%s), nor into %s (%s); free some space "
                "there, or let TMPDIR name another folder", in_memory.text, folder, in_folder.text);
  return fail(COEXEC_BAD_FILE, "the module's CPU code cannot be loaded from memory (%s), nor from %s (%s); build the module "
              "for this machine", in_memory.text, folder, in_folder.text);
}

static coexec_status find_function(const coexec_module* m, const char* symbol, void* function) {
  void* found = dlsym(m->code, symbol);
  if (!found)
    return fail(COEXEC_BAD_FILE, "the module's CPU code has no kernel '%s'; build the module again", symbol);
  memcpy(function, &found, sizeof found);
  return COEXEC_OK;
}

static void fill_tensors(coexec_module* m) {
  for (uint64_t i = 0; i < m->file.argument_count; ++i) {
    const coexec_argument_record* a = &m->file.arguments[i];
    m->tensors[i] = (kernel_tensor){.data = m->blocks[a->block].host,
                                    .device_type = TENSOR_ON_CPU,
                                    .rank = (int32_t)a->rank,
                                    .type_code = (uint8_t)a->type_code,
                                    .type_bits = (uint8_t)a->type_bits,
                                    .lanes = 1,
                                    .shape = m->file.numbers + a->shape};
  }
}

static coexec_status find_kernels(coexec_module* m) {
  kernel_argument* next = m->arguments;
  for (uint64_t i = 0; i < m->file.launch_count; ++i) {
    const coexec_launch_record* l = &m->file.launches[i];
    if (l->entry != COEXEC_ENTRY_CPU) continue;
    coexec_status status = find_function(m, string_of(m, l->symbol), &m->kernels[i].function);
    if (status) return status;
    m->kernels[i].arguments = next;
    for (uint32_t a = 0; a < l->argument_count; ++a) {
      *next = (kernel_argument){.type_index = ARGUMENT_TENSOR};
      next++->value.pointer = &m->tensors[l->first_argument + a];
    }
    *next++ = (kernel_argument){.type_index = ARGUMENT_INTEGER};
    *next++ = (kernel_argument){.type_index = ARGUMENT_INTEGER};
  }
  return COEXEC_OK;
}

coexec_status load_code(coexec_module* m) {
  size_t arguments = 0;
  for (uint64_t i = 0; i < m->file.launch_count; ++i)
    if (m->file.launches[i].entry == COEXEC_ENTRY_CPU) arguments += m->file.launches[i].argument_count + 2;
  m->kernels = calloc(m->file.launch_count + 1, sizeof *m->kernels);
  m->tensors = calloc(m->file.argument_count + 1, sizeof *m->tensors);
  m->arguments = calloc(arguments + 1, sizeof *m->arguments);
  if (!m->kernels || !m->tensors || !m->arguments) return fail(COEXEC_NO_MEMORY, "there is no memory to open the module");
  if (!m->file.code_bytes) return COEXEC_OK;
  coexec_bind_function bind = NULL;
  coexec_status status = load_library(m);
  if (!status) status = find_function(m, "coexec_bind_support", &bind);
  if (status) return status;
  bind(&kernel_support);
  fill_tensors(m);
  return find_kernels(m);
}

void unload_code(coexec_module* m) {
  if (m->code) dlclose(m->code);
  if (m->code && m->code_descriptor >= 0) close(m->code_descriptor);
  free(m->kernels);
  free(m->tensors);
  free(m->arguments);
}
