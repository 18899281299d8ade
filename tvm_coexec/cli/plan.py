"""Show how a model would be divided between the CPU and the GPU, and why.

Nothing is compiled and nothing is measured: the plan follows from the profile's predictors or, for a model that it was
tuned for, from its trial runs. `tvm-coexec build` adds the synchronisations that sharing memory takes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import add_given_options, check_out

EXAMPLES = """\
examples:
  tvm-coexec plan model.onnx --profile profile
  tvm-coexec plan model.onnx --profile profile --out plan.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="an ONNX or TFLite file")
    parser.add_argument("--profile", required=True, type=Path, metavar="DIR", help="made by `tvm-coexec tune`")
    add_given_options(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the plan as JSON, too")


def run(
    *,
    model: str,
    profile: Path,
    shapes: dict[str, tuple[int, ...]],
    values: dict[str, list[float]],
    out: Path | None,
) -> int:
    from tvm_coexec.api import planner_of
    from tvm_coexec.frontends import read_model
    from tvm_coexec.planning.from_profile import check_tuned
    from tvm_coexec.planning.network import plan_network
    from tvm_coexec.profile import Profile

    check_out(out)
    with Profile.open(profile) as opened:
        check_tuned(opened)
        read = read_model(model, shapes, values)
        planned, facts = planner_of(opened), opened.facts
    plan = plan_network(read.to_graph(), planned, facts["label"], facts["mechanism"])
    print(plan)
    if out is not None:
        plan.write(out)
    return 0
