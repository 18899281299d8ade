"""Check that a model is computed right: on random inputs, against an engine that shares no code with this one.

An ONNX model is compared with ONNX Runtime or, where that is not installed or refuses the model, with ONNX's reference
evaluator; a TFLite model with LiteRT. The model is built for the CPU alone, for the GPU alone and with every layer
halved, or as --split says, and all its outputs are compared. Where one differs by more than rounding explains, a line
names it, and another the first node, in execution order, whose value differs. The exit status is 1 then.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .build import split_rule
from .options import add_core_options, add_device_option, add_given_options, whole_number

EXAMPLES = """\
examples:
  tvm-coexec check model.onnx
  tvm-coexec check model.tflite --device pocl --seed 7
  tvm-coexec check model.onnx --profile profile --split predicted    as `build` would divide it
"""

_SPLITS = ("cpu", "gpu", "0.5")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="an ONNX or TFLite file")
    parser.add_argument("--profile", type=Path, metavar="DIR", help="made by `tvm-coexec tune`, for --split predicted")
    parser.add_argument(
        "--split",
        action="append",
        dest="splits",
        metavar="RULE",
        help="as `build` has it; may be repeated (default: cpu, gpu and 0.5, one after the other)",
    )
    parser.add_argument(
        "--seed", type=whole_number, default=0, metavar="N", help="of the random inputs (default: %(default)s)"
    )
    add_given_options(parser)
    add_device_option(parser)
    add_core_options(parser)


def run(
    *,
    model: str,
    profile: Path | None,
    splits: list[str] | None,
    seed: int,
    shapes: dict[str, tuple[int, ...]],
    values: dict[str, list[float]],
    device: str | None,
    cpu_cores: tuple[int, ...] | None,
    gpu_cores: tuple[int, ...] | None,
) -> int:
    from tvm_coexec.api import build_graph, open_for, read_checked
    from tvm_coexec.opencl.choice import DeviceChoice
    from tvm_coexec.verification import NetworkCheck

    rules = {split: split_rule(split) for split in splits or _SPLITS}
    read = read_checked(model, shapes, values, rules.values(), profile)
    opened = open_for(profile, DeviceChoice(device, cpu_cores, gpu_cores))
    graph = read.to_graph()
    del read  # which holds the weights a second time
    check = NetworkCheck(model, graph, seed)
    agrees = True
    for split, rule in rules.items():
        verdict = check.verdict(build_graph(graph, opened, profile=profile, split=rule))
        agrees &= verdict.agrees
        for line in str(verdict).splitlines():
            print(f"split {split}: {line}")
    return 0 if agrees else 1
