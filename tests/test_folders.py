"""Folders that are full, or of which nothing may be run, as mounts have them: of temporary files, of results."""

import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from small_modules import chain

from tvm_coexec.module.package import Package
from tvm_coexec.runtime.device import Device
from tvm_coexec.runtime.module import Module

MOUNTED = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
"""A shell that mounts what the rest of the machine does not see."""

FULL = "size=40k"
FILLED = "head -c 40960 /dev/zero > full"

INPUT = np.ones((8, 64), np.float32)


@pytest.fixture
def result(device: Device, tmp_path: Path) -> np.ndarray:
    """The result of a module that lies in the test's folder, as its input does."""
    built = chain(device, 1, *INPUT.shape)[0]
    built.write(tmp_path / "m.coexec")
    np.save(tmp_path / "x.npy", INPUT)
    made: np.ndarray = Module(built, device)(INPUT)
    return made


def run_beside(options: str, before: str, code: str, place: Path) -> subprocess.CompletedProcess[str]:
    """Run Python beside a file system of its own, mounted in the folder ``mounted``; print what is left in that."""
    mounted = place / "mounted"
    mounted.mkdir()
    mount = f"mount -t tmpfs -o {options} tmpfs {shlex.quote(str(mounted))}"
    if subprocess.run([*MOUNTED, mount], capture_output=True, check=False).returncode:
        pytest.skip("needs the capability to mount (CAP_SYS_ADMIN), or namespaces of users")
    python = shlex.join([sys.executable, "-c", code])
    script = f"{mount} && cd mounted && {before} && cd .. && {python}; s=$?; ls -A mounted; exit $s"
    return subprocess.run([*MOUNTED, script], cwd=place, capture_output=True, text=True, check=False)


def command(*arguments: str, temporary: str = "") -> str:
    """The program of a command, with another folder of temporary files."""
    chosen = f"os.environ['TMPDIR'] = {temporary!r}; " if temporary else ""
    return f"import os, sys; {chosen}from tvm_coexec.cli import main; sys.exit(main({list(arguments)}))"


@pytest.mark.parametrize(
    ("options", "before", "left"), [("noexec", "true", []), (FULL, FILLED, ["full"])], ids=["noexec", "full"]
)
def test_a_module_runs_whatever_the_temporary_folder_is_like(
    options: str, before: str, left: list[str], result: np.ndarray, device: Device, tmp_path: Path
) -> None:
    run = ["run", "m.coexec", "--device", device.info.alias, "--input", "x.npy", "--out", "y.npz"]
    done = run_beside(options, before, command(*run, temporary=str(tmp_path / "mounted")), tmp_path)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "y.npz")["t1"], result)
    assert done.stdout.splitlines()[1:] == left


def test_a_temporary_folder_may_be_missing(result: np.ndarray, device: Device, tmp_path: Path) -> None:
    run = ["run", "m.coexec", "--device", device.info.alias, "--input", "x.npy", "--out", "y.npz"]
    code = command(*run, temporary=str(tmp_path / "missing"))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "y.npz")["t1"], result)


@pytest.mark.parametrize(
    ("options", "before", "reason", "left"),
    [
        (FULL, FILLED, "No space left on device", ["full"]),
        (FULL, f"{FILLED}; : > y.npz", "No space left on device", ["full", "y.npz"]),
        (FULL, "mount -o remount,ro $PWD", "nothing can be written in", []),
    ],
    ids=["full", "full over a file", "read-only"],
)
def test_results_that_find_no_room_are_told_in_a_line_and_leave_nothing(
    options: str, before: str, reason: str, left: list[str], result: np.ndarray, device: Device, tmp_path: Path
) -> None:
    run = ["run", "m.coexec", "--device", device.info.alias, "--out", "mounted/y.npz"]
    done = run_beside(options, before, command(*run), tmp_path)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and line.startswith("tvm-coexec: error: ") and reason in line
    assert [one for one in done.stdout.splitlines() if not one.startswith("t1:")] == left
    assert result.size


@pytest.mark.parametrize("before", ["true", "echo old > m.coexec"], ids=["new", "over another"])
def test_a_module_that_finds_no_room_leaves_what_was_there(before: str, result: np.ndarray, tmp_path: Path) -> None:
    code = "from tvm_coexec.module.package import Package; Package.read('m.coexec').write('mounted/m.coexec')"
    done = run_beside(FULL, before, f"{code}; raise SystemExit('it was written')", tmp_path)
    assert done.stderr.splitlines()[-1] == "OSError: [Errno 28] No space left on device: 'mounted/m.coexec'"
    assert done.stdout.splitlines() == ([] if before == "true" else ["m.coexec"])
    assert result.size


def test_modules_that_are_written_to_one_place_at_once_do_not_mix(device: Device, tmp_path: Path) -> None:
    place = tmp_path / "m.coexec"
    built = [chain(device, 1, *shape)[0] for shape in ((8, 64), (8, 96))]

    def write(package: Package) -> None:
        for _ in range(10):
            package.write(place)
            assert Package.read(place).to_bytes() in contents

    contents = [package.to_bytes() for package in built]
    with ThreadPoolExecutor(len(built)) as pool:
        list(pool.map(write, built))
    assert list(tmp_path.iterdir()) == [place]
