"""Standard streams: what a command does where one is closed, full, or read by nobody any more."""

import io
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from test_cli import NO_ROOM

from tvm_coexec import cli
from tvm_coexec.cli import devices


def printing(lines: int, output: int) -> subprocess.CompletedProcess[str]:
    """A command that prints so many lines to a file descriptor."""
    code = f"""
import sys
from tvm_coexec import cli
from tvm_coexec.cli import devices
devices.run = lambda **_: print("line\\n" * {lines}) or 0
sys.exit(cli.main(["devices"]))
"""
    return subprocess.run([sys.executable, "-c", code], stdout=output, stderr=subprocess.PIPE, text=True, check=False)


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_leaves_ends_a_command_quietly(lines: int) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    result = printing(lines, writing)
    os.close(writing)
    assert (result.returncode, result.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize("lines", [1, 100_000])
def test_output_to_a_full_disk_is_one_line(lines: int) -> None:
    with Path("/dev/full").open("w") as full:
        result = printing(lines, full.fileno())
    assert (result.returncode, result.stderr) == (1, f"tvm-coexec: error: {NO_ROOM}\n")


@pytest.mark.parametrize("redirections", [">&- 2>&-", "<&- >&- 2>&-", "2>/dev/full", "2>&-"])
def test_a_standard_error_that_cannot_be_written_ends_no_command(redirections: str, tmp_path: Path) -> None:
    """A file that is opened does not take its number, and a process that is started finds it open."""
    code = f"""
import os, subprocess, sys, warnings
from tqdm import tqdm
from tvm_coexec import cli
from tvm_coexec.cli import devices

def run(**_):
    with open("{tmp_path}/told", "w") as told:
        list(tqdm([1, 2]))
        warnings.warn("something")
        subprocess.run([sys.executable, "-c", "import os; os.fstat(2)"], check=True)
        told.write(str(told.fileno() > 2))
    return 0

devices.run = run
sys.exit(cli.main(["devices"]))
"""
    (tmp_path / "code.py").write_text(code)
    command = f"{sys.executable} {tmp_path}/code.py {redirections}"
    assert subprocess.run(["sh", "-c", command], check=False).returncode == 0
    assert (tmp_path / "told").read_text() == "True"


def test_a_command_needs_no_standard_output() -> None:
    code = "import sys; from tvm_coexec import cli; from tvm_coexec.cli import devices; devices.run = lambda **_: 0; "
    command = f"{sys.executable} -c '{code}sys.exit(cli.main([\"devices\"]))' >&-"
    result = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_who_calls_a_command_from_python_keeps_the_standard_error_and_the_form_of_warnings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(devices, "run", lambda **_: print("told", file=sys.stderr) or 0)
    told, form = io.StringIO(), warnings.formatwarning
    monkeypatch.setattr(sys, "stderr", told)
    assert cli.main(["devices"]) == 0
    assert sys.stderr is told and told.getvalue() == "told\n" and warnings.formatwarning is form
