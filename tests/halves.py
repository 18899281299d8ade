"""Runs one half of a layer of images, on the CPU or on an OpenCL device, in buffers that show every wrong access."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import tvm
from reference import after_steps, evaluate_layer
from tvm.target.codegen import llvm_get_system_cpu

from tvm_coexec.compiler.kernels import finished_source
from tvm_coexec.layers import (
    IMAGE_WIDTH,
    TILE,
    Conv2d,
    Hardware,
    ImageLayout,
    ImageLayouts,
    PixelLayer,
    Variant,
    line_block,
    tile_count,
)
from tvm_coexec.runtime.device import Device
from tvm_coexec.schedules import family
from tvm_coexec.schedules.frame import Launch
from tvm_coexec.schedules.split_sums import COUNTERS

CPU = Hardware(64, 32, "cpu", 4096)
NARROW_CPU = Hardware(16, 32, "cpu", 4096)
FEW_REGISTERS = Hardware(32, 16, "cpu", 4096)
GPU = Hardware(16, 32, "gpu", 64)

_LLVM = {"kind": "llvm", "mcpu": llvm_get_system_cpu()}


def convolve(layer: Conv2d, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The convolution in float64, one tap of the kernel at a time."""
    top, left, bottom, right = layer.padding
    padded = np.pad(x.astype(np.float64), ((0, 0), (top, bottom), (left, right), (0, 0)))
    result = np.zeros((layer.batch, layer.out_h, layer.out_w, layer.out_channels))
    group_in, group_out = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    for tap_h, tap_w in np.ndindex(*layer.kernel):
        first_h, first_w = tap_h * layer.dilation[0], tap_w * layer.dilation[1]
        read = padded[:, first_h:, first_w:][:, :: layer.stride[0], :: layer.stride[1]]
        read = read[:, : layer.out_h, : layer.out_w]
        for group in range(layer.groups):
            outputs = slice(group * group_out, (group + 1) * group_out)
            inputs = slice(group * group_in, (group + 1) * group_in)
            result[..., outputs] += read[..., inputs] @ weights[outputs, :, tap_h, tap_w].T.astype(np.float64)
    return result


class Half:
    """A half with random operands; memory that holds no operand is not a number.

    Parameters
    ----------
    device
        The OpenCL device; None for the CPU.
    """

    def __init__(
        self,
        layer: Conv2d | PixelLayer,
        variant: Variant,
        device: Device | None = None,
        layouts: ImageLayouts | None = None,
    ) -> None:
        self.layer, self.device = layer, device
        self.layouts = layouts or ImageLayouts.alone(layer)
        self.launches = family(layer).build(layer, "gpu" if device else "cpu", variant, self.layouts)
        rng = np.random.default_rng(7)
        names = ("input", *(f"input{index}" for index in range(1, len(layer.input_sizes))), "residual")
        sizes = (*layer.input_sizes, layer.output_size)
        self.images = {name: _random(rng, size) for name, size in zip(names, sizes, strict=True)}
        self.params = {name: _random(rng, shape) for name, shape in layer.parameter_shapes().items()}
        self.buffers = self._buffers(family(layer).pack(layer, self.params, variant))

    @cached_property
    def kernels(self) -> list[CpuKernel | OpenCLKernel]:
        """The kernels of the half, which are compiled where one asks for them."""
        kind = OpenCLKernel if self.device else CpuKernel
        return [kind(launch, self.buffers, self.device) for launch in self.launches]

    def _buffers(self, packed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        buffers: dict[str, np.ndarray] = {}
        for launch in self.launches:
            for operand in launch.operands:
                shape = max(operand.shape, buffers.get(operand.name, np.empty(0)).shape, key=lambda s: int(np.prod(s)))
                buffers[operand.name] = aligned(shape)
        for name in packed.keys() & buffers.keys():
            buffers[name][:] = packed[name]
        for (name, image), layout in zip(
            self.images.items(), (*self.layouts.inputs, self.layouts.residual), strict=True
        ):
            if name in buffers:
                _write_image(buffers[name], layout, image)
        if COUNTERS in buffers:
            buffers[COUNTERS][:] = 0  # as modules find it
        assert buffers.keys() - packed.keys() - self.images.keys() - {"output"} <= {"scratch_0", "scratch_1", COUNTERS}
        assert self.images.keys() - buffers.keys() <= {"residual"}
        assert self.layer.epilogue.count("residual") == ("residual" in buffers)
        return buffers

    @cached_property
    def expected(self) -> np.ndarray:
        """The whole output in float64, of the operands as they are when it is asked for first."""
        if not isinstance(self.layer, Conv2d):
            return evaluate_layer(self.layer, self.params, self.images)
        value = convolve(self.layer, self.images["input"], self.params["weights"])
        rows = {role: image.reshape(-1, image.shape[-1]) for role, image in self.images.items()}
        return after_steps(self.layer.epilogue, value.reshape(-1, value.shape[-1]), self.params, rows).reshape(
            value.shape
        )

    def error(self, begin: int, end: int) -> float:
        """Compute units ``[begin, end)`` only; the largest error relative to the largest value of the whole output."""
        output, expected = self.buffers["output"], self.expected
        output[:] = np.nan
        for kernel in self.kernels:
            if end > begin:
                kernel.run(begin, end - begin)
        image = _image(output, self.layouts.output, expected.shape)
        part: tuple[Any, ...] = (..., slice(begin * TILE, end * TILE))
        if self.layer.axis == "lines":
            block = line_block(expected.shape[1])
            part = (slice(None), slice(begin * block, end * block))
        result, wanted = image[part].copy(), expected[part]
        image[part] = np.nan
        assert np.all(np.isnan(output)), "something outside the half was written"
        fill = result[..., wanted.shape[-1] :]
        assert np.all(fill == 0), "a channel that fills up a tile is not zero"
        if end == begin:
            return 0.0
        assert np.all(np.isfinite(result))
        return float(np.abs(result[..., : wanted.shape[-1]] - wanted).max() / np.abs(expected).max())

    def worst_error(self) -> float:
        """The largest error over the splits that matter, both halves of each."""
        units = self.layer.units
        edges = sorted({0, 1, units // 2, units - 1, units})
        return max(max(self.error(0, edge), self.error(edge, units)) for edge in edges)


def _image(buffer: np.ndarray, layout: ImageLayout, shape: tuple[int, ...]) -> np.ndarray:
    """The interior of an image in memory, padding channels included, those of other parts of its whole left out."""
    batch, h, w, channels = shape
    halo_h, halo_w = layout.halo
    extents = (batch, h + 2 * halo_h, w + 2 * halo_w, layout.pixel(channels))
    whole = buffer.reshape(-1)[: int(np.prod(extents))].reshape(extents)
    first = layout.first_tile * TILE
    end = first + tile_count(channels) * TILE if layout.is_slice else None
    return whole[:, halo_h : halo_h + h, halo_w : halo_w + w, first:end]


def _write_image(buffer: np.ndarray, layout: ImageLayout, values: np.ndarray) -> None:
    """Fill an image; its halo and the rest of its last tile are zero, what lies behind it stays as it is."""
    batch, h, w, channels = values.shape
    halo_h, halo_w = layout.halo
    buffer.reshape(-1)[: batch * (h + 2 * halo_h) * (w + 2 * halo_w) * layout.pixel(channels)] = 0
    if layout.is_slice:
        whole = replace(layout, first_tile=0)
        _image(buffer, whole, (batch, h, w, layout.pixel(channels)))[:] = np.nan
        _image(buffer, layout, values.shape)[:] = 0
    image = _image(buffer, layout, values.shape)
    image[..., :channels] = values
    image[..., tile_count(channels) * TILE :] = np.nan


def aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Memory as kernels want it, full of what is not a number."""
    size = int(np.prod(shape))
    room = np.full(size + TILE, np.nan, np.float32)
    start = (-room.ctypes.data // 4) % TILE
    return room[start : start + size].reshape(shape)


def _random(rng: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    return rng.normal(size=size).astype(np.float32)


class CpuKernel:
    """A compiled kernel that computes in its buffers."""

    def __init__(self, launch: Launch, buffers: dict[str, np.ndarray], device: None = None) -> None:
        self.function = tvm.compile(launch.module, target=tvm.target.Target(_LLVM)).mod["main"]
        arguments = (buffers[operand.name].reshape(-1)[: int(np.prod(operand.shape))] for operand in launch.operands)
        self.arguments: list[Any] = [
            tvm.runtime.from_dlpack(argument.reshape(operand.shape))
            for argument, operand in zip(arguments, launch.operands, strict=True)
        ]

    def run(self, begin: int, count: int) -> None:
        self.function(*self.arguments, begin, count)


class OpenCLKernel:
    """The same on an OpenCL device; what lies in the buffers travels there and back."""

    def __init__(self, launch: Launch, buffers: dict[str, np.ndarray], device: Device) -> None:
        import pyopencl as cl

        self.launch, self.device = launch, device
        target = {"kind": "opencl", "max_num_threads": device.facts()["max_group_size"]}
        # what would launch the kernel is thrown away: C is made faster than machine code
        compiled = tvm.compile(launch.module, target=tvm.target.Target(target, host="c"))
        source = next(part for part in compiled.mod.imports if part.kind == "opencl").inspect_source()
        self.kernel = cl.Program(device.context, finished_source(source, launch.operands)).build().all_kernels()[0]
        self.arrays = [buffers[operand.name] for operand in launch.operands]
        self.memory: list[Any] = []
        for operand, array in zip(launch.operands, self.arrays, strict=True):
            if operand.is_image:
                self.memory.append(_weight_image(device, array))
            else:
                self.memory.append(cl.Buffer(device.context, cl.mem_flags.READ_WRITE, array.nbytes))

    def run(self, begin: int, count: int) -> None:
        import pyopencl as cl

        queue, geometry = self.device.queue, self.launch.dispatch
        buffers = [pair for pair in zip(self.memory, self.arrays, strict=True) if isinstance(pair[0], cl.Buffer)]
        for memory, array in buffers:
            cl.enqueue_copy(queue, memory, array, is_blocking=False)
        self.kernel.set_args(*self.memory, np.int32(begin), np.int32(count))
        grid = geometry.grid_for(count)
        sizes = tuple(groups * size for groups, size in zip(grid, geometry.group, strict=True))
        cl.enqueue_nd_range_kernel(queue, self.kernel, sizes, geometry.group)
        for memory, array in buffers:
            cl.enqueue_copy(queue, array, memory, is_blocking=False)
        queue.finish()


def _weight_image(device: Device, weights: np.ndarray) -> Any:
    """An image of packed weights, whose last row ends with what is not a number."""
    import pyopencl as cl

    pixels = np.full((-(-weights.size // (4 * IMAGE_WIDTH)), IMAGE_WIDTH, 4), np.nan, np.float32)
    pixels.reshape(-1)[: weights.size] = weights.reshape(-1)
    pixel = cl.ImageFormat(cl.channel_order.RGBA, cl.channel_type.FLOAT)
    flags = cl.mem_flags.READ_ONLY | cl.mem_flags.COPY_HOST_PTR
    return cl.create_image(device.context, flags, pixel, shape=pixels.shape[1::-1], hostbuf=pixels)
