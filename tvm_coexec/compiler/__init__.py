"""From a graph and a plan to a module's package: target, kernels, buffers, the toolchain."""
