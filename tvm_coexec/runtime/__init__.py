"""Run a module: OpenCL devices, shared memory, the stitch and what prepares it."""
