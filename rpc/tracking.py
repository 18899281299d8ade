"""TVM's tracker in a process that ends with the one that started it, and that can be started anew at its port.

The process that starts it does not load TVM for that, which takes a second.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import secrets
import socket
import subprocess
import sys
import threading
from contextlib import suppress

from tvm_coexec.errors import MeasurementError
from tvm_coexec.processes import python

from .tracker import LOOPBACK

_PORTS = (9190, 9990)
"""Where a tracker may listen, from a random port on: two that start at once may both take one port for free."""


class TrackerProcess:
    """A tracker on loopback; a :class:`MeasurementError` says that no port is free."""

    def __init__(self) -> None:
        first = random.randrange(*_PORTS)
        self._start([*range(first, _PORTS[1]), *range(_PORTS[0], first)])

    def keep_alive(self) -> None:
        """Start the process anew where it has ended."""
        if self._process.poll() is not None:
            self.close()
            with suppress(OSError):  # that one has ended as well: the next look tries again
                self._start([self.port])

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        with suppress(BrokenPipeError):
            self._process.communicate()

    def _start(self, ports: list[int]) -> None:
        self._process = subprocess.Popen(
            python(__name__),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # it warns of every server that vanishes
            text=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(ports) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            self.close()
            raise ChildProcessError("the tracker's process ended before it had a port")
        port = json.loads(answer)
        if port is None:
            self.close()
            raise MeasurementError(f"none of the ports {_PORTS[0]} to {_PORTS[1] - 1} of {LOOPBACK} is free")
        self.port = int(port)


def _track(ports: list[int]) -> int | None:
    """Begin to track servers in this process; the port, or None if none is free."""
    from tvm.rpc.tracker import TrackerServerHandler

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))  # TVM's tracker never recovers from a lack of handles
    for port in ports:
        try:
            listening = socket.create_server((LOOPBACK, port), backlog=128)
        except OSError:
            continue

        def run(listening: socket.socket = listening) -> None:
            asyncio.set_event_loop(asyncio.new_event_loop())
            TrackerServerHandler(listening, secrets.token_hex()).run()

        threading.Thread(target=run, daemon=True).start()  # ends with the main thread
        return port
    return None


def main() -> None:
    """Track servers until standard input closes, which happens however the process ends that started this one."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nobody reads on
    port = _track(json.loads(sys.stdin.readline()))
    print(json.dumps(port), file=answers, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
