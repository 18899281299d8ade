"""What do the compilers of phones' GPUs make of a network's kernels? Registers, spills, instructions: nothing is run.

    python scripts/mobile_gpu_compilers.py --models resnet50,mobilenet_v2 --gpus adreno-630,mali-g610 --out out/mobile

Mesa's compilers stand for the vendors' own, of which no public one can be had. Their first start unpacks Mesa and what
it needs into the user's cache, which takes a minute. Mali's are built for arm64 alone and run under an emulator, where
each start takes 10 seconds and a kernel 2 to 4; Adreno's take a third of a second. What was compiled stays in DIR, and
is not compiled again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from networks import network
from phones.commands import check_parts
from phones.mesa import ADRENO, GPUS, MALI, compile_kernels
from phones.mesa_prints import Compiled
from reporting import describe, markdown_table, run_main

from tvm_coexec import schedules
from tvm_coexec.compiler.kernels import compile_half
from tvm_coexec.compiler.target import Target, target_for
from tvm_coexec.errors import InputError
from tvm_coexec.files import whole_file
from tvm_coexec.frontends import to_graph
from tvm_coexec.graph.layouts import image_layouts, node_layouts

_ANY = {
    "machine": "aarch64",
    "cpu_features": ["asimd"],
    "device_type": "gpu",
    "compute_units": 4,
    "local_memory_bytes": 32768,
}
PHONES = {
    ADRENO: {**_ANY, "vendor": "QUALCOMM", "max_group_size": 512, "local_memory_type": 1},
    MALI: {**_ANY, "vendor": "ARM", "max_group_size": 384, "local_memory_type": 2},
}
"""Those facts of a phone that kernels depend on, by the driver of its GPU."""

_TOGETHER = 32
"""Kernels that are compiled before the results are kept."""
_MOST_SPILLS_SHOWN = 20
"""The JSON has them all."""


@dataclass(frozen=True)
class Source:
    """A kernel of a network, and the work-items of its work-groups."""

    code: str
    what: str
    group_size: int


def kernels_of(name: str, target: Target, most: int) -> Iterator[tuple[str, Source]]:
    """The kernels of a network by their symbols, of the first variants that each layer is offered."""
    graph = to_graph(network(name))
    layouts = image_layouts(graph)
    for node in graph.nodes:
        variants = schedules.family(node.layer).variants(node.layer, "gpu", target.hardware)  # none: the CPU's alone
        for variant in variants[:most]:
            for kernel in compile_half(node.layer, "gpu", variant, target, node_layouts(node, layouts)):
                what = f"{describe(node.layer)}, {variant}"
                yield kernel.symbol, Source(kernel.code.decode(), what, kernel.dispatch.group_size)


class Results:
    """What the compilers made of kernels, kept in a file so that none is compiled twice for a GPU."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def compiled(self, gpu: str, sources: dict[str, Source]) -> dict[str, Compiled | str]:
        """Compile each kernel, or say why the compiler refuses it."""
        keys = {symbol: self._key(gpu, symbol, source.code) for symbol, source in sources.items()}
        missing = [symbol for symbol, key in keys.items() if key not in self._kept]
        for begin in range(0, len(missing), _TOGETHER):
            some = missing[begin : begin + _TOGETHER]
            print(f"{gpu}: {len(missing) - begin} kernels to compile", flush=True)
            for symbol, made in compile_kernels(gpu, {symbol: sources[symbol].code for symbol in some}).items():
                self._kept[keys[symbol]] = made if isinstance(made, str) else asdict(made)
            with whole_file(self._path) as file:
                file.write(json.dumps(self._kept, indent=1).encode())
        kept = {symbol: self._kept[key] for symbol, key in keys.items()}
        return {symbol: made if isinstance(made, str) else Compiled(**made) for symbol, made in kept.items()}

    @staticmethod
    def _key(gpu: str, symbol: str, code: str) -> str:
        """The same for kernels that differ in their names alone, which change with the code that makes them."""
        return f"{gpu} {hashlib.sha256(code.replace(symbol, 'kernel').encode()).hexdigest()}"


def compare(models: list[str], gpus: list[str], most: int, results: Results) -> dict[str, Any]:
    """Give rows for each network and GPU, and what became of every kernel."""
    rows, kernels = [], []
    for model in models:
        found = {driver: dict(kernels_of(model, target_for(PHONES[driver]), most)) for driver in _drivers(gpus)}
        for gpu in gpus:
            sources = found[GPUS[gpu][0]]
            made = results.compiled(gpu, sources)
            compiled = {symbol: one for symbol, one in made.items() if isinstance(one, Compiled)}
            rows.append({"model": model, "gpu": gpu, "kernels": len(made), **_row(compiled, sources)})
            kernels += [
                {"model": model, "gpu": gpu, "kernel": sources[symbol].what, **asdict(one)}
                for symbol, one in compiled.items()
            ]
    return {"rows": rows, "kernels": kernels}


def _drivers(gpus: list[str]) -> set[Any]:
    return {GPUS[gpu][0] for gpu in gpus}


def _row(compiled: dict[str, Compiled], sources: dict[str, Source]) -> dict[str, Any]:
    ones = list(compiled.values())
    cycles = [one.access_cycles for one in ones if one.access_cycles is not None]
    return {
        "compiled": len(ones),
        "private": sum(one.private_bytes > 0 for one in ones),
        "too_large": sum(sources[symbol].group_size > one.largest_group for symbol, one in compiled.items()),
        "instructions": statistics.median(one.instructions for one in ones),
        "registers": statistics.median(one.registers for one in ones),
        "waves": statistics.median(one.together for one in ones),
        "all_threads": sum(one.together > 1 for one in ones),
        "access_cycles": statistics.median(cycles) if cycles else None,
        "wide": sum(one.wide for one in ones),
        "scalar": sum(one.scalar for one in ones),
    }


def render(result: dict[str, Any]) -> str:
    text = "Nothing was run. Instructions, registers, waves and cycles are medians of a network's kernels.\n"
    for driver in (ADRENO, MALI):
        rows = [row for row in result["rows"] if GPUS[row["gpu"]][0] is driver]
        if rows:
            text += "\n" + _table(rows, is_mali=driver is MALI)
    spills = [one for one in result["kernels"] if one["private_bytes"]]
    if spills:
        worst = sorted(spills, key=lambda one: -one["private_bytes"])[:_MOST_SPILLS_SHOWN]
        cells = [[one["model"], one["gpu"], one["kernel"], one["private_bytes"], one["registers"]] for one in worst]
        text += "\n" + markdown_table(["network", "GPU", "kernel", "private bytes", "registers"], cells)
    return text


def _table(rows: list[dict[str, Any]], *, is_mali: bool) -> str:
    occupancy = {"waves": "waves"}
    if is_mali:
        occupancy = {"with all threads": "all_threads", "cycles for memory": "access_cycles"}
    columns = {
        "network": "model",
        "GPU": "gpu",
        "kernels": "kernels",
        "that compile": "compiled",
        "with private memory": "private",
        "with too large groups": "too_large",
        "instructions": "instructions",
        "registers": "registers",
        **occupancy,
    }
    cells = [
        [
            *(row[name] if isinstance(row[name], str) else f"{row[name]:g}" for name in columns.values()),
            f"{row['wide']} / {row['scalar']}",
        ]
        for row in rows
    ]
    return markdown_table([*columns, "wide / single accesses"], cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="resnet50,mobilenet_v2", metavar="LIST", help="networks (%(default)s)")
    parser.add_argument(
        "--gpus",
        default=",".join(gpu for gpu, (driver, _) in GPUS.items() if driver is ADRENO),
        metavar="LIST",
        help=f"of {', '.join(GPUS)} (%(default)s, of which a network takes seconds; of a Mali it takes minutes)",
    )
    parser.add_argument("--variants", type=int, default=1, metavar="N", help="the first N of each layer (%(default)s)")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    options = parser.parse_args()
    check_parts()
    unknown = [gpu for gpu in options.gpus.split(",") if gpu not in GPUS]
    if unknown:
        raise InputError(f"no GPU named {unknown[0]!r}; choose from {', '.join(GPUS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    results = Results(options.out / "compiled.json")
    result = compare(options.models.split(","), options.gpus.split(","), options.variants, results)
    text = render(result)
    for name, content in (("result.json", json.dumps(result, indent=1)), ("result.md", text)):
        with whole_file(options.out / name) as file:
            file.write(content.encode())
    print(text)


if __name__ == "__main__":
    run_main(main)
