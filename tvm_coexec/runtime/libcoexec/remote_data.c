/* What a host sends and takes back: contents of tensors, of blocks of memory, and of files. */
#include "remote.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TEXT = 1 << 20 };

static FILE* open_file(const char* request, path_finder find_path, const char* how, coexec_status* status) {
  char* name = copy_value(request, "file");
  char* path = name ? find_path(name) : NULL;
  FILE* file = path ? fopen(path, how) : NULL;
  *status = file ? COEXEC_OK
                 : fail(COEXEC_BAD_ARGUMENT, "the file '%s' cannot be opened (%s)", name ? name : "", strerror(errno));
  free(name);
  free(path);
  return file;
}

coexec_status remote_text(const char* request, path_finder find_path, answer* to) {
  char part[4096];
  coexec_status status;
  FILE* file = open_file(request, find_path, "r", &status);
  if (!file) return status;
  for (size_t bytes = 1; bytes && to->bytes < MAX_TEXT;) {
    bytes = fread(part, 1, sizeof part, file);
    say_bytes(to, part, bytes);
  }
  fclose(file);
  return COEXEC_OK;
}

/* The module of a request and its tensor; -1 where it names a block. */
static coexec_status find_tensor(const char* request, path_finder find_path, coexec_module** module, int32_t* tensor) {
  int64_t input = number_of(request, "input", -1), output = number_of(request, "output", -1);
  int64_t number = number_of(request, "tensor", -1);
  coexec_status status = find_module(request, find_path, module);
  *tensor = -1;
  if (status || number_of(request, "block", -1) >= 0) return status;
  const coexec_module* m = *module;
  if (input >= 0 && input <= INT32_MAX) number = coexec_input(m, (int32_t)input);
  if (output >= 0 && output <= INT32_MAX) number = coexec_output(m, (int32_t)output);
  *tensor = number >= 0 && number < coexec_tensor_count(m) ? (int32_t)number : -1;
  return *tensor < 0 ? fail(COEXEC_BAD_ARGUMENT, "the request names no tensor or block of the module") : COEXEC_OK;
}

static void fill_words(char* data, size_t bytes, uint32_t word) {
  for (size_t i = 0; i + sizeof word <= bytes; i += sizeof word) memcpy(data + i, &word, sizeof word);
}

/* Floats in [-1, 1): with zeros, or what was there before, times may differ. */
static void fill_random(char* data, size_t bytes, uint64_t seed) {
  uint64_t state = seed * UINT64_C(0x9E3779B97F4A7C15) | 1;
  for (size_t i = 0; i + sizeof(float) <= bytes; i += sizeof(float)) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    float value = (float)(state >> 40) / (float)(1 << 23) - 1;
    memcpy(data + i, &value, sizeof value);
  }
}

static coexec_status fill_data(const char* request, path_finder find_path, char* data, size_t bytes) {
  size_t length;
  if (find_value(request, "word", &length)) {
    fill_words(data, bytes, (uint32_t)number_of(request, "word", 0));
    return COEXEC_OK;
  }
  if (find_value(request, "random", &length)) {
    fill_random(data, bytes, (uint64_t)number_of(request, "random", 0));
    return COEXEC_OK;
  }
  coexec_status status;
  FILE* file = open_file(request, find_path, "rb", &status);
  if (!file) return status;
  int64_t offset = number_of(request, "offset", 0);
  if (fseek(file, (long)offset, SEEK_SET) || fread(data, 1, bytes, file) != bytes)
    status = fail(COEXEC_BAD_ARGUMENT, "the file has no %zu bytes at %lld", bytes, (long long)offset);
  fclose(file);
  return status;
}

/* A tensor's elements are copied, since in memory others lie between them. */
static coexec_status transfer_tensor(coexec_module* m, int32_t tensor, const char* request, path_finder find_path,
                                     FILE* file) {
  coexec_tensor t;
  coexec_status status = coexec_describe_tensor(m, tensor, &t);
  char* elements = status ? NULL : malloc(t.bytes + 1);
  if (!status && !elements) status = fail(COEXEC_NO_MEMORY, "there is no memory for a tensor");
  if (!status) status = file ? coexec_read(m, tensor, elements, t.bytes) : fill_data(request, find_path, elements, t.bytes);
  if (!status && !file) status = coexec_write(m, tensor, elements, t.bytes);
  if (!status && file && fwrite(elements, 1, t.bytes, file) != t.bytes)
    status = fail(COEXEC_BAD_ARGUMENT, "the result cannot be written (%s)", strerror(errno));
  free(elements);
  return status;
}

static coexec_status find_block(const coexec_module* m, const char* request, int32_t* block, char** data, size_t* bytes) {
  int64_t number = number_of(request, "block", -1), at = number_of(request, "at", 0);
  void* start;
  *block = number > INT32_MAX ? -1 : (int32_t)number;
  coexec_status status = coexec_block(m, *block, &start, bytes);
  if (status) return status;
  if (at < 0 || (uint64_t)at > *bytes) return fail(COEXEC_BAD_ARGUMENT, "the block has no byte %lld", (long long)at);
  *data = (char*)start + at;
  *bytes -= (size_t)at;
  int64_t wanted = number_of(request, "bytes", (int64_t)*bytes);
  if (wanted < 0 || (uint64_t)wanted > *bytes) return fail(COEXEC_BAD_ARGUMENT, "the block has no %lld bytes there", (long long)wanted);
  *bytes = (size_t)wanted;
  return COEXEC_OK;
}

coexec_status remote_fill(const char* request, path_finder find_path, answer* to) {
  coexec_module* m;
  int32_t tensor, block;
  char* data;
  size_t bytes;
  (void)to;
  coexec_status status = find_tensor(request, find_path, &m, &tensor);
  if (status) return status;
  if (tensor >= 0) return transfer_tensor(m, tensor, request, find_path, NULL);
  status = find_block(m, request, &block, &data, &bytes);
  if (!status) status = fill_data(request, find_path, data, bytes);
  return status ? status : coexec_publish(m, block);
}

coexec_status remote_fetch(const char* request, path_finder find_path, answer* to) {
  coexec_module* m;
  int32_t tensor, block;
  char* data;
  size_t bytes;
  (void)to;
  coexec_status status = find_tensor(request, find_path, &m, &tensor);
  FILE* file = status ? NULL : open_file(request, find_path, "wb", &status);
  if (!file) return status;
  if (tensor >= 0) {
    status = transfer_tensor(m, tensor, request, find_path, file);
  } else {
    status = find_block(m, request, &block, &data, &bytes);
    if (!status && fwrite(data, 1, bytes, file) != bytes)
      status = fail(COEXEC_BAD_ARGUMENT, "the result cannot be written (%s)", strerror(errno));
  }
  if (fclose(file) && !status) status = fail(COEXEC_BAD_ARGUMENT, "the result cannot be written (%s)", strerror(errno));
  return status;
}
