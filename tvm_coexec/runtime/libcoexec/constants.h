/* The constants of a module's file on their way to their blocks. */
#ifndef COEXEC_CONSTANTS_H
#define COEXEC_CONSTANTS_H

#include "file.h"

#include <stdatomic.h>

typedef struct {
  uint64_t begin, end; /* in the section */
  const coexec_block_record* block;
  char* place;
} stored_block;

/* The section is read in pieces, which any number of threads take in turn: each has a checksum of its own. */
typedef struct {
  uint64_t begin, end;
  uint32_t sum;
} constant_piece;

typedef struct {
  const module_file* file;
  stored_block* stored; /* in their order in the file */
  size_t stored_count, most_bytes; /* most_bytes: that are read before something can be made of them */
  constant_piece* pieces;
  uint64_t piece_count;
  _Atomic uint64_t next; /* the first piece that no thread has taken */
} constant_pieces;

/* `blocks` tells where each block lies; the file stays open until all is read. */
coexec_status prepare_pieces(constant_pieces* pieces, const module_file* file, void* const* blocks);
/* Read pieces until there are no others. */
coexec_status read_pieces(constant_pieces* pieces);
/* See that all that was read is whole, after every thread has ended its part. */
coexec_status check_pieces(const constant_pieces* pieces);
void release_pieces(constant_pieces* pieces);

#endif
