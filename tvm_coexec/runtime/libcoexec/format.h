/* The file of a module, version 4 of this format: docs/module-format.md says it in words.
 *
 * A header, the table of sections, and the sections, each from a multiple of 64 bytes on, the constants' from one of
 * 16,384: the largest page of a phone. All numbers are little-endian. Tables are arrays of the records below.
 */
#ifndef COEXEC_FORMAT_H
#define COEXEC_FORMAT_H

#include <stdint.h>

#define COEXEC_MAGIC "COEXEC\r\n" /* damaged where line ends are converted */

enum { COEXEC_FORMAT_VERSION = 4, COEXEC_SECTION_ALIGNMENT = 64, COEXEC_CONSTANTS_ALIGNMENT = 16384 };

typedef enum {
  COEXEC_SECTION_DESCRIPTION = 1, /* JSON for tools; the runtime reads nothing of it */
  COEXEC_SECTION_STRINGS = 2,     /* UTF-8, each string ended by a NUL */
  COEXEC_SECTION_NUMBERS = 3,     /* int64: extents of tensors and arguments */
  COEXEC_SECTION_BLOCKS = 4,
  COEXEC_SECTION_TENSORS = 5,
  COEXEC_SECTION_INPUTS = 6,  /* int32: tensors */
  COEXEC_SECTION_OUTPUTS = 7, /* int32: tensors */
  COEXEC_SECTION_STEPS = 8,
  COEXEC_SECTION_READS = 9,
  COEXEC_SECTION_LAUNCHES = 10,
  COEXEC_SECTION_ARGUMENTS = 11,
  COEXEC_SECTION_CPU_CODE = 12, /* a shared library of the CPU's kernels */
  COEXEC_SECTION_OPENCL = 13,   /* OpenCL C with all entry points, not ended by a NUL */
  COEXEC_SECTION_CONSTANTS = 14,
  COEXEC_SECTION_FACTS = 15, /* one record */
  COEXEC_SECTION_COUNT = 15
} coexec_section_kind; /* a file has each of them once, in this order */

typedef struct {
  char magic[8];
  uint32_t version, section_count;
  uint64_t file_bytes;
  uint32_t sections_crc, header_crc; /* CRC-32 (zlib's) of the table of sections, and of the header before this word */
} coexec_header;                     /* 32 bytes */

typedef struct {
  uint32_t kind, crc;
  uint64_t offset, bytes;
} coexec_section; /* 24 bytes */

typedef struct {
  uint32_t machine;       /* ELF's e_machine of the CPU's code */
  uint32_t chain_row_words; /* 64-bit words of a row of the chained entry's table; 0 where no kernel is chained */
  uint32_t opencl_version;  /* the OpenCL C that the source needs, 120, 200 or 300 */
  uint32_t needs;           /* bits of coexec_need */
  uint32_t cpu_features;    /* offset among the strings: what the CPU has to have, in Linux's words, with spaces between */
} coexec_facts;

typedef enum {
  COEXEC_NEEDS_STEPS = 1, /* the OpenCL source has flags in it: it is built for the newest OpenCL C that has atomics */
  COEXEC_NEEDS_FENCES = 2 /* and fences of the device's scope outside of these: the same without flags */
} coexec_need;

typedef enum { COEXEC_BLOCK_ACTIVATION = 0, COEXEC_BLOCK_CONSTANT = 1, COEXEC_BLOCK_SCRATCH = 2 } coexec_block_kind;

#define COEXEC_NOT_STORED UINT64_MAX

/* Winograd's weights are larger than the 3x3 kernels that they are made of, which are stored in their place: for each
 * tile of 32 output channels a row for each tap, of floats [input channels, 32]; so are the weights, with a row for each
 * point. */
typedef enum { COEXEC_AS_STORED = 0, COEXEC_WINOGRAD_2 = 2, COEXEC_WINOGRAD_4 = 4 } coexec_content;

enum { COEXEC_TAPS = 9, COEXEC_TILE_BYTES = 128 };

/* A piece of memory that kernels touch. */
typedef struct {
  uint32_t kind, content;  /* content: how what is stored becomes what kernels read */
  uint64_t bytes;          /* a multiple of 4 */
  uint64_t constant;       /* where in the constants' section what is stored of it begins; or COEXEC_NOT_STORED */
  uint64_t constant_bytes; /* how much that is; the memory behind what becomes of it is zero */
  uint64_t row_bytes;      /* of Winograd's weights; otherwise 0 */
} coexec_block_record;     /* 40 bytes */

/* Rows of a tile of Winograd's weights. */
static inline uint64_t coexec_points(const coexec_block_record* block) {
  return (uint64_t)(block->content + 2) * (block->content + 2);
}

/* How much of a block's memory what is stored of it becomes. */
static inline uint64_t coexec_content_bytes(const coexec_block_record* block) {
  return block->content ? block->constant_bytes / COEXEC_TAPS * coexec_points(block) : block->constant_bytes;
}

enum { COEXEC_TENSOR_CHANNELS_FIRST = 1, COEXEC_TENSOR_IS_IMAGE = 2 };

/* Elements lie at [batch, line, pixel, channel] of a block whose extents include halos; rows are the lines of an image
 * of one line that has as many pixels. All sizes are in elements unless they say bytes. */
typedef struct {
  uint32_t name; /* offset among the strings */
  uint32_t block;
  uint32_t type_code, type_bits;
  uint32_t flags, rank;
  uint32_t shape;     /* index among the numbers of the first of `rank` extents, as the user sees them */
  int32_t counted_by; /* tensor; or -1 */
  uint64_t batch, height, width, channels; /* without halos */
  uint64_t halo_height, halo_width;
  uint64_t pixel;             /* elements from one pixel to the next */
  uint64_t first;             /* the first channel's place in a pixel */
  uint64_t own_begin, own_end; /* bytes of a pixel that belong to no other tensor of the same block */
} coexec_tensor_record;        /* 112 bytes */

typedef enum { COEXEC_CHANNELS = 0, COEXEC_ROWS = 1, COEXEC_HEIGHT = 2 } coexec_axis;

typedef struct {
  uint32_t name;
  uint32_t axis, units, cpu_units;
  uint32_t output; /* tensor */
  uint32_t unit_size; /* channels, rows or lines of a unit, whatever the axis says */
  uint32_t is_output; /* whether it writes into one of the module's outputs */
  uint32_t first_read, read_count;
  uint32_t cpu_launch, cpu_launch_count; /* none: the module has no CPU half of this step */
  uint32_t gpu_launch, gpu_launch_count;
  uint32_t cpu_threads; /* that compute the CPU's half, on the first of its cores; 0: one on each */
} coexec_step_record; /* 56 bytes */

/* Words of the chained entry's rows: which case, the step to await, the step to report, work-groups on both axes, and
 * ticks at the begin and at the end of the kernel; behind them addresses of arguments, the first unit and the units. */
enum { COEXEC_CHAIN_HEAD_WORDS = 7 };

/* A step waits for another, counted from 1 and before it: it reads its result, or overwrites memory that it used.
 * Bit 1 << axis of `local`: where both are divided along that axis, each unit reads the same unit. */
typedef struct {
  uint32_t step, local;
} coexec_read_record;

typedef enum {
  COEXEC_ENTRY_CPU = 0,    /* `symbol` is a function of the CPU's code, in TVM's calling convention */
  COEXEC_ENTRY_KERNEL = 1, /* an OpenCL kernel that takes buffers, begin and count */
  COEXEC_ENTRY_STEP = 2,   /* and, behind these, flags, the step to await, the step to report, and the wait's bound */
  COEXEC_ENTRY_CHAINED = 3 /* case `chained` of the entry "coexec_chain", which takes a table of such launches */
  /* built with -DCOEXEC_EVENTS, for devices without flags, the last two are like COEXEC_ENTRY_KERNEL */
} coexec_entry;

typedef struct {
  uint32_t symbol; /* of the function itself */
  uint32_t entry, chained;
  uint32_t first_argument, argument_count;
  uint32_t grid[2], group[2]; /* work-groups, and work-items of one, on both axes */
  int32_t unit_axis;          /* the axis of the grid that is multiplied by the units; -1: none */
  uint32_t together;          /* units that a work-group computes there */
} coexec_launch_record;       /* 44 bytes */

/* Pixels of a row of an image over a block, each of four floats; such a block holds whole rows. */
enum { COEXEC_IMAGE_WIDTH = 1024, COEXEC_IMAGE_ROW_BYTES = 16 * COEXEC_IMAGE_WIDTH };

typedef struct {
  uint32_t block, type_code, type_bits, rank;
  uint32_t shape;    /* among the numbers */
  uint32_t is_image; /* an OpenCL kernel reads the block, of floats, as an image2d_t of such rows */
} coexec_argument_record; /* 24 bytes */

#endif
