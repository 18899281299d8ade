"""Runs the GPU's half of a linear layer on an OpenCL device, in buffers that show every wrong access."""

from __future__ import annotations

import numpy as np
from halves import OpenCLKernel, aligned

from tvm_coexec.layers import TILE, Linear, Variant
from tvm_coexec.runtime.device import Device
from tvm_coexec.schedules import linear
from tvm_coexec.schedules.split_sums import COUNTERS
from tvm_coexec.verification.reference import evaluate


class LinearHalf:
    """A compiled half with random operands; memory that holds no operand is not a number."""

    def __init__(self, layer: Linear, variant: Variant, device: Device) -> None:
        self.layer = layer
        (launch,) = linear.build(layer, "gpu", variant)
        rng = np.random.default_rng(7)
        sizes = {"input": (layer.m, layer.k), "residual": (layer.m, layer.n)}
        sizes |= {"weights": (layer.k, layer.n), "bias": (layer.n,)}
        operands = {name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()}
        self.expected = evaluate(layer, operands)
        packed = linear.pack(layer, operands, variant)
        self.buffers = {operand.name: aligned(operand.shape) for operand in launch.operands}
        for name, buffer in self.buffers.items():
            if name in packed:
                buffer[:] = packed[name]
            elif name in operands:
                buffer.reshape(layer.m, -1)[:, : operands[name].shape[1]] = operands[name]
        if "residual" in self.buffers:
            self.buffers["residual"].reshape(layer.m, -1)[:, layer.n : layer.units * TILE] = 0
        if COUNTERS in self.buffers:
            self.buffers[COUNTERS][:] = 0  # as modules find it
        self.kernel = OpenCLKernel(launch, self.buffers, device)

    def error(self, begin: int, end: int) -> float:
        """Compute units ``[begin, end)`` only, twice; the largest error relative to the largest value of the output."""
        output = self.buffers["output"].reshape(self.layer.m, -1)
        output[:] = np.nan
        if begin == end:
            return 0.0
        for _ in range(2):
            self.kernel.run(begin, end - begin)
        part = slice(begin * TILE, min(end * TILE, self.layer.n))
        result = output[:, part].copy()
        assert np.all(output[:, self.layer.n : end * TILE] == 0), "a channel that fills up a tile is not zero"
        output[:, begin * TILE : end * TILE] = np.nan
        assert np.all(np.isnan(output)), "something outside the half was written"
        assert np.all(np.isfinite(result))
        return float(np.abs(result - self.expected[:, part]).max() / np.abs(self.expected).max())

    def worst_error(self) -> float:
        """The largest error over the splits that matter, both halves of each."""
        units = self.layer.units
        edges = sorted({0, 1, units // 2, units - 1, units})
        return max(max(self.error(0, edge), self.error(edge, units)) for edge in edges)
