/* Whether flags work in buffers that stay mapped, which OpenCL does not promise. */
#ifndef COEXEC_PROBE_H
#define COEXEC_PROBE_H

#include "device.h"

/* Hand data and a flag over many times in both directions, and refuse the device where anything is lost. Its flag kernels
   are built. */
coexec_status probe_mapped_memory(coexec_device* device);

#endif
