"""TVM's tracker in a process that ends with the one that started it, and that can be started anew at its port."""

from __future__ import annotations

import asyncio
import random
import resource
import secrets
import socket
import subprocess
import threading
from contextlib import suppress

from tvm_coexec.errors import MeasurementError

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
        if not self._worker.is_alive():
            self.close()
            with suppress(OSError):  # that one has ended as well: the next look tries again
                self._start([self.port])

    def close(self) -> None:
        """End the process."""
        self._worker.kill()

    def _start(self, ports: list[int]) -> None:
        from tvm.support.popen_pool import PopenWorker

        self._worker = PopenWorker(stderr=subprocess.DEVNULL)  # it warns of every server that vanishes
        self._worker.send(_track, [ports])
        port = self._worker.recv()
        if port is None:
            self.close()
            raise MeasurementError(f"none of the ports {_PORTS[0]} to {_PORTS[1] - 1} of {LOOPBACK} is free")
        self.port = int(port)


def _track(ports: list[int]) -> int | None:
    """Begin to track servers in this process; the port, or None if none is free."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))  # TVM's tracker never recovers from a lack of handles
    for port in ports:
        try:
            listening = socket.create_server((LOOPBACK, port), backlog=128)
        except OSError:
            continue
        threading.Thread(target=_run_tracker, args=(listening,), daemon=True).start()  # ends with the main thread,
        return port  # which ends when the process that started this one does
    return None


def _run_tracker(listening: socket.socket) -> None:
    from tvm.rpc.tracker import TrackerServerHandler

    asyncio.set_event_loop(asyncio.new_event_loop())
    TrackerServerHandler(listening, secrets.token_hex()).run()
