"""What a module file says about itself: tensors, constants, steps and their kernels. Plain data, checked on reading."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvm_coexec.errors import FileFormatError
from tvm_coexec.graph.dependencies import Read, network_reads
from tvm_coexec.layers import TILE, TILE_BYTES, ImageLayout, grid_for, row_tiles, tile_count

FORMAT = "tvm-coexec module"
VERSION = 12

_MOST_WORDS = 2**40
"""Of a tensor: what is damaged may ask for any."""


def words(count: int, dtype: str) -> int:
    """Words of four bytes, in which memory is counted, that hold ``count`` elements."""
    return -(-count * np.dtype(dtype).itemsize // 4)


@dataclass(frozen=True)
class Source:
    """What fills a kernel's buffer. Its kind keeps apart what a model may call by the same name.

    A ``tensor`` has its name as the ``owner``, a ``constant`` the name of its step, and ``scratch`` its side; the
    latter two have a ``role`` there.
    """

    kind: str
    owner: str
    role: str = ""

    @classmethod
    def tensor(cls, name: str) -> Source:
        """The activation of that name."""
        return cls("tensor", name)

    @classmethod
    def constant(cls, step: str, role: str) -> Source:
        """A constant of a step, which both sides read."""
        return cls("constant", step, role)

    @classmethod
    def scratch(cls, side: str, role: str) -> Source:
        """What a side's own kernels pass on to each other."""
        return cls("scratch", side, role)

    def __str__(self) -> str:
        return f"the {self.role} of {self.owner!r}" if self.role else repr(self.owner)


Memory = Source | int
"""A piece of memory: the number of a storage buffer, which tensors share, or what has it alone."""


@dataclass(frozen=True)
class TensorSpec:
    """An activation as the model's user sees it; kernels see it as rows of whole tiles, or as an image.

    The last ``channel_axes`` dimensions together are the channels. With a ``layout`` kernels see the tensor as an
    ``image`` of batch, height, width and channels, whose rows are its pixels; the user may see it otherwise, its
    elements with the ``channels_first``. Tensors of the same ``buffer`` share memory, whatever their ``dtype``.
    ``parents`` names what the tensor is a slice of, what that is one of, and so on: they share a buffer at once.
    ``counted_by`` names the output that says how many rows of this one count, if that depends on the inputs.
    """

    name: str
    shape: tuple[int, ...]
    channel_axes: int = 1
    layout: ImageLayout | None = None
    image: tuple[int, int, int, int] | None = None
    channels_first: bool = False
    dtype: str = "float32"
    buffer: int | None = None
    parents: tuple[str, ...] = ()
    counted_by: str | None = None

    @classmethod
    def of_size(cls, name: str, size: tuple[int, ...], layout: ImageLayout | None = None) -> TensorSpec:
        """A tensor that its user sees as kernels do."""
        if len(size) != 4:
            return cls(name, size)
        batch, h, w, channels = size
        return cls(name, size, 1, layout or ImageLayout(), (batch, h, w, channels))

    @property
    def outermost(self) -> str:
        """The name of the outermost parent, whose memory holds the tensor: its own if it is no slice."""
        return self.parents[-1] if self.parents else self.name

    @property
    def rows(self) -> int:
        shape = self.image or self.shape
        return math.prod(shape[:-1] if self.image else shape[: len(shape) - self.channel_axes])

    @property
    def channels(self) -> int:
        return self.image[-1] if self.image else math.prod(self.shape[len(self.shape) - self.channel_axes :])

    @property
    def halo_geometry(self) -> tuple[int, ...] | None:
        """What tells where the halo's zeros are; None without a halo."""
        if self.layout is None or self.layout.halo == (0, 0):
            return None
        return (*self._extents, *self.layout.halo, self.row_bytes)

    @property
    def row_elements(self) -> int:
        """Elements from one row to the next in memory."""
        return self.layout.pixel(self.channels) if self.layout else row_tiles(self.channels) * TILE

    @property
    def memory_rows(self) -> int:
        """Rows in memory, those of an image's halo included."""
        return math.prod(self._extents)

    @property
    def row_bytes(self) -> int:
        """Bytes from one row to the next in memory."""
        return self.row_elements * np.dtype(self.dtype).itemsize

    @property
    def own_bytes(self) -> tuple[int, int]:
        """First byte of a row, and the one behind its last, that belong to no other slice of its parent."""
        if self.layout is None or not self.layout.is_slice:
            return 0, self.row_bytes
        first = self.layout.first_tile
        return (TILE_BYTES * first, TILE_BYTES * (first + tile_count(self.channels, self.dtype)))

    @property
    def memory_words(self) -> int:
        """Words of four bytes that hold the tensor, or the parent that it is a slice of."""
        return words(self.memory_rows * self.row_elements, self.dtype)

    @property
    def _extents(self) -> tuple[int, ...]:
        if self.layout is None or self.image is None:
            return (self.rows,)
        batch, h, w, _ = self.image
        return (batch, *self.layout.extents(h, w))

    def view(self, memory: np.ndarray) -> np.ndarray:
        """The elements of the tensor in its memory, without padding or halo: ``[rows, channels]``, or the image."""
        elements = memory[: self.memory_words].view(self.dtype)
        whole = elements[: self.memory_rows * self.row_elements].reshape(*self._extents, self.row_elements)
        if self.layout is not None and self.image is not None:
            (_, h, w, _), (halo_h, halo_w) = self.image, self.layout.halo
            whole = whole[:, halo_h : halo_h + h, halo_w : halo_w + w]
        first = self.layout.first_tile * TILE if self.layout else 0
        return whole[..., first : first + self.channels]

    def write(self, memory: np.ndarray, array: np.ndarray) -> None:
        """Put the user's elements into the tensor's memory."""
        view = self.view(memory)
        if self.channels_first:
            batch, h, w, channels = view.shape
            array = array.reshape(batch, channels, h, w).transpose(0, 2, 3, 1)
        view[:] = array.reshape(view.shape)

    def read(self, memory: np.ndarray) -> np.ndarray:
        """A copy of the tensor as the user sees it."""
        view = self.view(memory)
        ordered = view.transpose(0, 3, 1, 2) if self.channels_first else view
        return np.array(ordered, order="C").reshape(self.shape)


@dataclass(frozen=True)
class ConstantSpec:
    """A packed constant of a step, and its role there."""

    step: str
    role: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def source(self) -> Source:
        return Source.constant(self.step, self.role)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class ArgumentSpec:
    """A kernel's buffer: its role, what fills it, and the shape and type it expects."""

    role: str
    source: Source
    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def memory_words(self) -> int:
        """Words of four bytes that hold what fills the buffer."""
        return words(math.prod(self.shape), self.dtype)


@dataclass(frozen=True)
class LaunchSpec:
    """One kernel of a half: its symbol and arguments, and its launch geometry (OpenCL alone).

    ``grid`` is multiplied by the units on ``unit_axis``, if there is one, and a work-group there computes so many
    ``together``. The ``entry`` says how it is called: a function of the ``cpu``, a plain ``kernel``, one that awaits
    and reports a ``step``, or the case ``chained`` of the one entry of all ``chained`` kernels.
    """

    symbol: str
    arguments: tuple[ArgumentSpec, ...]
    grid: tuple[int, int] = (1, 1)
    group: tuple[int, int] = (1, 1)
    unit_axis: int | None = 0
    together: int = 1
    entry: str = "kernel"
    chained: int = 0

    @property
    def function(self) -> str:
        """The name of the entry in the code."""
        if self.entry == "cpu":
            return f"__tvm_ffi_{self.symbol}"
        return f"{self.symbol}_kernel" if self.entry == "kernel" else f"{self.symbol}_step"

    def grid_for(self, units: int) -> tuple[int, int]:
        """Work-groups on both axes for a number of units."""
        return grid_for(self.grid, self.unit_axis, units, self.together)

    def sizes(self, units: int) -> tuple[int, int]:
        """Work-items on both axes for a number of units."""
        columns, lines = self.grid_for(units)
        return columns * self.group[0], lines * self.group[1]


@dataclass(frozen=True)
class HalfSpec:
    """A compiled half: its kernels run one after the other."""

    variant: dict[str, Any]
    launches: tuple[LaunchSpec, ...]


@dataclass(frozen=True)
class StepSpec:
    """One layer: its ``axis`` says whether units are ``unit_channels`` channels, ``unit_lines`` lines or row blocks.

    Of ``local_inputs`` a unit needs only the same unit, if the step that writes them is divided in the same units.
    The parameters of a step with a ``seed`` are not stored: in a module for measuring they are random numbers.
    """

    name: str
    layer: dict[str, Any]
    units: int
    axis: str
    cpu_units: int
    inputs: tuple[str, ...]
    output: str
    cpu: HalfSpec | None
    gpu: HalfSpec | None
    seed: int | None = None
    local_inputs: tuple[str, ...] = ()
    unit_channels: int = TILE
    unit_lines: int | None = None

    def makes(self, argument: ArgumentSpec) -> bool:
        """Whether what fills an argument is in no file: scratch, or a constant that follows from the seed."""
        source = argument.source
        is_own = source == Source.constant(self.name, source.role)
        return source.kind == "scratch" or (is_own and self.seed is not None)

    @property
    def arguments(self) -> Iterator[ArgumentSpec]:
        """Those of all kernels of both halves."""
        for half in (self.cpu, self.gpu):
            for launch in half.launches if half else ():
                yield from launch.arguments


def lifetimes(tensors: Iterable[TensorSpec], steps: Iterable[StepSpec]) -> dict[str, tuple[int, int]]:
    """For each tensor that is no slice of another: the first and the last step, from 1, that touch it or its slices.

    What no step writes, an input, is there from 0 on.
    """
    outermost = {tensor.name: tensor.outermost for tensor in tensors}
    lives = dict.fromkeys(outermost.values(), (0, 0))
    for number, step in enumerate(steps, 1):
        for name in {outermost[name] for name in (step.output, *step.inputs)}:
            first, _ = lives[name]
            lives[name] = (first or (number if name == outermost[step.output] else 0), number)
    return lives


@dataclass(frozen=True)
class Manifest:
    """Everything but the code and the constants."""

    device: dict[str, Any]
    tensors: tuple[TensorSpec, ...]
    constants: tuple[ConstantSpec, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    steps: tuple[StepSpec, ...]
    plan: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, fields: Any) -> Manifest:
        """Read and check; :class:`FileFormatError` names what is wrong."""
        if not isinstance(fields, dict) or fields.get("format") != FORMAT:
            raise FileFormatError("this is no tvm-coexec module; make one with `tvm-coexec build`")
        if fields.get("version") != VERSION:
            raise FileFormatError(
                f"the module has format version {fields.get('version')}, this release reads {VERSION}; build it again"
            )
        try:
            manifest = _read(cls, {key: value for key, value in fields.items() if key not in ("format", "version")})
            manifest._check_sources()
            manifest._check_sizes()
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise FileFormatError(f"the module's manifest is damaged ({error}); build the module again") from None
        if not isinstance(manifest.device, dict) or not isinstance(manifest.plan, dict):
            raise FileFormatError("the module's manifest is damaged (no device or no plan); build the module again")
        return manifest

    def word_counts(self) -> dict[Source, int]:
        """Words of all that kernels touch: enough for the padding of every kernel that touches it."""
        counts = {Source.tensor(tensor.name): tensor.memory_words for tensor in self.tensors}
        counts |= {constant.source: words(math.prod(constant.shape), constant.dtype) for constant in self.constants}
        for step in self.steps:
            for argument in step.arguments:
                counts[argument.source] = max(counts.get(argument.source, 0), argument.memory_words)
        return counts

    def tensor_words(self) -> dict[str, int]:
        """Words of all tensors, by their names; see :meth:`word_counts`."""
        return {source.owner: count for source, count in self.word_counts().items() if source.kind == "tensor"}

    def memory_of(self) -> dict[Source, Memory]:
        """Where all lies that kernels touch: in a storage buffer, or in memory of its own."""
        buffers = {Source.tensor(tensor.name): tensor.buffer for tensor in self.tensors if tensor.buffer is not None}
        return {source: buffers.get(source, source) for source in self.word_counts()}

    def memory_words(self) -> dict[Memory, int]:
        """Words of each piece of memory: enough for all that lies there."""
        counts, words_of = self.word_counts(), dict[Memory, int]()
        for source, memory in self.memory_of().items():
            words_of[memory] = max(words_of.get(memory, 0), counts[source])
        return words_of

    def reads(self) -> list[tuple[Read, ...]]:
        """For each step those that it has to wait for: whose outputs it reads, or whose memory it overwrites."""
        memory_of = {source.owner: memory for source, memory in self.memory_of().items() if source.kind == "tensor"}
        return network_reads(self.steps, self.parents(), memory_of)

    def parents(self) -> dict[str, tuple[str, ...]]:
        """What each tensor is a slice of, the innermost first."""
        return {tensor.name: tensor.parents for tensor in self.tensors}

    def _check_sizes(self) -> None:
        for tensor in self.tensors:
            if tensor.memory_words > _MOST_WORDS:
                raise FileFormatError(
                    f"the module's manifest is damaged (no memory holds {tensor.name!r} of shape {tensor.shape}); "
                    "build the module again"
                )

    def _check_sources(self) -> None:
        known = {Source.tensor(tensor.name) for tensor in self.tensors}
        known |= {constant.source for constant in self.constants}
        names = [*self.inputs, *self.outputs, *(name for tensor in self.tensors for name in tensor.parents)]
        names += [name for step in self.steps for name in (*step.inputs, step.output)]
        made = [argument.source for step in self.steps for argument in step.arguments if not step.makes(argument)]
        for source in (*map(Source.tensor, names), *made):
            if source not in known:
                raise FileFormatError(f"the module's manifest names {source}, which it does not hold; build it again")


_NESTED = {
    "tensors": TensorSpec,
    "constants": ConstantSpec,
    "steps": StepSpec,
    "arguments": ArgumentSpec,
    "source": Source,
    "launches": LaunchSpec,
    "layout": ImageLayout,
    "cpu": HalfSpec,
    "gpu": HalfSpec,
}


def _read(cls: Any, fields: Mapping[str, Any]) -> Any:
    values = {}
    for key, value in fields.items():
        nested = _NESTED.get(key)
        if nested is not None and isinstance(value, list):
            values[key] = tuple(_read(nested, item) for item in value)
        elif nested is not None and value is not None:
            values[key] = _read(nested, value)
        else:
            values[key] = tuple(value) if isinstance(value, list) else value
    return cls(**values)
