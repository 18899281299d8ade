"""Trackers: those that are named, those that are not there, and those that run on this machine."""

import contextlib
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import tvm.rpc

from tvm_coexec.errors import DeviceError, MeasurementError
from tvm_coexec.opencl.choice import DeviceChoice
from tvm_coexec.rpc import client, lease
from tvm_coexec.rpc.client import Session
from tvm_coexec.rpc.lease import Lease, TrackerAddress, TrackerConnection, request_lease
from tvm_coexec.rpc.outcomes import SessionLostError
from tvm_coexec.rpc.tracker import device_key, local_tracker, parse_tracker, use_tracker


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def test_a_tracker_that_is_not_there() -> None:
    with pytest.raises(MeasurementError, match=r"out of reach.*correct --tracker"):
        Session(TrackerAddress("127.0.0.1", free_port()), "any").reconnect()


@pytest.mark.parametrize(("greeting", "message"), [(b"HTTP", "no TVM RPC tracker"), (b"", "out of reach")])
def test_a_stranger_or_a_mute_in_the_tracker_s_place(greeting: bytes, message: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def greet() -> None:
            connection, _ = listening.accept()
            connection.sendall(greeting)
            connection.recv(64)
            connection.recv(64)

        threading.Thread(target=greet, daemon=True).start()
        address = TrackerAddress("127.0.0.1", listening.getsockname()[1])
        with pytest.raises(MeasurementError, match=message):
            TrackerConnection(address, 0.3)


def test_a_tracker_is_not_blamed_for_the_time_in_which_tvm_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    class SlowDisk:
        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            now[0] += 1000.0

    monkeypatch.setattr(tvm.rpc, "base", tvm.rpc.base)  # to be put back
    monkeypatch.delitem(sys.modules, "tvm.rpc.base")
    monkeypatch.setattr(sys, "meta_path", [SlowDisk, *sys.meta_path])
    monkeypatch.setattr(lease, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with local_tracker(None) as address, TrackerConnection(address, 60.0) as connection:
        assert connection.keys() == []
    assert now[0] >= 1000.0


@pytest.mark.parametrize("text", ["9190", "host:", ":9190", "host:x", "host:0", "host:65536"])
def test_a_bad_address_is_refused(text: str) -> None:
    with pytest.raises(MeasurementError, match="write host:port"):
        parse_tracker(text)


def test_a_named_tracker_is_used_and_nothing_is_started() -> None:
    before = psutil.Process().children(recursive=True)
    with use_tracker("board.example:9190", DeviceChoice("pocl")) as address:
        assert address == TrackerAddress("board.example", 9190)
        assert set(psutil.Process().children(recursive=True)) <= set(before)


def test_a_key_is_fit_for_the_protocol() -> None:
    assert device_key("pocl: cpu-x86 (1)") == "tvm-coexec-pocl-cpu-x86-1"
    assert device_key(None) == "tvm-coexec-default"


@pytest.mark.slow
def test_a_local_tracker_leaves_no_process_behind() -> None:
    before = set(psutil.Process().children(recursive=True))
    with contextlib.suppress(KeyboardInterrupt), local_tracker(DeviceChoice()) as address:
        started = set(psutil.Process().children(recursive=True)) - before
        with TrackerConnection(address, 5.0) as connection:
            assert connection.servers(device_key(None)) == 1
        raise KeyboardInterrupt
    assert len(started) >= 3
    assert not psutil.wait_procs(started, timeout=5.0)[1]


@pytest.mark.parametrize(
    ("choice", "message"),
    [(DeviceChoice("none"), "no OpenCL device is called 'none'"), (DeviceChoice(cpu_cores=(4095,)), "core 4095")],
)
def test_a_device_that_is_not_there_is_told_before_anything_is_started(choice: DeviceChoice, message: str) -> None:
    with pytest.raises(DeviceError, match=message), local_tracker(choice):
        pytest.fail("a tracker was started")


@pytest.mark.slow
def test_a_killed_parent_leaves_no_process_behind() -> None:
    script = (
        "from tvm_coexec.rpc.tracker import local_tracker\nfrom tvm_coexec.opencl.choice import DeviceChoice\n"
        "with local_tracker(DeviceChoice()): print('started', flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=-1, stdout=-1) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == b"started\n"
        started = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
    assert len(started) >= 3
    assert not psutil.wait_procs(started, timeout=10.0)[1]


@pytest.mark.slow
def test_a_tracker_and_a_server_that_are_killed_come_back() -> None:
    others = set(psutil.Process().children())
    with local_tracker(DeviceChoice()) as address:
        (helper,) = set(psutil.Process().children()) - others
        killed = helper.children()
        for process in killed:
            process.kill()
        deadline = time.monotonic() + 30.0
        while len(helper.children()) < 2 or not is_offered(address):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert not set(killed) & set(helper.children())


@pytest.mark.parametrize(("handler", "stops"), [("SIG_DFL", True), ("SIG_IGN", False)])
def test_a_server_ends_with_its_terminal_unless_nohup_started_it(handler: str, stops: bool) -> None:
    code = (
        "import os, signal\nfrom tvm_coexec.rpc.server import stop_on_signals\n"
        f"signal.signal(signal.SIGHUP, signal.{handler})\nstop = stop_on_signals()\n"
        "os.kill(os.getpid(), signal.SIGHUP)\nprint(stop.is_set())"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told == f"{stops}\n"


def is_offered(address: TrackerAddress) -> bool:
    with contextlib.suppress(MeasurementError), TrackerConnection(address, 5.0) as tracker:
        return tracker.servers(device_key(None)) == 1
    return False


@pytest.mark.slow
def test_a_killed_helper_is_named_not_waited_for_and_leaves_no_process_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def count(tracker: TrackerAddress, *args: Any, **kwargs: Any) -> Lease:
        asked.append(tracker)
        return request_lease(tracker, *args, **kwargs)

    others = set(psutil.Process().children())
    with pytest.raises(MeasurementError, match=r"ended \(status .*\); repeat the command"):  # noqa: SIM117
        with local_tracker(DeviceChoice()) as address, Session(address, device_key(None)) as session:
            session.facts()
            (helper,) = set(psutil.Process().children()) - others
            started = [helper, *helper.children(recursive=True)]
            helper.kill()
            psutil.wait_procs(started, timeout=10.0)
            with contextlib.suppress(SessionLostError):
                session.facts()
            monkeypatch.setattr(client, "request_lease", count)
            session.facts()
    assert len(asked) == 1, "where one was had before, it is asked for again until the device is back"
    assert len(started) >= 4
    assert not psutil.wait_procs(started, timeout=10.0)[1]
