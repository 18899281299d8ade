#define _POSIX_C_SOURCE 200809L
#include "file.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

coexec_status damaged(const char* what) {
  return fail(COEXEC_BAD_FILE, "the module is damaged (%s); build it again", what);
}

coexec_status read_at(const byte_source* source, uint64_t offset, void* place, size_t bytes) {
  if (source->descriptor < 0) {
    memcpy(place, source->memory + offset, bytes);
    return COEXEC_OK;
  }
  for (size_t done = 0; done < bytes;) {
    ssize_t count = pread(source->descriptor, (char*)place + done, bytes - done, (off_t)(offset + done));
    if (count > 0) done += (size_t)count;
    else if (count == 0) return damaged("it is cut off");
    else if (errno != EINTR) return fail(COEXEC_BAD_FILE, "the module cannot be read (%s)", strerror(errno));
  }
  return COEXEC_OK;
}

static coexec_status check_header(const byte_source* source, coexec_header* header) {
  if (source->bytes < sizeof *header) return fail(COEXEC_BAD_FILE, "this is no module: it is too short for one");
  coexec_status status = read_at(source, 0, header, sizeof *header);
  if (status) return status;
  if (memcmp(header->magic, COEXEC_MAGIC, sizeof header->magic))
    return fail(COEXEC_BAD_FILE, "this is no tvm-coexec module; make one with `tvm-coexec build`");
  if (header->version != COEXEC_FORMAT_VERSION)
    return fail(COEXEC_BAD_FILE, "the module has format version %u, this release reads %d; build it again",
                (unsigned)header->version, COEXEC_FORMAT_VERSION);
  if (crc32_of(0, header, offsetof(coexec_header, header_crc)) != header->header_crc)
    return damaged("its header has another checksum");
  if (header->section_count != COEXEC_SECTION_COUNT) return damaged("it has another number of sections");
  if (header->file_bytes != source->bytes) return damaged("it has another size than it should");
  return COEXEC_OK;
}

/* See that the bytes between two sections are zero, so that no byte of a file is without a meaning. */
static coexec_status check_gap(const byte_source* source, uint64_t begin, uint64_t end) {
  char part[4096];
  while (begin < end) {
    size_t bytes = end - begin < sizeof part ? (size_t)(end - begin) : sizeof part;
    coexec_status status = read_at(source, begin, part, bytes);
    if (status) return status;
    for (size_t i = 0; i < bytes; ++i)
      if (part[i]) return damaged("there is something between its sections");
    begin += bytes;
  }
  return COEXEC_OK;
}

static coexec_status check_sections(const module_file* file, const coexec_header* header) {
  uint64_t end = sizeof(coexec_header) + sizeof file->sections;
  if (crc32_of(0, file->sections, sizeof file->sections) != header->sections_crc)
    return damaged("its table of sections has another checksum");
  for (uint32_t i = 0; i < COEXEC_SECTION_COUNT; ++i) {
    const coexec_section* section = &file->sections[i];
    uint64_t alignment = i + 1 == COEXEC_SECTION_CONSTANTS ? COEXEC_CONSTANTS_ALIGNMENT : COEXEC_SECTION_ALIGNMENT;
    if (section->kind != i + 1) return damaged("its sections are in another order");
    if (section->offset < end || section->offset % alignment || section->offset > file->source.bytes ||
        section->bytes > file->source.bytes - section->offset)
      return damaged("a section lies where none may be");
    coexec_status status = check_gap(&file->source, end, section->offset);
    if (status) return status;
    end = section->offset + section->bytes;
  }
  return check_gap(&file->source, end, file->source.bytes);
}

/* See that a section that is not kept has the right checksum. */
static coexec_status pass_over(const module_file* file, const coexec_section* section) {
  uint32_t crc = 0;
  char* part = malloc(PART_BYTES);
  if (!part) return fail(COEXEC_NO_MEMORY, "there is no memory to read the module");
  coexec_status status = COEXEC_OK;
  for (uint64_t done = 0; !status && done < section->bytes; done += PART_BYTES) {
    size_t bytes = section->bytes - done < PART_BYTES ? (size_t)(section->bytes - done) : PART_BYTES;
    status = read_at(&file->source, section->offset + done, part, bytes);
    if (!status) crc = crc32_of(crc, part, bytes);
  }
  free(part);
  if (!status && crc != section->crc) return damaged("a section has another checksum");
  return status;
}

static coexec_status read_section(module_file* file, uint32_t kind) {
  const coexec_section* section = &file->sections[kind - 1];
  if (kind == COEXEC_SECTION_CONSTANTS) return COEXEC_OK; /* constants.c */
  if (kind == COEXEC_SECTION_DESCRIPTION) return pass_over(file, section);
  void* content = malloc(section->bytes ? section->bytes : 1);
  if (!content) return fail(COEXEC_NO_MEMORY, "there is no memory to read the module");
  file->contents[kind - 1] = content;
  coexec_status status = read_at(&file->source, section->offset, content, section->bytes);
  if (status) return status;
  return crc32_of(0, content, section->bytes) == section->crc ? COEXEC_OK : damaged("a section has another checksum");
}

/* Point at the records of a table, and count them. */
static coexec_status find_table(module_file* file, uint32_t kind, size_t record, void* table, uint64_t* count) {
  uint64_t bytes = file->sections[kind - 1].bytes;
  if (bytes % record) return damaged("a table is cut off");
  *count = bytes / record;
  memcpy(table, &file->contents[kind - 1], sizeof(void*));
  return *count > INT32_MAX ? damaged("a table is too long") : COEXEC_OK;
}

static coexec_status find_tables(module_file* f) {
  struct {
    uint32_t kind;
    size_t record;
    void* table;
    uint64_t* count;
  } tables[] = {
      {COEXEC_SECTION_STRINGS, 1, &f->strings, &f->string_bytes},
      {COEXEC_SECTION_NUMBERS, sizeof *f->numbers, &f->numbers, &f->number_count},
      {COEXEC_SECTION_BLOCKS, sizeof *f->blocks, &f->blocks, &f->block_count},
      {COEXEC_SECTION_TENSORS, sizeof *f->tensors, &f->tensors, &f->tensor_count},
      {COEXEC_SECTION_INPUTS, sizeof *f->inputs, &f->inputs, &f->input_count},
      {COEXEC_SECTION_OUTPUTS, sizeof *f->outputs, &f->outputs, &f->output_count},
      {COEXEC_SECTION_STEPS, sizeof *f->steps, &f->steps, &f->step_count},
      {COEXEC_SECTION_READS, sizeof *f->reads, &f->reads, &f->read_count},
      {COEXEC_SECTION_LAUNCHES, sizeof *f->launches, &f->launches, &f->launch_count},
      {COEXEC_SECTION_ARGUMENTS, sizeof *f->arguments, &f->arguments, &f->argument_count},
      {COEXEC_SECTION_CPU_CODE, 1, &f->code, &f->code_bytes},
      {COEXEC_SECTION_OPENCL, 1, &f->opencl, &f->opencl_bytes},
      {COEXEC_SECTION_FACTS, sizeof *f->facts, &f->facts, &f->fact_count},
  };
  for (size_t i = 0; i < sizeof tables / sizeof *tables; ++i) {
    coexec_status status = find_table(f, tables[i].kind, tables[i].record, tables[i].table, tables[i].count);
    if (status) return status;
  }
  return COEXEC_OK;
}

coexec_status read_file(const byte_source* source, module_file* file) {
  coexec_header header;
  memset(file, 0, sizeof *file);
  file->source = *source;
  coexec_status status = check_header(source, &header);
  if (!status && source->bytes < sizeof header + sizeof file->sections) status = damaged("it is cut off");
  if (!status) status = read_at(source, sizeof header, file->sections, sizeof file->sections);
  if (!status) status = check_sections(file, &header);
  for (uint32_t kind = 1; !status && kind <= COEXEC_SECTION_COUNT; ++kind) status = read_section(file, kind);
  if (!status) status = find_tables(file);
  if (!status) status = check_tables(file);
  if (status) release_file(file);
  return status;
}

void release_file(module_file* file) {
  for (uint32_t i = 0; i < COEXEC_SECTION_COUNT; ++i) free(file->contents[i]);
  memset(file, 0, sizeof *file);
}
