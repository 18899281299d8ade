/* Built OpenCL programs in a folder, from one process to the next. */
#ifndef COEXEC_CACHE_H
#define COEXEC_CACHE_H

#include "device.h"

/* What a program is kept under: its options and source, and the device, driver and platform that built it. */
typedef struct {
  char* text;
  size_t bytes;
} cache_key;

/* NULL text where the device has no folder, the driver keeps programs by itself, or no memory is left. */
cache_key make_key(const coexec_device* device, const char* source, size_t bytes);
/* A program of that key, as it was kept; NULL where there is none, or it is damaged, or the driver refuses it. */
void* load_cached(const coexec_device* device, const cache_key* key, const char* options);
/* Keep a program. Nothing is said of a folder that cannot be written: a program is built again the next time. */
void store_cached(const coexec_device* device, const cache_key* key, void* program);

#endif
