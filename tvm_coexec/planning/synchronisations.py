"""Where one processor waits for the other in a planned network, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tvm_coexec.layers import AnyLayer
from tvm_coexec.runtime.program import Read, Work, needs_other, waits_of

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
    for number, layer in enumerate(layers, 1):
        for side in ("cpu", "gpu"):
            awaited = waits[side].get(number)
            if awaited is not None:
                writer, halves = layers[awaited - 1], (works[number - 1], works[awaited - 1])
                crossing = [r for r in reads[number - 1] if r.step == awaited and needs_other(side, *halves, r)]
                yield Sync(layer.name, side, writer.name, _why(side, layer, writer, crossing))
    last_gpu = max((number for number, work in enumerate(works, 1) if work.gpu_units), default=0)
    if last_gpu and last_gpu not in waits["cpu"].values():
        name = layers[last_gpu - 1].name
        yield Sync(None, "cpu", name, f"the run ends when the GPU has computed its half of {name!r}")


def _why(side: str, reader: LayerPlan, writer: LayerPlan, crossing: Sequence[Read]) -> str:
    reads = [read for read in crossing if not read.overwrites]
    other, count = ("GPU", writer.gpu_units) if side == "cpu" else ("CPU", writer.cpu_units)
    if not reads:
        return f"overwrites memory that the {other} needs until its half of {writer.name!r} is done"
    if reader.layer.axis == writer.layer.axis and all(reader.layer.axis in read.local for read in reads):
        units = _counted(abs(reader.gpu_units - writer.gpu_units), writer.layer)
        return f"its half reads {units} of {writer.name!r} that the {other} computes"
    if count == writer.layer.units:
        return f"reads {writer.name!r}, which the {other} computes"
    end = "first" if side == "cpu" else "last"
    units = _counted(count, writer.layer)
    return f"reads all {writer.layer.axis} of {writer.name!r}, whose {end} {units} the {other} computes"


def _counted(count: int, layer: AnyLayer) -> str:
    return f"{count} {_UNIT_NAMES.get(layer.axis, 'unit')}{'' if count == 1 else 's'}"
