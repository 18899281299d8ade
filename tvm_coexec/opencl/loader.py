"""Starts OpenCL in this process: which drivers it loads, and how many threads PoCL gets.

The loader and the drivers read environment variables once, at the first platform query. This is the only place that
sets them; they are put back after that query.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from tvm_coexec.errors import DeviceError, first_line

from .caches import ensure_caches

INTEL_PACKAGE = "intel-opencl-rt"
_SYSTEM_VENDORS = Path("/etc/OpenCL/vendors")
_VENDOR_VARIABLES = ("OCL_ICD_VENDORS", "OPENCL_VENDOR_PATH")
_POCL_THREADS = ("POCL_MAX_PTHREAD_COUNT", "POCL_CPU_MAX_CU_COUNT")  # the second name since PoCL 5
_lock = threading.Lock()
_started_by: int | None = None
"""The process in which the drivers were started."""


def intel_library() -> Path | None:
    """The OpenCL driver of Intel's pip package, if that is installed."""
    try:
        files = metadata.files(INTEL_PACKAGE)
    except metadata.PackageNotFoundError:
        return None
    for file in files or ():
        if file.name == "libintelocl.so":
            path = Path(str(file.locate())).resolve()
            return path if path.exists() else None
    return None


def drivers_limited_by() -> str | None:
    """The environment variable with which the user has chosen the drivers to load."""
    return next((name for name in _VENDOR_VARIABLES if os.environ.get(name)), None)


def import_opencl() -> Any:
    """The module pyopencl, without its cache of Python code: reading that takes longer than making it anew."""
    ensure_caches()
    with _environment({"PYOPENCL_NO_CACHE": "1"}):
        import pyopencl
    return pyopencl


def opencl_loader() -> Path:
    """Path of the OpenCL loader that pyopencl has brought into this process."""
    import_opencl()
    with Path("/proc/self/maps").open() as maps:
        for line in maps:
            path = line.rstrip().partition("/")
            if "libOpenCL" in path[2]:
                return Path("/" + path[2])
    raise DeviceError("no OpenCL loader (libOpenCL) is loaded; run `tvm-coexec doctor`")


def query_devices(worker_count: int) -> tuple[list[tuple[Any, list[Any]]], list[str]]:
    """Every pyopencl platform with its devices, and one line about each platform that fails.

    Parameters
    ----------
    worker_count
        Threads that PoCL gets; without effect if OpenCL has been started in this process before, or if the user has
        set PoCL's own variable.
    """
    global _started_by  # noqa: PLW0603 - a driver starts once a process
    if _started_by not in (None, os.getpid()):
        raise DeviceError(
            "OpenCL was started before this process was forked, and no driver survives that; start processes with "
            "multiprocessing's method 'spawn', or use devices in the forked process alone"
        )
    cl = import_opencl()
    with _lock, contextlib.ExitStack() as settings:
        if _started_by is None:
            settings.enter_context(_environment(_pocl_threads(worker_count)))
            settings.enter_context(_vendors())
        found: list[tuple[Any, list[Any]]] = []
        problems: list[str] = []
        for platform in _platforms(cl):
            try:
                found.append((platform, platform.get_devices()))
            except cl.Error as error:
                problems.append(f"the driver {platform.name.strip()!r} fails: {first_line(error)}")
        _started_by = os.getpid()
        return found, problems


def _platforms(cl: Any) -> list[Any]:
    try:
        return list(cl.get_platforms())
    except cl.LogicError as error:
        if error.code == cl.status_code.PLATFORM_NOT_FOUND_KHR:
            return []
        raise


def _pocl_threads(worker_count: int) -> dict[str, str]:
    if any(os.environ.get(name) for name in _POCL_THREADS):
        return {}
    return dict.fromkeys(_POCL_THREADS, str(worker_count))


@contextlib.contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _vendors() -> Iterator[None]:
    """Have the loader see Intel's pip package beside the system's drivers.

    The package registers itself in a file that names a wrong path, in a folder that no loader reads; so the loader is
    shown a folder with the system's entries and a right one.
    """
    library = intel_library()
    if library is None or drivers_limited_by():
        yield
        return
    with tempfile.TemporaryDirectory(prefix="tvm-coexec-opencl-") as folder:
        for entry in sorted(_SYSTEM_VENDORS.glob("*.icd")):
            shutil.copyfile(entry, Path(folder, entry.name))
        if not any(library.name in Path(entry).read_text() for entry in Path(folder).iterdir()):
            Path(folder, "intel-pip.icd").write_text(f"{library}\n")
        with _environment({"OCL_ICD_VENDORS": folder}):
            yield
