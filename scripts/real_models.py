"""Are trained models that people ship built, right and fast? A table with a row for every one, failures included.

The packages are downloaded by name; each model is built and compared with its own runtime, LiteRT or ONNX Runtime, in a
process of its own, so that nothing that happens to one keeps the others from being tried.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs
from reporting import Report, bars, markdown_table, run_main
from shipped_models import PACKAGES, ShippedModel, shipped_models

from tvm_coexec.errors import InputError
from tvm_coexec.runtime.device import open_device

STAGES = ("read", "build", "check")
"""What every model goes through, in this order."""


@dataclass
class Row:
    """What became of one model: what each stage told, and why there are no more of them."""

    name: str
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    failure: str = ""

    @property
    def verdict(self) -> str:
        """``right``, ``wrong``, or the stage in which the model failed."""
        if self.failure:
            return next((f"{stage} failed" for stage in STAGES if stage not in self.stages), "failed")
        return "wrong" if self.stages["check"]["findings"] else "right"

    @property
    def reason(self) -> str:
        """Why the model is not right; empty where it is."""
        return self.failure or (self.stages["check"]["verdict"] if self.verdict == "wrong" else "")

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "verdict": self.verdict, "reason": self.reason, "stages": self.stages}


def tried(model: ShippedModel, device: str, split: float, bound_s: float) -> Row:
    """Build and check a model in a process of its own."""
    script = Path(__file__).with_name("real_model_process.py")
    command = [sys.executable, str(script), str(model.path), json.dumps(model.shapes), device, str(split)]
    row = Row(model.name)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            told, complaints = process.communicate(timeout=bound_s)
        except subprocess.TimeoutExpired:
            process.kill()
            told, complaints = process.communicate()
            row.failure = f"not done within {bound_s:g} s"
    for line in told.splitlines():
        stage = json.loads(line)
        if "error" in stage:
            row.failure = stage["error"]
        else:
            row.stages[stage.pop("stage")] = stage
    if not row.failure and STAGES[-1] not in row.stages:
        last = (complaints.strip().splitlines() or ["nothing said"])[-1]
        row.failure = f"the process died with status {process.returncode}: {last}"
    return row


def table(rows: Sequence[Row]) -> str:
    """A row for every model, then the reasons by how many models each stops."""
    lines = []
    for row in rows:
        read, check = row.stages.get("read", {}), row.stages.get("check", {})
        seconds = row.stages.get("build", {}).get("seconds")
        lines.append(
            [
                row.name,
                row.verdict,
                read.get("layers", ""),
                read.get("opaque", ""),
                "" if seconds is None else f"{seconds:.0f}",
                "" if not check else f"{check['largest']:.1e}",
                check.get("engine", ""),
            ]
        )
    header = ["model", "verdict", "layers", "of them whole", "built in s", "largest difference", "beside"]
    text = markdown_table(header, lines)
    reasons = [f"- {row.name}: {' '.join(row.reason.split())}\n" for row in rows if row.reason]
    counts = Counter(row.verdict for row in rows)
    text += "\n" + ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common()) + ".\n"
    return text + ("\nNot right, and why:\n\n" + "".join(reasons) if reasons else "")


def draw(axes: Any, rows: Sequence[Row]) -> None:
    """How many layers each model has, and how many of them run whole."""
    shown = [row for row in rows if "read" in row.stages]
    series = {key: [row.stages["read"][key] for row in shown] for key in ("layers", "opaque")}
    bars(axes, [row.name.rpartition("/")[2] for row in shown], series, "layers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for result.json, result.md, result.png")
    parser.add_argument("--device", default="", metavar="NAME", help="any unambiguous part of a device's name")
    parser.add_argument("--only", default="", metavar="TEXT", help="models whose name, such as nudenet/320n, has it")
    parser.add_argument("--split", type=float, default=0.5, help="the CPU's share of every layer (default: 0.5)")
    parser.add_argument("--bound", type=float, default=900, metavar="S", help="seconds for one model (default: 900)")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(platformdirs.user_cache_dir("tvm-coexec")) / "shipped-models",
        metavar="DIR",
        help=f"where the models of {', '.join(PACKAGES)} are kept (default: %(default)s)",
    )
    options = parser.parse_args()
    facts = open_device(options.device or None).facts()
    models = [model for model in shipped_models(options.cache) if options.only in model.name]
    if not models:
        raise InputError(f"no shipped model's name has {options.only!r} in it; leave --only away to try all")

    def try_model(model: ShippedModel) -> Row:
        return tried(model, options.device, options.split, options.bound)

    Report(options.out, "Shipped models", facts).collect(models, try_model, write, "model")


def write(rows: Sequence[Row], report: Report) -> None:
    report.write({"models": [row.to_json() for row in rows]}, table(rows), lambda axes: draw(axes, rows))


if __name__ == "__main__":
    run_main(main)
