#define _GNU_SOURCE /* RTLD_DEFAULT */
#include "remote.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* The remote functions in TVM FFI's calling convention: a server of TVM's RPC that loads this library offers them as
   they are. What is needed of TVM FFI is found in the process that called; its structures are those of tvm_ffi/c_api.h. */

typedef struct {
  int32_t type;
  uint32_t small_bytes; /* of a short string, which lies in the value itself */
  union {
    int64_t integer;
    const char* raw;
    const struct string_object* object;
    char small[8];
    void* pointer;
  } value;
} any_value;

typedef struct {
  const char* data;
  size_t bytes;
} byte_array;

struct string_object {
  uint64_t references;
  int32_t type;
  uint32_t padding;
  void* deleter;
  byte_array content;
};

enum { ANY_NONE = 0, ANY_RAW_STRING = 8, ANY_SMALL_STRING = 11, ANY_OBJECT = 64, ANY_STRING = 65 };

typedef struct {
  int (*make_string)(const byte_array* content, any_value* out);
  int (*get_global)(const byte_array* name, void** function);
  int (*call)(void* function, const any_value* arguments, int32_t count, any_value* result);
  int (*release)(void* object);
} tvm_ffi;

static tvm_ffi tvm;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* a session's state is one */

static void* find(const char* name) {
  void* found = dlsym(RTLD_DEFAULT, name);
  void* library = found ? NULL : dlopen("libtvm_ffi.so", RTLD_NOW | RTLD_NOLOAD); /* Python loads it for itself alone */
  return library ? dlsym(library, name) : found;
}

static int find_tvm(void) {
  static const char* const names[] = {"TVMFFIStringFromByteArray", "TVMFFIFunctionGetGlobal", "TVMFFIFunctionCall",
                                      "TVMFFIObjectDecRef"};
  void* places[] = {&tvm.make_string, &tvm.get_global, &tvm.call, &tvm.release};
  for (size_t i = 0; i < sizeof names / sizeof *names; ++i) {
    void* function = find(names[i]);
    memcpy(places[i], &function, sizeof function);
  }
  return tvm.make_string && tvm.get_global && tvm.call && tvm.release;
}

/* A copy of a string argument; NULL where it is none. */
static char* copy_string(const any_value* value) {
  byte_array text = {NULL, 0};
  if (value->type == ANY_RAW_STRING) text = (byte_array){value->value.raw, strlen(value->value.raw)};
  if (value->type == ANY_SMALL_STRING) text = (byte_array){value->value.small, value->small_bytes};
  if (value->type == ANY_STRING) text = value->value.object->content;
  char* copy = text.data ? malloc(text.bytes + 1) : NULL;
  if (!copy) return NULL;
  memcpy(copy, text.data, text.bytes);
  copy[text.bytes] = 0;
  return copy;
}

static void release_value(any_value* value) {
  if (value->type >= ANY_OBJECT) tvm.release(value->value.pointer);
  value->type = ANY_NONE;
}

/* Where the server keeps what the host has sent. */
static char* find_in_work_path(const char* name) {
  static const char function_name[] = "tvm.rpc.server.workpath";
  const byte_array wanted = {function_name, sizeof function_name - 1};
  any_value argument = {.type = ANY_RAW_STRING, .value.raw = name}, result = {.type = ANY_NONE};
  void* function = NULL;
  char* path = NULL;
  if (name[0] != '/' && !tvm.get_global(&wanted, &function) && function) {
    if (!tvm.call(function, &argument, 1, &result)) path = copy_string(&result);
    release_value(&result);
    tvm.release(function);
  }
  if (!path) path = strdup(name);
  if (!path) fail(COEXEC_NO_MEMORY, "there is no memory for a path");
  return path;
}

static int answer_with(remote_function function, const any_value* arguments, int32_t count, any_value* result) {
  answer to = {0};
  pthread_mutex_lock(&mutex);
  char* request = count ? copy_string(&arguments[0]) : strdup("");
  int works = find_tvm();
  if (works) {
    coexec_status status = request ? function(request, find_in_work_path, &to)
                                   : fail(COEXEC_BAD_ARGUMENT, "the request is no string");
    if (!status && to.is_cut) status = fail(COEXEC_NO_MEMORY, "there is no memory for the answer");
    if (status) {
      to.bytes = 0;
      to.is_cut = 0;
      say(&to, "status=%d\n", (int)status);
      say_line(&to, "error", coexec_last_error());
    }
    const byte_array content = {to.text ? to.text : "", to.bytes};
    works = !tvm.make_string(&content, result);
  }
  free(request);
  free(to.text);
  pthread_mutex_unlock(&mutex);
  return works ? 0 : -1;
}

#define OFFER(name)                                                                                                    \
  COEXEC_API int __tvm_ffi_coexec_##name(void* self, const any_value* arguments, int32_t count, any_value* result);    \
  int __tvm_ffi_coexec_##name(void* self, const any_value* arguments, int32_t count, any_value* result) {              \
    (void)self;                                                                                                        \
    return answer_with(remote_##name, arguments, count, result);                                                       \
  }

OFFER(guard)
OFFER(facts)
OFFER(text)
OFFER(describe)
OFFER(program)
OFFER(run)
OFFER(fill)
OFFER(fetch)
OFFER(close)
