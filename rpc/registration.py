"""Registers a device server with a tracker, and offers a key by which the next client may connect."""

from __future__ import annotations

import socket
import struct
from typing import Any

from .lease import TrackerAddress

_ANSWER_TIMEOUT_S = 5.0
_CHANCES = 3
"""A key that was lent and found unused so many times is replaced: its client has gone."""


class Registration:
    """A server's connection to its tracker, which forgets the server when the connection ends.

    Raises
    ------
    OSError
        The tracker is out of reach, or does not answer in time; also from the methods.
    """

    def __init__(self, tracker: TrackerAddress, key: str, port: int) -> None:
        from tvm.rpc.base import RPC_TRACKER_MAGIC, TrackerCode, recvall

        self._key, self._port = key, port
        self.match_key = ""
        self._used: set[str] = set()
        self._unused = 0
        self.socket = socket.create_connection((tracker.host, tracker.port), timeout=_ANSWER_TIMEOUT_S)
        try:
            magic = struct.pack("<i", RPC_TRACKER_MAGIC)
            self.socket.sendall(magic)
            if recvall(self.socket, len(magic)) != magic:
                raise OSError(f"what listens at {tracker} is no TVM RPC tracker")
            self._ask([TrackerCode.UPDATE_INFO, {"key": f"server:{key}", "addr": (None, port)}])
            self.offer()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the connection."""
        self.socket.close()

    def offer(self) -> None:
        """Offer a new key, ``match_key``, to the next client."""
        from tvm.rpc.base import TrackerCode, random_key

        self.match_key = random_key(self._key, cmap=self._used)
        self._used.add(self.match_key)
        self._unused = 0
        self._ask([TrackerCode.PUT, self._key, (self._port, self.match_key), None])

    def renew(self) -> None:
        """Offer a new key where the last one was lent and nobody has come with it for a while."""
        from tvm.rpc.base import TrackerCode

        is_free = self.match_key in self._ask([TrackerCode.GET_PENDING_MATCHKEYS])
        self._unused = 0 if is_free else self._unused + 1
        if self._unused > _CHANCES:
            self.offer()

    def _ask(self, question: list[Any]) -> Any:
        from tvm.rpc.base import recvjson, sendjson

        sendjson(self.socket, question)
        try:
            return recvjson(self.socket)
        except ValueError as error:
            raise OSError(f"the tracker's answer cannot be read ({error})") from None
