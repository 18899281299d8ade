"""Fills a module's memory with what a run must not read."""

from __future__ import annotations

import numpy as np

from tvm_coexec.compiler.buffers import halos_to_clear
from tvm_coexec.module.tensors import Source
from tvm_coexec.runtime.module import Module

NAN = np.float32("nan")


def poison(module: Module) -> None:
    """Make every element a NaN that a run has to write before it is read; zeros stay in halos that no run clears."""
    loaded, manifest = module._loaded, module.manifest
    memory_of = manifest.memory_of()
    cleared = halos_to_clear(manifest.tensors)
    halo = {
        memory_of[Source.tensor(tensor.name)]
        for tensor in manifest.tensors
        if tensor.halo_geometry is not None and tensor.name not in cleared
    }
    for tensor in manifest.tensors:
        if memory_of[Source.tensor(tensor.name)] in halo:
            loaded.view(tensor.name)[:] = NAN
        else:
            loaded.block(Source.tensor(tensor.name)).view(np.float32)[:] = NAN
        loaded.publish([tensor.name])
