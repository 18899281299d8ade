/* Runs a module on inputs from files, or on zeros:
 *
 *     example model.coexec [--device NAME] [--cache FOLDER] [--runs N] [--out FOLDER] [INPUT.bin ...]
 *
 * An input's file holds its elements, one after the other, in the model's order. With --out every output is written to
 * FOLDER/NUMBER.bin in the same way. NAME is a part of an OpenCL device's name; without it the first GPU is taken. With
 * --cache what the driver compiles is kept in FOLDER for the next start, which many drivers need: an app names a folder
 * of its own.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "coexec.h"

static void check(coexec_status status) {
  if (status == COEXEC_OK) return;
  fprintf(stderr, "example: %s\n", coexec_last_error());
  exit(1);
}

static void refuse(const char* what, const char* name) {
  fprintf(stderr, "example: %s %s\n", what, name);
  exit(1);
}

static void* elements_of(const coexec_tensor* tensor) {
  void* elements = calloc(1, tensor->bytes ? tensor->bytes : 1);
  if (!elements) refuse("no memory for", tensor->name);
  return elements;
}

static double now_ms(void) {
  struct timespec now;
  timespec_get(&now, TIME_UTC);
  return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

static void print_tensor(const char* what, const coexec_tensor* tensor) {
  printf("%s %s: [", what, tensor->name);
  for (int32_t i = 0; i < tensor->rank; ++i) printf(i ? ", %lld" : "%lld", (long long)tensor->shape[i]);
  printf("], %d bits an element\n", tensor->type_bits);
}

/* Fill an input from a file, which must hold as much as it takes; without a file it is zero. */
static void give_input(coexec_module* module, int32_t number, const char* path) {
  coexec_tensor tensor;
  check(coexec_describe_tensor(module, coexec_input(module, number), &tensor));
  print_tensor("input", &tensor);
  char* elements = elements_of(&tensor);
  if (path) {
    FILE* file = fopen(path, "rb");
    if (!file) refuse("cannot read", path);
    if (fread(elements, 1, tensor.bytes, file) != tensor.bytes || fgetc(file) != EOF) refuse("of another size:", path);
    fclose(file);
  }
  check(coexec_write(module, coexec_input(module, number), elements, tensor.bytes));
  free(elements);
}

static void take_output(coexec_module* module, int32_t number, const char* folder) {
  coexec_tensor tensor;
  check(coexec_describe_tensor(module, coexec_output(module, number), &tensor));
  print_tensor("output", &tensor);
  void* elements = elements_of(&tensor);
  check(coexec_read(module, coexec_output(module, number), elements, tensor.bytes));
  if (folder) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%d.bin", folder, number);
    FILE* file = fopen(path, "wb");
    if (!file || fwrite(elements, 1, tensor.bytes, file) != tensor.bytes || fclose(file)) refuse("cannot write", path);
  }
  free(elements);
}

static int by_length(const void* left, const void* right) {
  int64_t difference = *(const int64_t*)left - *(const int64_t*)right;
  return (difference > 0) - (difference < 0);
}

static void time_runs(coexec_module* module, int32_t runs) {
  int64_t* latency_ns = calloc((size_t)runs, sizeof *latency_ns);
  if (!latency_ns) refuse("no memory for", "the times");
  check(coexec_benchmark(module, 5, runs, latency_ns));
  qsort(latency_ns, (size_t)runs, sizeof *latency_ns, by_length);
  printf("%d runs: median %.1f us, 10 %%: %.1f, 90 %%: %.1f\n", runs, (double)latency_ns[runs / 2] / 1e3,
         (double)latency_ns[runs / 10] / 1e3, (double)latency_ns[runs - 1 - runs / 10] / 1e3);
  free(latency_ns);
}

int main(int argument_count, char** arguments) {
  const char* folder = NULL;
  const char* inputs[64] = {NULL};
  coexec_device_options options = {0};
  int32_t runs = 0, given = 0;
  if (argument_count < 2)
    refuse("usage:", "example MODULE [--device NAME] [--cache FOLDER] [--runs N] [--out FOLDER] [INPUT.bin ...]");
  for (int i = 2; i < argument_count; ++i) {
    if (!strcmp(arguments[i], "--runs") && i + 1 < argument_count) runs = atoi(arguments[++i]);
    else if (!strcmp(arguments[i], "--device") && i + 1 < argument_count) options.name = arguments[++i];
    else if (!strcmp(arguments[i], "--cache") && i + 1 < argument_count) options.cache_folder = arguments[++i];
    else if (!strcmp(arguments[i], "--out") && i + 1 < argument_count) folder = arguments[++i];
    else if (given < 64) inputs[given++] = arguments[i];
  }
  coexec_device* device;
  coexec_module* module;
  double start_ms = now_ms();
  check(coexec_device_open(&options, &device));
  check(coexec_module_open(device, arguments[1], NULL, &module));
  printf("device %s\n", coexec_device_name(device));
  if (given > coexec_input_count(module)) refuse("the module takes fewer inputs:", arguments[1]);
  for (int32_t i = 0; i < coexec_input_count(module); ++i) give_input(module, i, inputs[i]);
  check(coexec_run(module));
  printf("first result after %.0f ms\n", now_ms() - start_ms);
  for (int32_t i = 0; i < coexec_output_count(module); ++i) take_output(module, i, folder);
  if (runs > 0) time_runs(module, runs);
  coexec_module_close(module);
  coexec_device_close(device);
  return 0;
}
