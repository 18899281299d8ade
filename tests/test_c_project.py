"""The C project around a module: built by a plain C compiler, it computes what Python computes, and needs no Python."""

import errno
import os
import subprocess
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from small_modules import chain

from tvm_coexec.cli import main
from tvm_coexec.compiler.toolchain import c_compiler
from tvm_coexec.files import whole_folder
from tvm_coexec.module.package import Package
from tvm_coexec.opencl.loader import intel_library, opencl_loader
from tvm_coexec.runtime.device import Device
from tvm_coexec.runtime.module import Module

PLATFORMS = {"pocl": "Portable Computing Language", "intel": "Intel(R) OpenCL"}


@pytest.mark.slow
def test_an_application_computes_what_python_does(device: Device, tmp_path: Path) -> None:
    package, _ = chain(device, 4, 5, 96)
    module = Module(package, device)
    module.export(tmp_path / "m.coexec")
    app = tmp_path / "app"
    assert main(["export", str(tmp_path / "m.coexec"), "--c-project", str(app)]) == 0
    sources = [app / "main.c", *sorted((app / "libcoexec").glob("*.c"))]
    flags = ["-std=gnu11", "-O1", "-pthread", "-Wall", "-Werror", f"-I{app / 'libcoexec'}"]
    subprocess.run([c_compiler(), *flags, *sources, "-ldl", "-lm", "-o", app / "example"], check=True)
    x = np.random.default_rng(0).standard_normal((5, 96)).astype(np.float32)
    x.tofile(tmp_path / "x.bin")
    command = [
        app / "example",
        app / "model.coexec",
        "--device",
        PLATFORMS[device.info.alias],
        "--cache",
        tmp_path / "kernels",
        "--out",
        tmp_path,
        tmp_path / "x.bin",
    ]
    ran = subprocess.run(
        command, check=False, env=_without_python(device, tmp_path), capture_output=True, text=True, timeout=120
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "first result after" in ran.stdout and list((tmp_path / "kernels").glob("coexec-*.bin"))
    np.testing.assert_array_equal(np.fromfile(tmp_path / "0.bin", np.float32).reshape(5, 96), module(x))


def _without_python(device: Device, folder: Path) -> dict[str, str]:
    """An environment that knows nothing of Python's packages; of drivers it says what discovery tells them here."""
    (folder / "libOpenCL.so").symlink_to(opencl_loader())  # it may be pyopencl's alone, which wants the home
    vendors = intel_library() if device.info.alias == "intel" else "/etc/OpenCL/vendors"
    settings = {"OCL_ICD_VENDORS": vendors, "POCL_MAX_PTHREAD_COUNT": len(device.gpu_cores)}
    settings |= dict.fromkeys(("HOME", "LD_LIBRARY_PATH", "PYOPENCL_HOME"), folder)
    path = {"PATH": "/usr/bin:/bin"}  # PoCL calls a linker
    return {name: str(value) for name, value in (settings | path).items()}


def test_a_project_is_written_into_an_empty_folder_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kept").write_text("mine")
    assert main(["export", "m.coexec", "--c-project", str(tmp_path)]) == 1
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_copy_that_does_not_fit_is_told_by_its_place(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught, whole_folder(tmp_path / "app") as partial:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), __file__, None, str(partial / "copy"))
    assert caught.value.filename == str(tmp_path / "app") and not list(tmp_path.iterdir())


def test_a_folder_that_is_filled_by_others_meanwhile_is_told_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="not empty") as caught, whole_folder(tmp_path / "app"):
        (tmp_path / "app").mkdir()
        (tmp_path / "app" / "theirs").touch()
    assert caught.value.filename == str(tmp_path / "app") and len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_is_there_is_filled_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with whole_folder(".") as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "file").write_text("whole")
    assert Path("inner/file").read_text() == "whole"  # the folder that the process stands in was not replaced
    assert list(tmp_path.iterdir()) == [tmp_path / "inner"]


def test_a_folder_that_is_there_and_filled_meanwhile_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="not empty"), whole_folder(tmp_path) as partial:
        (partial / "ours").touch()
        (tmp_path / "theirs").touch()
    assert list(tmp_path.iterdir()) == [tmp_path / "theirs"]


@pytest.mark.parametrize("is_there", [True, False])
def test_a_project_is_whole_or_is_not_there(
    is_there: bool, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chain(device, 1, 8, 64)[0].write(tmp_path / "m.coexec")
    app = tmp_path / "app"
    if is_there:
        app.mkdir()

    def fill_disk(package: Package, file: IO[bytes]) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)

    monkeypatch.setattr(Package, "write_to", fill_disk)
    assert main(["export", str(tmp_path / "m.coexec"), "--c-project", str(app)]) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"tvm-coexec: error: {app} cannot be used (No space left on device); free some space there"
    ]
    assert sorted(path.name for path in tmp_path.rglob("*")) == (["app", "m.coexec"] if is_there else ["m.coexec"])


def test_a_disk_that_is_full_at_once_is_told_of_as_one(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chain(device, 1, 8, 64)[0].write(tmp_path / "m.coexec")

    def fill_disk(_source: object, copy: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(copy))

    monkeypatch.setattr("shutil.copyfile", fill_disk)
    app = tmp_path / "app"
    assert main(["export", str(tmp_path / "m.coexec"), "--c-project", str(app)]) == 1
    assert f"{app} cannot be used (No space left on device); free some space there" in capsys.readouterr().err
    assert not app.exists()
