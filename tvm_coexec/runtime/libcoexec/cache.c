#define _GNU_SOURCE
#include "cache.h"

#include "file.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A file: this header, the key, the binary. The key is compared as a whole, so that no other program is taken. */
typedef struct {
  char magic[8];
  uint32_t crc; /* of what follows this word */
  uint32_t reserved;
  uint64_t key_bytes, binary_bytes;
} cached_header;

static const char magic[8] = "COEXECB";
static const char prefix[] = "coexec-";

enum { MAX_FILES = 256, MAX_PATH = 4096 };
static const size_t MAX_BYTES = (size_t)1 << 28;

static int append(cache_key* key, const char* text, size_t bytes) {
  char* longer = realloc(key->text, key->bytes + bytes);
  if (!longer) return -1;
  memcpy(longer + key->bytes, text, bytes);
  key->text = longer;
  key->bytes += bytes;
  return 0;
}

cache_key make_key(const coexec_device* d, const char* source, size_t bytes) {
  static const uint32_t wanted[] = {CL_DEVICE_NAME, CL_DRIVER_VERSION, CL_DEVICE_VERSION};
  cache_key key = {NULL, 0, 0};
  char text[DEVICE_TEXT * 2];
  void* platform = NULL;
  int failed = !d->cache_folder;
  for (size_t i = 0; !failed && i < sizeof wanted / sizeof *wanted; ++i) {
    memset(text, 0, sizeof text);
    d->cl.device_info(d->device, wanted[i], sizeof text - 1, text, NULL);
    failed = append(&key, text, strlen(text) + 1);
  }
  memset(text, 0, sizeof text);
  if (!failed && !d->cl.device_info(d->device, CL_DEVICE_PLATFORM, sizeof platform, &platform, NULL))
    d->cl.platform_info(platform, CL_PLATFORM_VERSION, sizeof text - 1, text, NULL);
  key.is_pocl = strstr(text, "PoCL") != NULL;
  failed = failed || append(&key, text, strlen(text) + 1) || append(&key, source, bytes);
  if (failed) {
    free(key.text);
    key.text = NULL;
  }
  return key;
}

static void name_file(const coexec_device* d, const cache_key* key, char path[MAX_PATH]) {
  uint64_t hash = UINT64_C(14695981039346656037);
  for (size_t i = 0; i < key->bytes; ++i) hash = (hash ^ (unsigned char)key->text[i]) * UINT64_C(1099511628211);
  snprintf(path, MAX_PATH, "%s/%s%016llx.bin", d->cache_folder, prefix, (unsigned long long)hash);
}

/* The whole file; NULL where it cannot be had. */
static char* read_whole(const char* path, size_t* bytes) {
  struct stat about;
  int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  char* content = NULL;
  if (descriptor < 0) return NULL;
  if (!fstat(descriptor, &about) && S_ISREG(about.st_mode) && (uint64_t)about.st_size <= MAX_BYTES) {
    *bytes = (size_t)about.st_size;
    content = malloc(*bytes + 1);
    if (content && read(descriptor, content, *bytes) != (ssize_t)*bytes) {
      free(content);
      content = NULL;
    }
  }
  close(descriptor);
  return content;
}

/* Whether a file is whole and of this key; if so, where its binary begins. */
static const char* find_binary(const char* content, size_t bytes, const cache_key* key, size_t* binary_bytes) {
  cached_header header;
  size_t covered = offsetof(cached_header, crc) + sizeof header.crc;
  if (bytes < sizeof header) return NULL;
  memcpy(&header, content, sizeof header);
  if (memcmp(header.magic, magic, sizeof magic) || header.key_bytes != key->bytes ||
      bytes - sizeof header < key->bytes || header.binary_bytes != bytes - sizeof header - key->bytes ||
      crc32_of(0, content + covered, bytes - covered) != header.crc ||
      memcmp(content + sizeof header, key->text, key->bytes))
    return NULL;
  *binary_bytes = (size_t)header.binary_bytes;
  return content + sizeof header + key->bytes;
}

static void* build_binary(const coexec_device* d, const char* options, const void* binary, size_t bytes) {
  const unsigned char* content = binary;
  int32_t error = 0, state = 0;
  void* program = d->cl.program_with_binary(d->context, 1, &d->device, &bytes, &content, &state, &error);
  if (!program || (!error && !state && !d->cl.build_program(program, 1, &d->device, options, NULL, NULL)))
    return program;
  d->cl.release_program(program);
  return NULL;
}

void* load_cached(const coexec_device* d, const cache_key* key, const char* options) {
  char path[MAX_PATH];
  size_t bytes = 0, binary_bytes = 0;
  if (!key->text) return NULL;
  name_file(d, key, path);
  char* content = read_whole(path, &bytes);
  const char* found = content ? find_binary(content, bytes, key, &binary_bytes) : NULL;
  void* program = found ? build_binary(d, options, found, binary_bytes) : NULL;
  free(content);
  return program;
}

/* The program's binary; NULL where the driver gives none. */
static char* binary_of(const coexec_device* d, void* program, size_t* bytes) {
  *bytes = 0;
  if (d->cl.program_info(program, CL_BINARY_SIZES, sizeof *bytes, bytes, NULL)) return NULL;
  char* binary = *bytes && *bytes <= MAX_BYTES / 2 ? malloc(*bytes) : NULL;
  if (!binary || !d->cl.program_info(program, CL_BINARIES, sizeof binary, &binary, NULL)) return binary;
  free(binary);
  return NULL;
}

/* A binary behind a header and its key; NULL where they are too long, or no memory is left. */
static char* make_content(const cache_key* key, const char* binary, size_t binary_bytes, size_t* bytes) {
  cached_header header = {.key_bytes = key->bytes, .binary_bytes = binary_bytes};
  size_t covered = offsetof(cached_header, crc) + sizeof header.crc;
  if (key->bytes > MAX_BYTES / 4) return NULL;
  *bytes = sizeof header + key->bytes + binary_bytes;
  char* content = malloc(*bytes);
  if (!content) return NULL;
  memcpy(header.magic, magic, sizeof magic);
  memcpy(content, &header, sizeof header);
  memcpy(content + sizeof header, key->text, key->bytes);
  memcpy(content + sizeof header + key->bytes, binary, binary_bytes);
  header.crc = crc32_of(0, content + covered, *bytes - covered);
  memcpy(content, &header, sizeof header);
  return content;
}

/* Whole or not at all: another process may read meanwhile. */
static void write_whole(const coexec_device* d, const char* path, const char* content, size_t bytes) {
  char temporary[MAX_PATH];
  if (snprintf(temporary, sizeof temporary, "%s/.%sXXXXXX", d->cache_folder, prefix) >= (int)sizeof temporary) return;
  int descriptor = mkostemp(temporary, O_CLOEXEC);
  if (descriptor < 0) return;
  int failed = write(descriptor, content, bytes) != (ssize_t)bytes;
  failed |= close(descriptor);
  if (failed || rename(temporary, path)) unlink(temporary);
}

/* Remove the oldest programs where there are many. */
static void remove_oldest(const coexec_device* d) {
  char oldest[MAX_PATH] = "", path[MAX_PATH];
  struct stat about;
  struct timespec when = {0, 0};
  int count = 0;
  DIR* folder = opendir(d->cache_folder);
  if (!folder) return;
  for (struct dirent* entry = readdir(folder); entry; entry = readdir(folder)) {
    if (strncmp(entry->d_name, prefix, sizeof prefix - 1)) continue;
    if (snprintf(path, sizeof path, "%s/%s", d->cache_folder, entry->d_name) >= (int)sizeof path) continue;
    if (stat(path, &about)) continue;
    int is_older = about.st_mtim.tv_sec < when.tv_sec ||
                   (about.st_mtim.tv_sec == when.tv_sec && about.st_mtim.tv_nsec < when.tv_nsec);
    if (!count++ || is_older) {
      memcpy(oldest, path, sizeof oldest);
      when = about.st_mtim;
    }
  }
  closedir(folder);
  if (count > MAX_FILES) unlink(oldest);
}

static void store_binary(const coexec_device* d, const cache_key* key, const char* binary, size_t binary_bytes) {
  char path[MAX_PATH];
  size_t bytes = 0;
  char* content = make_content(key, binary, binary_bytes, &bytes);
  if (!content) return;
  name_file(d, key, path);
  mkdir(d->cache_folder, 0700);
  write_whole(d, path, content, bytes);
  remove_oldest(d);
  free(content);
}

void store_cached(const coexec_device* d, const cache_key* key, void* program) {
  size_t bytes = 0;
  char* binary = key->text ? binary_of(d, program, &bytes) : NULL;
  if (binary) store_binary(d, key, binary, bytes);
  free(binary);
}

/* The LLVM code in a binary of PoCL's: a name of a file, the length of what follows in four bytes, the code. */
static const char* find_code(const char* binary, size_t bytes, size_t* code_bytes) {
  static const char name[] = "/program.bc", begin[] = {'B', 'C', (char)0xC0, (char)0xDE};
  const char* found = memmem(binary, bytes, name, sizeof name - 1);
  uint32_t length = 0;
  size_t before = sizeof name - 1 + sizeof length, rest = found ? bytes - (size_t)(found - binary) : 0;
  if (rest < before + sizeof begin) return NULL;
  const char* code = found + before;
  memcpy(&length, code - sizeof length, sizeof length);
  if (length > rest - before || memcmp(code, begin, sizeof begin)) return NULL;
  *code_bytes = length;
  return code;
}

void* build_by_code(const coexec_device* d, const cache_key* key, const char* options, const char* source) {
  int32_t error = 0;
  size_t bytes = 0, code_bytes = 0;
  if (!key->text || !key->is_pocl || !d->cl.compile_program) return NULL;
  void* compiled = d->cl.program_with_source(d->context, 1, &source, NULL, &error);
  if (compiled) error = d->cl.compile_program(compiled, 1, &d->device, options, 0, NULL, NULL, NULL, NULL);
  char* binary = compiled && !error ? binary_of(d, compiled, &bytes) : NULL;
  const char* code = binary ? find_code(binary, bytes, &code_bytes) : NULL;
  void* program = code ? build_binary(d, options, code, code_bytes) : NULL;
  if (program) store_binary(d, key, code, code_bytes);
  free(binary);
  if (compiled) d->cl.release_program(compiled);
  return program;
}
