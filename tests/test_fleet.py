"""What is told of a tracker's devices: those that answer, those in use, and those that have none of our functions."""

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import cloudpickle
import pytest

from tvm_coexec import cli
from tvm_coexec.errors import MeasurementError
from tvm_coexec.rpc import remote
from tvm_coexec.rpc.client import DeviceFailedError, Session
from tvm_coexec.rpc.fleet import fleet
from tvm_coexec.rpc.lease import TrackerAddress
from tvm_coexec.rpc.server import DeviceServer
from tvm_coexec.rpc.tracker import local_tracker
from tvm_coexec.runtime.clusters import BIG, LITTLE

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
    """In the server's process."""
    import tvm_ffi

    tvm_ffi.register_global_func(remote.FACTS, lambda _: json.dumps({"result": FACTS}), override=True)


def offer_nothing() -> None:
    """In the server's process: what TVM's own server does."""


cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def tracker() -> Iterator[TrackerAddress]:
    offered = [("phone", tell_facts), ("phone", tell_facts), ("plain", offer_nothing)]
    with local_tracker(None) as address, ExitStack() as servers:
        for key, prepare in offered:
            server = DeviceServer(address, key, prepare)
            servers.callback(server.close)
            server.wait_until_registered(threading.Event())
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
    assert found[2].is_free and "TVM's own and has no function to measure with" in found[2].problem


def test_a_server_without_our_functions_is_no_trace(tracker: TrackerAddress) -> None:
    with Session(tracker, "plain") as session, pytest.raises(DeviceFailedError, match="start ours on the device"):
        session.facts()


def test_the_command_lists_cores_and_devices(tracker: TrackerAddress, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["devices", "--tracker", str(tracker)]) == 0
    shown = capsys.readouterr().out
    assert (
        shown.count("2×Cortex-A55 1.80 GHz LITTLE + 1×Cortex-A76 big  gpu: a phone's  1.2     coarse fine  event") == 2
    )
    assert cli.main(["devices", "--tracker", str(tracker), "--json"]) == 0
    assert [one["is_free"] for one in json.loads(capsys.readouterr().out)] == [True, True, True]


def test_a_device_is_checked_from_end_to_end_and_the_remedy_is_told(
    tracker: TrackerAddress, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor", "--tracker", str(tracker), "--key", "plain"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"ok    tracker: {tracker} has 2 × phone, 1 × plain"
    assert lines[2].startswith("FAIL  device: ") and "start ours on the device" in lines[2]


@pytest.mark.parametrize("command", ["devices", "doctor"])
def test_no_device_of_this_machine_is_chosen_beside_a_tracker(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--device", "pocl", "--tracker", "127.0.0.1:1", *["--key=x"][: command == "doctor"]]) == 1
    assert "leave out --device" in capsys.readouterr().err


def test_a_tracker_that_is_not_there_is_named() -> None:
    with pytest.raises(MeasurementError, match=r"127\.0\.0\.1:1 is out of reach"):
        fleet(TrackerAddress("127.0.0.1", 1))
