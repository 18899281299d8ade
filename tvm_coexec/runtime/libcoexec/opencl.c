#include "opencl.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

/* Bare names first: Android's linker refuses most absolute paths, and lets an app load what the vendor lists. */
static const char* const libraries[] = {
    "libOpenCL.so.1",
    "libOpenCL.so",
    "libOpenCL-pixel.so",
    "libOpenCL-car.so",
    "libGLES_mali.so",
    "libmali.so",
    "libPVROCL.so",
#ifdef __ANDROID__
    "/vendor/lib64/libOpenCL.so",
    "/system/vendor/lib64/libOpenCL.so",
    "/vendor/lib64/egl/libGLES_mali.so",
    "/system/vendor/lib64/egl/libGLES_mali.so",
    "/vendor/lib64/libPVROCL.so",
#endif
};

/* Pixel's loader hides the functions until it is told to enable them. */
typedef void (*enable_function)(void);
typedef void* (*pointer_function)(const char* name);

static void assign(void* member, void* function) { memcpy(member, &function, sizeof function); }

static void* find(void* library, pointer_function pointers, const char* name) {
  return pointers ? pointers(name) : dlsym(library, name);
}

/* 0, or -1 where one of the functions that every OpenCL has is missing. */
static int find_functions(opencl* cl) {
  enable_function enable = NULL;
  pointer_function pointers = NULL;
  assign(&enable, dlsym(cl->library, "enableOpenCL"));
  assign(&pointers, dlsym(cl->library, "loadOpenCLPointer"));
  if (enable && pointers) enable();
  if (!enable) pointers = NULL;
#define FIND(member, name, result, parameters) assign(&cl->member, find(cl->library, pointers, name));
#define MISSES(member, name, result, parameters) || !cl->member
  OPENCL_FUNCTIONS(FIND)
  OPENCL_OTHER_FUNCTIONS(FIND)
  return 0 OPENCL_FUNCTIONS(MISSES) ? -1 : 0;
#undef FIND
#undef MISSES
}

static int open_library(const char* path, opencl* cl) {
  memset(cl, 0, sizeof *cl);
  cl->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!cl->library) return -1;
  if (!find_functions(cl)) return 0;
  close_opencl(cl);
  return -1;
}

coexec_status open_opencl(const char* path, opencl* cl) {
  if (!path) path = getenv("COEXEC_OPENCL");
  if (path) {
    if (!open_library(path, cl)) return COEXEC_OK;
    return fail(COEXEC_NO_DEVICE, "the OpenCL library %s cannot be loaded; run `tvm-coexec doctor`", path);
  }
  for (size_t i = 0; i < sizeof libraries / sizeof *libraries; ++i)
    if (!open_library(libraries[i], cl)) return COEXEC_OK;
  return fail(COEXEC_NO_DEVICE, "no OpenCL library (libOpenCL.so and its likes) can be loaded; install the device's "
                                "OpenCL driver, or on Android declare it as <uses-native-library>");
}

void close_opencl(opencl* cl) {
  if (cl->library) dlclose(cl->library);
  memset(cl, 0, sizeof *cl);
}
