/* OpenCL, found at run time: the library needs neither its headers nor its loader to be built. */
#ifndef COEXEC_OPENCL_H
#define COEXEC_OPENCL_H

#include "common.h"

#include <stddef.h>
#include <stdint.h>

typedef void (*opencl_callback)(void);

/* cl_image_format and cl_image_desc. */
typedef struct {
  uint32_t order, type;
} image_format;
typedef struct {
  uint32_t kind;
  size_t width, height, depth, array_size, row_pitch, slice_pitch;
  uint32_t mip_levels, samples;
  void* buffer;
} image_description;

/* Name of the member, name in OpenCL, what it returns, what it takes. */
#define OPENCL_FUNCTIONS(F)                                                                                            \
  F(get_platforms, "clGetPlatformIDs", int32_t, (uint32_t, void**, uint32_t*))                                         \
  F(platform_info, "clGetPlatformInfo", int32_t, (void*, uint32_t, size_t, void*, size_t*))                            \
  F(get_devices, "clGetDeviceIDs", int32_t, (void*, uint64_t, uint32_t, void**, uint32_t*))                            \
  F(device_info, "clGetDeviceInfo", int32_t, (void*, uint32_t, size_t, void*, size_t*))                                \
  F(create_context, "clCreateContext", void*,                                                                          \
    (const intptr_t*, uint32_t, void* const*, opencl_callback, void*, int32_t*))                                       \
  F(retain_context, "clRetainContext", int32_t, (void*))                                                               \
  F(release_context, "clReleaseContext", int32_t, (void*))                                                             \
  F(create_queue, "clCreateCommandQueue", void*, (void*, void*, uint64_t, int32_t*))                                   \
  F(retain_queue, "clRetainCommandQueue", int32_t, (void*))                                                            \
  F(release_queue, "clReleaseCommandQueue", int32_t, (void*))                                                          \
  F(program_with_source, "clCreateProgramWithSource", void*,                                                           \
    (void*, uint32_t, const char**, const size_t*, int32_t*))                                                          \
  F(program_with_binary, "clCreateProgramWithBinary", void*,                                                           \
    (void*, uint32_t, void* const*, const size_t*, const unsigned char**, int32_t*, int32_t*))                         \
  F(build_program, "clBuildProgram", int32_t, (void*, uint32_t, void* const*, const char*, opencl_callback, void*))    \
  F(build_info, "clGetProgramBuildInfo", int32_t, (void*, void*, uint32_t, size_t, void*, size_t*))                    \
  F(program_info, "clGetProgramInfo", int32_t, (void*, uint32_t, size_t, void*, size_t*))                              \
  F(retain_program, "clRetainProgram", int32_t, (void*))                                                               \
  F(release_program, "clReleaseProgram", int32_t, (void*))                                                             \
  F(create_kernel, "clCreateKernel", void*, (void*, const char*, int32_t*))                                            \
  F(release_kernel, "clReleaseKernel", int32_t, (void*))                                                               \
  F(set_argument, "clSetKernelArg", int32_t, (void*, uint32_t, size_t, const void*))                                   \
  F(create_buffer, "clCreateBuffer", void*, (void*, uint64_t, size_t, void*, int32_t*))                                \
  F(create_image, "clCreateImage", void*,                                                                              \
    (void*, uint64_t, const image_format*, const image_description*, void*, int32_t*))                                 \
  F(release_memory, "clReleaseMemObject", int32_t, (void*))                                                            \
  F(enqueue_kernel, "clEnqueueNDRangeKernel", int32_t,                                                                 \
    (void*, void*, uint32_t, const size_t*, const size_t*, const size_t*, uint32_t, void* const*, void**))             \
  F(flush, "clFlush", int32_t, (void*))                                                                                \
  F(finish, "clFinish", int32_t, (void*))                                                                              \
  F(map, "clEnqueueMapBuffer", void*,                                                                                  \
    (void*, void*, uint32_t, uint64_t, size_t, size_t, uint32_t, void* const*, void**, int32_t*))                      \
  F(unmap, "clEnqueueUnmapMemObject", int32_t, (void*, void*, void*, uint32_t, void* const*, void**))                  \
  F(write, "clEnqueueWriteBuffer", int32_t,                                                                            \
    (void*, void*, uint32_t, size_t, size_t, const void*, uint32_t, void* const*, void**))                             \
  F(read_rect, "clEnqueueReadBufferRect", int32_t,                                                                     \
    (void*, void*, uint32_t, const size_t*, const size_t*, const size_t*, size_t, size_t, size_t, size_t, void*,       \
     uint32_t, void* const*, void**))                                                                                  \
  F(write_rect, "clEnqueueWriteBufferRect", int32_t,                                                                   \
    (void*, void*, uint32_t, const size_t*, const size_t*, const size_t*, size_t, size_t, size_t, size_t, void*,       \
     uint32_t, void* const*, void**))                                                                                  \
  F(marker, "clEnqueueMarkerWithWaitList", int32_t, (void*, uint32_t, void* const*, void**))                           \
  F(event_info, "clGetEventInfo", int32_t, (void*, uint32_t, size_t, void*, size_t*))                                  \
  F(event_times, "clGetEventProfilingInfo", int32_t, (void*, uint32_t, size_t, void*, size_t*))                        \
  F(retain_event, "clRetainEvent", int32_t, (void*))                                                                   \
  F(release_event, "clReleaseEvent", int32_t, (void*))

/* NULL where a driver has none: most came with OpenCL 2.0, and PoCL's programs alone are compiled without being linked. */
#define OPENCL_OTHER_FUNCTIONS(F)                                                                                      \
  F(compile_program, "clCompileProgram", int32_t,                                                                      \
    (void*, uint32_t, void* const*, const char*, uint32_t, void* const*, const char**, opencl_callback, void*))        \
  F(create_queue_with, "clCreateCommandQueueWithProperties", void*, (void*, void*, const uint64_t*, int32_t*))         \
  F(svm_alloc, "clSVMAlloc", void*, (void*, uint64_t, size_t, uint32_t))                                               \
  F(svm_free, "clSVMFree", void, (void*, void*))                                                                       \
  F(set_svm_argument, "clSetKernelArgSVMPointer", int32_t, (void*, uint32_t, const void*))                             \
  F(exec_info, "clSetKernelExecInfo", int32_t, (void*, uint32_t, size_t, const void*))

#define OPENCL_MEMBER(member, name, result, parameters) result(*member) parameters;
typedef struct {
  void* library; /* dlopen's */
  OPENCL_FUNCTIONS(OPENCL_MEMBER)
  OPENCL_OTHER_FUNCTIONS(OPENCL_MEMBER)
} opencl;
#undef OPENCL_MEMBER

enum {
  CL_TRUE_VALUE = 1,
  CL_QUEUE_TIMES = 2,
  CL_PLATFORM_VERSION = 0x0901,
  CL_PLATFORM_NAME = 0x0902,
  CL_DEVICE_TYPE = 0x1000,
  CL_DEVICE_TYPE_CPU = 2,
  CL_DEVICE_TYPE_GPU = 4,
  CL_DEVICE_NAME = 0x102B,
  CL_DRIVER_VERSION = 0x102D,
  CL_DEVICE_VERSION = 0x102F,
  CL_DEVICE_EXTENSIONS = 0x1030,
  CL_DEVICE_PLATFORM = 0x1031,
  CL_DEVICE_UNIFIED = 0x1035,
  CL_DEVICE_SVM = 0x1053,
  CL_QUEUE_HOW = 0x1093,
  CL_QUEUE_PRIORITY = 0x1096,
  CL_PRIORITY_LOW = 4,
  CL_SVM_FINE_BUFFER = 2,
  CL_SVM_ATOMICS_CAPABILITY = 8,
  CL_READ_WRITE = 1,
  CL_READ_ONLY = 4,
  CL_USE_HOST = 8,
  CL_ALLOC_HOST = 16,
  CL_COPY_HOST = 32,
  CL_FLOATS = 0x10DE,
  CL_FOUR_CHANNELS = 0x10B5,
  CL_IMAGE_2D = 0x10F1,
  CL_SVM_FINE = 1 << 10,
  CL_SVM_ATOMIC = 1 << 11,
  CL_MAP_READING = 1,
  CL_MAP_WRITING = 2,
  CL_MAP_WRITING_ANEW = 4,
  CL_BUILD_LOG = 0x1183,
  CL_BINARY_SIZES = 0x1165,
  CL_BINARIES = 0x1166,
  CL_EXEC_SVM_POINTERS = 0x11B6,
  CL_EVENT_STATUS = 0x11D3,
  CL_STATUS_COMPLETE = 0,
  CL_TIME_QUEUED = 0x1280,
  CL_TIME_START = 0x1282,
  CL_TIME_END = 0x1283
};
#define CL_ALL_DEVICE_TYPES UINT64_C(0xFFFFFFFF)

/* Find OpenCL in a library, or with NULL in the one that COEXEC_OPENCL names, or where systems and phones have it. */
coexec_status open_opencl(const char* path, opencl* cl);
void close_opencl(opencl* cl);

#endif
