#include "program.h"

/* What travels between host and device memory, where a device has no fine-grained SVM. */

static size_t smaller(uint64_t one, uint64_t other) { return (size_t)(one < other ? one : other); }

/* Rows in memory that the first units of a step by rows or lines fill, halos above and below the image included. */
static size_t rows_of(const coexec_step_record* s, const coexec_tensor_record* t, const work* w) {
  uint64_t rows = tensor_rows(t), units = (uint64_t)w->gpu_units * s->unit_size;
  if (!w->cpu_units) return rows;
  if (!w->gpu_units) return 0;
  if (s->axis == COEXEC_ROWS) return smaller(units, rows);
  return smaller((t->halo_height + units) * (t->width + 2 * t->halo_width), rows);
}

/* Bytes [begin, end) of the rows [first, last). */
static void set_rectangle(size_t origin[3], size_t region[3], size_t begin, size_t end, size_t first, size_t last) {
  origin[0] = begin;
  origin[1] = first;
  region[0] = end - begin;
  region[1] = last - first;
  region[2] = 1;
}

/* After a step; or without one all of an input, from the CPU. */
static void fill(coexec_program* p, transfer* x, const coexec_tensor_record* t, const coexec_step_record* s,
                 const work* w) {
  const memory_block* block = &p->module->blocks[t->block];
  size_t begin = (size_t)t->own_begin, end = (size_t)t->own_end, rows = (size_t)tensor_rows(t);
  *x = (transfer){.buffer = block->buffer,
                  .host = block->host,
                  .row_bytes = (size_t)tensor_row_bytes(t),
                  .is_shared = block->is_shared};
  if (s && s->axis == COEXEC_CHANNELS) {
    size_t edge = smaller(begin + (uint64_t)w->gpu_units * s->unit_size * type_bytes(t->type_code, t->type_bits), end);
    set_rectangle(x->gpu_origin, x->gpu_region, begin, edge, 0, rows);
    set_rectangle(x->cpu_origin, x->cpu_region, edge, end, 0, rows);
  } else {
    size_t edge = s ? rows_of(s, t, w) : 0;
    set_rectangle(x->gpu_origin, x->gpu_region, begin, end, 0, edge);
    set_rectangle(x->cpu_origin, x->cpu_region, begin, end, edge, rows);
  }
}

void fill_transfers(coexec_program* p) {
  const module_file* f = &p->module->file;
  for (int32_t i = 0; i < p->part_count; ++i)
    fill(p, &p->transfers[i], &f->tensors[p->steps[i]->output], p->steps[i], &p->works[i]);
  for (uint64_t i = 0; i < f->input_count; ++i)
    fill(p, &p->transfers[(uint64_t)p->part_count + i], &f->tensors[f->inputs[i]], NULL, NULL);
  for (int32_t i = 0; i < p->low.operation_count; ++i) {
    const operation* op = &p->low.operations[i];
    transfer* x = &p->transfers[op->first];
    if (op->kind == COEXEC_TRANSFER) x->reads_ahead |= op->last == TO_CPU;
  }
}
