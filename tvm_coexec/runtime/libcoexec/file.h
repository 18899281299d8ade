/* A module's file, read and checked. */
#ifndef COEXEC_FILE_H
#define COEXEC_FILE_H

#include "common.h"
#include "format.h"

#include <stddef.h>

/* Where a module's bytes come from. */
typedef struct {
  int descriptor;     /* -1: memory */
  const char* memory; /* of the caller's */
  uint64_t bytes;
} byte_source;

/* All tables of a file, in memory of their own. */
typedef struct {
  byte_source source;
  coexec_section sections[COEXEC_SECTION_COUNT];
  void* contents[COEXEC_SECTION_COUNT]; /* NULL for what is not kept: the description and the constants */

  const char* strings;
  const int64_t* numbers;
  const coexec_block_record* blocks;
  const coexec_tensor_record* tensors;
  const int32_t *inputs, *outputs;
  const coexec_step_record* steps;
  const coexec_read_record* reads;
  const coexec_launch_record* launches;
  const coexec_argument_record* arguments;
  const coexec_facts* facts;
  const void* code;
  const char* opencl;
  uint64_t string_bytes, number_count, block_count, tensor_count, input_count, output_count, step_count, read_count,
      launch_count, argument_count, fact_count, code_bytes, opencl_bytes;
} module_file;

/* Read and check all but the constants; the source stays open until these are read. */
coexec_status read_file(const byte_source* source, module_file* file);
void release_file(module_file* file);

/* A part of a file; it is read, not mapped: one that is cut off while it is open must not end the process. */
coexec_status read_at(const byte_source* source, uint64_t offset, void* place, size_t bytes);
coexec_status damaged(const char* what);
enum { PART_BYTES = 1 << 18 }; /* so much is read and summed at once, while the caches hold it */

/* What check.c looks at: whether every index, size and name in the tables is possible. */
coexec_status check_tables(const module_file* file);

/* Bytes of one element; 0 where there is no such type. */
uint32_t type_bytes(uint32_t code, uint32_t bits);
/* Bytes of so many elements; UINT64_MAX where a number is negative or the product too large. */
uint64_t array_bytes(const int64_t* extents, uint32_t rank, uint32_t element_bytes);
/* Lines or rows of a tensor in memory, those of halos included, and bytes of one. */
uint64_t tensor_rows(const coexec_tensor_record* tensor);
uint64_t tensor_row_bytes(const coexec_tensor_record* tensor);

/* CRC-32 as in zlib, of more bytes behind others whose CRC-32 is known; 0 before all. */
uint32_t crc32_of(uint32_t crc, const void* data, size_t bytes);
/* That of all bytes, from those of the first and of the others behind them. */
uint32_t crc32_joined(uint32_t first, uint32_t others, uint64_t other_bytes);

#endif
