"""One tuner for a profile and for a device: the second is told who holds it, and a killed one holds nothing."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import tvm_coexec
from tvm_coexec.errors import MeasurementError
from tvm_coexec.opencl.discovery import find_device
from tvm_coexec.tuning import alone
from tvm_coexec.tuning.alone import alone_with_device, alone_with_profile

pytestmark = pytest.mark.one_runtime

HOLDING = """
import sys, time
from pathlib import Path
from tvm_coexec.tuning.alone import alone_with_device, alone_with_profile
with alone_with_profile(Path(sys.argv[1])), alone_with_device("a device"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_told_who_holds_what_until_that_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    holder = subprocess.Popen([sys.executable, "-c", HOLDING, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        told = f"is being tuned or measured by process {holder.pid} since 2"
        with pytest.raises(MeasurementError, match=f"the profile {tmp_path} {told}"), alone_with_profile(tmp_path):
            pass
        with pytest.raises(MeasurementError, match=f"the device a device {told}"), alone_with_device("a device"):
            pass
        with alone_with_device("another device"):
            pass
    finally:
        holder.kill()
        holder.wait()
    with alone_with_profile(tmp_path), alone_with_device("a device"):
        pass


def test_no_lock_is_better_than_no_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    monkeypatch.setattr(tempfile, "tempdir", "/dev/null")
    with alone_with_device("a device"), alone_with_device("a device"):
        pass


@pytest.mark.parametrize("cache", ["mine", "/dev/null"])
def test_a_device_is_the_machines_whatever_cache_its_users_have(
    cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "yours"))
    with alone_with_device("a device"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / cache))
        with pytest.raises(MeasurementError, match="the device a device is being tuned"), alone_with_device("a device"):
            pass


def test_containers_that_share_a_cache_share_the_device_and_other_machines_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    for temporary in ("one", "two", "three"):
        (tmp_path / temporary).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "one"))
    with alone_with_device("a device"):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "two"))
        with pytest.raises(MeasurementError, match="the device a device is being tuned"), alone_with_device("a device"):
            pass
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "three"))
        monkeypatch.setattr(alone, "_this_boot", lambda: "another machine")
        with alone_with_device("a device"):
            pass


@pytest.mark.slow
def test_a_device_is_tuned_by_one_at_a_time(device_name: str, tmp_path: Path) -> None:
    told = f"is being tuned or measured by process {os.getpid()}"
    with alone_with_device(find_device(device_name).name), pytest.raises(MeasurementError, match=told):
        tvm_coexec.tune(tmp_path / "profile", device=device_name, minutes=0.01)
    assert not (tmp_path / "profile").exists()
