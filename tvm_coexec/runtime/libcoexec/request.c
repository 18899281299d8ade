#define _POSIX_C_SOURCE 200809L
#include "request.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int make_room(answer* to, size_t bytes) {
  if (to->room - to->bytes > bytes) return 1;
  size_t room = 2 * to->room + bytes + 256;
  char* longer = realloc(to->text, room);
  if (!longer) {
    to->is_cut = 1;
    return 0;
  }
  to->text = longer;
  to->room = room;
  return 1;
}

void say_bytes(answer* to, const char* text, size_t bytes) {
  if (!make_room(to, bytes)) return;
  memcpy(to->text + to->bytes, text, bytes);
  to->bytes += bytes;
  to->text[to->bytes] = 0;
}

void say(answer* to, const char* format, ...) {
  va_list arguments, again;
  va_start(arguments, format);
  va_copy(again, arguments);
  int bytes = vsnprintf(NULL, 0, format, arguments);
  if (bytes > 0 && make_room(to, (size_t)bytes)) {
    vsnprintf(to->text + to->bytes, (size_t)bytes + 1, format, again);
    to->bytes += (size_t)bytes;
  }
  va_end(again);
  va_end(arguments);
}

void say_line(answer* to, const char* key, const char* text) {
  size_t from = to->bytes;
  say(to, "%s=%s", key, text);
  for (size_t i = from; i < to->bytes; ++i)
    if (to->text[i] == '\n' || to->text[i] == '\r') to->text[i] = ' ';
  say_bytes(to, "\n", 1);
}

const char* find_value(const char* request, const char* key, size_t* bytes) {
  size_t length = strlen(key);
  for (const char* line = request; *line;) {
    size_t end = strcspn(line, "\n");
    if (end > length && !memcmp(line, key, length) && line[length] == '=') {
      *bytes = end - length - 1;
      return line + length + 1;
    }
    line += end + (line[end] != 0);
  }
  return NULL;
}

char* copy_value(const char* request, const char* key) {
  size_t bytes;
  const char* value = find_value(request, key, &bytes);
  char* copy = value ? malloc(bytes + 1) : NULL;
  if (!copy) return NULL;
  memcpy(copy, value, bytes);
  copy[bytes] = 0;
  return copy;
}

int64_t number_of(const char* request, const char* key, int64_t otherwise) {
  size_t bytes;
  const char* value = find_value(request, key, &bytes);
  return value && bytes ? strtoll(value, NULL, 0) : otherwise;
}

int next_number(const char** at, int64_t* number) {
  char* end;
  if (!**at || **at == '\n') return 0;
  *number = strtoll(*at, &end, 0);
  if (end == *at) return 0;
  *at = *end && *end != '\n' ? end + 1 : end;
  return 1;
}
