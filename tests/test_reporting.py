"""Reports: layers' names in a table's cells, and what is written when measuring breaks off."""

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from reporting import BrokenOffError, Report, describe
from slow import slow_except

from tvm_coexec.errors import DeviceError
from tvm_coexec.layers import AnyLayer, Elementwise, Linear, RowWise
from tvm_coexec.tuning.workloads import NAMED, layers_named


@pytest.mark.parametrize("name", NAMED)
def test_every_layer_of_a_named_set_has_a_description(name: str) -> None:
    assert all(describe(layer) for layer in layers_named(name))


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (Linear(3, 64, 128, ("bias", "relu")), "3×64×128 relu"),
        (RowWise("softmax", 5, 9), "softmax 5×9"),
        (Elementwise("add", (1, 7, 7, 32), (1, 7, 7, 32)), "add 1×7×7×32"),
    ],
    ids=lambda value: getattr(value, "op", None),
)
def test_descriptions(layer: AnyLayer, expected: str) -> None:
    assert describe(layer) == expected


@pytest.mark.parametrize("error", [DeviceError, KeyboardInterrupt, OSError])
def test_what_was_measured_is_written_when_measuring_breaks_off(error: type[BaseException], tmp_path: Path) -> None:
    def measure(item: int) -> int:
        if item == 3:
            raise error
        return 10 * item

    def write(measured: Sequence[int], report: Report) -> None:
        written.append((list(measured), report.title))

    written: list[tuple[list[int], str]] = []
    report = Report(str(tmp_path), "Numbers", {"label": "a device", "mechanism": "svm"})
    with pytest.raises(error):
        report.collect([3, 4], measure, write)
    assert not written
    with pytest.raises(error):
        report.collect([1, 2, 3, 4], measure, write)
    assert written == [([10, 20], "Numbers (broken off: 2 of 4)")]
    report = Report(str(tmp_path), "Numbers", {"label": "a device", "mechanism": "svm"})
    assert report.collect([1, 2], measure, write) == [10, 20]
    assert written[1:] == [([10, 20], "Numbers")]


def test_an_item_that_was_broken_off_counts_with_what_was_measured_of_it(tmp_path: Path) -> None:
    def measure(item: int) -> int:
        if item == 2:
            raise BrokenOffError(21) from KeyboardInterrupt()
        return 10 * item

    written: list[tuple[list[int], str]] = []
    report = Report(str(tmp_path), "Numbers", {"label": "a device", "mechanism": "svm"})
    with pytest.raises(KeyboardInterrupt):
        report.collect([1, 2, 3], measure, lambda measured, report: written.append((list(measured), report.title)))
    assert written == [([10, 21], "Numbers (broken off: 2 of 3)")]


@pytest.mark.slow
def test_what_takes_long_is_written_in_between_for_the_case_of_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(measured: Sequence[int], report: Report) -> None:
        report.write({"measured": list(measured)}, "text\n", lambda axes: None)

    def measure(item: int) -> int:
        if item > 1:
            result = json.loads((tmp_path / "result.json").read_text())
            assert result["measured"] == list(range(1, item)) and result["title"] == f"N ({item - 1} of 3 so far)"
        return item

    monkeypatch.setattr("reporting._DRAFT_S", 0.0)
    assert Report(str(tmp_path), "N", {"label": "a device", "mechanism": "svm"}).collect([1, 2, 3], measure, write)
    assert json.loads((tmp_path / "result.json").read_text())["title"] == "N"
    assert capsys.readouterr().out.count("# N\n") == 1, "it is shown once"


SCRIPT = """
import os, signal, sys, time
from reporting import Report, run_main

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell lets what runs in the background ignore
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup lets be ignored

def measure(item):
    if item == 3:
        try:
            os.kill(os.getpid(), int(sys.argv[1]))
        except BaseException:
            pass  # as libraries do
        time.sleep(60)
    return item

def write(measured, report):
    report.write({"measured": list(measured)}, "text", lambda axes: None)

def main():
    Report(sys.argv[2], "N", {"label": "a device", "mechanism": "svm"}).collect([1, 2, 3, 4], measure, write)

sys.argv[0] = "compare.py"
run_main(main)
"""


@pytest.mark.parametrize(
    ("number", "told"),
    slow_except([(signal.SIGINT, "compare.py: interrupted"), (signal.SIGTERM, None), (signal.SIGHUP, None)], 0),
)
def test_a_signal_ends_a_script_wherever_it_arrives_and_what_was_measured_is_kept(
    number: int, told: str | None, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", SCRIPT, str(int(number)), str(tmp_path)]
    scripts = Path(__file__).parent.parent / "scripts"
    done = subprocess.run(command, cwd=scripts, capture_output=True, text=True, check=False, timeout=50)
    lines = [line for line in done.stderr.splitlines() if "comparing" not in line and line.strip()]  # of the progress
    assert (done.returncode, lines) == (128 + number, [told] if told else [])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["measured"] == [1, 2] and result["title"] == "N (broken off: 2 of 4)"


@pytest.mark.parametrize(("error", "status"), [("KeyboardInterrupt", 130), ("OSError", 1)])
def test_a_standard_error_that_cannot_be_written_changes_no_status(error: str, status: int) -> None:
    code = f"from reporting import run_main\n\ndef main():\n    raise {error}\n\nrun_main(main)"
    scripts = Path(__file__).parent.parent / "scripts"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", code], cwd=scripts, stderr=full, check=False)
    assert done.returncode == status
