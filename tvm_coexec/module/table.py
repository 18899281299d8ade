"""The tables of a module's file, which the C runtime reads: what its manifest says, in numbers that stand for places.

Their records are those of ``format.h`` in the runtime's folder, under the same names.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tvm_coexec.layers import ROW_BLOCK, TILE, Variant
from tvm_coexec.machine.facts import instructions

from .manifest import ArgumentSpec, LaunchSpec, Manifest, StepSpec
from .tensors import Source, TensorSpec

MAX_RANK = 8
CONSTANT_ALIGNMENT, LARGE_CONSTANT = 64, 16384
"""Large constants begin on a page of their own, so that a device can read them where they are mapped."""

AXES = ("channels", "rows", "lines")
ENTRIES = ("cpu", "kernel", "step", "chained")
CHAIN_HEAD_WORDS = 7
"""Words of a chained launch's row before its arguments: see the entry's text in ``compiler/entry_points.py``."""

_NOT_STORED = (1 << 64) - 1
_NO_TENSOR, _NO_AXIS = -1, -1
_TYPE_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}
"""Those of DLPack, by numpy's kinds."""
_CHANNELS_FIRST, _IS_IMAGE = 1, 2
_NEEDS_STEPS, _NEEDS_FENCES = 1, 2
_BLOCK_KINDS = {"tensor": 0, "constant": 1, "scratch": 2}
_MACHINE_AT, _MACHINE = 18, struct.Struct("<H")
"""Where an ELF file names the kind of processor that it is for."""


def _record(*fields: tuple[str, str]) -> np.dtype[Any]:
    """Describe a record without gaps: pairs of a type and the names that have it."""
    return np.dtype([(name, kind) for kind, names in fields for name in names.split()])


BLOCK = _record(("<u4", "kind content"), ("<u8", "bytes constant constant_bytes row_bytes"))
TENSOR = _record(
    ("<u4", "name block type_code type_bits flags rank shape"),
    ("<i4", "counted_by"),
    ("<u8", "batch height width channels halo_height halo_width pixel first own_begin own_end"),
)
STEP = _record(
    ("<u4", "name axis units cpu_units output unit_size is_output first_read read_count"),
    ("<u4", "cpu_launch cpu_launch_count gpu_launch gpu_launch_count cpu_threads"),
)
READ = _record(("<u4", "step local"))
LAUNCH = np.dtype(
    [
        *((name, "<u4") for name in ("symbol", "entry", "chained", "first_argument", "argument_count")),
        *(("grid", "<u4", 2), ("group", "<u4", 2), ("unit_axis", "<i4"), ("together", "<u4")),
    ]
)
ARGUMENT = _record(("<u4", "block type_code type_bits rank shape is_image"))
FACTS = _record(("<u4", "machine chain_row_words opencl_version needs cpu_features"))


def constant_offsets(manifest: Manifest) -> dict[Source, int]:
    """Where each constant begins in the section of constants."""
    offsets, end = {}, 0
    for constant in manifest.constants:
        end += -end % (LARGE_CONSTANT if constant.nbytes >= LARGE_CONSTANT else CONSTANT_ALIGNMENT)
        offsets[constant.source] = end
        end += constant.nbytes
    return offsets


def block_numbers(manifest: Manifest) -> dict[Source, int]:
    """The block that holds each thing that kernels touch."""
    numbers = {memory: number for number, memory in enumerate(manifest.memory_words())}
    return {source: numbers[memory] for source, memory in manifest.memory_of().items()}


class Tables:
    """The sections of a module's file that are made of records, by their names in lower case."""

    def __init__(self, manifest: Manifest, library: bytes, opencl_source: str) -> None:
        self._manifest = manifest
        self._strings, self._string_offsets = bytearray(), dict[str, int]()
        self._numbers: list[int] = []
        self._number_offsets: dict[tuple[int, ...], int] = {}
        self._blocks = block_numbers(manifest)
        self._tensors = {tensor.name: index for index, tensor in enumerate(manifest.tensors)}
        self._arguments: list[tuple[Any, ...]] = []
        self._launches: list[tuple[Any, ...]] = []
        self._reads: list[tuple[int, int]] = []
        tensors = [self._tensor(tensor) for tensor in manifest.tensors]
        steps = [self._step(step, reads) for step, reads in zip(manifest.steps, manifest.reads(), strict=True)]
        self.sections = {
            "blocks": _table(BLOCK, self._block_records()),
            "tensors": _table(TENSOR, tensors),
            "inputs": self._tensor_list(manifest.inputs),
            "outputs": self._tensor_list(manifest.outputs),
            "steps": _table(STEP, steps),
            "reads": _table(READ, self._reads),
            "launches": _table(LAUNCH, self._launches),
            "arguments": _table(ARGUMENT, self._arguments),
            "facts": _table(FACTS, [(*_facts(manifest, library, opencl_source), self._cpu_features())]),
            "strings": bytes(self._strings),
            "numbers": np.array(self._numbers, "<i8").tobytes(),
        }

    def _string(self, text: str) -> int:
        if text not in self._string_offsets:
            self._string_offsets[text] = len(self._strings)
            self._strings += text.replace("\0", "�").encode(errors="replace") + b"\0"
        return self._string_offsets[text]

    def _cpu_features(self) -> int:
        """The features that the code may make use of, as the facts of the device name them."""
        return self._string(" ".join(sorted(instructions(self._manifest.device.get("cpu_features", ())))))

    def _extents(self, shape: Sequence[int]) -> int:
        key = tuple(shape)
        if key not in self._number_offsets:
            self._number_offsets[key] = len(self._numbers)
            self._numbers += key
        return self._number_offsets[key]

    def _tensor_list(self, names: Iterable[str]) -> bytes:
        return np.array([self._tensors[name] for name in names], "<i4").tobytes()

    def _block_records(self) -> Iterable[tuple[int, ...]]:
        offsets = constant_offsets(self._manifest)
        stored = {constant.source: constant for constant in self._manifest.constants}
        for memory, words in self._manifest.memory_words().items():
            kind = memory.kind if isinstance(memory, Source) else "tensor"
            nbytes = 4 * max(words, 1)
            if isinstance(memory, Source) and memory in stored:
                one = stored[memory]
                yield _BLOCK_KINDS[kind], one.winograd, nbytes, offsets[memory], one.nbytes, one.row_bytes
            else:
                yield _BLOCK_KINDS[kind], 0, nbytes, _NOT_STORED, 0, 0

    def _tensor(self, tensor: TensorSpec) -> tuple[int, ...]:
        shape = tensor.shape
        if len(shape) > MAX_RANK:
            joined = len(shape) - MAX_RANK + 1
            shape = (math.prod(shape[:joined]), *shape[joined:])
        halo = tensor.layout.halo if tensor.layout is not None and tensor.image is not None else (0, 0)
        flags = _CHANNELS_FIRST * tensor.channels_first + _IS_IMAGE * (tensor.image is not None)
        counted_by = _NO_TENSOR if tensor.counted_by is None else self._tensors[tensor.counted_by]
        return (
            *(self._string(tensor.name), self._blocks[Source.tensor(tensor.name)], *_type(tensor.dtype)),
            *(flags, len(shape), self._extents(shape), counted_by),
            *(tensor.image or (1, 1, tensor.rows, tensor.channels)),
            *(*halo, tensor.row_elements, tensor.layout.first_tile * TILE if tensor.layout else 0),
            *tensor.own_bytes,
        )

    def _step(self, step: StepSpec, reads: Iterable[Any]) -> tuple[int, ...]:
        first_read = len(self._reads)
        self._reads += [(read.step, sum(1 << AXES.index(axis) for axis in read.local)) for read in reads]
        output = self._manifest.tensors[self._tensors[step.output]]
        is_output = not {step.output, *output.parents}.isdisjoint(self._manifest.outputs)
        unit_size = {"channels": step.unit_channels, "rows": ROW_BLOCK}.get(step.axis, step.unit_lines)
        assert unit_size is not None
        halves = [self._half(half.launches if half else ()) for half in (step.cpu, step.gpu)]
        return (
            *(self._string(step.name), AXES.index(step.axis), step.units, step.cpu_units),
            *(self._tensors[step.output], unit_size, is_output, first_read, len(self._reads) - first_read),
            *(*halves[0], *halves[1], Variant.from_json(step.cpu.variant).threads if step.cpu else 0),
        )

    def _half(self, launches: Sequence[LaunchSpec]) -> tuple[int, int]:
        """The first launch of a half, and how many there are."""
        first = len(self._launches)
        for launch in launches:
            first_argument = len(self._arguments)
            self._arguments += map(self._argument, launch.arguments)
            unit_axis = _NO_AXIS if launch.unit_axis is None else launch.unit_axis
            head = self._string(launch.function), ENTRIES.index(launch.entry), launch.chained
            counted = first_argument, len(launch.arguments)
            self._launches.append((*head, *counted, launch.grid, launch.group, unit_axis, launch.together))
        return first, len(launches)

    def _argument(self, argument: ArgumentSpec) -> tuple[int, ...]:
        shape = argument.shape
        kind, extents = _type(argument.dtype), self._extents(shape)
        return (self._blocks[argument.source], *kind, len(shape), extents, argument.is_image)


def _table(kind: np.dtype[Any], records: Iterable[tuple[Any, ...]]) -> bytes:
    return np.array(list(records), kind).tobytes()


def _type(dtype: str) -> tuple[int, int]:
    kind = np.dtype(dtype)
    return _TYPE_CODES[kind.kind], 8 * kind.itemsize


def _facts(manifest: Manifest, library: bytes, opencl_source: str) -> tuple[int, ...]:
    launches = [launch for step in manifest.steps if step.gpu for launch in step.gpu.launches]
    chained = [launch for launch in launches if launch.entry == "chained"]
    row_words = max((CHAIN_HEAD_WORDS + len(launch.arguments) + 2 for launch in chained), default=0)
    has_fences = "memory_scope_device" in opencl_source
    needs = _NEEDS_STEPS * any(launch.entry != "kernel" for launch in launches) + _NEEDS_FENCES * has_fences
    (machine,) = _MACHINE.unpack_from(library, _MACHINE_AT)
    return machine, row_words, 200 if has_fences else 120, needs
