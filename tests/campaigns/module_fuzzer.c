/* Damaged module files against the C library alone, for sanitizers: no Python, no OpenCL.
 *
 *     python tests/campaigns/damage_library.py --minutes 30
 *
 * builds and runs it. `main` damages each byte of the header and of the table of sections in turn, cuts the file off,
 * and damages it at random: each file is refused, or computes what the undamaged one does. Built with -DFUZZER for
 * libFuzzer, checksums are mended, so that what lies behind them is reached: then nothing is computed, since kernels
 * trust tables whose checksums are right. */
#define _GNU_SOURCE
#include "../../tvm_coexec/runtime/libcoexec/file.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_TENSOR_BYTES = 1 << 20, MAX_MODULE_BYTES = 1 << 25, RACES = 3000 };
static const size_t table_end = sizeof(coexec_header) + COEXEC_SECTION_COUNT * sizeof(coexec_section);

static coexec_device* device;
static char *seed, *copy; /* a module's file, and room to damage it */
static size_t seed_bytes;
static coexec_section seed_sections[COEXEC_SECTION_COUNT];

static void start(const char* path) {
  coexec_device_options options = {.mechanism = COEXEC_CPU_ONLY};
  int descriptor = open(path, O_RDONLY);
  seed_bytes = descriptor < 0 ? 0 : (size_t)lseek(descriptor, 0, SEEK_END);
  seed = aligned_alloc(64, (seed_bytes + 64) & ~(size_t)63);
  copy = aligned_alloc(64, (2 * seed_bytes + 64) & ~(size_t)63);
  if (seed_bytes < table_end || pread(descriptor, seed, seed_bytes, 0) != (ssize_t)seed_bytes ||
      coexec_device_open(&options, &device)) {
    fprintf(stderr, "%s is no module\n", path);
    exit(2);
  }
  close(descriptor);
  memcpy(seed_sections, seed + sizeof(coexec_header), sizeof seed_sections);
}

#ifdef FUZZER

size_t LLVMFuzzerMutate(uint8_t* data, size_t bytes, size_t most);

int LLVMFuzzerInitialize(int* count, char*** arguments) {
  (void)count, (void)arguments;
  start(getenv("SEED_MODULE"));
  return 0;
}

static int lies_inside(const coexec_section* s, size_t bytes) { return s->offset <= bytes && s->bytes <= bytes - s->offset; }

static void mend(char* data, size_t bytes) {
  coexec_header header;
  coexec_section sections[COEXEC_SECTION_COUNT];
  memcpy(&header, data, sizeof header);
  memcpy(sections, data + sizeof header, sizeof sections);
  for (int i = 0; i < COEXEC_SECTION_COUNT; ++i)
    if (lies_inside(&sections[i], bytes)) sections[i].crc = crc32_of(0, data + sections[i].offset, sections[i].bytes);
  memcpy(data + sizeof header, sections, sizeof sections);
  header.file_bytes = bytes;
  header.sections_crc = crc32_of(0, sections, sizeof sections);
  header.header_crc = crc32_of(0, &header, offsetof(coexec_header, header_crc));
  memcpy(data, &header, sizeof header);
}

/* The system's loader trusts the code, so that it stays; and what asks for much memory gets it. */
static int is_for_us(const char* data, size_t bytes) {
  coexec_section sections[COEXEC_SECTION_COUNT];
  memcpy(sections, data + sizeof(coexec_header), sizeof sections);
  const coexec_section *code = &sections[COEXEC_SECTION_CPU_CODE - 1], *own = &seed_sections[COEXEC_SECTION_CPU_CODE - 1];
  const coexec_section* blocks = &sections[COEXEC_SECTION_BLOCKS - 1];
  if (!lies_inside(code, bytes) || !lies_inside(blocks, bytes)) return 1;
  if (code->bytes != own->bytes || memcmp(data + code->offset, seed + own->offset, own->bytes)) return 0;
  uint64_t all = 0;
  for (size_t i = 0; i < blocks->bytes / sizeof(coexec_block_record); ++i) {
    coexec_block_record block;
    memcpy(&block, data + blocks->offset + i * sizeof block, sizeof block);
    if (block.bytes <= MAX_MODULE_BYTES) all += block.bytes;
    else if (block.bytes <= UINT64_C(1) << 40) return 0;
  }
  return all <= MAX_MODULE_BYTES;
}

/* Damage the header and the table, or one section that is not code; the others stay where they are. */
size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t bytes, size_t most, unsigned random) {
  (void)most;
  if (bytes != seed_bytes) memcpy(data, seed, bytes = seed_bytes);
  const coexec_section* s = &seed_sections[random % COEXEC_SECTION_COUNT];
  size_t begin = (size_t)s->offset, end = begin + (size_t)s->bytes;
  if (s->kind == COEXEC_SECTION_CPU_CODE || s->kind == COEXEC_SECTION_CONSTANTS || begin == end) {
    begin = 0;
    end = table_end;
  }
  LLVMFuzzerMutate(data + begin, end - begin, end - begin);
  mend((char*)data, bytes);
  return bytes;
}

static void use(coexec_module* module) {
  static char elements[MAX_TENSOR_BYTES];
  int32_t count = coexec_step_count(module), splits[count];
  for (int32_t i = 0; i < coexec_tensor_count(module); ++i) {
    coexec_tensor t;
    if (coexec_describe_tensor(module, i, &t) || t.bytes > sizeof elements) continue;
    if (strlen(t.name) > MAX_TENSOR_BYTES) abort();
    coexec_write(module, i, elements, t.bytes);
    coexec_read(module, i, elements, t.bytes);
  }
  for (int32_t i = 0; i < count; ++i) {
    coexec_step s;
    coexec_describe_step(module, i, &s);
    splits[i] = s.units;
  }
  coexec_program* program;
  coexec_set_splits(module, splits, count);
  coexec_network_program(module, COEXEC_TIMELINE, &program);
}

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  if (bytes > 2 * seed_bytes) return 0;
  memcpy(copy, data, bytes);
  if (bytes >= table_end) mend(copy, bytes);
  if (bytes >= table_end && !is_for_us(copy, bytes)) return 0;
  coexec_module* module;
  coexec_status status = coexec_module_open_memory(device, copy, bytes, NULL, &module);
  if (status) return strchr(coexec_last_error(), '\n') ? abort(), 0 : 0;
  use(module);
  coexec_module_close(module);
  return 0;
}

#else

static char *input, *expected, *computed;
static size_t input_bytes, output_bytes;
static long refused, right;

static int run(coexec_module* module) {
  const void* inputs[] = {input};
  void* outputs[] = {computed};
  memset(computed, 0x7F, output_bytes);
  return coexec_call(module, inputs, outputs);
}

static void prepare(void) {
  coexec_module* module;
  coexec_tensor in, out;
  if (coexec_module_open_memory(device, seed, seed_bytes, NULL, &module)) exit(2);
  coexec_describe_tensor(module, coexec_input(module, 0), &in);
  coexec_describe_tensor(module, coexec_output(module, 0), &out);
  input = malloc(input_bytes = in.bytes);
  computed = malloc(output_bytes = out.bytes);
  expected = malloc(output_bytes);
  for (size_t i = 0; i < input_bytes / sizeof(float); ++i) ((float*)(void*)input)[i] = (float)(i % 13) / 13 - 0.4f;
  if (run(module)) exit(2);
  memcpy(expected, computed, output_bytes);
  coexec_module_close(module);
}

static void judge(coexec_status status, coexec_module* module, const char* what, size_t place) {
  if (status) {
    ++refused;
    if (status == COEXEC_BAD_FILE && !strchr(coexec_last_error(), '\n')) return;
    fprintf(stderr, "%s %zu: status %d: %s\n", what, place, status, coexec_last_error());
    exit(1);
  }
  if (run(module) || memcmp(computed, expected, output_bytes)) {
    fprintf(stderr, "%s %zu: another result\n", what, place);
    exit(1);
  }
  ++right;
  coexec_module_close(module);
}

static void try_copy(size_t bytes, const char* what, size_t place) {
  coexec_module* module;
  coexec_status status = coexec_module_open_memory(device, copy, bytes, NULL, &module);
  judge(status, module, what, place);
}

static void damage_each_byte(void) {
  for (size_t place = 0; place < table_end; ++place)
    for (int value = 1; value < 256; ++value) {
      memcpy(copy, seed, seed_bytes);
      copy[place] = (char)(copy[place] ^ value);
      try_copy(seed_bytes, "byte", place);
    }
}

static void cut_off(void) {
  memcpy(copy, seed, seed_bytes);
  for (size_t bytes = 0; bytes <= table_end; ++bytes) try_copy(bytes, "cut off at", bytes);
  for (int i = 0; i < COEXEC_SECTION_COUNT; ++i)
    for (int64_t shift = -1; shift <= 1; ++shift) {
      size_t begin = (size_t)((int64_t)seed_sections[i].offset + shift), end = begin + (size_t)seed_sections[i].bytes;
      try_copy(begin, "cut off at", begin);
      if (end <= seed_bytes) try_copy(end, "cut off at", end);
    }
}

static void damage_at_random(int count) {
  for (int i = 0; i < count; ++i) {
    size_t bytes = seed_bytes;
    memcpy(copy, seed, bytes);
    for (int times = rand() % 3; times >= 0; --times) {
      size_t place = (size_t)rand() % bytes, length = (size_t)rand() % 32 + 1;
      if (length > bytes - place) length = bytes - place;
      switch (rand() % 5) {
        case 0: copy[place] = (char)(copy[place] ^ 1 << rand() % 8); break;
        case 1: memset(copy + place, rand(), length); break;
        case 2: memmove(copy + place, copy + place + length, bytes - place - length), bytes -= length; break;
        case 3: memmove(copy + place + length, copy + place, bytes - place), bytes += length; break;
        default: bytes = place + 1;
      }
    }
    try_copy(bytes, "random damage", (size_t)i);
  }
}

/* A file that another process writes anew and shortens while it is opened. */
static char* raced_path;
static atomic_int stops;

static void* disturb(void* unused) {
  int descriptor = open(raced_path, O_RDWR);
  while (!atomic_load(&stops)) {
    size_t place = (size_t)random() % seed_bytes;
    if (ftruncate(descriptor, (off_t)place)) break;
    usleep(random() % 300);
    if (pwrite(descriptor, seed, seed_bytes, 0) < 0) break;
    usleep(random() % 1500);
  }
  close(descriptor);
  return unused;
}

static void change_while_open(char* path) {
  pthread_t other;
  int descriptor = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
  if (descriptor < 0 || pwrite(descriptor, seed, seed_bytes, 0) < 0) exit(2);
  raced_path = path;
  pthread_create(&other, NULL, disturb, NULL);
  for (size_t i = 0; i < RACES; ++i) {
    coexec_module* module;
    coexec_status status = coexec_module_open(device, path, NULL, &module);
    judge(status, module, "changed while it was opened", i);
  }
  atomic_store(&stops, 1);
  pthread_join(other, NULL);
  coexec_module* module;
  if (pwrite(descriptor, seed, seed_bytes, 0) < 0 || ftruncate(descriptor, (off_t)seed_bytes)) exit(2);
  coexec_status status = coexec_module_open(device, path, NULL, &module);
  if (ftruncate(descriptor, 0)) exit(2);
  judge(status, module, "cut off while it was open", 0);
  close(descriptor);
  unlink(path);
}

int main(int count, char** arguments) {
  if (count != 4) {
    fprintf(stderr, "usage: %s MODULE SCRATCH-FILE RANDOM-DAMAGES\n", arguments[0]);
    return 2;
  }
  start(arguments[1]);
  prepare();
  damage_each_byte();
  cut_off();
  damage_at_random(atoi(arguments[3]));
  change_while_open(arguments[2]);
  coexec_device_close(device);
  printf("%ld refused, %ld right\n", refused, right);
  free(seed), free(copy), free(input), free(computed), free(expected);
  return right ? 0 : 1;
}

#endif
