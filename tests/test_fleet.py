"""What is told of a tracker's devices: those that answer, those in use, and those of another kind."""

import json
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import cloudpickle
import pytest
from servers import device_server, stock_server

from tvm_coexec import cli
from tvm_coexec.errors import FileFormatError, MeasurementError
from tvm_coexec.machine.clusters import BIG, LITTLE
from tvm_coexec.machine.facts import versions
from tvm_coexec.opencl.choice import DeviceChoice
from tvm_coexec.rpc import remote
from tvm_coexec.rpc.client import Session
from tvm_coexec.rpc.fleet import fleet
from tvm_coexec.rpc.lease import TrackerAddress
from tvm_coexec.rpc.outcomes import DeviceFailedError
from tvm_coexec.rpc.tracker import local_tracker
from tvm_coexec.tuning.session import open_fleet

FACTS = {
    "name": "gpu: a phone's",
    "label": "a phone",
    "driver_version": "1.2",
    "svm": ["coarse", "fine"],
    "mechanism": "event",
    "clusters": [
        {"name": "Cortex-A55", "cores": [0, 1], "highest_mhz": 1800.0, "role": LITTLE},
        {"name": "Cortex-A76", "cores": [2], "highest_mhz": None, "role": BIG},
    ],
}


def tell_facts() -> None:
    """Tell facts in the server's process."""
    import tvm_ffi

    tvm_ffi.register_global_func(remote.FACTS, lambda _: json.dumps({"result": FACTS}), override=True)


def tell_facts_of_another_kind() -> None:
    """Tell facts in the server's process."""
    import tvm_ffi

    facts = {**FACTS, "driver_version": "1.3"}
    tvm_ffi.register_global_func(remote.FACTS, lambda _: json.dumps({"result": facts}), override=True)


def fail() -> None:
    """Tell of a fault in the server's process."""
    import tvm_ffi

    fault = {"error": "the GPU is gone", "of_device": True}
    tvm_ffi.register_global_func(remote.FACTS, lambda _: json.dumps(fault), override=True)


cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def tracker() -> Iterator[TrackerAddress]:
    with local_tracker(None) as address, ExitStack() as servers:
        for _ in range(2):
            servers.enter_context(device_server(address, "phone", tell_facts))
        servers.enter_context(stock_server(address, "plain"))
        yield address


def test_the_fleet_is_told_with_what_is_free_and_what_is_busy(tracker: TrackerAddress) -> None:
    with Session(tracker, "phone") as session:
        session.facts()
        found = fleet(tracker)
        used = session.address
    assert [one.key for one in found] == ["phone", "phone", "plain"]
    assert len({one.address for one in found}) == 3
    busy, free = sorted(found[:2], key=lambda one: one.is_free)
    assert (busy.is_free, busy.address, busy.facts) == (False, used, None)
    assert (free.is_free, free.facts) == (True, FACTS)
    assert found[2].facts is not None and found[2].facts["machine"] == platform.machine()  # told by the C runtime
    assert found[2].facts["versions"] == versions("tvm")  # a newer TVM here makes other kernels: samples know of it


def test_the_command_lists_cores_and_devices(tracker: TrackerAddress, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["devices", "--tracker", str(tracker)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("2×Cortex-A55 1.80 GHz LITTLE + 1×Cortex-A76 big") == shown.count("a phone's") == 2
    assert cli.main(["devices", "--tracker", str(tracker), "--json"]) == 0
    assert [one["is_free"] for one in json.loads(capsys.readouterr().out)] == [True, True, True]


@pytest.mark.slow
@pytest.mark.parametrize("known", [None, {**FACTS, "driver_version": "0.9"}], ids=["anew", "after an update"])
def test_devices_of_the_kind_that_most_are_work_together_and_another_is_named(known: dict[str, Any] | None) -> None:
    told: list[str] = []
    with local_tracker(None) as address, ExitStack() as servers:
        for tell in (tell_facts_of_another_kind, tell_facts, tell_facts):
            servers.enter_context(device_server(address, "mixed", tell))
        with open_fleet(DeviceChoice(), str(address), "mixed", known, told.append) as sessions:
            assert [session.facts() for session in sessions] == [FACTS, FACTS]
            assert len({session.address for session in sessions}) == 2
    (line,) = told
    assert "is of another kind, gpu: a phone's with driver 1.3 " in line
    assert "the others with key 'mixed' are gpu: a phone's with driver 1.2 " in line


@contextmanager
def two_kinds(tracker: TrackerAddress, key: str) -> Iterator[None]:
    """Offer a device of either kind under one key."""
    with device_server(tracker, key, tell_facts), device_server(tracker, key, tell_facts_of_another_kind):
        yield


def refuse_another_kind(facts: Mapping[str, Any]) -> None:
    if facts != FACTS:
        raise FileFormatError("another kind")


@pytest.mark.slow
def test_a_session_that_lasts_skips_devices_of_another_kind(tracker: TrackerAddress) -> None:
    with two_kinds(tracker, "mixed"), Session(tracker, "mixed") as session:
        session.check = refuse_another_kind
        for _ in range(4):  # the tracker lends them in turn
            session.reconnect()
            assert session.facts() == FACTS
        with Session(tracker, "mixed") as other:  # the one that was refused is free again
            assert other.facts() not in (FACTS, None)
            other.check = lambda _: refuse_another_kind({})
            session.close()
            with pytest.raises(FileFormatError):
                other.reconnect()


@pytest.mark.slow
def test_a_device_that_is_refused_is_not_held_while_the_others_are_in_use(tracker: TrackerAddress) -> None:
    with two_kinds(tracker, "held"), Session(tracker, "held") as first, Session(tracker, "held") as second:
        wrong, right = (first, second) if second.facts() == FACTS else (second, first)
        wrong.check = refuse_another_kind
        with pytest.raises(FileFormatError, match="another kind"):  # and not that none was free for minutes
            wrong.reconnect()
        wrong.check = None
        wrong.reconnect()
        assert right.facts() == FACTS != wrong.facts()


def test_a_device_that_cannot_be_checked_is_not_used(tracker: TrackerAddress) -> None:
    with device_server(tracker, "failing", fail):
        session = Session(tracker, "failing", request_timeout_s=0.5)
        session.check = lambda _: None
        with pytest.raises(DeviceFailedError, match="reports: the GPU is gone"), session:
            pass
        assert not session.is_open
        with pytest.raises(DeviceFailedError):
            session.reconnect()
        assert not session.is_open


@pytest.mark.parametrize("command", ["devices", "doctor"])
def test_no_device_of_this_machine_is_chosen_beside_a_tracker(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--device", "pocl", "--tracker", "127.0.0.1:1", *["--key=x"][: command == "doctor"]]) == 1
    assert "leave out --device" in capsys.readouterr().err


def test_a_tracker_that_is_not_there_is_named() -> None:
    with pytest.raises(MeasurementError, match=r"127\.0\.0\.1:1 is out of reach"):
        fleet(TrackerAddress("127.0.0.1", 1))
