"""A variant of a kernel, and the hardware that decides which variants are candidates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .types import FLOAT32, item_bytes

GENERATOR_VERSION = 4
"""Version of what makes kernels of variants. Whoever changes the code of a variant so that it takes another time, or no
longer fails, raises it: what was measured of older kernels then counts no more, and their failures are tried again."""

IMAGE_WIDTH = 1024
"""Pixels of a row of an image over a buffer, as kernels read weights: rows of a device's images begin at multiples of a
few pixels, which divide this number, and no device has narrower ones."""

_THREADS, _MOST_THREADS = "threads", 1024

_MOST_OF_PARAMETER = (1 << 31) - 1
"""Kernels count by 32 bits."""


@dataclass(frozen=True)
class Hardware:
    """What decides which kernels suit a device.

    Parameters
    ----------
    vector_bytes, vector_registers
        Width and number of the CPU's vector registers.
    opencl_type
        ``gpu``, or ``cpu`` where a CPU device plays the GPU and one work-item fills a core.
    max_group_size
        Largest work-group of the OpenCL device.
    workers
        Work-groups that the OpenCL device runs at once; of a GPU, its compute units.
    local_bytes
        Local memory that a work-group may have.
    item_registers
        Registers that a work-item of a GPU may need, as :mod:`tvm_coexec.schedules.gpu_bound` counts them: what more
        it keeps, the compiler puts into memory.
    reads_late
        Whether the GPU's compiler puts off reads until what they read is needed, which saves registers.
    has_local_memory
        Whether the OpenCL device has memory of its own for work-groups; else theirs is ordinary memory.
    image_rows
        Most rows, of :data:`IMAGE_WIDTH` pixels of four floats, of an image over a buffer; 0 where there are none.
    in_order
        Whether the CPU's cores run instructions in the order of the program, so that what is read late stops them.
    """

    vector_bytes: int = 16
    vector_registers: int = 32
    opencl_type: str = "gpu"
    max_group_size: int = 256
    workers: int = 1
    local_bytes: int = 32 << 10
    item_registers: int = 250
    reads_late: bool = False
    has_local_memory: bool = True
    image_rows: int = 0
    in_order: bool = False

    @property
    def lanes(self) -> int:
        """Elements of float32, which kernels are made for, in a vector register of the CPU."""
        return self.vector_bytes // item_bytes(FLOAT32)

    def for_channels(self, width: int) -> Hardware:
        """The hardware as it computes so many channels at a time: in vectors that are no longer."""
        return replace(self, vector_bytes=min(self.vector_bytes, width * item_bytes(FLOAT32)))


@dataclass(frozen=True)
class Variant:
    """One way to compute a half: an implementation and its integer parameters, sorted by name.

    ``threads`` is how many of the CPU compute it, each some units by the same kernel; 0: one on each of its cores.
    """

    implementation: str
    params: tuple[tuple[str, int], ...] = ()
    threads: int = 0

    @classmethod
    def make(cls, implementation: str, **params: int) -> Variant:
        return cls(implementation, tuple(sorted(params.items())))

    def __getitem__(self, name: str) -> int:
        return dict(self.params)[name]

    @property
    def kernel(self) -> Variant:
        """What its kernels depend on: all but the threads."""
        return replace(self, threads=0)

    def to_json(self) -> dict[str, Any]:
        threads = {_THREADS: self.threads} if self.threads else {}
        return {"implementation": self.implementation, **dict(self.params), **threads}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Variant:
        """Inverse of :meth:`to_json`; raises ``ValueError`` for what no variant can have."""
        rest = {key: value for key, value in fields.items() if key != "implementation"}
        threads = rest.pop(_THREADS, 0)
        if type(threads) is not int or not 0 <= threads <= _MOST_THREADS:
            raise ValueError(f"no half is computed by {threads} threads")
        if not isinstance(fields["implementation"], str):
            raise ValueError(f"{fields['implementation']!r} is no kernel's implementation")
        if not all(type(value) is int and 0 <= value <= _MOST_OF_PARAMETER for value in rest.values()):
            raise ValueError(f"parameters of a kernel are whole numbers from 0 to {_MOST_OF_PARAMETER}: {rest}")
        return replace(cls.make(fields["implementation"], **rest), threads=threads)

    def __str__(self) -> str:
        threads = [f"{_THREADS}={self.threads}"] if self.threads else []
        return " ".join([self.implementation, *(f"{name}={value}" for name, value in self.params), *threads])


def by_threads(variants: Sequence[Variant], counts: Iterable[int]) -> list[Variant]:
    """Let every number of threads compute every variant; the numbers change slowest."""
    return [replace(variant, threads=count) for count in counts for variant in variants]


def grid_for(grid: tuple[int, int], unit_axis: int | None, units: int, together: int = 1) -> tuple[int, int]:
    """Count the work-groups of a launch on both axes, from those of one unit.

    The units multiply those on ``unit_axis``, where a work-group computes so many of them ``together``.
    """
    columns, lines = (
        (groups * units + together - 1) // together if axis == unit_axis else groups for axis, groups in enumerate(grid)
    )
    return columns, lines
