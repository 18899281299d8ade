"""Who is let in at a device server's port, and that nobody else can hold it up."""

import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest
from tvm.rpc.base import RPC_CODE_MISMATCH, RPC_CODE_SUCCESS, RPC_MAGIC

from tvm_coexec.rpc import door as door_module
from tvm_coexec.rpc.door import Door
from tvm_coexec.rpc.serving import answer

GREETING = b"client:key:0.5 -timeout=7"


def said(magic: int, length: int, key: bytes) -> bytes:
    return struct.pack("<ii", magic, length) + key


@pytest.fixture
def door() -> Iterator[Door]:
    door = Door("127.0.0.1", (9091, 9990), "key")
    yield door
    door.close()


def visitor(door: Door, words: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", door.port), timeout=5.0)
    connection.sendall(words)
    return connection


def is_dropped(connection: socket.socket) -> bool:
    try:
        return connection.recv(64) == b""
    except ConnectionResetError:
        return True


STRANGERS = {
    "silent": b"",
    "a word": b"\x71",
    "another protocol": b"GET / HTTP/1.1\r\n\r\n",
    "a negative length": said(RPC_MAGIC, -5, b""),
    "a huge length": said(RPC_MAGIC, 2**31 - 1, b""),
    "no length": said(RPC_MAGIC, 0, b""),
    "cut off": said(RPC_MAGIC, 20, b"client: "),
    "blanks": said(RPC_MAGIC, 3, b"   "),
    "no text": said(RPC_MAGIC, 2, b"\xff\xfe"),
    "a tracker's client": struct.pack("<i", 0x2F271) + struct.pack("<i", 9),
    "a bad timeout": said(RPC_MAGIC, 29, b"client:key:0.5 -timeout=never"),
}


@pytest.mark.parametrize("words", STRANGERS.values(), ids=STRANGERS)
@pytest.mark.parametrize("closes", [True, False], ids=["closes", "stays"])
def test_a_stranger_does_not_hold_up_the_client(door: Door, words: bytes, closes: bool) -> None:
    strangers = [visitor(door, words) for _ in range(3)]
    for stranger in strangers if closes else []:
        stranger.close()
    with visitor(door, said(RPC_MAGIC, len(GREETING), GREETING)) as wanted:
        client = door.admit("key:0.5", 5.0)
        assert client is not None and client.session_timeout_s == 7.0
        assert client.socket.getpeername() == wanted.getsockname() and client.socket.getblocking()
        assert wanted.recv(64) == struct.pack("<ii", RPC_CODE_SUCCESS, 10) + b"server:key"
        client.socket.close()
    for stranger in strangers:
        stranger.close()


def test_a_greeting_may_come_in_pieces(door: Door) -> None:
    def speak() -> None:
        for byte in said(RPC_MAGIC, len(GREETING), GREETING):
            connection.sendall(bytes([byte]))
            time.sleep(0.001)

    with visitor(door) as connection:
        threading.Thread(target=speak).start()
        client = door.admit("key:0.5", 5.0)
        assert client is not None
        client.socket.close()


@pytest.mark.parametrize("match_key", ["key:0.7", None], ids=["another lease's", "in a session"])
def test_a_client_of_another_lease_is_told_so(door: Door, match_key: str | None) -> None:
    with visitor(door, said(RPC_MAGIC, len(GREETING), GREETING)) as late:
        assert door.admit(match_key, 0.05) is None
        assert late.recv(64) == struct.pack("<i", RPC_CODE_MISMATCH)
        assert is_dropped(late)


def test_who_says_nothing_is_dropped_in_the_end_however_slowly_he_speaks(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door_module, "_PATIENCE_S", 0.1)
    with visitor(door) as silent, visitor(door, b"\x71") as slow:
        assert door.admit("key:0.5", 0.05) is None
        slow.sendall(b"\xf2")
        assert door.admit("key:0.5", 0.2) is None
        assert is_dropped(silent) and is_dropped(slow)


def test_more_than_can_be_heard_push_out_the_oldest(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "_MOST_GREETINGS", 4)
    crowd = []
    for _ in range(6):
        crowd.append(visitor(door))
        assert door.admit("key:0.5", 0.01) is None
    assert [is_dropped(one) for one in crowd[:2]] == [True, True]
    with visitor(door, said(RPC_MAGIC, len(GREETING), GREETING)):
        client = door.admit("key:0.5", 5.0)
        assert client is not None
        client.socket.close()
    for one in crowd:
        one.close()


def test_a_wait_ends_with_what_else_is_waited_for(door: Door) -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    start = time.monotonic()
    assert door.admit("key:0.5", 30.0, also=[ours]) is None
    assert time.monotonic() - start < 10.0
    ours.close()


def test_there_is_a_port_for_the_second_and_none_beyond_the_range(door: Door) -> None:
    with pytest.raises(OSError, match=f"none of the ports {door.port} to {door.port} of 127.0.0.1 is free"):
        Door("127.0.0.1", (door.port, door.port + 1), "key")
    second = Door("127.0.0.1", (door.port, 9990), "key")
    assert second.port > door.port
    second.close()


def test_a_client_that_resets_its_connection_is_told_of_in_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        served, _ = listening.accept()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()  # with a reset, as the system does for a process that is killed with answers unread
        answer(served)
        served.detach()  # TVM has closed it
    said = capfd.readouterr().err
    assert said.startswith("tvm-coexec: a session broke off: ") and len(said.splitlines()) == 1
