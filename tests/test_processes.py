"""Processes of Python's import what their parent does, and no files of the folder that the user stands in."""

import subprocess
import sys
from pathlib import Path

import pytest

from tvm_coexec.processes import python, search_path

HOSTILE = ("cloudpickle", "json", "logging", "psutil", "queue", "secrets", "tvm")
"""Modules of which a user may have files of the same names."""

WRITE_FILES = f"""
from pathlib import Path
for name in {HOSTILE}:
    Path(f"{{name}}.py").write_text("raise RuntimeError(__file__)")
"""

STARTED = [["-c", "import parent"], ["parent.py"], ["-m", "parent"]]
"""Ways to start Python in the folder of a program, of which it then looks for modules first."""


def run_in(folder: Path, code: str, started: list[str]) -> subprocess.CompletedProcess[str]:
    (folder / "parent.py").write_text(code)
    return subprocess.run([sys.executable, *started], cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("started", STARTED, ids=["by -c", "as a file", "by -m"])
def test_a_process_takes_no_file_of_the_users_for_a_module_but_finds_his_own(
    started: list[str], tmp_path: Path
) -> None:
    code = f"""
import subprocess, sys
from tvm_coexec.processes import python
{WRITE_FILES}
Path("child.py").write_text("import json, logging, queue, secrets, sys; print(json.dumps([__name__, *sys.argv[1:]]))")
subprocess.run(python("child", "an argument"), check=True)
"""
    done = run_in(tmp_path, code, started)
    assert (done.stderr, done.stdout) == ("", '["__main__", "an argument"]\n')


@pytest.mark.slow
@pytest.mark.parametrize("started", STARTED, ids=["by -c", "as a file", "by -m"])
def test_no_process_that_tunes_takes_a_file_of_the_users_for_a_module(started: list[str], tmp_path: Path) -> None:
    code = f"""
import os
import cloudpickle, psutil
from tvm_coexec.opencl.apart import check_apart
from tvm_coexec.opencl.choice import DeviceChoice
from tvm_coexec.rpc.tracker import local_tracker
from tvm_coexec.rpc.workers import WorkerPool
{WRITE_FILES}
check_apart(DeviceChoice())
with local_tracker(DeviceChoice()):
    pool = WorkerPool(1, 60.0, initializer=os.sched_setaffinity, initargs=(0, os.sched_getaffinity(0)))
    assert pool.submit(os.getppid).result() == os.getpid()
    pool.shutdown()
"""
    done = run_in(tmp_path, code, started)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "hostile", "told"),
    [
        (["tvm_coexec", "plan", "no.onnx", "--profile", "no"], ["numpy", "json"], "there is no profile at no"),
        (["tvm_coexec.rpc.server", "--tracker", "127.0.0.1:1"], ["tvm"], "the tracker at 127.0.0.1:1 is out of reach"),
    ],
    ids=["tvm-coexec", "a server"],
)
def test_a_command_that_is_run_as_a_module_takes_no_file_of_the_users(
    arguments: list[str], hostile: list[str], told: str, tmp_path: Path
) -> None:
    for name in hostile:
        (tmp_path / f"{name}.py").write_text("raise RuntimeError(__file__)")
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and told in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_folder_that_is_gone_ends_no_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    assert sorted(search_path()) == sorted(sys.path)
    done = subprocess.run(python("this"), cwd="/", capture_output=True, text=True, check=True)
    assert "Zen of Python" in done.stdout
