"""Devices whose server is TVM's own and has nothing of ours: what they compute, and how sessions with them end."""

import contextlib
import os
import platform
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from onnx_builder import random_inputs, run_onnx
from servers import stock_server
from small_modules import chain
from test_api import block_model

from tvm_coexec import cli, package
from tvm_coexec.compiler.probes import halved_chain
from tvm_coexec.compiler.target import target_for
from tvm_coexec.errors import KernelError
from tvm_coexec.layers import Linear
from tvm_coexec.opencl.choice import DeviceChoice
from tvm_coexec.rpc import remote, stock
from tvm_coexec.rpc.client import Session
from tvm_coexec.rpc.far_runtime import FarRuntime
from tvm_coexec.rpc.lease import TrackerAddress
from tvm_coexec.rpc.measuring import DeviceFaultError
from tvm_coexec.rpc.outcomes import RefusedError, SessionLostError
from tvm_coexec.rpc.tracker import local_tracker
from tvm_coexec.runtime.device import Device


@pytest.fixture(scope="module")
def tracker() -> Iterator[TrackerAddress]:
    with local_tracker(None) as address, stock_server(address, "plain"):
        yield address


def test_a_device_whose_server_has_nothing_of_ours_is_checked_from_end_to_end(
    tracker: TrackerAddress, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor", "--tracker", str(tracker), "--key", "plain"]) == 0, capsys.readouterr().out
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"ok    tracker: {tracker} has 1 × plain"
    assert lines[-2].startswith("ok    layer: computed by the GPU, by both and by the CPU, ")


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


@pytest.mark.slow
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
