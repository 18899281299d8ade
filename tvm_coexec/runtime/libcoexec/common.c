#define _POSIX_C_SOURCE 200809L
#include "common.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static _Thread_local char last_error[ERROR_TEXT];

const char* coexec_last_error(void) { return last_error; }

coexec_status fail(coexec_status status, const char* format, ...) {
  char text[ERROR_TEXT]; /* the arguments may lie in the last error itself */
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  for (char* at = text; *at; ++at)
    if ((unsigned char)*at < ' ') *at = ' '; /* an error is one line, whatever a file's names hold */
  memcpy(last_error, text, sizeof last_error);
  return status;
}

static int64_t read_clock(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int64_t now_ns(void) { return read_clock(CLOCK_MONOTONIC); }

int64_t thread_ns(void) { return read_clock(CLOCK_THREAD_CPUTIME_ID); }

uint64_t now_ticks(void) {
#if defined(__x86_64__) || defined(__i386__)
  return __builtin_ia32_rdtsc();
#else
  return 0;
#endif
}
