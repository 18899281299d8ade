"""What is told of a tracker's devices: those that answer, those in use, and those of TVM's own server."""

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import psutil
import pytest
from onnx_builder import random_inputs, run_onnx
from small_modules import chain
from test_api import block_model

from tvm_coexec import cli, package
from tvm_coexec.compiler.probes import halved_chain
from tvm_coexec.compiler.target import target_for
from tvm_coexec.errors import FileFormatError, KernelError, MeasurementError
from tvm_coexec.layers import Linear
from tvm_coexec.machine.clusters import BIG, LITTLE
from tvm_coexec.machine.facts import versions
from tvm_coexec.opencl.choice import DeviceChoice
from tvm_coexec.opencl.loader import opencl_loader
from tvm_coexec.rpc import remote, stock
from tvm_coexec.rpc.client import Session
from tvm_coexec.rpc.far_runtime import FarRuntime
from tvm_coexec.rpc.fleet import fleet
from tvm_coexec.rpc.lease import TrackerAddress, TrackerConnection
from tvm_coexec.rpc.measuring import DeviceFaultError
from tvm_coexec.rpc.outcomes import DeviceFailedError, RefusedError, SessionLostError
from tvm_coexec.rpc.server import DeviceServer
from tvm_coexec.rpc.tracker import local_tracker
from tvm_coexec.runtime.device import Device
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
            server = DeviceServer(address, "phone", tell_facts)
            servers.callback(server.close)
            server.wait_until_registered(threading.Event())
        servers.enter_context(stock_server(address, "plain"))
        yield address


@contextlib.contextmanager
def stock_server(address: TrackerAddress, key: str) -> Iterator[None]:
    """TVM's own server."""
    with tempfile.TemporaryDirectory() as loaders:
        Path(loaders, "libOpenCL.so.1").symlink_to(opencl_loader())  # pyopencl's own, which no server would find
        command = [sys.executable, "-m", "tvm.exec.rpc_server", "--host=127.0.0.1", "--silent", f"--key={key}"]
        environment = {**os.environ, "LD_LIBRARY_PATH": loaders, "TMPDIR": loaders}
        with subprocess.Popen([*command, f"--tracker={address}"], start_new_session=True, env=environment) as server:
            try:
                deadline = time.monotonic() + 60
                while key not in known(address):
                    assert time.monotonic() < deadline and server.poll() is None
                    time.sleep(0.1)
                yield
            finally:
                os.killpg(server.pid, signal.SIGKILL)


def known(address: TrackerAddress) -> list[str]:
    with TrackerConnection(address, 20) as connection:
        return connection.keys()


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


def test_a_device_whose_server_has_nothing_of_ours_is_checked_from_end_to_end(
    tracker: TrackerAddress, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor", "--tracker", str(tracker), "--key", "plain"]) == 0, capsys.readouterr().out
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"ok    tracker: {tracker} has 2 × phone, 1 × plain"
    assert lines[-2].startswith("ok    layer: computed by the GPU, by both and by the CPU, ")


@pytest.mark.slow
def test_a_network_is_timed_on_a_device_whose_server_has_nothing_of_ours(tracker: TrackerAddress) -> None:
    with Session(tracker, "plain", session_timeout_s=300.0) as session:  # a busy machine is waited for, for a minute
        facts = session.facts()
        target = target_for(facts)
        chain = halved_chain(Linear(16, 64, 64), 2, target, facts).to_bytes()
        splits = [{"layer0": 0, "layer1": 0}, {"layer0": 1, "layer1": 2}]
        times_us = session.time_runs(chain, splits, repeats=3)
        assert [len(some) for some in times_us] == [3, 3] and min(map(min, times_us)) > 0
        (tried,) = session.run_trials([chain], chain, rounds=1, repeats=2, timelines=2)
        assert len(tried.latency_us) == 2
        assert all(len(half_us) == 2 for layer_us in tried.halves_us for half_us in layer_us)


@pytest.mark.slow
@pytest.mark.parametrize("known", [None, {**FACTS, "driver_version": "0.9"}], ids=["anew", "after an update"])
def test_devices_of_the_kind_that_most_are_work_together_and_another_is_named(known: dict[str, Any] | None) -> None:
    told: list[str] = []
    with local_tracker(None) as address, ExitStack() as servers:
        for tell in (tell_facts_of_another_kind, tell_facts, tell_facts):
            server, stop = DeviceServer(address, "mixed", tell), threading.Event()
            servers.callback(server.close)
            server.wait_until_registered(stop)
        with open_fleet(DeviceChoice(), str(address), "mixed", known, told.append) as sessions:
            assert [session.facts() for session in sessions] == [FACTS, FACTS]
            assert len({session.address for session in sessions}) == 2
    (line,) = told
    assert "is of another kind, gpu: a phone's with driver 1.3 " in line
    assert "the others with key 'mixed' are gpu: a phone's with driver 1.2 " in line


@contextmanager
def two_kinds(tracker: TrackerAddress, key: str) -> Iterator[None]:
    """Offer a device of either kind under one key."""
    with ExitStack() as servers:
        for tell in (tell_facts, tell_facts_of_another_kind):
            server = DeviceServer(tracker, key, tell)
            servers.callback(server.close)
            server.wait_until_registered(threading.Event())
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
    with ExitStack() as servers:
        server = DeviceServer(tracker, "failing", fail)
        servers.callback(server.close)
        server.wait_until_registered(threading.Event())
        session = Session(tracker, "failing", request_timeout_s=2.0)
        session.check = lambda _: None
        with pytest.raises(DeviceFailedError, match="reports: the GPU is gone"):
            servers.enter_context(session)
        assert not session.is_open
        with pytest.raises(DeviceFailedError):
            session.reconnect()
        assert not session.is_open


def test_a_module_that_is_there_is_not_sent_again(tracker: TrackerAddress, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    upload = FarRuntime.upload
    monkeypatch.setattr(
        FarRuntime, "upload", lambda own, content, name: (sent.append(name), upload(own, content, name))
    )
    with Session(tracker, "plain") as session:
        facts = session.facts()
        chains = [halved_chain(Linear(16, 64, 64), count, target_for(facts), facts).to_bytes() for count in (2, 3, 2)]
        times_us = [session.time_runs(chain, [{}], repeats=2) for chain in (chains[0], *chains)]
    assert sent.count("measured.module") == 3 and min(map(np.min, times_us)) > 0


def test_modules_that_were_sent_within_one_step_of_the_clock_are_told_apart(
    device: Device, tracker: TrackerAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have one name and one size, as those of one architecture do."""
    upload, dated = FarRuntime.upload, []

    def upload_at_once(own: FarRuntime, content: bytes, name: str) -> None:
        upload(own, content, name)
        for path in Path(tempfile.gettempdir()).glob(f"*/*/{name}"):
            os.utime(path, (1e9, 1e9))
            dated.append(path.name)

    monkeypatch.setattr(FarRuntime, "upload", upload_at_once)
    contents, expected = [], []
    for shift in (0.0, 1.0):
        built, nodes = chain(device, 1, 8, 64)
        source = next(one for one in built.constants if one.role == "bias")
        built.constants[source] = np.asarray(built.constants[source]) + np.float32(shift)
        contents.append(built.to_bytes())
        expected.append(nodes[0].params["bias"] + shift)
    assert len(contents[0]) == len(contents[1]) != 0 and contents[0] != contents[1]
    with Session(tracker, "plain") as session:
        for content, bias in zip(contents, expected, strict=True):
            (y,) = session.open_module(content)(t0=np.zeros((8, 64), np.float32)).values()
            np.testing.assert_allclose(y, np.maximum(np.broadcast_to(bias, y.shape), 0), atol=1e-6)
    assert dated.count("run.module") == 2
    functions = remote.SessionFunctions(DeviceChoice())
    monkeypatch.setattr(functions, "_device", lambda: device)
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr("tvm_ffi.get_global_func", lambda _: lambda name: str(Path(folder, name)))
        for content, bias in zip(contents, expected, strict=True):
            Path(folder, "m").write_bytes(content)
            os.utime(Path(folder, "m"), (1e9, 1e9))
            y = functions.load("m")(np.zeros((8, 64), np.float32))
            np.testing.assert_allclose(y, np.maximum(np.broadcast_to(bias, y.shape), 0), atol=1e-6)


def test_an_older_c_runtime_is_named() -> None:
    def call(function: str, _: str) -> None:
        raise AttributeError(f"Module has no function {function!r}")

    runtime = FarRuntime(types.SimpleNamespace(call=call), lambda answer: answer)  # type: ignore[arg-type]
    with pytest.raises(DeviceFaultError, match="the C runtime that is loaded there is older; end its server"):
        runtime.ask("guard")


def test_what_hangs_a_phone_s_gpu_is_at_fault_and_then_the_device_is() -> None:
    answers = iter(["status=5\nerror=the kernel of 'a' hangs", "status=5\nerror=an earlier kernel hangs", "ok=1"])
    connection = types.SimpleNamespace(call=lambda *_: next(answers))
    runtime = FarRuntime(connection, lambda answer: answer)  # type: ignore[arg-type]
    with pytest.raises(KernelError, match="the kernel of 'a' hangs"):
        runtime.ask("run", module="a")
    with pytest.raises(DeviceFaultError, match="an earlier kernel hangs"):
        runtime.ask("run", module="b")
    assert runtime.ask("list") == [("ok", "1")]


def test_a_module_runs_on_a_device_whose_server_has_nothing_of_ours(
    tracker: TrackerAddress, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--tracker", str(tracker), "--key", "plain"]
    assert cli.main(["devices", *where, "--facts", str(tmp_path / "facts.json")]) == 0
    model = block_model()
    package(model, tmp_path / "facts.json", split=0.5).write(tmp_path / "m.coexec")
    inputs = random_inputs(model)
    np.savez(tmp_path / "in.npz", **inputs)
    command = ["run", str(tmp_path / "m.coexec"), "--input", str(tmp_path / "in.npz"), "--out", str(tmp_path / "y.npz")]
    assert cli.main([*command, "--benchmark", "2", "--timeline", *where]) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert "2 runs)" in shown and "gpu kernel" in shown and "cpu call" in shown
    for name, expected in run_onnx(model, inputs).items():
        np.testing.assert_allclose(np.load(tmp_path / "y.npz")[name], expected, rtol=0, atol=1e-5)


def test_cores_on_which_threads_do_not_run_are_named(tracker: TrackerAddress) -> None:
    here, nowhere = min(os.sched_getaffinity(0)), 1023
    with Session(tracker, "plain") as session:
        assert session.facts()["notes"] == []
        runtime = session._c_runtime()._runtime
        told = dict(runtime.ask("facts", cores=f"{here},{nowhere}"))
    assert told["held_cores"] == str(here)
    (note,) = stock._notes(told, (here, nowhere))
    assert note.startswith(f"threads that are to run on core {nowhere} run elsewhere")
    assert stock._notes(told, (here,)) == []


def test_what_such_a_device_refuses_is_no_fault_of_its_own(tracker: TrackerAddress) -> None:
    with Session(tracker, "plain") as session:
        facts = session.facts()
        chain = halved_chain(Linear(16, 64, 64), 2, target_for(facts), facts).to_bytes()
        with pytest.raises(RefusedError, match="the device 'plain' reports: "):
            session.time_runs(chain, [{"layer0": 99}], repeats=1)
        assert session.facts() == facts


def serving(session: Session) -> psutil.Process:
    """The process that serves a session."""
    port = int(session.address.rpartition(":")[2])
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            connections = [one for one in process.net_connections("tcp") if one.status == psutil.CONN_ESTABLISHED]
            if any(one.laddr.port == port for one in connections) and not process.children():
                return process
    raise AssertionError("no process serves the session")


@pytest.mark.slow
def test_a_session_whose_process_dies_is_said_to_have_ended_so(tracker: TrackerAddress) -> None:
    with stock_server(tracker, "dying"), Session(tracker, "dying") as session:
        session.facts()
        serving(session).kill()
        with pytest.raises(SessionLostError, match=r"its process died.*start it again where its tracker no longer"):
            session.read_file("/proc/cpuinfo")
        assert session.facts()["machine"] == platform.machine()  # its server outlived it


_MEASURES_UNTIL_IT_IS_KILLED = """
import sys
from tvm_coexec.rpc.client import Session
from tvm_coexec.rpc.lease import TrackerAddress

with Session(TrackerAddress("127.0.0.1", int(sys.argv[1])), "left") as session:
    session.facts()
    print("measures", flush=True)
    session.time_runs(sys.argv[2], [{}], repeats=10_000_000)
"""


@pytest.mark.slow
def test_a_host_that_is_killed_leaves_a_server_that_serves_the_next_one(
    tracker: TrackerAddress, tmp_path: Path
) -> None:
    with Session(tracker, "plain") as session:
        facts = session.facts()
    chain = tmp_path / "chain"
    chain.write_bytes(halved_chain(Linear(16, 64, 64), 2, target_for(facts), facts).to_bytes())
    command = [sys.executable, "-c", _MEASURES_UNTIL_IT_IS_KILLED, str(tracker.port), str(chain)]
    with stock_server(tracker, "left"):
        for pause_s in (0.0, 1.0):  # before and while the device computes
            with subprocess.Popen(command, stdout=subprocess.PIPE) as host:
                assert host.stdout is not None and host.stdout.readline()
                time.sleep(pause_s)
                host.kill()
            with Session(tracker, "left", request_timeout_s=50.0) as session:  # a session takes 60 s at most
                assert session.facts() == facts


@pytest.mark.slow
def test_a_session_that_is_over_is_said_to_have_been_too_short(tracker: TrackerAddress) -> None:
    with Session(tracker, "plain") as session:
        facts = session.facts()
    chain = halved_chain(Linear(64, 256, 256), 8, target_for(facts), facts).to_bytes()
    over = pytest.raises(SessionLostError, match="before its session of 5 s ended")
    with Session(tracker, "plain", session_timeout_s=5.0) as session, over:
        session.time_runs(chain, [{}], repeats=1_000_000)


@pytest.mark.parametrize("command", ["devices", "doctor"])
def test_no_device_of_this_machine_is_chosen_beside_a_tracker(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--device", "pocl", "--tracker", "127.0.0.1:1", *["--key=x"][: command == "doctor"]]) == 1
    assert "leave out --device" in capsys.readouterr().err


def test_a_tracker_that_is_not_there_is_named() -> None:
    with pytest.raises(MeasurementError, match=r"127\.0\.0\.1:1 is out of reach"):
        fleet(TrackerAddress("127.0.0.1", 1))
