"""What do the compilers of phones' GPUs make of a network's kernels? Registers, spills, instructions: nothing is run.

    python scripts/mobile_gpu_compilers.py --models resnet50,mobilenet_v2 --gpus adreno-630,adreno-740 --out out/mobile

Mesa's compilers stand for the vendors' own, of which no public one can be had. Their first start unpacks Mesa and what
it needs into the user's cache, which takes a minute.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from networks import network
from phones.commands import check_parts
from phones.mesa import ADRENOS, Compiled, compile_for_adreno
from reporting import describe, markdown_table, run_main

from tvm_coexec import schedules
from tvm_coexec.compiler.kernels import compile_half
from tvm_coexec.compiler.target import Target, target_for
from tvm_coexec.errors import InputError
from tvm_coexec.files import whole_file
from tvm_coexec.frontends import to_graph
from tvm_coexec.graph.layouts import image_layouts, node_layouts

PHONE = {
    "machine": "aarch64",
    "cpu_features": ["asimd"],
    "device_type": "gpu",
    "vendor": "QUALCOMM",
    "max_group_size": 512,
    "compute_units": 4,
    "local_memory_bytes": 32768,
}
"""Those facts of a phone that kernels depend on."""

_MOST_SPILLS_SHOWN = 20


def kernels_of(name: str, target: Target, most: int) -> Iterator[tuple[str, str, str]]:
    """Symbol, source and description of each kernel of a network, of the first variants that each layer is offered."""
    graph = to_graph(network(name))
    layouts = image_layouts(graph)
    for node in graph.nodes:
        variants = schedules.family(node.layer).variants(node.layer, "gpu", target.hardware)  # none: the CPU's alone
        for variant in variants[:most]:
            for kernel in compile_half(node.layer, "gpu", variant, target, node_layouts(node, layouts)):
                yield kernel.symbol, kernel.code.decode(), f"{describe(node.layer)}, {variant}"


def compare(models: list[str], gpus: list[str], most: int) -> dict[str, Any]:
    """Rows of each network and GPU, and what became of every kernel."""
    target = target_for(PHONE)
    rows, kernels = [], []
    for model in models:
        found = {symbol: (source, what) for symbol, source, what in kernels_of(model, target, most)}
        for gpu in gpus:
            with tempfile.TemporaryDirectory() as folder:
                sources = {symbol: source for symbol, (source, _) in found.items()}
                made = compile_for_adreno(gpu, sources, Path(folder))
            compiled = {symbol: one for symbol, one in made.items() if isinstance(one, Compiled)}
            rows.append(_row(model, gpu, made, list(compiled.values())))
            kernels += [
                {"model": model, "gpu": gpu, "kernel": found[symbol][1], **asdict(one)}
                for symbol, one in compiled.items()
            ]
    return {"rows": rows, "kernels": kernels}


def _row(model: str, gpu: str, made: dict[str, Compiled | str], compiled: list[Compiled]) -> dict[str, Any]:
    return {
        "model": model,
        "gpu": gpu,
        "kernels": len(made),
        "refused": len(made) - len(compiled),
        "private": sum(one.private_bytes > 0 for one in compiled),
        "instructions": statistics.median(one.instructions for one in compiled),
        "registers": statistics.median(one.registers for one in compiled),
        "waves": statistics.median(one.waves for one in compiled),
        "wide": sum(one.wide for one in compiled),
        "scalar": sum(one.scalar for one in compiled),
    }


def render(result: dict[str, Any]) -> str:
    header = ["network", "GPU", "kernels", "refused", "with private memory", "instructions", "registers", "waves"]
    rows = [
        [
            *(row[name] for name in ("model", "gpu", "kernels", "refused", "private")),
            *(f"{row[name]:g}" for name in ("instructions", "registers", "waves")),
            f"{row['wide']} / {row['scalar']}",
        ]
        for row in result["rows"]
    ]
    text = "Nothing was run. Instructions, registers and waves are medians of a network's kernels.\n\n"
    text += markdown_table([*header, "wide / scalar accesses"], rows)
    spills = [one for one in result["kernels"] if one["private_bytes"]]
    if spills:
        worst = sorted(spills, key=lambda one: -one["private_bytes"])[:_MOST_SPILLS_SHOWN]
        cells = [[one["model"], one["gpu"], one["kernel"], one["private_bytes"], one["registers"]] for one in worst]
        text += "\n" + markdown_table(["network", "GPU", "kernel", "private bytes", "registers"], cells)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="resnet50,mobilenet_v2", metavar="LIST", help="networks (%(default)s)")
    parser.add_argument("--gpus", default=",".join(ADRENOS), metavar="LIST", help="of %(default)s")
    parser.add_argument("--variants", type=int, default=1, metavar="N", help="the first N of each layer (%(default)s)")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    options = parser.parse_args()
    check_parts()
    unknown = [gpu for gpu in options.gpus.split(",") if gpu not in ADRENOS]
    if unknown:
        raise InputError(f"no GPU named {unknown[0]!r}; choose from {', '.join(ADRENOS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    result = compare(options.models.split(","), options.gpus.split(","), options.variants)
    text = render(result)
    for name, content in (("result.json", json.dumps(result, indent=1)), ("result.md", text)):
        with whole_file(options.out / name) as file:
            file.write(content.encode())
    print(text)


if __name__ == "__main__":
    run_main(main)
