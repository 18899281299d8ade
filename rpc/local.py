"""The process behind :func:`tvm_coexec.rpc.tracker.local_tracker`: a tracker, and a server for a local device.

It reads the device to offer, if there is one, from standard input, answers with the tracker's port, and lives until
standard input closes, which happens however its parent ends.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import sys
import threading
from collections.abc import Iterator
from typing import Any, TextIO

from tvm_coexec.errors import CoexecError, last_line
from tvm_coexec.runtime.device import DeviceChoice

from .lease import TrackerAddress
from .remote import register
from .server import DeviceServer, keep_off_measured_cores, stop_on_signals
from .tracker import LOOPBACK, device_key

_PORTS = (9190, 9990)
"""Where a tracker may listen, from a random port on: two that start at once may both take one port for free."""


def _run(choice: DeviceChoice | None, stop: threading.Event, answers: TextIO) -> None:
    from tvm.rpc.tracker import Tracker

    with _children_without_stderr():
        tracker = Tracker(LOOPBACK, random.randrange(*_PORTS), _PORTS[1], silent=True)
    try:
        address = TrackerAddress(LOOPBACK, tracker.port)
        if choice is None:
            _answer(answers, port=address.port)
            stop.wait()
        else:
            _serve(address, choice, stop, answers)
    finally:
        tracker.terminate()


def _serve(address: TrackerAddress, choice: DeviceChoice, stop: threading.Event, answers: TextIO) -> None:
    server = DeviceServer(address, device_key(choice.name), functools.partial(register, choice))
    try:
        server.wait_until_registered(stop)
        _answer(answers, port=address.port)
        server.serve(stop)
    finally:
        server.close()


def _answer(answers: TextIO, **fields: Any) -> None:
    print(json.dumps(fields), file=answers, flush=True)


@contextlib.contextmanager
def _children_without_stderr() -> Iterator[None]:
    """For the tracker, which warns of every server that vanishes, even when it is told to be silent."""
    stderr = sys.stderr.fileno()
    kept = os.dup(stderr)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stderr)
    try:
        yield
    finally:
        os.dup2(kept, stderr)
        os.close(kept)
        os.close(nowhere)


def _wait_for_parent(stop: threading.Event) -> None:
    sys.stdin.read()
    stop.set()


def main() -> int:
    """Serve until standard input closes."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nobody reads on: what children print must not fill the pipe
    stop = stop_on_signals()
    keep_off_measured_cores()
    fields = json.loads(sys.stdin.readline())
    threading.Thread(target=_wait_for_parent, args=(stop,), daemon=True).start()
    try:
        _run(fields and DeviceChoice.from_json(fields), stop, answers)
    except (CoexecError, OSError, ValueError) as error:
        _answer(answers, error=last_line(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
