"""Build a module from a model: a file that runs on the CPU and the GPU at once.

How each layer is divided is said by --split: `predicted` by the profile (by its predictors or, for a model that it was
tuned for, by the best plan of its trial runs), `measured` by measuring each layer here and now, `cpu` or `gpu` for one
side alone, or a number from 0 to 1, the CPU's share of every layer.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tvm_coexec.errors import InputError

from .options import add_core_options, add_device_option, add_given_options, check_out

EXAMPLES = """\
examples:
  tvm-coexec build model.onnx --profile profile --out model.coexec
  tvm-coexec build model.onnx --device pocl --split measured --out model.coexec
  tvm-coexec build model.onnx --device pocl --split 0.5 --out model.coexec
  tvm-coexec build model.onnx --shape image=1,3,320,320 --profile profile --out model.coexec
  tvm-coexec build speech.onnx --value rate=16000 --device pocl --split 0.5 --out model.coexec
  tvm-coexec build model.onnx --device pocl --plan plan.json --out model.coexec
  tvm-coexec build model.onnx --target board.json --split 0.5 --out model.coexec
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="an ONNX or TFLite file")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="the module")
    parser.add_argument("--profile", type=Path, metavar="DIR", help="made by `tvm-coexec tune`")
    parser.add_argument(
        "--split",
        metavar="RULE",
        help="predicted, measured, cpu, gpu, or the CPU's share from 0 to 1 (default: predicted)",
    )
    parser.add_argument("--plan", type=Path, metavar="FILE", help="divide as `tvm-coexec plan --out FILE` planned")
    add_given_options(parser)
    parser.add_argument(
        "--target",
        metavar="FILE",
        help="build for a device that is not at hand: the facts that `tvm-coexec devices --facts FILE` wrote on its "
        "machine, or its profile",
    )
    add_device_option(parser)
    add_core_options(parser)


def run(
    *,
    model: str,
    out: Path,
    profile: Path | None,
    split: str | None,
    plan: Path | None,
    shapes: dict[str, tuple[int, ...]],
    values: dict[str, list[float]],
    target: str | None,
    device: str | None,
    cpu_cores: tuple[int, ...] | None,
    gpu_cores: tuple[int, ...] | None,
) -> int:
    from tvm_coexec.api import build, package
    from tvm_coexec.planning.plan import Plan

    check_out(out)
    if plan is not None and split is not None:
        raise InputError("--plan says how each layer is divided; leave out --split")
    rule = Plan.read(plan) if plan is not None else split_rule("predicted" if split is None else split)
    if target is not None:
        if device or cpu_cores or gpu_cores:
            raise InputError("--target names a device that is not at hand; leave out --device and cores")
        packed = package(model, target, profile=profile, split=rule, shapes=shapes, values=values)
        packed.write(out)
        print(f"{Plan.from_json(packed.manifest.plan)}\nmodule: {out}, for {packed.manifest.device['label']}")
        return 0
    module = build(
        model,
        device=device,
        profile=profile,
        split=rule,
        shapes=shapes,
        values=values,
        cpu_cores=cpu_cores,
        gpu_cores=gpu_cores,
    )
    module.export(out)
    memory = f"{module.memory}, and what CPU kernels want as they run"
    print(f"{module.plan}\n{module.sync_count} synchronisations a run\nmemory: {memory}\nmodule: {out}")
    return 0


def split_rule(text: str) -> str | float:
    """A number is a share; what is no number is the name of a rule."""
    try:
        return float(text)
    except ValueError:
        return text
