"""Reports: layers' names in a table's cells, and what is written when measuring breaks off."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from reporting import BrokenOffError, Report, describe

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
