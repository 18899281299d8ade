"""The command line: what it loads, how it fails, and the commands `devices` and `doctor`."""

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tvm_coexec
from tvm_coexec import cli
from tvm_coexec.cli import devices, doctor
from tvm_coexec.cli.options import parse_cores
from tvm_coexec.compiler import toolchain
from tvm_coexec.errors import DeviceError, ToolchainError
from tvm_coexec.layers import GENERATOR_VERSION, Linear, Variant
from tvm_coexec.opencl import loader
from tvm_coexec.opencl.discovery import find_device, list_devices
from tvm_coexec.profile import Profile
from tvm_coexec.profile.records import Candidate, Sample
from tvm_coexec.tuning.workloads import vit_base

NO_ROOM = "the output or a temporary file cannot be written (No space left on device); free some space there"
HEAVY = ("tvm", "xgboost", "pyopencl", "onnx", "numpy")


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def loaded_by(code: str) -> list[str]:
    """Which heavy packages are loaded once the code has run."""
    report = f"\nimport sys; print(*(name for name in {HEAVY} if name in sys.modules), file=sys.stderr)"
    result = run_python(code + report)
    assert result.returncode == 0, result.stderr
    return result.stderr.split()


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_by("import tvm_coexec") == []


@pytest.mark.parametrize("command", ["", *cli.COMMANDS])
def test_help_loads_nothing_heavy(command: str) -> None:
    code = f"""
from tvm_coexec.cli import main
try: main({[*command.split(), "--help"]})
except SystemExit as exit: assert exit.code == 0
"""
    assert loaded_by(code) == []


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_a_summary_and_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])
    assert f"tvm-coexec {command}" in capsys.readouterr().out.partition("examples:")[2]


@pytest.mark.parametrize("arguments", [[], ["fly"], ["devices", "--wings"], ["run", "m.coexec", "--benchmark", "0"]])
def test_a_wrong_call_is_one_line_and_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tvm-coexec") and ": error: " in line and line.endswith("--help`")


def test_an_error_that_a_user_can_repair_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> int:
        raise DeviceError("it is\n  broken; mend it")

    monkeypatch.setattr(devices, "run", fail)
    assert cli.main(["devices"]) == 1
    assert capsys.readouterr() == ("", "tvm-coexec: error: it is broken; mend it\n")


def test_an_interrupt_exits_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(**_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(devices, "run", interrupt)
    assert cli.main(["devices"]) == 130
    assert capsys.readouterr().err == "tvm-coexec: interrupted\n"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device"), NO_ROOM),
        (MemoryError(), "memory does not suffice (no more is given); end other programs, or use a smaller model"),
        (BrokenPipeError(32, "Broken pipe"), "[Errno 32] Broken pipe"),  # a connection's, not the standard output's
    ],
    ids=str,
)
def test_what_the_system_refuses_is_one_line(
    error: Exception, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> int:
        raise error

    monkeypatch.setattr(devices, "run", fail)
    assert cli.main(["devices"]) == 1
    assert capsys.readouterr().err == f"tvm-coexec: error: {told}\n"


def test_a_command_that_is_told_to_end_leaves_no_half_of_a_file(tmp_path: Path) -> None:
    code = f"""
import pathlib, time
from tvm_coexec import cli
from tvm_coexec.cli import devices
from tvm_coexec.files import whole_file
def run(**_):
    with whole_file(pathlib.Path({str(tmp_path / "x")!r})) as file:
        file.write(b"half")
        file.flush()
        print("begun", flush=True)
        time.sleep(60)
devices.run = run
raise SystemExit(cli.main(["devices"]))
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"begun\n"
        assert list(tmp_path.iterdir())
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command", [["build", "m.onnx"], ["plan", "m.onnx", "--profile", "p"], ["run", "m.coexec"]], ids=lambda c: c[0]
)
def test_a_place_that_cannot_be_written_is_refused_first(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "link").symlink_to("missing/out")
    for out in (tmp_path, tmp_path / "missing" / "out", tmp_path / "link"):
        assert cli.main([*command, "--out", str(out)]) == 1
        assert f"--out {out}: " in capsys.readouterr().err


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(devices, "run", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["devices"])


def test_tune_sorts_models_from_sets_of_layers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr("tvm_coexec.tuning.tune", lambda out, **settings: asked.update(settings) or [])
    facts = {"name": "pretended", "driver_version": "1.0", "mechanism": "svm"}
    Profile.create(tmp_path / "p", facts).close()
    for sets in (
        ["--layers", "vit-base", "a/model.onnx", "b.tflite"],
        ["--model", "a/model.onnx", "--layers", "vit-base", "--model", "b.tflite"],
    ):
        assert cli.main(["tune", "--out", str(tmp_path / "p"), *sets]) == 0
        assert asked["models"] == ["a/model.onnx", "b.tflite"] and asked["layers"] == vit_base()


def test_devices_prints_a_table(device_name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["devices"]) == 0
    output = capsys.readouterr().out
    info = find_device(device_name)
    assert output.split()[:3] == ["DEVICE", "TYPE", "UNITS"]
    assert f"{info.name}: sync {info.mechanism}: {info.mechanism_reason}" in output
    starred = [line for line in output.splitlines() if line.startswith("*")]
    assert len(starred) == 1
    assert find_device().name in starred[0]


def test_devices_prints_json(device_name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["devices", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["default"] == find_device().name
    assert printed["devices"] == [info.to_json() for info in list_devices()]
    assert device_name in {info["alias"] for info in printed["devices"]}


def test_devices_without_a_device_names_the_remedy(tmp_path: Path) -> None:
    code = "import sys; from tvm_coexec.cli import main; sys.exit(main(['devices']))"
    result = run_python(code, OCL_ICD_VENDORS=f"{tmp_path}/")
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("tvm-coexec: error: no OpenCL device found")
    assert result.stderr.count("\n") == 1
    assert "apt install pocl-opencl-icd" in result.stderr


def test_doctor_finds_nothing_wrong(device_name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--device", device_name]) == 0
    output = capsys.readouterr().out
    assert "FAIL" not in output
    for check in (
        "C compiler",
        "TVM",
        "OpenCL loader",
        "OpenCL drivers",
        "found",
        "tiny kernel",
        "flag",
        "RPC tracker",
    ):
        assert f"ok    {check}" in output
    assert "µs in fine-grained SVM" in output
    assert output.endswith("everything works\n")


def test_doctor_goes_on_after_a_failure_and_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_compiler() -> str:
        raise ToolchainError("no C compiler; install one")

    monkeypatch.setattr(toolchain, "c_compiler", no_compiler)
    monkeypatch.setattr(loader, "query_devices", lambda worker_count: ([], ["the driver 'X' fails: out of luck"]))
    monkeypatch.setattr(doctor, "_tracker", lambda: "answers")
    assert cli.main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "FAIL  C compiler: no C compiler; install one" in lines
    assert "FAIL  OpenCL drivers: the driver 'X' fails: out of luck; reinstall or remove that driver" in lines
    assert any(line.startswith("FAIL  device: no OpenCL device found") for line in lines)
    assert "ok    RPC tracker: answers" in lines
    assert lines[-1] == "3 of the checks failed"


@pytest.mark.parametrize(
    ("text", "expected"), [("0", (0,)), ("0,2", (0, 2)), ("1-3", (1, 2, 3)), (" 0 , 4-5 ", (0, 4, 5))]
)
def test_lists_of_cores_are_read(text: str, expected: tuple[int, ...]) -> None:
    assert parse_cores(text) == expected


@given(st.lists(st.integers(0, 1000), min_size=1))
def test_a_printed_list_of_cores_reads_back(numbers: list[int]) -> None:
    assert parse_cores(",".join(map(str, numbers))) == tuple(numbers)


@pytest.mark.parametrize("text", ["", "a", "1,", "-1", "3-1", "1-2-3", "0.5"])
def test_a_wrong_list_of_cores_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parse_cores(text)


def test_profile_show_tells_what_counts_and_what_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = {"name": "pretended", "driver_version": "1.0", "mechanism": "svm", "cpu_model": "A core"}
    facts |= {"versions": {"tvm": "0.27"}}
    variant, layer = Variant.make("direct", rows=6), Linear(3, 64, 64)
    sample, slower = (Sample(layer, "cpu", variant, 2, 0, (us,)) for us in (1.0, 1.5))
    with Profile.create(tmp_path / "p", facts) as profile:
        profile.add_samples([sample, sample])
    with (
        pytest.warns(UserWarning, match="driver"),
        Profile.open(tmp_path / "p", {**facts, "driver_version": "2.0"}) as newer,
    ):
        newer.add_samples([slower])
        newer.add_failure(Candidate(layer, variant, variant), "the kernel hangs")
    assert cli.main(["profile", "show", str(tmp_path / "p")]) == 0
    shown = capsys.readouterr().out
    assert "A core" in shown and "1 samples count; 2 are of another driver, TVM or kernels" in shown
    assert "cpu: 1 halves were measured before as well; now they take 1.50 times as long" in shown
    assert "1 current failures: the kernel hangs" in shown
    rows = [line.split() for line in shown.splitlines() if line.endswith(("yes", "no"))]
    assert [row[1:] for row in rows] == [
        ["1.0", "0.27", f"{GENERATOR_VERSION}", "2", "0", "no"],
        ["2.0", "0.27", f"{GENERATOR_VERSION}", "1", "1", "yes"],
    ]


LIMITED = """
import os, sys
from tvm_coexec.cli import main
real, limited = os.posix_fallocate, os.environ["LIMITED"]
def fallocate(descriptor, *span):
    if os.readlink(f"/proc/self/fd/{descriptor}").startswith(limited):
        raise OSError(28, "No space left on device")
    real(descriptor, *span)
os.posix_fallocate = fallocate
sys.exit(main())
"""


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "POCL_CACHE_DIR"])
@pytest.mark.parametrize(
    ("place", "problem"),
    [("/dev/null/cache", "Not a directory"), ("small", "No space left on device")],
    ids=["none", "full"],
)
def test_an_unusable_cache_folder_costs_warnings_alone(variable: str, place: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(LIMITED)
    environment = {**os.environ, "LIMITED": str(tmp_path / "small"), variable: str(tmp_path / place)}
    if variable == "XDG_CACHE_HOME":
        environment.pop("POCL_CACHE_DIR", None)
    command = [sys.executable, str(tmp_path / "m.py"), "devices"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, "pocl" in done.stdout.lower()) == (0, True), done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        f"tvm-coexec: warning: what is compiled cannot be kept in {tmp_path / place} ({problem}) but in"
    )
    assert f"let {variable} name a folder" in line


WITHOUT_METADATA = """
import runpy, sys
from importlib import metadata
def absent(name):
    raise metadata.PackageNotFoundError(name)
metadata.version = absent
sys.argv[1:] = ["--version"]
runpy.run_module("tvm_coexec", run_name="__main__")
"""


def test_the_package_is_the_command_and_knows_its_version_by_itself() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_METADATA], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"tvm-coexec {tvm_coexec.__version__}\n"), done.stderr
