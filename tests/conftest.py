"""OpenCL devices for the tests that need one: such a test runs on every OpenCL CPU runtime that is installed."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TypeVar

import platformdirs
import pytest
from hypothesis import settings

import tvm_coexec
from tvm_coexec.errors import DeviceError
from tvm_coexec.layers import Linear
from tvm_coexec.opencl.discovery import find_device
from tvm_coexec.prediction.evaluation import Evaluation
from tvm_coexec.runtime.device import Device, open_device

RUNTIMES = ("pocl", "intel")

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)

STDERR = pytest.StashKey[int]()
"""The stream that is read by whoever runs the tests, whatever is captured."""

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-opencl",
        action="append",
        choices=RUNTIMES,
        default=[],
        help="fail, instead of skipping, the tests of this OpenCL runtime where it is missing; may be repeated",
    )
    parser.addoption("--skip-nothing", action="store_true", help="fail the tests that would be skipped")
    parser.addoption(
        "--quick", action="store_true", help="leave out what is marked slow, and all OpenCL runtimes but PoCL"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[STDERR] = os.dup(2)  # nothing is captured yet
    # devices are held by temporary files and in the user's cache: several who test at once do not wait for each other
    folder = tempfile.mkdtemp(prefix="tvm-coexec-tests-")
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    with contextlib.suppress(OSError):  # what cannot be written holds nothing
        os.environ["XDG_CACHE_HOME"] = str(_own_cache(Path(folder) / "cache"))
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def _own_cache(own: Path) -> Path:
    """The user's cache, but for the folder in which devices are held."""
    usual, name = Path(platformdirs.user_cache_path()), "tvm-coexec"
    for folder in (usual / "pocl", usual / name / "kernels", usual / name / "programs"):
        folder.mkdir(parents=True, exist_ok=True)
    (own / name).mkdir(parents=True)
    for kept in (*usual.iterdir(), *(usual / name).iterdir()):
        if kept.name not in (name, "tvm-coexec-held"):
            (own / kept.relative_to(usual)).symlink_to(kept)
    return own


def pytest_runtest_setup(item: pytest.Item) -> None:
    """See that a crash names the test: OpenCL runtimes put their own handlers in place, whose report is captured."""
    faulthandler.disable()
    faulthandler.enable(file=item.config.stash[STDERR])


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _with_no_skip(item.config, (yield))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _with_no_skip(collector.config, (yield))


def _with_no_skip(config: pytest.Config, report: Report) -> Report:
    """The report, a failure where the test was skipped and must not be; expected failures stay what they are."""
    if report.skipped and config.getoption("--skip-nothing") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which --skip-nothing forbids: {report.longrepr[-1]}"
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Choose the tests."""
    is_quick = config.getoption("--quick")

    def is_wanted(item: pytest.Item) -> bool:
        runtime = _runtime_of(item)
        is_second = runtime not in (None, "pocl")
        if is_quick and (item.get_closest_marker("slow") or is_second):
            return False
        return not (is_second and item.get_closest_marker("one_runtime"))

    config.hook.pytest_deselected(items=[item for item in items if not is_wanted(item)])
    items[:] = [item for item in items if is_wanted(item)]


def _runtime_of(item: pytest.Item) -> str | None:
    """The OpenCL runtime that a test runs on, if it needs one."""
    callspec = getattr(item, "callspec", None)
    return None if callspec is None else callspec.params.get("device_name")


@pytest.fixture(scope="session", params=RUNTIMES)
def device_name(request: pytest.FixtureRequest) -> str:
    """The name of an OpenCL CPU device; the test runs once for each runtime."""
    runtime: str = request.param
    try:
        find_device(runtime)
    except DeviceError as error:
        if runtime in request.config.getoption("--require-opencl"):
            pytest.fail(f"the OpenCL runtime {runtime!r} is required: {error}")
        pytest.skip(f"needs an OpenCL device of {runtime!r}: {error}")
    return runtime


@pytest.fixture(scope="session")
def device(device_name: str) -> Iterator[Device]:
    """The device, open, with its default cores and mechanism."""
    opened = open_device(device_name)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def tuned(device: Device, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Evaluation]]:
    """A profile of the device that was tuned for as short as can be, and what tuning returned; copy it to change it."""
    path = tmp_path_factory.mktemp("tuned") / "profile"
    layers = [Linear(9, 64, 96), Linear(3, 70, 64), Linear(9, 70, 64), Linear(9, 130, 70, ("bias",))]
    families = ["linear", "rowwise"]
    return path, tvm_coexec.tune(path, device=device.info.name, minutes=0.01, layers=layers, families=families)
