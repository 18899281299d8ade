"""Where one processor waits for the other in a planned network, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tvm_coexec.graph.dependencies import Read, Work, needs_other, waits_of
from tvm_coexec.layers import AnyLayer

from .plan import LayerPlan, Sync

_UNIT_NAMES = {"channels": "tile", "rows": "row block", "lines": "line block"}


def synchronisations(layers: Sequence[LayerPlan], reads: Sequence[Sequence[Read]]) -> Iterator[Sync]:
    """Every synchronisation, in the order of the layers before which a side waits.

    Parameters
    ----------
    reads
        For each layer those, counted from 1, whose outputs it reads, and those whose memory it overwrites.
    """
    works = [
        Work(one.cpu_units, one.gpu_units, tuple(read), axis=one.layer.axis)
        for one, read in zip(layers, reads, strict=True)
    ]
    waits = {side: waits_of(works, side) for side in ("cpu", "gpu")}
    known = {"cpu": 0, "gpu": 0}
    for number, layer in enumerate(layers, 1):
        for side in ("cpu", "gpu"):
            awaited = waits[side].get(number)
            if awaited is not None:
                crossing = [
                    read
                    for read in reads[number - 1]
                    if read.step > known[side] and needs_other(side, works[number - 1], works[read.step - 1], read)
                ]
                yield Sync(layer.name, side, layers[awaited - 1].name, _why(side, layer, layers, crossing))
                known[side] = awaited
    last_gpu = max((number for number, work in enumerate(works, 1) if work.gpu_units), default=0)
    if last_gpu and last_gpu not in waits["cpu"].values():
        name = layers[last_gpu - 1].name
        yield Sync(None, "cpu", name, f"the run ends when the GPU has computed its half of {name!r}")


def _why(side: str, reader: LayerPlan, layers: Sequence[LayerPlan], crossing: Sequence[Read]) -> str:
    """The last of the data that a side waits for, and memory that is needed for longer than that."""
    data, memory = (
        max((read.step for read in crossing if read.overwrites == overwrites), default=0)
        for overwrites in (False, True)
    )
    reasons = []
    if data:
        local = all(reader.layer.axis in read.local for read in crossing if read.step == data and not read.overwrites)
        reasons.append(_what_it_reads(side, reader, layers[data - 1], local))
    if memory > data:
        other = "GPU" if side == "cpu" else "CPU"
        name = layers[memory - 1].name
        reasons.append(f"overwrites memory that the {other} needs until its half of {name!r} is done")
    return ", and ".join(reasons)


def _what_it_reads(side: str, reader: LayerPlan, writer: LayerPlan, local: bool) -> str:
    other, count = ("GPU", writer.gpu_units) if side == "cpu" else ("CPU", writer.cpu_units)
    if local and reader.layer.axis == writer.layer.axis:
        units = _counted(abs(reader.gpu_units - writer.gpu_units), writer.layer)
        return f"its half reads {units} of {writer.name!r} that the {other} computes"
    if count == writer.layer.units:
        return f"reads {writer.name!r}, which the {other} computes"
    end = "first" if side == "cpu" else "last"
    units = _counted(count, writer.layer)
    return f"reads all {writer.layer.axis} of {writer.name!r}, whose {end} {units} the {other} computes"


def _counted(count: int, layer: AnyLayer) -> str:
    return f"{count} {_UNIT_NAMES.get(layer.axis, 'unit')}{'' if count == 1 else 's'}"
