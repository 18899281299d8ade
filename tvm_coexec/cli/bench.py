"""Run a module for minutes without pause, and show how its time, the clocks and the temperatures change.

A phone's first minute says little of its thirtieth: it slows down when it is warm. Each minute gives a line: the runs,
their median and 90th percentile, and what the cores' clocks and the hottest zone were at its end. --picture draws them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_coexec.errors import InputError
from tvm_coexec.files import whole_file, write_json

from .opening import Opened, opened, random_inputs
from .options import add_core_options, add_device_option, add_timeout_option, add_tracker_options, check_out

if TYPE_CHECKING:
    from tvm_coexec.machine.sensors import Sensors

EXAMPLES = """\
examples:
  tvm-coexec bench model.coexec --minutes 5
  tvm-coexec bench model.coexec --minutes 30 --tracker 192.168.0.2:9190 --key my-phone --picture phone.png

A minute that is hotter or slower than those before shows a device that protects itself: see docs/phones.md.
"""

_MOST_MINUTES = 1440.0
_CALL_S = 1.0
"""Runs are asked for in portions of about this time: clocks are read between them."""
_MOST_RUNS = 1000
_OPENING_S = 240.0
"""What a session lasts beyond the runs."""


@dataclass(frozen=True)
class Minute:
    """What was measured in a minute."""

    ended_s: float
    latency_us: tuple[float, ...]
    sensors: Sensors
    threads_ran_on: tuple[int | None, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("module", metavar="MODULE", help="made by `tvm-coexec build`")
    parser.add_argument(
        "--minutes", type=float, default=5.0, metavar="N", help="for how long to run (default: %(default)g)"
    )
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the minutes, as .png, .svg or .pdf")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write every run's time and all sensors as JSON")
    add_timeout_option(parser)
    add_device_option(parser)
    add_core_options(parser)
    add_tracker_options(parser)


def run(
    *,
    module: str,
    minutes: float,
    picture: Path | None,
    out: Path | None,
    timeout: float,
    device: str | None,
    cpu_cores: tuple[int, ...] | None,
    gpu_cores: tuple[int, ...] | None,
    tracker: str | None,
    key: str | None,
) -> int:
    from tvm_coexec.opencl.choice import DeviceChoice

    if not 0 < minutes <= _MOST_MINUTES:
        raise InputError(f"--minutes must be positive, {_MOST_MINUTES:g} at most, got {minutes:g}")
    check_out(out)
    if picture is not None:
        _check_picture(picture)
    choice = DeviceChoice(device, cpu_cores, gpu_cores)
    session_s = 2 * (60 * minutes + _OPENING_S)  # a session of which half is over is renewed
    with opened(module, choice, tracker, key, timeout_s=timeout, session_s=session_s) as one:
        print(f"{one.label}\nminute   runs  median us    90 % us  clocks, temperature", flush=True)
        measured: list[Minute] = []
        try:
            for minute in _minutes(one, 60 * minutes):
                measured.append(minute)
                print(_line(len(measured), minute), flush=True)
            print(_threads(measured[-1].threads_ran_on, one.facts["cpu_cores"]))
        finally:  # of what was broken off, the whole minutes
            if measured and out is not None:
                write_json(out, [asdict(minute) for minute in measured])
            if measured and picture is not None:
                _draw(picture, one.label, measured)
    return 0


def _minutes(one: Opened, total_s: float) -> Iterator[Minute]:
    """Run without pause; the last minute may be a part of one."""
    from tvm_coexec.machine.clusters import Cluster
    from tvm_coexec.machine.sensors import read_sensors

    clusters = [Cluster(**fields) for fields in one.facts.get("clusters", ())]
    one.module(**random_inputs(one.module))
    begun = time.monotonic()
    runs, number = 1, 0
    while time.monotonic() - begun < total_s:
        number += 1
        latency_us: list[float] = []
        end = begun + min(60.0 * number, total_s)
        while (left_s := end - time.monotonic()) > 0 or not latency_us:
            started = time.monotonic()
            done = one.module.benchmark(repeats=runs, warmup=0)
            latency_us += done.latency_us
            took_s = max(time.monotonic() - started, 1e-6)
            runs = max(1, min(round(runs * min(_CALL_S, max(left_s, 0.0)) / took_s), _MOST_RUNS, 10 * runs))
        sensors = read_sensors(clusters, one.read)
        yield Minute(time.monotonic() - begun, tuple(latency_us), sensors, done.threads_ran_on)


def _percentiles_us(minute: Minute) -> tuple[float, float]:
    import numpy as np

    median, high = np.percentile(minute.latency_us, [50, 90]).tolist()
    return median, high


def _line(number: int, minute: Minute) -> str:
    median, high = _percentiles_us(minute)
    clocks = [f"{name} {mhz:.0f} MHz" for name, mhz in minute.sensors.mhz.items()]
    hottest = minute.sensors.hottest
    heat = [] if hottest is None else [f"{hottest:.1f} °C"]
    told = ", ".join([*clocks, *heat]) or "the system tells none"
    return f"{number:6} {len(minute.latency_us):6} {median:10.1f} {high:10.1f}  {told}"


def _threads(ran_on: Sequence[int | None], asked: Sequence[int]) -> str:
    """Say on which cores the CPU's threads ran, and where the system let one run elsewhere than was asked for."""
    from tvm_coexec.machine.cores import listed

    worked = [(core, wanted) for core, wanted in zip(ran_on, asked, strict=False) if core is not None]
    elsewhere = [f"{core} instead of {wanted}" for core, wanted in worked if core != wanted]
    told = f"threads of the CPU in the last run: {len(worked)}, on {listed(core for core, _ in worked)}"
    return f"{told}; {', '.join(elsewhere)}" if elsewhere else told


def _check_picture(path: Path) -> None:
    check_out(path, "--picture")
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(f"--picture {path}: it is drawn as .png, .svg or .pdf; name such a file")
    try:
        import matplotlib as mpl
    except ImportError:
        raise InputError("--picture needs matplotlib; run `pip install matplotlib`") from None
    mpl.use("Agg")


def _draw(path: Path, label: str, minutes: Sequence[Minute]) -> None:
    """Draw the times above; below the clocks, and the temperature of the hottest zone."""
    from matplotlib import pyplot as plt

    at = [minute.ended_s / 60 for minute in minutes]
    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(9, 6), layout="constrained")
    for name, values in zip(("median", "90 %"), zip(*map(_percentiles_us, minutes), strict=True), strict=True):
        above.plot(at, [us / 1e3 for us in values], marker=".", label=name)
    above.set(title=label, ylabel="ms", ylim=(0, None))
    above.legend()
    for name in dict.fromkeys(name for minute in minutes for name in minute.sensors.mhz):
        below.plot(at, [minute.sensors.mhz.get(name) for minute in minutes], label=name)
    below.set(xlabel="minute", ylabel="MHz")
    heat: Any = below.twinx()
    heat.plot(at, [minute.sensors.hottest for minute in minutes], color="tab:red", linestyle="--")
    heat.set_ylabel("hottest zone, °C")
    if below.lines:
        below.legend()
    with whole_file(path) as file:
        figure.savefig(file, format=path.suffix[1:])
    plt.close(figure)
