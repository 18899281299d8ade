"""Lets clients in at a device server's port: only who names the lease's key, and soon, gets a session.

Whoever else connects (a port scanner, a client whose lease is over) is dropped, and costs no client its turn.
"""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait

_PATIENCE_S = 5.0
"""What a connection is given to say who it is."""

_MOST_GREETINGS = 64
"""Connections that may be about to say who they are; more push out the oldest."""

_MOST_KEY_BYTES = 4096
"""A client says its key first: whoever says more is none of TVM's."""
_HEADER = struct.Struct("<ii")
_TIMEOUT_OPTION = "-timeout="


@dataclass(frozen=True)
class Client:
    """Who was let in."""

    socket: socket.socket
    session_timeout_s: float | None


@dataclass
class _Greeting:
    """What a connection has said so far, and until when it may go on."""

    deadline: float = field(default_factory=lambda: time.monotonic() + _PATIENCE_S)
    said: bytearray = field(default_factory=bytearray)

    def missing_bytes(self) -> int:
        """How many bytes are left to say; a ``ValueError`` where this is no client of TVM's RPC."""
        from tvm.rpc.base import RPC_MAGIC

        if len(self.said) < _HEADER.size:
            return _HEADER.size - len(self.said)
        magic, key_bytes = _HEADER.unpack_from(self.said)
        if magic != RPC_MAGIC or not 0 < key_bytes <= _MOST_KEY_BYTES:
            raise ValueError("no client of TVM's RPC")
        return _HEADER.size + int(key_bytes) - len(self.said)

    def words(self) -> list[str]:
        """The key and the options of a greeting that is complete."""
        return self.said[_HEADER.size :].decode().split() or [""]


class Door:
    """Listens at the first free port of a range.

    Parameters
    ----------
    host
        The address to listen on.
    ports
        From the first to, without it, the last.
    key
        The device's, which a client is told.
    """

    def __init__(self, host: str, ports: tuple[int, int], key: str) -> None:
        self._key = key
        self._listening = _listen(host, ports)
        self._listening.setblocking(False)
        self._greetings: dict[socket.socket, _Greeting] = {}

    @property
    def port(self) -> int:
        return int(self._listening.getsockname()[1])

    def close(self) -> None:
        """Listen no longer, and drop who was not let in."""
        self._listening.close()
        while self._greetings:
            self._drop(next(iter(self._greetings)))

    def admit(self, match_key: str | None, timeout_s: float, also: Sequence[int | socket.socket] = ()) -> Client | None:
        """Wait for a client.

        Parameters
        ----------
        match_key
            What the client has to know; None lets nobody in.
        timeout_s
            How long to wait.
        also
            Handles of which any that is ready ends the wait.
        """
        until = time.monotonic() + timeout_s
        while True:
            left_s = max(0.0, min([until, *(one.deadline for one in self._greetings.values())]) - time.monotonic())
            ready = wait([self._listening, *self._greetings, *also], left_s)
            if self._listening in ready:
                self._accept()
            for connection in [one for one in ready if isinstance(one, socket.socket) and one in self._greetings]:
                client = self._listen_to(connection, match_key)
                if client is not None:
                    return client
            for connection, greeting in list(self._greetings.items()):
                if time.monotonic() >= greeting.deadline:
                    self._drop(connection)
            if time.monotonic() >= until or any(one in ready for one in also):
                return None

    def _accept(self) -> None:
        try:
            connection, _ = self._listening.accept()
        except OSError as error:  # whoever came has gone; or so many are here that there is no handle left
            if error.errno in (errno.EMFILE, errno.ENFILE) and self._greetings:
                self._drop(next(iter(self._greetings)))
            return
        connection.setblocking(False)
        self._greetings[connection] = _Greeting()
        if len(self._greetings) > _MOST_GREETINGS:
            self._drop(next(iter(self._greetings)))

    def _listen_to(self, connection: socket.socket, match_key: str | None) -> Client | None:
        """Hear what has arrived; the client, if that is all and right."""
        greeting = self._greetings[connection]
        try:
            heard = connection.recv(greeting.missing_bytes())
            greeting.said += heard
            if heard and greeting.missing_bytes():
                return None
            if heard:
                client = self._answer(connection, greeting.words(), match_key)
                if client is not None:
                    del self._greetings[connection]
                    return client
        except (OSError, ValueError):  # gone, or no client of ours
            pass
        self._drop(connection)
        return None

    def _answer(self, connection: socket.socket, words: Sequence[str], match_key: str | None) -> Client | None:
        from tvm.rpc.base import RPC_CODE_MISMATCH, RPC_CODE_SUCCESS

        if match_key is None or words[0] != f"client:{match_key}":
            connection.sendall(struct.pack("<i", RPC_CODE_MISMATCH))
            return None
        timeouts = [float(word.removeprefix(_TIMEOUT_OPTION)) for word in words[1:] if word.startswith(_TIMEOUT_OPTION)]
        name = f"server:{self._key}".encode()
        connection.sendall(_HEADER.pack(RPC_CODE_SUCCESS, len(name)) + name)
        connection.setblocking(True)
        return Client(connection, timeouts[0] if timeouts else None)

    def _drop(self, connection: socket.socket) -> None:
        del self._greetings[connection]
        connection.close()


def _listen(host: str, ports: tuple[int, int]) -> socket.socket:
    family = socket.getaddrinfo(host, ports[0], type=socket.SOCK_STREAM)[0][0]
    for port in range(*ports):
        try:
            return socket.create_server((host, port), family=family, backlog=_MOST_GREETINGS)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise OSError(f"none of the ports {ports[0]} to {ports[1] - 1} of {host} is free")
