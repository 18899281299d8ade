"""A module runs for as long as was asked for, and what the machine's sensors told beside it is shown."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_api import block_model

from tvm_coexec import build, cli
from tvm_coexec.cli import bench
from tvm_coexec.cli.bench import Minute, _threads
from tvm_coexec.errors import DeviceError
from tvm_coexec.machine.clusters import BIG, Cluster
from tvm_coexec.machine.sensors import Sensors, read_sensors

FILES = {
    "/sys/devices/system/cpu/cpu4/cpufreq/scaling_cur_freq": "2419200\n",
    "/sys/class/thermal/thermal_zone0/type": "cpu-0-0\n",
    "/sys/class/thermal/thermal_zone0/temp": "45000\n",
    "/sys/class/thermal/thermal_zone1/type": "no-sensor\n",
    "/sys/class/thermal/thermal_zone2/type": "battery\n",
    "/sys/class/thermal/thermal_zone2/temp": "33500\n",
}


def test_sensors_that_tell_nothing_are_left_out() -> None:
    clusters = [Cluster("Cortex-A55", (0, 1, 2, 3)), Cluster("Cortex-A76", (4, 5, 6, 7), role=BIG)]
    found = read_sensors(clusters, lambda path: FILES.get(path, ""))
    assert found.mhz == {"Cortex-A76 big 4-7": 2419.2}
    assert found.celsius == {"cpu-0-0": 45.0, "battery": 33.5} and found.hottest == 45.0
    assert read_sensors(clusters, lambda path: "").hottest is None


@pytest.mark.slow
def test_minutes_are_shown_drawn_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(block_model(), device="pocl", split=0.5).export(tmp_path / "m.coexec")
    files = ["--picture", str(tmp_path / "m.svg"), "--out", str(tmp_path / "m.json")]
    command = ["bench", str(tmp_path / "m.coexec"), "--device", "pocl", "--minutes", "0.02", *files]
    assert cli.main(command) == 0, capsys.readouterr().err
    label, headings, *lines, threads = capsys.readouterr().out.splitlines()
    assert threads.startswith("threads of the CPU in the last run: ") and "instead of" not in threads
    assert "pocl" in label and headings.startswith("minute") and len(lines) == 1
    (minute,) = json.loads((tmp_path / "m.json").read_text())
    assert len(minute["latency_us"]) == int(lines[0].split()[1]) >= 2 and minute["ended_s"] >= 1.2
    assert "<svg" in (tmp_path / "m.svg").read_text()


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (DeviceError("it is gone"), 1)])
def test_the_minutes_before_a_bench_is_broken_off_are_kept(
    error: BaseException, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def opened(*_: object, **__: object) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(label="a phone", facts={"cpu_cores": [4]})

    def minutes(*_: object) -> Iterator[Minute]:
        yield Minute(60.0, (7.0, 9.0), Sensors({}, {}), (4,))
        raise error

    monkeypatch.setattr(bench, "opened", opened)
    monkeypatch.setattr(bench, "_minutes", minutes)
    files = [tmp_path / "m.json", tmp_path / "m.svg"]
    assert cli.main(["bench", "m.coexec", "--out", str(files[0]), "--picture", str(files[1])]) == status
    (minute,) = json.loads(files[0].read_text())
    assert minute["latency_us"] == [7.0, 9.0]
    assert "<svg" in files[1].read_text()


def test_threads_that_run_elsewhere_than_they_should_are_named() -> None:
    assert _threads((4, 5, None), (4, 5, 6)).endswith(": 2, on cores 4, 5")
    assert _threads((4, 1, None), (4, 5, 6)).endswith(": 2, on cores 4, 1; 1 instead of 5")


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--minutes", "0"], "must be positive"), (["--picture", "m.txt"], "it is drawn as .png, .svg or .pdf")],
)
def test_what_cannot_be_shown_is_refused_before_anything_runs(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", "no-such-module.coexec", *options]) == 1
    assert message in capsys.readouterr().err
