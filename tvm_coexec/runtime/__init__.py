"""Run a module: OpenCL devices, and the C library that runs modules on them."""
