/* Checks a file's tables: once they are found right, nothing that is read of them has to be asked for again. */
#define _GNU_SOURCE
#include "file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_ARGUMENTS = 1024, MAX_ARGUMENT_RANK = 16 };

static const uint64_t MAX_BLOCK_BYTES = UINT64_C(1) << 46;
static const uint64_t MAX_GROUPS = INT32_MAX;

#if defined(__x86_64__) || defined(__i386__)
static const char features_key[] = "flags"; /* of a line of /proc/cpuinfo */
#else
static const char features_key[] = "Features";
#endif

#if defined(__x86_64__)
static const uint32_t own_machine = 62;
#elif defined(__aarch64__)
static const uint32_t own_machine = 183;
#elif defined(__arm__)
static const uint32_t own_machine = 40;
#elif defined(__i386__)
static const uint32_t own_machine = 3;
#elif defined(__riscv)
static const uint32_t own_machine = 243;
#else
#error "no modules are built for this machine"
#endif

static coexec_status wrong(const char* table, uint64_t number, const char* what) {
  return fail(COEXEC_BAD_FILE, "the module is damaged (%s %llu %s); build it again", table,
              (unsigned long long)number, what);
}

uint32_t type_bytes(uint32_t code, uint32_t bits) {
  switch (code) {
    case COEXEC_INT:
    case COEXEC_UINT: return bits == 8 || bits == 16 || bits == 32 || bits == 64 ? bits / 8 : 0;
    case COEXEC_FLOAT: return bits == 16 || bits == 32 || bits == 64 ? bits / 8 : 0;
    case COEXEC_BOOL: return bits == 8 ? 1 : 0;
    default: return 0;
  }
}

static uint64_t multiply(uint64_t one, uint64_t other) {
  uint64_t product;
  return __builtin_mul_overflow(one, other, &product) ? UINT64_MAX : product;
}

static uint64_t add(uint64_t one, uint64_t other) {
  uint64_t sum;
  return __builtin_add_overflow(one, other, &sum) ? UINT64_MAX : sum;
}

uint64_t array_bytes(const int64_t* extents, uint32_t rank, uint32_t element_bytes) {
  uint64_t bytes = element_bytes;
  for (uint32_t i = 0; i < rank; ++i)
    if (extents[i] < 0) return UINT64_MAX;
  for (uint32_t i = 0; i < rank; ++i)
    if (extents[i] == 0) return 0;
  for (uint32_t i = 0; i < rank; ++i) bytes = multiply(bytes, (uint64_t)extents[i]);
  return bytes;
}

uint64_t tensor_rows(const coexec_tensor_record* t) {
  uint64_t lines = add(t->height, multiply(2, t->halo_height)), pixels = add(t->width, multiply(2, t->halo_width));
  return multiply(t->batch, multiply(lines, pixels));
}

uint64_t tensor_row_bytes(const coexec_tensor_record* t) {
  return multiply(t->pixel, type_bytes(t->type_code, t->type_bits));
}

/* Whether [first, first + count) lies in a table of `all`. */
static int is_inside(uint64_t first, uint64_t count, uint64_t all) { return first <= all && count <= all - first; }

/* The features that Linux tells of the first CPU, to be freed; NULL where it tells none. */
static char* own_features(void) {
  FILE* cpus = fopen("/proc/cpuinfo", "re");
  char* line = NULL;
  size_t room = 0;
  int found = 0;
  while (cpus && !found && getline(&line, &room, cpus) > 0)
    found = !strncmp(line, features_key, sizeof features_key - 1);
  if (cpus) fclose(cpus);
  if (found) return line;
  free(line);
  return NULL;
}

static int has_word(const char* words, const char* word) {
  size_t length = strlen(word);
  for (const char* at = words; (at = strstr(at, word)); ++at) {
    int begins = at == words || strchr(" \t:", at[-1]), ends = strchr(" \t\n", at[length]) != NULL; /* the NUL too */
    if (begins && ends) return 1;
  }
  return 0;
}

/* Code for other instructions would end the process. Where Linux tells nothing, nothing can be said of it. */
static coexec_status check_features(const module_file* f) {
  if (f->facts->cpu_features >= f->string_bytes) return wrong("table of facts", 0, "names no CPU features");
  char* needed = strdup(f->strings + f->facts->cpu_features);
  char* own = needed && *needed ? own_features() : NULL;
  coexec_status status = needed ? COEXEC_OK : fail(COEXEC_NO_MEMORY, "there is no memory to open the module");
  char* rest = NULL;
  for (char* word = own ? strtok_r(needed, " ", &rest) : NULL; word && !status; word = strtok_r(NULL, " ", &rest))
    if (!has_word(own, word))
      status = fail(COEXEC_BAD_FILE, "the module was built for a CPU with %s, which this one lacks; build the module for "
                    "this machine", word);
  free(own);
  free(needed);
  return status;
}

static coexec_status check_facts(const module_file* f) {
  if (f->fact_count != 1) return wrong("table of facts of", f->fact_count, "records");
  if (f->facts->machine != own_machine)
    return fail(COEXEC_BAD_FILE, "the module was built for a CPU of ELF's kind %u, this one is of kind %u; build the "
                "module for this machine", (unsigned)f->facts->machine, (unsigned)own_machine);
  if (f->facts->needs & ~(uint32_t)(COEXEC_NEEDS_STEPS | COEXEC_NEEDS_FENCES))
    return fail(COEXEC_BAD_FILE, "the module needs what this release does not know; update tvm-coexec");
  if (f->string_bytes && f->strings[f->string_bytes - 1]) return wrong("string at the end of", f->string_bytes, "bytes has no end");
  if (!f->step_count) return wrong("table of", 0, "steps");
  return check_features(f);
}

/* The code is an ELF library for this machine, as far as its first bytes say. */
static coexec_status check_code(const module_file* f) {
  static const unsigned char start[] = {0x7F, 'E', 'L', 'F', sizeof(void*) == 8 ? 2 : 1, 1, 1};
  const unsigned char* code = f->code;
  if (!f->code_bytes) return COEXEC_OK; /* of a module whose steps all run on the GPU */
  if (f->code_bytes < 64 || memcmp(code, start, sizeof start) || (code[18] | code[19] << 8) != (int)own_machine)
    return fail(COEXEC_BAD_FILE, "the module's CPU code is no library for this machine; build the module for it");
  return COEXEC_OK;
}

/* Whether so many bytes can become a block's content. A block is at most 2^46 bytes, which no product here overflows. */
static int has_possible_content(const coexec_block_record* b) {
  if (b->content == COEXEC_AS_STORED) return !b->row_bytes;
  return (b->content == COEXEC_WINOGRAD_2 || b->content == COEXEC_WINOGRAD_4) && b->kind == COEXEC_BLOCK_CONSTANT &&
         b->row_bytes && b->row_bytes % COEXEC_TILE_BYTES == 0 && b->row_bytes <= b->bytes &&
         b->constant_bytes <= b->bytes && b->constant_bytes % (COEXEC_TAPS * b->row_bytes) == 0;
}

static coexec_status check_blocks(const module_file* f) {
  uint64_t constants = f->sections[COEXEC_SECTION_CONSTANTS - 1].bytes, all = 0;
  for (uint64_t i = 0; i < f->block_count; ++i) {
    const coexec_block_record* b = &f->blocks[i];
    if (b->kind > COEXEC_BLOCK_SCRATCH) return wrong("block", i, "is of an unknown kind");
    if (b->bytes % 4 || b->bytes > MAX_BLOCK_BYTES) return wrong("block", i, "has an impossible size");
    all = add(all, b->bytes);
    if (!has_possible_content(b)) return wrong("block", i, "is made of what nothing is made of");
    if (b->constant == COEXEC_NOT_STORED && b->constant_bytes == 0) continue;
    if (!is_inside(b->constant, b->constant_bytes, constants) || coexec_content_bytes(b) > b->bytes ||
        b->constant % COEXEC_SECTION_ALIGNMENT)
      return wrong("block", i, "has its content where there is none");
  }
  return all > MAX_BLOCK_BYTES ? wrong("table of", f->block_count, "blocks is too large") : COEXEC_OK;
}

static coexec_status check_tensor(const module_file* f, uint64_t i) {
  const coexec_tensor_record* t = &f->tensors[i];
  uint32_t element = type_bytes(t->type_code, t->type_bits);
  int is_image = (t->flags & COEXEC_TENSOR_IS_IMAGE) != 0;
  if (t->name >= f->string_bytes || t->block >= f->block_count) return wrong("tensor", i, "has no name or block");
  if (!element || t->flags > (COEXEC_TENSOR_CHANNELS_FIRST | COEXEC_TENSOR_IS_IMAGE))
    return wrong("tensor", i, "is of an unknown type");
  if (t->rank > COEXEC_MAX_RANK || !is_inside(t->shape, t->rank, f->number_count))
    return wrong("tensor", i, "has no shape");
  if (t->counted_by < -1 || t->counted_by >= (int64_t)f->tensor_count) return wrong("tensor", i, "is counted by none");
  if (!is_image && (t->batch != 1 || t->height != 1 || t->halo_height || t->halo_width || t->flags))
    return wrong("tensor", i, "has rows like an image's");
  uint64_t row_bytes = tensor_row_bytes(t), rows = tensor_rows(t);
  if (multiply(rows, row_bytes) > f->blocks[t->block].bytes || t->height > INT64_MAX / 4 || t->width > INT64_MAX / 4)
    return wrong("tensor", i, "is larger than its memory");
  if (add(t->first, t->channels) > t->pixel || t->own_begin > t->own_end || t->own_end > row_bytes)
    return wrong("tensor", i, "has channels outside of its pixels");
  uint64_t view = multiply(multiply(t->batch, t->height), multiply(multiply(t->width, t->channels), element));
  if (array_bytes(f->numbers + t->shape, t->rank, element) != view) return wrong("tensor", i, "has two sizes");
  return COEXEC_OK;
}

static coexec_status check_ends(const module_file* f) {
  for (uint64_t i = 0; i < f->input_count; ++i)
    if (f->inputs[i] < 0 || (uint64_t)f->inputs[i] >= f->tensor_count) return wrong("input", i, "is no tensor");
  for (uint64_t i = 0; i < f->output_count; ++i)
    if (f->outputs[i] < 0 || (uint64_t)f->outputs[i] >= f->tensor_count) return wrong("output", i, "is no tensor");
  return COEXEC_OK;
}

static int is_image_of_floats(const module_file* f, const coexec_argument_record* a) {
  const coexec_block_record* b = &f->blocks[a->block];
  return b->kind == COEXEC_BLOCK_CONSTANT && b->bytes && b->bytes % COEXEC_IMAGE_ROW_BYTES == 0 &&
         a->type_code == COEXEC_FLOAT && a->type_bits == 32;
}

static coexec_status check_argument(const module_file* f, uint64_t i) {
  const coexec_argument_record* a = &f->arguments[i];
  uint32_t element = type_bytes(a->type_code, a->type_bits);
  if (a->block >= f->block_count || !element) return wrong("argument", i, "has no block or type");
  if (a->rank > MAX_ARGUMENT_RANK || !is_inside(a->shape, a->rank, f->number_count))
    return wrong("argument", i, "has no shape");
  if (array_bytes(f->numbers + a->shape, a->rank, element) > f->blocks[a->block].bytes)
    return wrong("argument", i, "is larger than its memory");
  if (a->is_image > 1 || (a->is_image && !is_image_of_floats(f, a))) return wrong("argument", i, "is no image");
  return COEXEC_OK;
}

static coexec_status check_launch(const module_file* f, uint64_t i) {
  const coexec_launch_record* l = &f->launches[i];
  if (l->symbol >= f->string_bytes || l->entry > COEXEC_ENTRY_CHAINED) return wrong("launch", i, "has no entry");
  if (l->argument_count > MAX_ARGUMENTS || !is_inside(l->first_argument, l->argument_count, f->argument_count))
    return wrong("launch", i, "has no arguments");
  if (l->unit_axis < -1 || l->unit_axis > 1 || !l->together) return wrong("launch", i, "has no axis");
  for (int axis = 0; axis < 2; ++axis)
    if (!l->grid[axis] || !l->group[axis] || multiply(l->grid[axis], l->group[axis]) > MAX_GROUPS)
      return wrong("launch", i, "has impossible work-groups");
  if (l->entry == COEXEC_ENTRY_CHAINED &&
      (l->group[0] != 1 || l->group[1] != 1 || l->chained > INT32_MAX ||
       f->facts->chain_row_words < COEXEC_CHAIN_HEAD_WORDS + l->argument_count + 2))
    return wrong("launch", i, "cannot be chained");
  if (l->entry >= COEXEC_ENTRY_STEP && !(f->facts->needs & COEXEC_NEEDS_STEPS))
    return wrong("launch", i, "waits for flags, which the module does not say");
  return COEXEC_OK;
}

/* Launches of one side of a step: they are the side's, and their grids do not overflow whatever the split. */
static coexec_status check_half(const module_file* f, uint64_t i, uint32_t first, uint32_t count, int is_gpu) {
  const coexec_step_record* s = &f->steps[i];
  if (!is_inside(first, count, f->launch_count)) return wrong("step", i, "has no launches");
  for (uint32_t number = first; number < first + count; ++number) {
    const coexec_launch_record* l = &f->launches[number];
    if ((l->entry != COEXEC_ENTRY_CPU) != is_gpu) return wrong("step", i, "has launches of the other side");
    uint64_t groups = l->unit_axis < 0 ? 1 : multiply(l->grid[l->unit_axis], l->group[l->unit_axis]);
    if (multiply(groups, s->units) + l->together > MAX_GROUPS) return wrong("step", i, "has impossible work-groups");
  }
  return COEXEC_OK;
}

static coexec_status check_step(const module_file* f, uint64_t i) {
  const coexec_step_record* s = &f->steps[i];
  if (s->name >= f->string_bytes || s->output >= f->tensor_count) return wrong("step", i, "has no name or output");
  if (s->axis > COEXEC_HEIGHT || !s->units || s->units > INT32_MAX || s->cpu_units > s->units || !s->unit_size ||
      s->is_output > 1)
    return wrong("step", i, "has impossible units");
  if (!is_inside(s->first_read, s->read_count, f->read_count)) return wrong("step", i, "has no reads");
  for (uint32_t number = s->first_read; number < s->first_read + s->read_count; ++number) {
    const coexec_read_record* read = &f->reads[number];
    if (!read->step || read->step > i || read->local >= 1u << (COEXEC_HEIGHT + 1))
      return wrong("step", i, "reads what is not there");
  }
  coexec_status status = check_half(f, i, s->cpu_launch, s->cpu_launch_count, 0);
  if (!status) status = check_half(f, i, s->gpu_launch, s->gpu_launch_count, 1);
  if (status) return status;
  if (!s->cpu_launch_count && !s->gpu_launch_count) return wrong("step", i, "has no kernels");
  if (s->cpu_launch_count && !f->code_bytes) return wrong("step", i, "has kernels of the CPU, for which no code is there");
  return COEXEC_OK;
}

coexec_status check_tables(const module_file* f) {
  coexec_status status = check_facts(f);
  if (!status) status = check_code(f);
  if (!status) status = check_blocks(f);
  for (uint64_t i = 0; !status && i < f->tensor_count; ++i) status = check_tensor(f, i);
  if (!status) status = check_ends(f);
  for (uint64_t i = 0; !status && i < f->argument_count; ++i) status = check_argument(f, i);
  for (uint64_t i = 0; !status && i < f->launch_count; ++i) status = check_launch(f, i);
  for (uint64_t i = 0; !status && i < f->step_count; ++i) status = check_step(f, i);
  return status;
}
