"""This process is behind :func:`tvm_coexec.rpc.tracker.local_tracker`: a tracker, and a server for a local device.

It reads the device to offer, if there is one, from standard input, answers with the tracker's port, and lives until
standard input closes, which happens however its parent ends.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import threading
from typing import Any, TextIO

from tvm_coexec.errors import CoexecError, last_line
from tvm_coexec.opencl.choice import DeviceChoice

from .lease import TrackerAddress
from .remote import register
from .server import POLL_S, DeviceServer, stop_on_signals, use_few_resources
from .tracker import LOOPBACK, device_key
from .tracking import TrackerProcess


def _run(choice: DeviceChoice | None, stop: threading.Event, answers: TextIO) -> None:
    tracker = TrackerProcess()
    try:
        if choice is None:
            _answer(answers, port=tracker.port)
            stop.wait()
        else:
            _serve(tracker, choice, stop, answers)
    finally:
        tracker.close()


def _serve(tracker: TrackerProcess, choice: DeviceChoice, stop: threading.Event, answers: TextIO) -> None:
    address = TrackerAddress(LOOPBACK, tracker.port)
    server = DeviceServer(address, device_key(choice.name), functools.partial(register, choice))
    try:
        server.wait_until_registered(stop)
        _answer(answers, port=address.port)
        while not stop.wait(POLL_S):
            tracker.keep_alive()
            server.keep_alive()
    finally:
        server.close()


def _answer(answers: TextIO, **fields: Any) -> None:
    with contextlib.suppress(BrokenPipeError):  # the parent has ended, and so will this process
        print(json.dumps(fields), file=answers, flush=True)


def _wait_for_parent(stop: threading.Event) -> None:
    sys.stdin.read()
    stop.set()


def main() -> int:
    """Serve until standard input closes."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nobody reads on: what children print must not fill the pipe
    stop = stop_on_signals()
    fields = json.loads(sys.stdin.readline())
    threading.Thread(target=_wait_for_parent, args=(stop,), daemon=True).start()
    choice = fields and DeviceChoice.from_json(fields)
    try:
        if choice is not None:
            choice.check()  # by which a wrong name is told before anything is started for it
    except CoexecError as error:
        _answer(answers, refusal=last_line(error))
        return 1
    use_few_resources()
    try:
        _run(choice, stop, answers)
    except (CoexecError, OSError) as error:
        _answer(answers, error=last_line(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
