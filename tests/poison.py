"""Fills a module's memory with what a run must not read."""

from __future__ import annotations

import numpy as np

from tvm_coexec.compiler.buffers import halos_to_clear
from tvm_coexec.module.manifest import Source
from tvm_coexec.runtime.module import Module

NAN = np.float32("nan")


def poison(module: Module) -> None:
    """Make every element a NaN that a run has to write before it is read; zeros stay in halos that no run clears."""
    executor = module._executor
    memory_of = executor.manifest.memory_of()
    cleared = halos_to_clear(executor.manifest.tensors)
    halo = {
        memory_of[Source.tensor(tensor.name)]
        for tensor in executor.manifest.tensors
        if tensor.halo_geometry is not None and tensor.name not in cleared
    }
    for tensor in executor.manifest.tensors:
        if memory_of[Source.tensor(tensor.name)] in halo:
            executor.view(tensor.name)[:] = NAN
        else:
            executor.tensor_block(tensor.name).array[:] = NAN
        executor.publish([tensor.name])
