#define _GNU_SOURCE
#include "cache.h"
#include "flags.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Builds OpenCL programs, and keeps the last ones: tuning and comparisons open a module again and again, which some
   drivers take seconds to build. */

void release_built(coexec_device* d) {
  for (int32_t i = 0; i < d->built_count; ++i) {
    d->cl.release_program(d->built[i].program);
    free(d->built[i].source);
  }
  d->built_count = 0;
}

/* Let a program be the last to be forgotten. */
static void touch(coexec_device* d, int32_t number) {
  built_program one = d->built[number];
  memmove(&d->built[number], &d->built[number + 1], (size_t)(d->built_count - number - 1) * sizeof one);
  d->built[d->built_count - 1] = one;
}

static void keep(coexec_device* d, char* source, size_t bytes, void* program, int is_stored) {
  if (d->built_count == KEPT_PROGRAMS) {
    touch(d, 0);
    --d->built_count;
    d->cl.release_program(d->built[d->built_count].program);
    free(d->built[d->built_count].source);
  }
  d->cl.retain_program(program);
  d->built[d->built_count++] = (built_program){source, bytes, program, is_stored};
}

static coexec_status refused(coexec_device* d, void* program, int32_t error) {
  char log[ERROR_TEXT] = "";
  size_t length = 0;
  if (program && !d->cl.build_info(program, d->device, CL_BUILD_LOG, 0, NULL, &length) && length) {
    char* all = malloc(length + 1);
    if (all && !d->cl.build_info(program, d->device, CL_BUILD_LOG, length, all, NULL)) {
      all[length] = 0;
      const char* first = strstr(all, "error");
      while (first && first > all && first[-1] != '\n') --first;
      first = first ? first : all + strspn(all, " \n");
      snprintf(log, sizeof log, ": %.*s", (int)(strcspn(first, "\n") < 500 ? strcspn(first, "\n") : 500), first);
    }
    free(all);
  }
  return fail(COEXEC_KERNEL_FAILED, "%s refuses the module's OpenCL code (error %d)%s", d->name, (int)error, log);
}

/* `text` begins with the options, behind which a line's end stands. */
static coexec_status build_text(coexec_device* d, const char* options, const char* text, void** program) {
  const char* source = text + strlen(options) + 1;
  int32_t error = 0;
  *program = d->cl.program_with_source(d->context, 1, &source, NULL, &error);
  if (!*program) return refused(d, NULL, error);
  error = d->cl.build_program(*program, 1, &d->device, options, NULL, NULL);
  if (!error) return COEXEC_OK;
  coexec_status status = refused(d, *program, error);
  d->cl.release_program(*program);
  *program = NULL;
  return status;
}

static coexec_status build_with(coexec_device* d, const char* options, const char* before, const char* source,
                                size_t source_bytes, void** program) {
  size_t bytes = strlen(options) + 1 + strlen(before) + source_bytes;
  char* text = malloc(bytes + 1);
  if (!text) return fail(COEXEC_NO_MEMORY, "there is no memory to build the OpenCL code");
  int head = sprintf(text, "%s\n%s", options, before);
  memcpy(text + head, source, source_bytes);
  text[bytes] = 0;
  for (int32_t i = 0; i < d->built_count; ++i)
    if (d->built[i].bytes == bytes && !memcmp(d->built[i].source, text, bytes)) {
      free(text);
      touch(d, i);
      *program = d->built[d->built_count - 1].program;
      d->cl.retain_program(*program);
      return COEXEC_OK;
    }
  cache_key key = make_key(d, text, bytes);
  *program = load_cached(d, &key, options);
  if (!*program) *program = build_by_code(d, &key, options, text + strlen(options) + 1);
  int is_stored = *program || !key.text || key.is_pocl;
  free(key.text);
  coexec_status status = *program ? COEXEC_OK : build_text(d, options, text, program);
  if (status) free(text);
  else keep(d, text, bytes, *program, is_stored);
  return status;
}

void store_program(coexec_device* d, const void* program) {
  for (int32_t i = 0; i < d->built_count; ++i) {
    built_program* one = &d->built[i];
    if (one->program != program || one->is_stored) continue;
    cache_key key = make_key(d, one->source, one->bytes);
    store_cached(d, &key, one->program);
    free(key.text);
    one->is_stored = 1;
  }
}

coexec_status build_program(coexec_device* d, const char* source, size_t bytes, int how, void** program) {
  static const char* const standards[] = {"-cl-std=CL3.0", "-cl-std=CL2.0", "-cl-std=CL1.2"};
  const char* before = how & BUILD_WITH_FLAGS ? flag_source : "";
  coexec_status status = COEXEC_OK;
  if (!(how & BUILD_NEWEST))
    return build_with(d, how & BUILD_WITHOUT_FLAGS ? "-DCOEXEC_EVENTS" : "", before, source, bytes, program);
  for (size_t i = 0; i < sizeof standards / sizeof *standards; ++i) {
    char options[64];
    snprintf(options, sizeof options, "%s%s", standards[i], how & BUILD_WITHOUT_FLAGS ? " -DCOEXEC_EVENTS" : "");
    status = build_with(d, options, before, source, bytes, program);
    if (!status) return COEXEC_OK;
  }
  return status;
}
