"""Are trained models that people ship built, right and fast? A table with a row for every one, failures included.

The packages are downloaded by name; each model is built and compared with its own runtime, LiteRT or ONNX Runtime, in a
process of its own, so that nothing that happens to one keeps the others from being tried. With a profile, models that
are right are timed, too, each on the CPU, on the GPU and co-executed, and by its runtime with one and two threads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import platformdirs
import real_model_process
from real_model_process import Options
from reporting import Report, bars, markdown_table, run_main
from shipped_models import PACKAGES, ShippedModel, shipped_models

from tvm_coexec.errors import InputError
from tvm_coexec.runtime.device import open_device

STAGES = ("read", "build", "check")
"""What every model goes through, in this order, before it may be timed."""

SIDES = ("cpu", "gpu", "coexec")


@dataclass
class Row:
    """What became of one model: what each stage told, and why there are no more of them."""

    name: str
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    failure: str = ""

    @property
    def verdict(self) -> str:
        """``right``, ``wrong``, or the stage in which the model failed."""
        failed = next((f"{stage} failed" for stage in STAGES if stage not in self.stages), None)
        return failed or ("wrong" if self.stages["check"]["findings"] else "right")

    @property
    def time(self) -> dict[str, Any] | None:
        """What was measured."""
        return self.stages.get("time")

    @property
    def speed(self) -> float | None:
        """How many times as fast as its own runtime with two threads the model is on both sides."""
        return None if self.time is None else self.time["peer_us"][-1] / self.time["median_us"]["coexec"]

    @property
    def reason(self) -> str:
        """Why the model is not right; empty where it is."""
        return self.failure or (self.stages["check"]["verdict"] if self.verdict == "wrong" else "")

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "verdict": self.verdict, "reason": self.reason, "stages": self.stages}


def tried(name: str, options: Options, bound_s: float) -> Row:
    """Try a model in a process of its own."""
    command = [sys.executable, real_model_process.__file__, json.dumps(asdict(options))]
    row = Row(name)
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
            row.failure = row.failure or stage["error"]
        else:
            row.stages[stage.pop("stage")] = stage
    if not row.failure and STAGES[-1] not in row.stages:
        last = (complaints.strip().splitlines() or ["nothing said"])[-1]
        row.failure = f"the process died with status {process.returncode}: {last}"
    return row


def table(rows: Sequence[Row]) -> str:
    """Write a row for every model, then the reasons by how many models each stops."""
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
    text = markdown_table(header, lines) + times_table([row for row in rows if row.time])
    reasons = [f"- {row.name}: {' '.join(row.reason.split())}\n" for row in rows if row.reason]
    counts = Counter(row.verdict for row in rows)
    text += "\n" + ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common()) + ".\n"
    return text + ("\nNot right, and why:\n\n" + "".join(reasons) if reasons else "")


def times_table(rows: Sequence[Row]) -> str:
    """Milliseconds of the models that were timed; nothing where none was."""
    lines = []
    for row in rows:
        assert row.time is not None and row.speed is not None
        times_us = [*(row.time["median_us"][side] for side in SIDES), row.time["expected_us"], *row.time["peer_us"]]
        unsteady = sum(row.time["unsteady_turns"].values())
        milliseconds = [f"{us / 1e3:.2f}" for us in times_us]
        lines.append([row.name, *milliseconds, f"{row.speed:.2f}×", f"{row.time['opaque_share']:.0%}", unsteady])
    if not lines:
        return ""
    header = ["model", "CPU ms", "GPU ms", "co-executed ms", "expected ms", "runtime, 1 thread ms", "2 threads ms"]
    text = markdown_table([*header, "co-executed beside 2 threads", "time in whole layers", "unsteady turns"], lines)
    mean = statistics.geometric_mean(row.speed for row in rows if row.speed)
    return f"\n{text}\nCo-executed {mean:.2f} times as fast as the runtimes with two threads (geometric mean).\n"


def draw(axes: Any, rows: Sequence[Row]) -> None:
    """Speeds compared with the models' runtimes or, where nothing was timed, how many layers run whole."""
    timed = [row for row in rows if row.time]
    if timed:
        bars(axes, [_short(row) for row in timed], _speeds(timed), "speed, its runtime with two threads = 1")
        axes.axhline(1, color="black", linewidth=0.8)
        return
    shown = [row for row in rows if "read" in row.stages]
    series = {key: [row.stages["read"][key] for row in shown] for key in ("layers", "opaque")}
    bars(axes, [_short(row) for row in shown], series, "layers")


def _short(row: Row) -> str:
    return row.name.rpartition("/")[2]


def _speeds(rows: Sequence[Row]) -> dict[str, list[float]]:
    times = [row.time for row in rows if row.time]
    return {side: [time["peer_us"][-1] / time["median_us"][side] for time in times] for side in SIDES}


def named(models: Sequence[ShippedModel], names: str) -> list[ShippedModel]:
    """The models of a list such as ``mediapipe/palm_detection_full,nudenet``: the one so named, or all that have it."""
    chosen = []
    for name in names.split(","):
        found = [model for model in models if model.name == name] or [model for model in models if name in model.name]
        if not found:
            raise InputError(f"no shipped model's name has {name!r} in it; leave --only away to try all")
        chosen += found
    return list(dict.fromkeys(chosen))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for result.json, result.md, result.png")
    parser.add_argument("--device", default="", metavar="NAME", help="any unambiguous part of a device's name")
    parser.add_argument("--only", default="", metavar="LIST", help="names such as nudenet/320n, or parts of them")
    parser.add_argument("--split", type=float, default=0.5, help="the CPU's share of every layer (default: 0.5)")
    parser.add_argument("--bound", type=float, default=900, metavar="S", help="seconds for one model (default: 900)")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(platformdirs.user_cache_dir("tvm-coexec")) / "shipped-models",
        metavar="DIR",
        help=f"where the models of {', '.join(PACKAGES)} are kept (default: %(default)s)",
    )
    parser.add_argument("--profile", default="", metavar="DIR", help="time the models by this profile")
    parser.add_argument("--minutes", type=float, default=0, metavar="N", help="tune the profile for each model first")
    parser.add_argument("--rounds", type=int, default=7, help="times that every contender has its turn (default: 7)")
    options = parser.parse_args()
    if options.minutes and not options.profile:
        raise InputError("--minutes tunes a profile: say which with --profile DIR")
    facts = open_device(options.device or None).facts()
    models = named(shipped_models(options.cache), options.only)

    def try_model(model: ShippedModel) -> Row:
        chosen = Options(
            path=str(model.path),
            shapes=model.shapes,
            device=options.device,
            split=options.split,
            profile=options.profile,
            minutes=options.minutes,
            rounds=options.rounds,
        )
        return tried(model.name, chosen, options.bound + 60 * options.minutes)

    Report(options.out, "Shipped models", facts).collect(models, try_model, write, "model")


def write(rows: Sequence[Row], report: Report) -> None:
    report.write({"models": [row.to_json() for row in rows]}, table(rows), lambda axes: draw(axes, rows))


if __name__ == "__main__":
    run_main(main)
