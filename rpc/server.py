"""Offers a device to a tracker's clients: a process of its own serves them, and is started anew whenever it ends."""

from __future__ import annotations

import argparse
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from tvm_coexec.cli import one_line
from tvm_coexec.cli.options import add_core_options, add_device_option
from tvm_coexec.cli.streams import usable_streams
from tvm_coexec.errors import CoexecError, MeasurementError
from tvm_coexec.opencl.choice import DeviceChoice
from tvm_coexec.processes import search_path

from .lease import TrackerAddress, TrackerConnection
from .remote import register
from .serving import start_serving
from .tracker import LOOPBACK, device_key, parse_tracker

if TYPE_CHECKING:
    from .workers import Worker

POLL_S = 0.2
"""How often to see that the processes that were started still run."""

_PORTS = (9091, 9990)
"""TVM's own first port, and the last that is tried."""
_REGISTER_TIMEOUT_S = 30.0
"""Loading TVM takes a server seconds, and a busy machine many of them."""

_SETTINGS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "TVM_USE_RUNTIME_LIB")
"""Threads of numpy's would disturb what is being timed. TVM's compiler, which takes half a second and 110 MB, is needed
where modules are built, and not where they run."""


class DeviceServer:
    """A server that is registered with a tracker.

    Parameters
    ----------
    tracker, key
        Where the device is offered, and under which name.
    prepare
        Run in the server's process before it serves; registers what sessions may call.
    host
        The address to listen on. TVM's RPC checks no password and encrypts nothing: whoever reaches the address can
        run any code as this user.

    Raises
    ------
    MeasurementError
        The server cannot listen there.
    """

    def __init__(self, tracker: TrackerAddress, key: str, prepare: Callable[[], None], *, host: str = LOOPBACK) -> None:
        self._tracker, self._key, self._prepare, self._host = tracker, key, prepare, host
        self._folder = TemporaryDirectory(prefix="tvm-coexec-sessions-")
        try:
            self._worker = self._start()
        except BaseException:
            self._folder.cleanup()
            raise

    def wait_until_registered(self, stop: threading.Event) -> None:
        """Return once clients can request the device, or when ``stop`` is set.

        Raises
        ------
        MeasurementError
            The tracker is out of reach, or does not take the server within 30 s.
        """
        deadline = time.monotonic() + _REGISTER_TIMEOUT_S
        with TrackerConnection(self._tracker, _REGISTER_TIMEOUT_S) as tracker:
            while not tracker.servers(self._key):
                if time.monotonic() > deadline:
                    raise MeasurementError(
                        f"the tracker at {self._tracker} does not take the server within {_REGISTER_TIMEOUT_S:g} s;"
                        " restart the tracker"
                    )
                if stop.wait(0.02):
                    return

    def serve(self, stop: threading.Event) -> None:
        """Serve until ``stop`` is set."""
        while not stop.wait(POLL_S):
            self.keep_alive()

    def keep_alive(self) -> None:
        """Start the process that serves anew where it has ended."""
        if not self._worker.is_alive():
            self._worker.kill()
            with suppress(OSError):  # that one has ended as well: the next look tries again
                self._worker = self._start()

    def close(self) -> None:
        """End the server and its sessions."""
        self._worker.kill()
        self._folder.cleanup()

    def _start(self) -> Worker:
        from .workers import Worker

        worker = Worker()
        tracker = TrackerAddress(self._tracker.host, self._tracker.port)  # what else this one holds stays here
        arguments = [tracker, self._key, self._prepare, self._host, _PORTS, self._folder.name, os.getpid()]
        worker.send(start_serving, arguments)
        fault = worker.recv()
        if fault is not None:
            worker.kill()
            raise MeasurementError(f"the device's server does not start: {fault}; choose another --host")
        return worker


def use_few_resources() -> None:
    """Let this process and its children load and start no more than a device's server needs."""
    for name in _SETTINGS:
        os.environ.setdefault(name, "1")


def stop_on_signals() -> threading.Event:
    """Make an event that is set by Ctrl-C, by a request to terminate, and where the terminal is closed."""
    stop = threading.Event()
    stays = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # by nohup
    for number in (signal.SIGINT, signal.SIGTERM, *(() if stays else (signal.SIGHUP,))):
        signal.signal(number, lambda *_: stop.set())
    return stop


def main(arguments: Sequence[str] | None = None) -> int:
    """Offer a device of this machine until the process is told to end."""
    parser = argparse.ArgumentParser(prog="python -m tvm_coexec.rpc.server", description=main.__doc__)
    parser.add_argument("--tracker", required=True, metavar="HOST:PORT", help="the tracker to register with")
    add_device_option(parser)
    add_core_options(parser)
    parser.add_argument("--key", help="the name that clients ask the tracker for; by default made of --device")
    parser.add_argument(
        "--host", default=LOOPBACK, help="address to listen on; whoever reaches it can run any code as this user"
    )
    options = parser.parse_args(arguments)
    with usable_streams():
        return _offer(options)


def _offer(options: argparse.Namespace) -> int:
    stop = stop_on_signals()
    use_few_resources()
    key = options.key or device_key(options.device)
    choice = DeviceChoice(options.device, options.cpu_cores, options.gpu_cores)
    try:
        tracker = parse_tracker(options.tracker)
        with TrackerConnection(tracker, _REGISTER_TIMEOUT_S):
            pass  # one that is out of reach is told before a process is started that loads TVM
        server = DeviceServer(tracker, key, functools.partial(register, choice), host=options.host)
        try:
            server.wait_until_registered(stop)
            _tell(f"offering {key} at the tracker {tracker}")
            server.serve(stop)
        finally:
            server.close()
    except (CoexecError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    return 0


def _tell(line: str) -> None:
    """Print a line; a log on a full disk, or that nobody reads any more, ends no server."""
    try:
        print(line, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python tries again at the end, and complains


if __name__ == "__main__":
    sys.path[:] = search_path()
    sys.exit(main())
