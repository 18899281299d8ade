#include "constants.h"

#include "winograd.h"

#include <stdlib.h>

enum { PIECE_BYTES = 1 << 20 };

static const coexec_section* section_of(const constant_pieces* p) {
  return &p->file->sections[COEXEC_SECTION_CONSTANTS - 1];
}

/* ---- what is where ---- */

static int by_place(const void* one, const void* other) {
  uint64_t a = ((const stored_block*)one)->begin, b = ((const stored_block*)other)->begin;
  return (a > b) - (a < b);
}

/* What is stored of a tile of Winograd's weights, which are made tile by tile. */
static uint64_t tile_bytes(const stored_block* stored) { return COEXEC_TAPS * stored->block->row_bytes; }

/* The blocks that are stored, in their order in the file. */
static coexec_status find_stored(constant_pieces* p, void* const* blocks) {
  p->most_bytes = PART_BYTES;
  for (uint64_t i = 0; i < p->file->block_count; ++i) {
    const coexec_block_record* block = &p->file->blocks[i];
    if (block->constant == COEXEC_NOT_STORED || !block->constant_bytes) continue;
    stored_block* stored = &p->stored[p->stored_count++];
    *stored = (stored_block){block->constant, block->constant + block->constant_bytes, block, blocks[i]};
    if (block->content && tile_bytes(stored) > p->most_bytes) p->most_bytes = tile_bytes(stored);
  }
  qsort(p->stored, p->stored_count, sizeof *p->stored, by_place);
  for (size_t i = 1; i < p->stored_count; ++i)
    if (p->stored[i].begin < p->stored[i - 1].end) return damaged("two constants lie at the same place");
  return COEXEC_OK;
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

/* Where the piece that begins at a place ends: no tile is cut in two. */
static uint64_t end_of_piece(const constant_pieces* p, uint64_t at) {
  uint64_t end = at + PIECE_BYTES, bytes = section_of(p)->bytes;
  if (end >= bytes) return bytes;
  size_t number = block_at(p, end);
  const stored_block* cut = number < p->stored_count ? &p->stored[number] : NULL;
  if (!cut || !cut->block->content || cut->begin >= end) return end;
  uint64_t tile = tile_bytes(cut), tiles = (end - cut->begin) / tile;
  if (cut->begin + tiles * tile <= at) ++tiles; /* one that is larger than a piece */
  return cut->begin + tiles * tile;
}

static coexec_status find_pieces(constant_pieces* p) {
  uint64_t bytes = section_of(p)->bytes, count = 0;
  for (uint64_t at = 0; at < bytes; at = end_of_piece(p, at)) ++count;
  p->pieces = calloc(count + 1, sizeof *p->pieces);
  if (!p->pieces) return fail(COEXEC_NO_MEMORY, "there is no memory to read the module");
  for (uint64_t at = 0; at < bytes; at = p->pieces[p->piece_count++].end)
    p->pieces[p->piece_count] = (constant_piece){at, end_of_piece(p, at), 0};
  return COEXEC_OK;
}

coexec_status prepare_pieces(constant_pieces* p, const module_file* file, void* const* blocks) {
  *p = (constant_pieces){.file = file};
  p->stored = calloc(file->block_count + 1, sizeof *p->stored);
  if (!p->stored) return fail(COEXEC_NO_MEMORY, "there is no memory to read the module");
  coexec_status status = find_stored(p, blocks);
  return status ? status : find_pieces(p);
}

/* ---- reading ---- */

/* What of the section follows `at`, as far as it may be read at once. */
static coexec_status read_part(const constant_pieces* p, constant_piece* piece, uint64_t at, char* place, size_t bytes) {
  coexec_status status = read_at(&p->file->source, section_of(p)->offset + at, place, bytes);
  if (!status) piece->sum = crc32_of(piece->sum, place, bytes);
  return status;
}

static coexec_status read_tile(const constant_pieces* p, constant_piece* piece, uint64_t at, const stored_block* stored,
                               char* kernels) {
  const coexec_block_record* block = stored->block;
  uint64_t bytes = tile_bytes(stored), tile = (at - stored->begin) / bytes;
  coexec_status status = COEXEC_OK;
  for (uint64_t done = 0; !status && done < bytes; done += PART_BYTES)
    status = read_part(p, piece, at + done, kernels + done, bytes - done < PART_BYTES ? bytes - done : PART_BYTES);
  if (status) return status;
  char* weights = stored->place + tile * coexec_points(block) * block->row_bytes;
  make_winograd_weights(block->content, (const float*)(const void*)kernels, block->row_bytes / sizeof(float),
                        (float*)(void*)weights);
  return COEXEC_OK;
}

/* What belongs to a block is read to its place there, what something is made of and what lies between blocks to one that
   is thrown away. */
static coexec_status read_piece(const constant_pieces* p, constant_piece* piece, char* aside) {
  size_t next = block_at(p, piece->begin);
  coexec_status status = COEXEC_OK;
  for (uint64_t at = piece->begin, end; !status && at < piece->end; at = end) {
    while (next < p->stored_count && p->stored[next].end <= at) ++next;
    const stored_block* block = next < p->stored_count ? &p->stored[next] : NULL;
    int inside = block && block->begin <= at;
    if (inside && block->block->content) {
      end = at + tile_bytes(block);
      status = read_tile(p, piece, at, block, aside);
      continue;
    }
    end = !block ? piece->end : inside ? block->end : block->begin;
    if (end > piece->end) end = piece->end;
    if (end - at > PART_BYTES) end = at + PART_BYTES;
    status = read_part(p, piece, at, inside ? block->place + (at - block->begin) : aside, end - at);
  }
  return status;
}

coexec_status read_pieces(constant_pieces* p) {
  char* aside = malloc(p->most_bytes);
  coexec_status status = aside ? COEXEC_OK : fail(COEXEC_NO_MEMORY, "there is no memory to read the module");
  for (uint64_t number; !status && (number = atomic_fetch_add(&p->next, 1)) < p->piece_count;)
    status = read_piece(p, &p->pieces[number], aside);
  if (status) atomic_store(&p->next, p->piece_count); /* others need not go on */
  free(aside);
  return status;
}

coexec_status check_pieces(const constant_pieces* p) {
  uint32_t sum = 0;
  for (uint64_t i = 0; i < p->piece_count; ++i)
    sum = crc32_joined(sum, p->pieces[i].sum, p->pieces[i].end - p->pieces[i].begin);
  return sum == section_of(p)->crc ? COEXEC_OK : damaged("its constants have another checksum");
}

void release_pieces(constant_pieces* p) {
  free(p->stored);
  free(p->pieces);
}
