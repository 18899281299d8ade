/* Built OpenCL programs in a folder, from one process to the next. */
#ifndef COEXEC_CACHE_H
#define COEXEC_CACHE_H

#include "device.h"

/* What a program is kept under: its options and source, and the device, driver and platform that built it. */
typedef struct {
  char* text;
  size_t bytes;
  int is_pocl; /* the driver */
} cache_key;

/* NULL text where the device has no folder, or no memory is left. */
cache_key make_key(const coexec_device* device, const char* source, size_t bytes);
/* A program of that key, as it was kept; NULL where there is none, or it is damaged, or the driver refuses it. */
void* load_cached(const coexec_device* device, const cache_key* key, const char* options);
/* Build a program of PoCL's by way of its LLVM code, and keep that; NULL where it cannot be had. The compiled kernels are
   kept by PoCL itself, which would compile each again for the program's own binary; but of a source, however often it
   has compiled it, it reads every word, and the headers. */
void* build_by_code(const coexec_device* device, const cache_key* key, const char* options, const char* source);
/* Keep a program. Nothing is said of a folder that cannot be written: a program is built again the next time. */
void store_cached(const coexec_device* device, const cache_key* key, void* program);

#endif
