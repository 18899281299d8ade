/* Requests and answers of remote callers: lines of key=value. */
#ifndef COEXEC_REQUEST_H
#define COEXEC_REQUEST_H

#include "common.h"

#include <stddef.h>

/* A text that grows. After a failure to grow it stays as it was, and says so. */
typedef struct {
  char* text;
  size_t bytes, room;
  int is_cut;
} answer;

void say(answer* to, const char* format, ...) __attribute__((format(printf, 2, 3)));
void say_bytes(answer* to, const char* text, size_t bytes);
/* The text of an OpenCL driver or a file, on one line. */
void say_line(answer* to, const char* key, const char* text);

/* Where a key's value begins in a request, and how long it is; NULL where there is none. */
const char* find_value(const char* request, const char* key, size_t* bytes);
/* A value as a string of the caller's; NULL where there is none, or no memory. */
char* copy_value(const char* request, const char* key);
/* A value as a number, decimal or 0x…; `otherwise` where there is none. */
int64_t number_of(const char* request, const char* key, int64_t otherwise);
/* Read the next number of a list, and pass the separator behind it; 0 at the end of the line. */
int next_number(const char** at, int64_t* number);

#endif
