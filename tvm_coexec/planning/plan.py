"""The plan: how each layer is divided, by which kernels each side computes it, and why. A readable JSON file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tvm_coexec.errors import FileFormatError, readable
from tvm_coexec.files import read_json, write_json
from tvm_coexec.layers import AnyLayer, Variant, layer_from_json, layer_to_json

FORMAT = "tvm-coexec plan"
VERSION = 6
"""Counts up with every change after which a release would misread what another wrote."""


@dataclass(frozen=True)
class LayerPlan:
    """What is decided for one layer.

    Parameters
    ----------
    cpu_units
        The CPU computes the last ``cpu_units`` units of the layer, the GPU those before them.
    cpu, gpu
        The variant of each half; None where that side has no units.
    cpu_us, gpu_us, total_us
        Expected times while nothing disturbs, or the medians of a trial run: of each half (0 where there is none), and
        of the layer, synchronisation included.
    cpu_interval_us, gpu_interval_us
        Between which four of five such times of a half are; both ends are the same where nothing is known of that.
    """

    name: str
    layer: AnyLayer
    cpu_units: int
    cpu: Variant | None
    gpu: Variant | None
    cpu_us: float
    gpu_us: float
    total_us: float
    reason: str
    cpu_interval_us: tuple[float, float] = (0.0, 0.0)
    gpu_interval_us: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        if not 0 <= self.cpu_units <= self.layer.units:
            raise ValueError(
                f"layer {self.name!r} has {self.layer.units} units, the CPU cannot compute {self.cpu_units}"
            )
        for side, units, variant in (("cpu", self.cpu_units, self.cpu), ("gpu", self.gpu_units, self.gpu)):
            if (units > 0) != (variant is not None):
                raise ValueError(f"layer {self.name!r}: the {side} side has {units} units and the variant {variant}")

    @property
    def gpu_units(self) -> int:
        return self.layer.units - self.cpu_units

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "layer": layer_to_json(self.layer),
            "units": self.layer.units,
            "cpu_units": self.cpu_units,
            "cpu": None if self.cpu is None else self.cpu.to_json(),
            "gpu": None if self.gpu is None else self.gpu.to_json(),
            "cpu_us": self.cpu_us,
            "gpu_us": self.gpu_us,
            "total_us": self.total_us,
            "reason": self.reason,
            "cpu_interval_us": [*self.cpu_interval_us],
            "gpu_interval_us": [*self.gpu_interval_us],
        }

    @classmethod
    def from_json(cls, values: Any) -> LayerPlan:
        """Inverse of :meth:`to_json`; raises ``ValueError`` where the values do not fit."""
        _check_keys(values, [field.name for field in fields(cls)] + ["units"], "a layer")
        layer = layer_from_json(values["layer"])
        if values["units"] != layer.units:
            raise ValueError(f"layer {values['name']!r} has {layer.units} units, not {values['units']}")
        return cls(
            name=_typed(values, "name", str),
            layer=layer,
            cpu_units=_typed(values, "cpu_units", int),
            cpu=_variant(values["cpu"]),
            gpu=_variant(values["gpu"]),
            cpu_us=_microseconds(values, "cpu_us"),
            gpu_us=_microseconds(values, "gpu_us"),
            total_us=_microseconds(values, "total_us"),
            reason=_typed(values, "reason", str),
            cpu_interval_us=_interval(values, "cpu_interval_us"),
            gpu_interval_us=_interval(values, "gpu_interval_us"),
        )


@dataclass(frozen=True)
class Sync:
    """A point at which one side waits for the other.

    Parameters
    ----------
    layer
        Before which it waits; None for the end of the network.
    side
        Who waits, ``cpu`` or ``gpu``.
    awaits
        The layer of which the other side's half is awaited.
    why
        In words.
    """

    layer: str | None
    side: str
    awaits: str
    why: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> Sync:
        """Inverse of :meth:`to_json`; raises ``ValueError`` where the values do not fit."""
        _check_keys(values, [field.name for field in fields(cls)], "a synchronisation")
        side = _typed(values, "side", str)
        if side not in ("cpu", "gpu"):
            raise ValueError(f"the side {side!r} of a synchronisation is neither cpu nor gpu")
        layer = None if values["layer"] is None else _typed(values, "layer", str)
        return cls(layer, side, _typed(values, "awaits", str), _typed(values, "why", str))


@dataclass(frozen=True)
class Plan:
    """The plans of a network's layers, in their order, for one device and one way to synchronise.

    Parameters
    ----------
    total_us
        Expected time of the whole network, in which a side may be ahead of the other, disturbed as usual; 0 where
        nothing is expected. Waits for memory count only in trial runs.
    syncs
        Every point at which a side waits for the other to compute something and, in the plan of a module, which knows
        what shares memory, to need something no longer.
    tried
        Whether ``total_us`` is what the network took by this plan when the profile was tuned for it.
    interval_us
        Between which four of five times of the network are, by what the predictions have been off before, or by how the
        trial runs spread; both ends are the same where nothing is known of that.
    """

    device: str
    mechanism: str
    layers: tuple[LayerPlan, ...]
    total_us: float
    syncs: tuple[Sync, ...] = ()
    tried: bool = False
    interval_us: tuple[float, float] = (0.0, 0.0)

    def __str__(self) -> str:
        return format_table(self)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "device": self.device,
            "mechanism": self.mechanism,
            "layers": [layer.to_json() for layer in self.layers],
            "total_us": self.total_us,
            "interval_us": [*self.interval_us],
            "syncs": [sync.to_json() for sync in self.syncs],
            "tried": self.tried,
        }

    @classmethod
    def from_json(cls, values: Any) -> Plan:
        """Read and check; a :class:`FileFormatError` says what is wrong."""
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise FileFormatError("this is no tvm-coexec plan; make one with `tvm-coexec plan`")
        if values.get("version") != VERSION:
            raise FileFormatError(
                f"the plan has format version {values.get('version')!r}, this release reads {VERSION}; plan again"
            )
        try:
            _check_keys(values, ["format", "version", *(field.name for field in fields(cls))], "a plan")
            plan = cls(
                device=_typed(values, "device", str),
                mechanism=_typed(values, "mechanism", str),
                layers=tuple(LayerPlan.from_json(layer) for layer in _typed(values, "layers", list)),
                total_us=_microseconds(values, "total_us"),
                syncs=tuple(Sync.from_json(sync) for sync in _typed(values, "syncs", list)),
                tried=_flag(values, "tried"),
                interval_us=_interval(values, "interval_us"),
            )
            plan._check_names()
            return plan
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise FileFormatError(f"the plan is damaged ({error}); plan again") from None

    def _check_names(self) -> None:
        names = {layer.name for layer in self.layers}
        for sync in self.syncs:
            for name in (sync.layer, sync.awaits):
                if name is not None and name not in names:
                    raise ValueError(f"a synchronisation names the layer {name!r}, which the plan does not hold")

    def write(self, path: str | Path) -> None:
        """Write the plan as indented JSON."""
        write_json(path, self.to_json())

    @classmethod
    def read(cls, path: str | Path) -> Plan:
        """Read what :meth:`write` wrote."""
        try:
            values = read_json(path)
        except OSError as error:
            raise FileFormatError(f"cannot read the plan {path} ({error.strerror}); plan again") from None
        except ValueError as error:
            raise FileFormatError(f"{path} is no JSON file ({error}); plan again") from None
        try:
            return cls.from_json(values)
        except FileFormatError as error:
            raise FileFormatError(f"{path}: {error}") from None


def no_gpu_kernels(layer: AnyLayer) -> str:
    """The reason why a layer has to stay on the CPU."""
    return f"cpu alone: the gpu has no kernels for {layer.op} layers"


def synchronised_by(mechanism: str) -> str:
    """A mechanism for readers, who are told of what OpenCL does not promise."""
    return f"{mechanism} (which OpenCL does not promise to work)" if mechanism == "mapped" else mechanism


def format_table(plan: Plan) -> str:
    """Write the plan for the terminal: a line a layer, then a line a synchronisation."""
    names = [readable(layer.name) for layer in plan.layers]
    width = max([5, *map(len, names)])
    header = f"{'layer':{width}}  {'CPU':>5} {'GPU':>5} {'units':8} {'CPU us':>9} {'GPU us':>9} {'total us':>9}  why"
    lines = [f"device {plan.device}, synchronised by {synchronised_by(plan.mechanism)}", header]
    for name, layer in zip(names, plan.layers, strict=True):
        units = f"{layer.cpu_units:>5} {layer.gpu_units:>5} {layer.layer.axis:8}"
        times = f"{layer.cpu_us:9.1f} {layer.gpu_us:9.1f} {layer.total_us:9.1f}"
        lines.append(f"{name:{width}}  {units} {times}  {layer.reason}")
    known = "ran in" if plan.tried else "expected"
    lines.append(f"{len(plan.layers)} layers, {known} {_duration(plan.total_us, plan.interval_us)}")
    return "\n".join([*lines, *_thread_lines(plan.layers), *_winograd_lines(plan.layers), *_sync_lines(plan.syncs)])


def _duration(us: float, interval_us: tuple[float, float]) -> str:
    """A time with its interval, if it has one, such as "24.2 ms (22.8 to 27.0)"."""
    divisor, unit = (1e3, "ms") if us >= 1e3 else (1.0, "us")
    low, high = (end / divisor for end in interval_us)
    return f"{us / divisor:.1f} {unit}" + (f" ({low:.1f} to {high:.1f})" if low < high else "")


def _thread_lines(layers: Iterable[LayerPlan]) -> list[str]:
    """How many of the CPU's threads compute its halves: a line, if any are to leave cores out."""
    names: dict[int, list[str]] = {}
    for layer in layers:
        if layer.cpu is not None:
            names.setdefault(layer.cpu.threads, []).append(readable(layer.name))
    if not any(names):
        return []
    fewer = [f"{count} for {', '.join(names[count])}" for count in sorted(filter(None, names))]
    others = [f"one on each core for others ({len(names[0])})"] if 0 in names else []
    return [f"threads of the CPU: {'; '.join([*fewer, *others])}"]


def _winograd_lines(layers: Iterable[LayerPlan]) -> list[str]:
    """What is different where Winograd's convolution is chosen: a line, if it is."""
    variants = [(readable(layer.name), variant) for layer in layers for variant in (layer.cpu, layer.gpu)]
    names = dict.fromkeys(name for name, variant in variants if variant and variant.implementation == "winograd")
    if not names:
        return []
    spreads = "a pixel that is huge, infinite or no number reaches all of its tile, not its neighbours alone"
    return [f"{len(names)} convolutions by Winograd's method, in which {spreads}: {', '.join(names)}"]


def _sync_lines(syncs: Sequence[Sync]) -> list[str]:
    """Write the synchronisations for the terminal, a line each."""
    if not syncs:
        return ["no synchronisations"]
    layers = ("the end" if sync.layer is None else readable(sync.layer) for sync in syncs)
    rows = [(layer, sync.side.upper(), readable(sync.awaits)) for layer, sync in zip(layers, syncs, strict=True)]
    rows = [("before", "waits", "for"), *rows]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    reasons = ["why", *(sync.why for sync in syncs)]
    table = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=True)), why])
        for row, why in zip(rows, reasons, strict=True)
    ]
    return [f"{len(syncs)} synchronisations", *table]


def _variant(values: Mapping[str, Any] | None) -> Variant | None:
    return None if values is None else Variant.from_json(values)


def _check_keys(values: Any, expected: Iterable[str], what: str) -> None:
    if not isinstance(values, dict):
        raise ValueError(f"{what} is not an object")
    names = set(expected)
    for key in sorted(values.keys() ^ names):
        raise ValueError(f"{what} {'lacks' if key in names else 'has the unknown field'} {key!r}")


def _typed(values: Mapping[str, Any], key: str, kind: type) -> Any:
    value = values[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{key!r} is {value!r}, not of type {kind.__name__}")
    return value


def _flag(values: Mapping[str, Any], key: str) -> bool:
    value = values[key]
    if not isinstance(value, bool):
        raise ValueError(f"{key!r} is {value!r}, neither true nor false")
    return value


def _interval(values: Mapping[str, Any], key: str) -> tuple[float, float]:
    ends = dict(enumerate(_typed(values, key, list)))
    low_us, high_us = (_microseconds(ends, end) for end in (0, 1))
    if len(ends) != 2 or low_us > high_us:
        raise ValueError(f"{key!r} is {values[key]!r}, no interval")
    return low_us, high_us


def _microseconds(values: Mapping[Any, Any], key: Any) -> float:
    value = values[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f"{key!r} is {value!r}, no time")
    return float(value)
