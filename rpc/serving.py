"""Serves a device's sessions, one after the other, each in a forked process: what a device server's process does.

TVM's own loop ends with the first connection that is silent, garbled or closed early, and with the first session that
dies. This one goes on, and whatever it starts ends with it, however it ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from tvm_coexec.errors import last_line

from .door import Client, Door
from .lease import TrackerAddress
from .registration import Registration

_PING_S = 2.0
_PARENT_POLL_S = 1.0
_RETRY_S = 0.5
"""How often the tracker is asked whether it still knows the server, whether the server is still wanted, and whether a
tracker that is gone has come back.
"""

_PARENT_DEATH_SIGNAL = 1
"""Linux's ``PR_SET_PDEATHSIG``."""


def start_serving(
    tracker: TrackerAddress,
    key: str,
    prepare: Callable[[], None],
    host: str,
    ports: tuple[int, int],
    folder: str,
    parent: int,
) -> str | None:
    """Begin to serve in this process, which the parent has started for it; why that is not possible, if so.

    Parameters
    ----------
    tracker, key
        Where the device is offered, and under which name.
    prepare
        Registers what sessions may call.
    host, ports
        Where to listen.
    folder
        For the files of sessions; the parent removes it.
    parent
        The process that this one ends with.
    """
    try:
        door = Door(host, ports, key)
    except OSError as error:
        return f"it cannot listen on {host} ({error.strerror or error})"
    prepare()
    threading.excepthook = _end_process
    threading.Thread(target=_Serving(tracker, key, door, Path(folder), parent).serve).start()
    return None


class _Serving:
    """The loop: registers, waits for a client, serves it."""

    def __init__(self, tracker: TrackerAddress, key: str, door: Door, folder: Path, parent: int) -> None:
        self._tracker, self._key, self._door = tracker, key, door
        self._folder, self._parent = folder, parent
        self._registration: Registration | None = None

    def serve(self) -> None:
        """Serve until the parent ends."""
        while self._is_wanted():
            try:
                if self._registration is None:
                    self._registration = Registration(self._tracker, self._key, self._door.port)
                client = self._await_client(self._registration)
                if client is not None:
                    self._serve(client)
                    self._registration.offer()
            except OSError:  # the tracker has gone, or is not there yet
                self._forget_tracker()
                self._door.admit(None, _RETRY_S)
        shutil.rmtree(self._folder, ignore_errors=True)  # which the parent can no longer do

    def _is_wanted(self) -> bool:
        return os.getppid() == self._parent

    def _forget_tracker(self) -> None:
        if self._registration is not None:
            self._registration.close()
        self._registration = None

    def _await_client(self, registration: Registration) -> Client | None:
        client = self._door.admit(registration.match_key, _PING_S, also=[registration.socket])
        if client is None:
            registration.renew()  # which also finds that the tracker has gone
        return client

    def _serve(self, client: Client) -> None:
        """Serve a client until it goes, or its time is over."""
        ends = None if client.session_timeout_s is None else time.monotonic() + client.session_timeout_s
        with TemporaryDirectory(dir=self._folder) as folder, contextlib.closing(client.socket):
            process = multiprocessing.get_context("fork").Process(
                target=self._run_session, args=(client.socket, folder, os.getpid())
            )
            process.start()
            while process.is_alive() and self._is_wanted() and (ends is None or time.monotonic() < ends):
                left_s = _PARENT_POLL_S if ends is None else min(_PARENT_POLL_S, max(ends - time.monotonic(), 0.0))
                self._door.admit(None, left_s, also=[process.sentinel])
            if process.is_alive():
                is_over = ends is not None and time.monotonic() >= ends
                _kill_tree(process)
                if is_over:  # else the server is ended, and the session breaks off
                    _say_that_time_is_over(client)
            process.join()

    def _run_session(self, connection: socket.socket, folder: str, server: int) -> None:
        """What the forked process does: answer the client, with nothing else of this process's left open."""
        end_with(server)
        self._door.close()
        self._forget_tracker()
        os.chdir(folder)
        import tvm_ffi

        tvm_ffi.register_global_func("tvm.rpc.server.workpath", lambda name: str(Path(folder, name)), override=True)
        answer(connection)


def answer(connection: socket.socket) -> None:
    """Answer a client until it goes; one that was killed resets the connection, and is told of in a line."""
    from tvm.rpc import _ffi_api

    try:
        _ffi_api.ServerLoop(connection.fileno())
    except RuntimeError as error:  # of the connection: what a function raises goes to the client
        _tell(f"a session broke off: {last_line(error)}")


def end_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends: one whose kernels hang cannot do that itself."""
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _kill_tree(process: multiprocessing.process.BaseProcess) -> None:
    from tvm.support.popen_pool import kill_child_processes

    assert process.pid is not None
    kill_child_processes(process.pid)
    process.kill()
    process.join()


def _say_that_time_is_over(client: Client) -> None:
    """Send what TVM's client raises; the session that might have been writing as well is dead by now."""
    from tvm.rpc import _ffi_api

    with contextlib.suppress(Exception):  # the client has gone as well
        _ffi_api.ReturnException(
            client.socket.fileno(), f"RPCSessionTimeoutError: the session of {client.session_timeout_s} s is over"
        )


def _end_process(failure: threading.ExceptHookArgs) -> None:
    _tell(f"{failure.exc_value}; the device's server starts anew")
    os._exit(1)


def _tell(line: str) -> None:
    with contextlib.suppress(OSError):  # a log on a full disk ends no server
        print(f"tvm-coexec: {line}", file=sys.stderr, flush=True)
