#include "module.h"

#include <string.h>

/* Tensors as the user sees them: elements one after the other, in memory with padding and halos between. */

/* Where the elements lie: at start + b·batch + y·line + x·pixel, channels side by side. */
typedef struct {
  char* start;
  size_t batch, line, pixel, element;
} place;

static place place_of(const coexec_module* m, const coexec_tensor_record* t) {
  place p;
  p.element = type_bytes(t->type_code, t->type_bits);
  p.pixel = p.element * t->pixel;
  p.line = p.pixel * (t->width + 2 * t->halo_width);
  p.batch = p.line * (t->height + 2 * t->halo_height);
  p.start = m->blocks[t->block].host + t->halo_height * p.line + t->halo_width * p.pixel + t->first * p.element;
  return p;
}

static size_t user_bytes(const coexec_tensor_record* t) {
  return (size_t)(t->batch * t->height * t->width * t->channels * type_bytes(t->type_code, t->type_bits));
}

static void copy_elements(char* to, size_t to_step, const char* from, size_t from_step, size_t element, size_t count) {
#define COPY_OF(bytes)                                                                                                 \
  case bytes:                                                                                                          \
    for (size_t i = 0; i < count; ++i) memcpy(to + i * to_step, from + i * from_step, bytes);                          \
    break;
  switch (element) {
    COPY_OF(1)
    COPY_OF(2)
    COPY_OF(4)
    COPY_OF(8)
    default: break;
  }
#undef COPY_OF
}

/* The pixels of one line, of which the user has each channel's in a plane of its own. */
static void copy_planes(const coexec_tensor_record* t, const place* p, char* line, char* user, size_t plane, int writes) {
  for (uint64_t c = 0; c < t->channels; ++c) {
    char *inside = line + c * p->element, *outside = user + c * plane;
    if (writes) copy_elements(inside, p->pixel, outside, p->element, p->element, (size_t)t->width);
    else copy_elements(outside, p->element, inside, p->pixel, p->element, (size_t)t->width);
  }
}

static void copy_pixels(const coexec_tensor_record* t, const place* p, char* line, char* user, int writes) {
  size_t bytes = (size_t)t->channels * p->element;
  for (uint64_t x = 0; x < t->width; ++x) {
    char *inside = line + x * p->pixel, *outside = user + x * bytes;
    memcpy(writes ? inside : outside, writes ? outside : inside, bytes);
  }
}

static void copy_tensor(const coexec_module* m, const coexec_tensor_record* t, char* user, int writes) {
  place p = place_of(m, t);
  size_t line = (size_t)t->width * p.element, plane = line * (size_t)t->height;
  size_t image = plane * (size_t)t->channels;
  for (uint64_t b = 0; b < t->batch; ++b)
    for (uint64_t y = 0; y < t->height; ++y) {
      char* inside = p.start + b * p.batch + y * p.line;
      if (t->flags & COEXEC_TENSOR_CHANNELS_FIRST)
        copy_planes(t, &p, inside, user + b * image + y * line, plane, writes);
      else copy_pixels(t, &p, inside, user + b * image + y * line * (size_t)t->channels, writes);
    }
}

static const coexec_tensor_record* find(const coexec_module* m, int32_t tensor) {
  if (tensor >= 0 && (uint64_t)tensor < m->file.tensor_count) return &m->file.tensors[tensor];
  fail(COEXEC_BAD_ARGUMENT, "the module has no tensor %d", (int)tensor);
  return NULL;
}

static coexec_status copy(coexec_module* m, int32_t tensor, char* user, size_t bytes, int writes) {
  const coexec_tensor_record* t = find(m, tensor);
  if (!t) return COEXEC_BAD_ARGUMENT;
  if (bytes != user_bytes(t) || (bytes && !user))
    return fail(COEXEC_BAD_ARGUMENT, "tensor '%s' has %zu bytes, not %zu", string_of(m, t->name), user_bytes(t), bytes);
  coexec_status status = enter_device(m->device);
  if (status) return status;
  copy_tensor(m, t, user, writes);
  leave_device(m->device);
  return COEXEC_OK;
}

coexec_status coexec_write(coexec_module* m, int32_t tensor, const void* elements, size_t bytes) {
  return copy(m, tensor, (char*)(uintptr_t)elements, bytes, 1);
}

coexec_status coexec_read(coexec_module* m, int32_t tensor, void* elements, size_t bytes) {
  return copy(m, tensor, elements, bytes, 0);
}

void copy_inputs(coexec_module* m, const void* const* inputs) {
  for (uint64_t i = 0; i < m->file.input_count; ++i)
    copy_tensor(m, &m->file.tensors[m->file.inputs[i]], (char*)(uintptr_t)inputs[i], 1);
}

void copy_outputs(const coexec_module* m, void* const* outputs) {
  for (uint64_t i = 0; i < m->file.output_count; ++i)
    copy_tensor(m, &m->file.tensors[m->file.outputs[i]], outputs[i], 0);
}

coexec_status coexec_describe_tensor(const coexec_module* m, int32_t tensor, coexec_tensor* d) {
  const coexec_tensor_record* t = find(m, tensor);
  if (!t) return COEXEC_BAD_ARGUMENT;
  place p = place_of(m, t);
  *d = (coexec_tensor){.name = string_of(m, t->name),
                       .type_code = (int32_t)t->type_code,
                       .type_bits = (int32_t)t->type_bits,
                       .rank = (int32_t)t->rank,
                       .bytes = user_bytes(t),
                       .counted_by = t->counted_by,
                       .data = p.start};
  for (uint32_t i = 0; i < t->rank; ++i) d->shape[i] = m->file.numbers[t->shape + i];
  int64_t shape[] = {(int64_t)t->batch, (int64_t)t->height, (int64_t)t->width, (int64_t)t->channels};
  int64_t strides[] = {(int64_t)p.batch, (int64_t)p.line, (int64_t)p.pixel, (int64_t)p.element};
  d->view_rank = t->flags & COEXEC_TENSOR_IS_IMAGE ? 4 : 2;
  for (int32_t i = 0; i < d->view_rank; ++i) {
    d->view_shape[i] = shape[4 - d->view_rank + i];
    d->view_strides[i] = strides[4 - d->view_rank + i];
  }
  return COEXEC_OK;
}

int32_t coexec_input_count(const coexec_module* m) { return (int32_t)m->file.input_count; }

int32_t coexec_output_count(const coexec_module* m) { return (int32_t)m->file.output_count; }

int32_t coexec_tensor_count(const coexec_module* m) { return (int32_t)m->file.tensor_count; }

int32_t coexec_input(const coexec_module* m, int32_t number) {
  return number >= 0 && (uint64_t)number < m->file.input_count ? m->file.inputs[number] : -1;
}

int32_t coexec_output(const coexec_module* m, int32_t number) {
  return number >= 0 && (uint64_t)number < m->file.output_count ? m->file.outputs[number] : -1;
}
