"""Starts servers that offer a device: ours, which tell what a test says, and TVM's own."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tvm_coexec.opencl.loader import opencl_loader
from tvm_coexec.rpc.lease import TrackerAddress, TrackerConnection
from tvm_coexec.rpc.server import DeviceServer

_RUNTIME_ALONE = "TVM_USE_RUNTIME_LIB"
"""Servers load no compiler, as those of the product and of phones do not."""


@contextmanager
def device_server(address: TrackerAddress, key: str, prepare: Callable[[], None]) -> Iterator[DeviceServer]:
    """Our server, once it is registered."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(_RUNTIME_ALONE, "1")
        server = DeviceServer(address, key, prepare)
    try:
        server.wait_until_registered(threading.Event())
        yield server
    finally:
        server.close()


@contextmanager
def stock_server(address: TrackerAddress, key: str) -> Iterator[None]:
    """TVM's own server, once it is registered."""
    with tempfile.TemporaryDirectory() as loaders:
        Path(loaders, "libOpenCL.so.1").symlink_to(opencl_loader())  # pyopencl's own, which no server would find
        command = [sys.executable, "-m", "tvm.exec.rpc_server", "--host=127.0.0.1", "--silent", f"--key={key}"]
        environment = {**os.environ, "LD_LIBRARY_PATH": loaders, "TMPDIR": loaders, _RUNTIME_ALONE: "1"}
        with subprocess.Popen([*command, f"--tracker={address}"], start_new_session=True, env=environment) as server:
            try:
                deadline = time.monotonic() + 60
                while key not in _known(address):
                    assert time.monotonic() < deadline and server.poll() is None
                    time.sleep(0.1)
                yield
            finally:
                os.killpg(server.pid, signal.SIGKILL)


def _known(address: TrackerAddress) -> list[str]:
    with TrackerConnection(address, 20) as connection:
        return connection.keys()
