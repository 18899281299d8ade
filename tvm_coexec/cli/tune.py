"""Measure layers on a device, and train the predictors that plan networks for it.

Layers are measured through a TVM RPC tracker, each half alone and while the other side works, and every repetition
is stored as it comes. A tuning that was interrupted goes on where it stopped. Models that are given are run at the end,
by several plans each, of which they keep the best. The predictors' errors on layers held out of training are printed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import add_core_options, add_device_option, add_given_options, add_tracker_options

EXAMPLES = """\
examples:
  tvm-coexec tune --device pocl --out profile
  tvm-coexec tune --device pocl --families conv2d,linear,images --layers my-model.onnx --minutes 20 --out profile
  tvm-coexec tune --tracker 192.168.0.2:9190 --key my-phone --out phone-profile

TVM's RPC has no authentication and no encryption: use a tracker only in a network that you trust.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="the profile, made or gone on with")
    add_device_option(parser)
    add_core_options(parser)
    parser.add_argument(
        "--families",
        default="linear",
        metavar="LIST",
        help="of linear, rowwise, conv2d, images, attention (default: %(default)s); layers of others are placed by an "
        "estimate",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=10.0,
        metavar="N",
        help="time for measuring layers; trial runs take half as long or a minute, too (default: %(default)g)",
    )
    parser.add_argument(
        "--trials", type=int, metavar="N", help="kernels to measure at most, but for the least that training needs"
    )
    parser.add_argument(
        "--layers",
        "--model",
        nargs="+",
        action="extend",
        default=[],
        metavar="SET",
        help="layers to measure before any others, with more of their variants: those of an ONNX or TFLite model, "
        "which is then run by several plans too, of a JSON file with a list, or a set such as vit-base; several may be "
        "given",
    )
    add_given_options(parser)
    add_tracker_options(parser)


def run(
    *,
    out: Path,
    device: str | None,
    cpu_cores: tuple[int, ...] | None,
    gpu_cores: tuple[int, ...] | None,
    families: str,
    minutes: float,
    trials: int | None,
    layers: list[str],
    shapes: dict[str, tuple[int, ...]],
    values: dict[str, list[float]],
    tracker: str | None,
    key: str | None,
) -> int:
    from tvm_coexec.prediction.evaluation import format_table
    from tvm_coexec.profile import Profile
    from tvm_coexec.tuning import tune
    from tvm_coexec.tuning.workloads import MODEL_SUFFIXES, layers_named

    models = [name for name in layers if Path(name).suffix in MODEL_SUFFIXES]
    evaluations = tune(
        out,
        device=device,
        families=families.split(","),
        minutes=minutes,
        trials=trials,
        layers=[layer for name in layers if name not in models for layer in layers_named(name)],
        models=models,
        shapes=shapes,
        values=values,
        tracker=tracker,
        key=key,
        cpu_cores=cpu_cores,
        gpu_cores=gpu_cores,
    )
    with Profile.open(out) as profile:
        for reason, count in profile.failures().items():
            print(f"{count} candidate{'s' if count > 1 else ''} could not be measured: {reason}")
    print(f"errors of the predictors on layers held out of training:\n{format_table(evaluations)}\nprofile: {out}")
    return 0
