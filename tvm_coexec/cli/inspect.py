"""Print what a module's file holds: its sections, tensors, and layers with their kernels.

Nothing is run, and no device is needed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tvm_coexec.errors import readable

if TYPE_CHECKING:
    from tvm_coexec.module.manifest import Manifest, StepSpec

EXAMPLES = """\
examples:
  tvm-coexec inspect model.coexec
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("module", metavar="MODULE", help="made by `tvm-coexec build`")


def run(*, module: str) -> int:
    from tvm_coexec.module.package import Package, section_sizes

    manifest = Package.read(module).manifest
    print("\n".join(_lines(manifest, section_sizes(module))))
    return 0


def _lines(manifest: Manifest, sizes: dict[str, int]) -> Iterator[str]:
    from tvm_coexec.planning.plan import synchronised_by

    label, machine, mechanism = (str(manifest.device.get(fact)) for fact in ("label", "machine", "mechanism"))
    yield f"built for {readable(label)}, {machine}, mechanism {synchronised_by(mechanism)}"
    yield f"{sum(sizes.values())} bytes in sections: " + ", ".join(f"{name} {size}" for name, size in sizes.items())
    for kind, names in (("input", manifest.inputs), ("output", manifest.outputs)):
        for tensor in manifest.tensors:
            if tensor.name in names:
                yield f"{kind} {readable(tensor.name)}: {tensor.dtype} {tensor.shape}"
    for state in manifest.states:
        first = f"{state.initial[0]:g}" if len(state.initial) == 1 else "numbers of the model"
        yield f"state {readable(state.input)}: output {readable(state.output)} of the run before, at first {first}"
    memory = manifest.memory_words()
    yield f"{len(memory)} blocks of memory, {4 * sum(memory.values())} bytes; {len(manifest.tensors)} tensors"
    for number, (step, reads) in enumerate(zip(manifest.steps, manifest.reads(), strict=True), 1):
        awaited = ", ".join(str(read.step) for read in reads) or "the inputs"
        units = f"{step.cpu_units} of {step.units} units by {step.axis} on the CPU"
        yield f"{number:4} {readable(step.name)}: {step.layer.get('op')}, {units}, after {awaited}"
        yield from _kernels(step)


def _kernels(step: StepSpec) -> Iterator[str]:
    for side, half in (("CPU", step.cpu), ("GPU", step.gpu)):
        for launch in half.launches if half else ():
            grid = f", grid {launch.grid}, group {launch.group}" if side == "GPU" else ""
            yield f"       {side} {launch.entry} {launch.symbol}, {len(launch.arguments)} arguments{grid}"
