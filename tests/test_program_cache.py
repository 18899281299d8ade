"""Built OpenCL programs are kept from one process to the next, and made anew where what is kept is damaged."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_modules import chain

from tvm_coexec.module.package import Package
from tvm_coexec.runtime.device import Device, open_device
from tvm_coexec.runtime.module import Module

INPUT = np.random.default_rng(0).standard_normal((5, 96)).astype(np.float32)


def _result(package: Package, device_name: str) -> np.ndarray:
    """What a module computes on a device that has built nothing yet."""
    opened = open_device(device_name)
    try:
        result: np.ndarray = Module(package, opened)(INPUT)
    finally:
        opened.close()
    return result


@pytest.mark.slow
def test_what_is_kept_is_made_anew_where_it_is_damaged(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    package, _ = chain(device, 2, 5, 96)
    name = device.info.alias
    expected = _result(package, name)
    kept = sorted((tmp_path / "tvm-coexec" / "programs").glob("coexec-*.bin"))
    whole = [file.read_bytes() for file in kept]
    assert kept
    for place in (0, 20, -1):
        damaged = [bytes([*content[:place], content[place] ^ 1, *content[place:][1:]]) for content in whole]
        for file, content in zip(kept, damaged, strict=True):
            file.write_bytes(content)
        np.testing.assert_array_equal(_result(package, name), expected)
        assert all(file.read_bytes() != content for file, content in zip(kept, damaged, strict=True))
        np.testing.assert_array_equal(_result(package, name), expected)


_RUN = """
import sys
import numpy as np
import tvm_coexec
module = tvm_coexec.load(sys.argv[1], device="pocl")
np.save(sys.argv[2], module(np.load(sys.argv[3])))
"""


@pytest.mark.slow
@pytest.mark.parametrize("device_name", ["pocl"], indirect=True)
def test_the_source_of_a_program_of_pocl_is_read_once(device: Device, tmp_path: Path) -> None:
    """Reading it takes PoCL most of the time of a load, compiled kernels of its own or not."""
    package, _ = chain(device, 2, 5, 96)
    package.write(tmp_path / "m.coexec")
    np.save(tmp_path / "x.npy", INPUT)
    compiled = tmp_path / "pocl"
    environment = os.environ | {"POCL_CACHE_DIR": str(compiled), "XDG_CACHE_HOME": str(tmp_path / "ours")}
    results, programs = [], []
    for number in range(2):
        shutil.rmtree(compiled, ignore_errors=True)
        compiled.mkdir()
        files = [str(tmp_path / name) for name in ("m.coexec", f"{number}.npy", "x.npy")]
        subprocess.run([sys.executable, "-c", _RUN, *files], env=environment, check=True, timeout=300)
        results.append(np.load(tmp_path / f"{number}.npy"))
        programs.append(len(list(compiled.rglob("program.bc"))))
    (kept,) = (tmp_path / "ours" / "tvm-coexec" / "programs").glob("coexec-*.bin")
    assert b"BC\xc0\xde" in kept.read_bytes()
    assert (
        programs[1] == programs[0] - 1
    )  # PoCL's own cache has what was made of the source, and of what was made of it
    np.testing.assert_array_equal(*results)
