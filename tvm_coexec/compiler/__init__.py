"""Turns a graph and a plan into a module's package: target, kernels, buffers, the toolchain."""
