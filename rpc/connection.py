"""A connection to a TVM RPC server: calls that run in threads, and an end that asks nothing of the other side.

TVM has the server free whatever it handed out, a function say, when the last reference to it goes. Whoever drops that
reference waits for the answer, with Python's lock held and for ever if the device is lost; and TVM aborts the process
where the answer makes no sense, as when a session and the server that ends it have written at once. So functions live
as long as their connection, which is shut down before it goes: on one that is shut down, nothing is asked.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Any, TypeVar

from tvm_coexec.errors import MeasurementError, last_line

from .lease import Lease

_Result = TypeVar("_Result")

_CONNECT_TIMEOUT_S = 10.0
"""Enough for a phone on a busy wireless network."""

_LINK = (
    (socket.TCP_KEEPIDLE, 10),
    (socket.TCP_KEEPINTVL, 5),
    (socket.TCP_KEEPCNT, 3),
    (socket.TCP_USER_TIMEOUT, 25_000),
)
"""The kernel gives up a connection whose other side has not answered for about 25 s: these options ask it to."""


class Connection:
    """What a session does by way of TVM, one call at a time.

    Parameters
    ----------
    remote
        Of ``tvm.rpc.connect``.
    """

    def __init__(self, remote: Any) -> None:
        self._remote = remote
        self._libraries: dict[str, Any] = {}
        self._functions: dict[str, Any] = {}
        self._in_use = threading.Lock()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # TVM may be half gone where the interpreter ends
            self._close()

    def upload(self, content: bytes, name: str) -> Future[None]:
        """Write a file in the session's folder."""
        return self._start(lambda: self._remote.upload(bytearray(content), name))

    def call(self, function: str, request: str) -> Future[str]:
        """Call a function that the server has registered, or one of a library that is loaded there."""

        def work() -> str:
            if function not in self._functions:
                library, _, name = function.rpartition(":")
                source = self._libraries[library] if library else self._remote
                self._functions[function] = source.get_function(name)
            return str(self._functions[function](request))

        return self._start(work)

    def has(self, function: str) -> Future[bool]:
        """Whether the server has registered a function."""

        def work() -> bool:
            try:
                self._functions[function] = self._remote.get_function(function)
            except AttributeError:  # what TVM raises of one that is not there
                return False
            return True

        return self._start(work)

    def download(self, path: str) -> Future[bytes]:
        """Read a file of the session's folder, or one that is named from the root on; nothing if it is not there."""

        def work() -> bytes:
            from tvm.error import RPCError, RPCSessionTimeoutError

            try:
                return bytes(self._remote.download(path))
            except RPCSessionTimeoutError:
                raise
            except RPCError:
                return b""

        return self._start(work)

    def load(self, library: str) -> Future[None]:
        """Load a library that was uploaded; its functions may then be called as ``library:function``."""

        def work() -> None:
            self._libraries[library] = self._remote.load_module(library)

        return self._start(work)

    def shut_down(self) -> None:
        """End the session: now, or when the call in progress returns; later calls fail."""
        if self._in_use.acquire(blocking=False):
            try:
                self._close()
            finally:
                self._in_use.release()
        else:
            self._start(self._close)

    def _start(self, work: Callable[[], _Result]) -> Future[_Result]:
        def run() -> _Result:
            with self._in_use:
                return work()

        return in_thread(run)

    def _close(self) -> None:
        self._remote.get_function("CloseRPCConnection")()


def connect_to(lease: Lease, session_timeout_s: float, timeout_s: float) -> Connection:
    """Use a lease.

    Raises
    ------
    MeasurementError
        The server does not answer in time.
    """
    import tvm.rpc

    def connect() -> Connection:
        connection = Connection(tvm.rpc.connect(lease.host, lease.port, lease.match_key, session_timeout_s))
        with contextlib.suppress(OSError):  # it only lets a cut link be told sooner
            watch_link(lease.host, lease.port)
        return connection

    timeout_s = round(min(_CONNECT_TIMEOUT_S, timeout_s), 1)
    try:
        return in_thread(connect).result(timeout_s)
    except (RuntimeError, FutureTimeoutError) as error:
        reason = last_line(error) if isinstance(error, RuntimeError) else f"not within {timeout_s:g} s"
        raise MeasurementError(
            f"the device at {lease.address} is registered and does not answer ({reason}); restart its server, or, where"
            " the device has another address than its tracker sees, start it with --custom-addr ADDRESS, by a cable"
            f" after `adb forward tcp:{lease.port} tcp:{lease.port}` with --custom-addr 127.0.0.1"
        ) from None


def watch_link(host: str, port: int) -> None:
    """Have the kernel tell where the way to a server is cut: TVM, whose sockets these are, would wait for ever."""
    addresses = {one[4][0] for one in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    for own, (peer, its_port) in _connections():
        if peer in addresses and its_port == port:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _LINK:
                own.setsockopt(socket.IPPROTO_TCP, option, value)


def _connections() -> Iterator[tuple[socket.socket, tuple[str, int]]]:
    """List this process's TCP connections, whoever opened them, with address and port of the other side."""
    for entry in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):  # it is closed by now, or is connected to nobody
            descriptor = int(entry.name)
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                with socket.socket(fileno=os.dup(descriptor)) as own:
                    if own.family in (socket.AF_INET, socket.AF_INET6) and own.type == socket.SOCK_STREAM:
                        yield own, own.getpeername()[:2]


def in_thread(work: Callable[[], _Result]) -> Future[_Result]:
    """Run in a thread that may be left behind: a blocked request cannot be cancelled."""
    future: Future[_Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # raised again in the thread that waits
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def why_it_broke_off(error: RuntimeError) -> str:
    """TVM says ``kShutdown`` where the other side closed the connection, for whatever reason."""
    reason = last_line(error)
    if os.strerror(errno.ETIMEDOUT) in reason:
        return "broke off: the way to it is cut, or its machine stands still; check its network, or its cable"
    how = "was ended by its server (TVM's kShutdown)" if "kShutdown" in reason else f"broke off ({reason})"
    return (
        f"{how}: its process died, as by a kernel that crashes or for lack of memory, or its server was stopped; look"
        " at what the server printed, and start it again where its tracker no longer lists it"
    )
