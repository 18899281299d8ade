"""Write a page that shows how a module is divided, and what both sides do in a run.

The page holds all it needs: a timeline of both sides with their waits, each layer's split, its predicted and its
measured times, memory, and the latency, with that of each side alone where the module has all its kernels. Figures are
measured on random inputs while the page is made.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import add_core_options, add_device_option, check_out, number_of_runs

EXAMPLES = """\
examples:
  tvm-coexec report model.coexec --out report.html
  tvm-coexec report model.coexec --device pocl --repeats 50 --out report.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("module", metavar="MODULE", help="made by `tvm-coexec build`")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the HTML file to write")
    parser.add_argument(
        "--repeats",
        type=number_of_runs,
        default=10,
        metavar="N",
        help="runs in each of five rounds (default: %(default)s)",
    )
    add_device_option(parser)
    add_core_options(parser)


def run(
    *,
    module: str,
    out: Path,
    repeats: int,
    device: str | None,
    cpu_cores: tuple[int, ...] | None,
    gpu_cores: tuple[int, ...] | None,
) -> int:
    from tqdm import tqdm

    from tvm_coexec.files import whole_file
    from tvm_coexec.report.observation import observe
    from tvm_coexec.report.page import write_page
    from tvm_coexec.runtime.module import load

    check_out(out)
    loaded = load(module, device=device, cpu_cores=cpu_cores, gpu_cores=gpu_cores)
    observation = observe(loaded, repeats=repeats, progress=lambda rounds: tqdm(rounds, desc="measuring", unit="round"))
    with whole_file(out) as file:
        file.write(write_page(observation, Path(module).name).encode(errors="backslashreplace"))
    print(f"{out}: {observation.label}, {observation.latencies['co-executed']}")
    return 0
