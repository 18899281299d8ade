#include "constants.h"

#include <stdlib.h>

enum { PIECE_BYTES = 1 << 22 };

static const coexec_section* section_of(const constant_pieces* p) {
  return &p->file->sections[COEXEC_SECTION_CONSTANTS - 1];
}

static int by_place(const void* one, const void* other) {
  uint64_t a = ((const stored_block*)one)->begin, b = ((const stored_block*)other)->begin;
  return (a > b) - (a < b);
}

/* The blocks that are stored, in their order in the file. */
static coexec_status find_stored(constant_pieces* p, void* const* blocks) {
  for (uint64_t i = 0; i < p->file->block_count; ++i) {
    const coexec_block_record* block = &p->file->blocks[i];
    if (block->constant == COEXEC_NOT_STORED || !block->constant_bytes) continue;
    p->stored[p->stored_count++] = (stored_block){block->constant, block->constant + block->constant_bytes, blocks[i]};
  }
  qsort(p->stored, p->stored_count, sizeof *p->stored, by_place);
  for (size_t i = 1; i < p->stored_count; ++i)
    if (p->stored[i].begin < p->stored[i - 1].end) return damaged("two constants lie at the same place");
  return COEXEC_OK;
}

coexec_status prepare_pieces(constant_pieces* p, const module_file* file, void* const* blocks) {
  *p = (constant_pieces){.file = file};
  p->piece_count = (section_of(p)->bytes + PIECE_BYTES - 1) / PIECE_BYTES;
  p->stored = calloc(file->block_count + 1, sizeof *p->stored);
  p->sums = calloc(p->piece_count + 1, sizeof *p->sums);
  if (!p->stored || !p->sums) return fail(COEXEC_NO_MEMORY, "there is no memory to read the module");
  return find_stored(p, blocks);
}

static uint64_t end_of(const constant_pieces* p, uint64_t piece) {
  uint64_t end = (piece + 1) * PIECE_BYTES, bytes = section_of(p)->bytes;
  return end < bytes ? end : bytes;
}

/* The first block that ends behind a place. */
static size_t block_at(const constant_pieces* p, uint64_t at) {
  size_t low = 0, high = p->stored_count;
  while (low < high) {
    size_t middle = low + (high - low) / 2;
    if (p->stored[middle].end <= at) low = middle + 1;
    else high = middle;
  }
  return low;
}

/* What belongs to a block is read to its place there, what lies between blocks to one that is thrown away. */
static coexec_status read_piece(constant_pieces* p, uint64_t piece, char* between) {
  uint64_t at = piece * PIECE_BYTES, piece_end = end_of(p, piece);
  size_t next = block_at(p, at);
  while (at < piece_end) {
    while (next < p->stored_count && p->stored[next].end <= at) ++next;
    const stored_block* block = next < p->stored_count ? &p->stored[next] : NULL;
    int inside = block && block->begin <= at;
    uint64_t end = !block ? piece_end : inside ? block->end : block->begin;
    if (end > piece_end) end = piece_end;
    size_t bytes = end - at < PART_BYTES ? (size_t)(end - at) : PART_BYTES;
    char* place = inside ? block->place + (at - block->begin) : between;
    coexec_status status = read_at(&p->file->source, section_of(p)->offset + at, place, bytes);
    if (status) return status;
    p->sums[piece] = crc32_of(p->sums[piece], place, bytes);
    at += bytes;
  }
  return COEXEC_OK;
}

coexec_status read_pieces(constant_pieces* p) {
  char* between = malloc(PART_BYTES);
  coexec_status status = between ? COEXEC_OK : fail(COEXEC_NO_MEMORY, "there is no memory to read the module");
  for (uint64_t piece; !status && (piece = atomic_fetch_add(&p->next, 1)) < p->piece_count;)
    status = read_piece(p, piece, between);
  if (status) atomic_store(&p->next, p->piece_count); /* others need not go on */
  free(between);
  return status;
}

coexec_status check_pieces(const constant_pieces* p) {
  uint32_t sum = 0;
  for (uint64_t piece = 0; piece < p->piece_count; ++piece)
    sum = crc32_joined(sum, p->sums[piece], end_of(p, piece) - piece * PIECE_BYTES);
  return sum == section_of(p)->crc ? COEXEC_OK : damaged("its constants have another checksum");
}

void release_pieces(constant_pieces* p) {
  free(p->stored);
  free(p->sums);
}
