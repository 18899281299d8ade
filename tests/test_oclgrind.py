"""A sample of kernels under Oclgrind, which sees each access outside a buffer and each race between work-items."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

_PLACES = sorted(Path("/usr/lib").glob("**/liboclgrind-rt-icd.so"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not _PLACES, reason="needs Oclgrind; try `apt install oclgrind`"),
]


def reports(folder: Path, *arguments: str) -> list[str]:
    """What Oclgrind finds while a process runs."""
    (folder / "oclgrind.icd").write_text(f"{_PLACES[0]}\n")
    log = folder / "log"
    environment = os.environ | {
        "OCL_ICD_VENDORS": str(folder),
        "OCLGRIND_LOG": str(log),
        "OCLGRIND_DATA_RACES": "1",
        "OCLGRIND_BUILD_OPTIONS": "-cl-std=CL1.2",  # it knows no generic addresses, which later versions have
    }
    command = [sys.executable, str(Path(__file__).with_name("oclgrind_process.py")), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [line for line in log.read_text().splitlines() if line.strip()] if log.exists() else []


def test_kernels_keep_to_their_buffers_and_do_not_race(tmp_path: Path) -> None:
    assert not reports(tmp_path)


def test_a_kernel_that_does_neither_is_found(tmp_path: Path) -> None:
    found = "\n".join(reports(tmp_path, "wrong"))
    assert "Invalid write of size 4" in found and "Write-write data race" in found
