"""Measuring over a real tracker, server and session on loopback, most of it with a device that only pretends."""

import gc
import json
import os
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from pretended_device import prepare_pretended_device
from servers import device_server
from test_tracker import free_port

from tvm_coexec import schedules
from tvm_coexec.compiler.probes import single_layer
from tvm_coexec.compiler.target import target_for
from tvm_coexec.errors import MeasurementError
from tvm_coexec.layers import Linear
from tvm_coexec.opencl.choice import DeviceChoice
from tvm_coexec.profile.records import Point
from tvm_coexec.rpc import remote
from tvm_coexec.rpc.client import SESSION_TIMEOUT_S, Session
from tvm_coexec.rpc.connection import in_thread
from tvm_coexec.rpc.lease import Lease, TrackerAddress, request_lease
from tvm_coexec.rpc.outcomes import DeviceFailedError, RefusedError, SessionLostError, WrongError
from tvm_coexec.rpc.server import main as server_main
from tvm_coexec.rpc.tracker import device_key, local_tracker

KEY = "pretended"
SHORT_S = 2.0
POINTS = [Point(2, 3, repeats=4), Point(0, 5, repeats=1)]


@pytest.fixture(scope="module")
def tracker() -> Iterator[TrackerAddress]:
    stop = threading.Event()
    with local_tracker(None) as address, device_server(address, KEY, prepare_pretended_device) as server:
        thread = threading.Thread(target=server.serve, args=(stop,))
        thread.start()
        yield address
        stop.set()
        thread.join()


def orders(do: str) -> bytes:
    return json.dumps({"do": do}).encode()


def client_process(tracker: TrackerAddress, do: str, session_timeout_s: float, script: str) -> subprocess.Popen[bytes]:
    """Another process with a session, in which the script begins; the orders are its third argument."""
    prelude = (
        "import sys\n"
        "import psutil\n"
        "from tvm_coexec.profile.records import Point\n"
        "from tvm_coexec.rpc.client import Session\n"
        "from tvm_coexec.rpc.tracker import parse_tracker\n"
        f"with Session(parse_tracker(sys.argv[1]), sys.argv[2], session_timeout_s={session_timeout_s}) as session:\n"
    )
    command = [sys.executable, "-c", prelude + script, str(tracker), KEY, orders(do).decode()]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def test_every_repetition_of_every_point_arrives(tracker: TrackerAddress) -> None:
    with Session(tracker, KEY) as session:
        measurement = session.measure(orders("work"), POINTS, step=7)
    co_run, gpu_alone = measurement.points
    assert (co_run.cpu_units, co_run.gpu_units) == (2, 3)
    assert co_run.cpu_us == co_run.gpu_us == co_run.wall_us == (7.0, 8.0, 9.0, 10.0)
    assert gpu_alone.cpu_us == () and gpu_alone.gpu_us == (7.0,)
    assert measurement.max_rel_error == pytest.approx(2e-7)


def canary(*slow: int) -> bytes:
    """What tells that the machine is unsteady whenever its number is among the slow ones; eleven looks come first."""
    return json.dumps({"do": "tell", "slow": slow}).encode()


def test_networks_are_tried_in_turn(tracker: TrackerAddress) -> None:
    modules = [json.dumps({"do": "work", "name": name}).encode() for name in "ab"]
    with Session(tracker, KEY) as short, short.for_longer(2 * SHORT_S) as session:
        first, second = session.run_trials(modules, canary(), rounds=2, repeats=2, timelines=3)
        with pytest.raises(RefusedError, match="the network does not run"):
            session.run_trials([orders("raise")], canary(), rounds=1, repeats=1, timelines=1)
    assert (first.latency_us, second.latency_us) == ((1.0, 1.0, 4.0, 4.0), (2.0, 2.0, 3.0, 3.0)), "a b, then b a"
    assert first.halves_us == second.halves_us == (((1.0,) * 6, (2.0,) * 6), ((), (3.0,) * 6))


def test_without_a_canary_turns_are_taken_as_they_come(tracker: TrackerAddress) -> None:
    network = json.dumps({"do": "work", "name": "a"}).encode()
    with Session(tracker, KEY) as session:
        (times,) = session.run_trials([network], None, rounds=2, repeats=1, timelines=1)
    assert times.latency_us == (1.0, 2.0)


def test_a_network_is_tried_again_where_the_machine_was_unsteady(tracker: TrackerAddress) -> None:
    network = json.dumps({"do": "work", "name": "a"}).encode()
    with Session(tracker, KEY) as session:
        (times,) = session.run_trials([network], canary(13, 15), rounds=2, repeats=1, timelines=1)
    assert times.latency_us == (3.0, 4.0), "the first two turns were unsteady at their end"
    assert times.halves_us == (((1.0,) * 2, (2.0,) * 2), ((), (3.0,) * 2))


def test_the_device_is_opened_once_a_session_in_a_process_of_its_own(tracker: TrackerAddress) -> None:
    with Session(tracker, KEY) as session:
        first, second = session.facts(), session.facts()
        session.reconnect()
        third = session.facts()
    assert first["opened_by"] == second["opened_by"] == [first["pid"]]
    assert third["opened_by"] == [third["pid"]] != first["opened_by"]


@pytest.mark.parametrize("wrong", ["be wrong", "be nan"])
def test_a_wrong_result_has_no_time(tracker: TrackerAddress, wrong: str) -> None:
    with Session(tracker, KEY) as session:
        with pytest.raises(WrongError, match=r"2 CPU and 3 GPU units is wrong by (0\.5|nan)"):
            session.measure(orders(wrong), POINTS)
        assert session.measure(orders(wrong), POINTS, check=False).max_rel_error is None


@pytest.mark.parametrize(
    ("do", "message"),
    [
        ("raise", r"reports: the kernel does not compile$"),
        ("raise unexpectedly", r"reports: ZeroDivisionError: division by nothing$"),
    ],
)
def test_a_remote_error_arrives_as_its_last_line_and_leaves_the_session(
    tracker: TrackerAddress, do: str, message: str
) -> None:
    with Session(tracker, KEY) as session:
        before = session.facts()["pid"]
        with pytest.raises(RefusedError, match=message):
            session.measure(orders(do), POINTS)
        assert session.facts()["pid"] == before


def test_a_kernel_that_hangs_is_no_refusal_of_the_modules_after_it(tracker: TrackerAddress) -> None:
    with Session(tracker, KEY) as session:
        session.measure(orders("leave a kernel that hangs"), POINTS)
        with pytest.raises(DeviceFailedError, match="reports: the kernel of another module hangs"):
            session.measure(orders("nothing"), POINTS)
        session.reconnect()
        assert session.measure(orders("nothing"), POINTS).points


def test_a_device_that_cannot_be_opened_is_no_refusal_of_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = remote._answering(remote.SessionFunctions(DeviceChoice("no such device")).facts)("null")
    session = Session(TrackerAddress("127.0.0.1", 1), KEY)
    monkeypatch.setattr(session, "_renew", lambda: types.SimpleNamespace(call=lambda *_: in_thread(lambda: answer)))
    with pytest.raises(DeviceFailedError, match="reports: no OpenCL device"):
        session.facts()


@pytest.mark.parametrize(
    ("do", "message"),
    [
        ("hang", "kernel hangs"),
        ("exit", "its process died"),
        ("be killed", "its process died"),
        ("write nonsense", "broke off"),
    ],
)
def test_a_lost_session_is_reported_and_the_next_call_gets_a_new_one(
    tracker: TrackerAddress, do: str, message: str
) -> None:
    with Session(tracker, KEY, session_timeout_s=SHORT_S) as session:
        with pytest.raises(SessionLostError, match=message):
            session.measure(orders(do), POINTS)
        gc.collect()  # what is left of the connection goes without a word
        assert session.measure(orders("work"), POINTS).points[0].cpu_us
    with Session(tracker, KEY) as session:
        assert session.facts()["name"] == "pretended"


def test_a_lease_that_is_half_over_is_renewed_before_the_next_call(tracker: TrackerAddress) -> None:
    with Session(tracker, KEY) as session:
        first = session.facts()["pid"]
        assert session.facts()["pid"] == first
        session._ends -= 0.6 * SESSION_TIMEOUT_S
        assert session.facts()["pid"] != first


def test_a_silent_server_is_given_up(tracker: TrackerAddress, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvm_coexec.rpc.client._GRACE_S", 0.2)
    with Session(tracker, KEY, session_timeout_s=SHORT_S) as session:
        process = psutil.Process(session.facts()["pid"])
        server = process.parent()
        assert server is not None
        try:
            process.suspend()
            server.suspend()
            with pytest.raises(SessionLostError, match="silent"):
                session.measure(orders("work"), POINTS)
        finally:
            server.resume()
            process.resume()
        assert session.facts()["name"] == "pretended"


def test_a_server_that_is_killed_takes_its_sessions_along_and_comes_back(tracker: TrackerAddress) -> None:
    with Session(tracker, KEY) as session:
        process = psutil.Process(session.facts()["pid"])
        hanging = in_thread(lambda: session.measure(orders("hang"), POINTS))
        server = process.parent()
        assert server is not None
        server.kill()
        with pytest.raises(SessionLostError, match="its process died"):
            hanging.result(20.0)
        assert not psutil.wait_procs([process], timeout=5.0)[1]
        assert session.facts()["pid"] != process.pid


def test_a_server_that_is_ended_in_a_session_is_told_of_as_that(tracker: TrackerAddress) -> None:
    script = (
        "import sys\n"
        "from pretended_device import prepare_pretended_device\n"
        "from tvm_coexec.rpc.server import DeviceServer\n"
        "from tvm_coexec.rpc.tracker import parse_tracker\n"
        "server = DeviceServer(parse_tracker(sys.argv[1]), 'ended', prepare_pretended_device)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(tracker)]
    with (
        subprocess.Popen(command, cwd=Path(__file__).parent, stdin=-1) as server,
        Session(tracker, "ended", request_timeout_s=60.0) as session,
    ):
        session.measure(orders("work"), POINTS)
        hanging = in_thread(lambda: session.measure(orders("hang"), POINTS))
        server.kill()
        with pytest.raises(SessionLostError, match=r"was ended by its server .*, or its server was stopped"):
            hanging.result(20.0)


def test_strangers_at_the_server_s_port_end_no_session(tracker: TrackerAddress) -> None:
    with Session(tracker, KEY) as session:
        server = psutil.Process(session.facts()["pid"]).parent()
        assert server is not None
        (port,) = (one.laddr.port for one in server.net_connections("tcp") if one.status == psutil.CONN_LISTEN)
        with socket.create_connection(("127.0.0.1", port)):
            for words in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x71\xf2\x0f\x00\xff\xff\xff\xff"):
                with socket.create_connection(("127.0.0.1", port)) as stranger:
                    stranger.sendall(words)
            session.reconnect()
            assert session.measure(orders("work"), POINTS).points
        assert psutil.Process(session.facts()["pid"]).parent() == server


@pytest.mark.slow
def test_a_device_that_is_lost_is_given_back_without_a_word(tracker: TrackerAddress) -> None:
    script = (
        "    session.measure(sys.argv[3].encode(), [Point(1, 1)])\n"
        "    process = psutil.Process(session.facts()['pid'])\n"
        "    print(process.pid, flush=True)\n"
        "    process.suspend()\n"
        "print('given back', flush=True)\n"
    )
    with client_process(tracker, "work", 300.0, script) as client:
        assert client.stdout is not None
        suspended = psutil.Process(int(client.stdout.readline()))
        try:
            output, _ = client.communicate(timeout=60.0)
        finally:
            client.kill()
            suspended.resume()
    assert output == b"given back\n"


def test_a_mute_in_the_server_s_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvm_coexec.rpc.connection._CONNECT_TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        lease = Lease("127.0.0.1", listening.getsockname()[1], "key:1")
        monkeypatch.setattr("tvm_coexec.rpc.client.request_lease", lambda *_, **__: lease)
        with pytest.raises(MeasurementError, match=r"does not answer \(not within 0.5 s\)"):
            Session(TrackerAddress("127.0.0.1", 1), KEY).reconnect()


def test_a_session_begins_with_a_device_that_answers(tracker: TrackerAddress, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvm_coexec.rpc.connection._CONNECT_TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        lent = [Lease("127.0.0.1", listening.getsockname()[1], "key:1")]
        monkeypatch.setattr(
            "tvm_coexec.rpc.client.request_lease",
            lambda *asked, **how: lent.pop() if lent else request_lease(*asked, **how),
        )
        with Session(tracker, KEY) as session:
            assert session.facts()["name"] == "pretended"
        lent = 9 * [Lease("127.0.0.1", listening.getsockname()[1], "key:1")]
        lasting, mute = (
            Session(tracker, KEY, request_timeout_s=1.2),
            pytest.raises(MeasurementError, match="not answer"),
        )
        with mute, lasting:
            pass
        assert 5 <= len(lent) < 8  # it was asked for again for as long as a device is waited for


def test_a_device_in_use_is_waited_for_no_longer_than_asked(tracker: TrackerAddress) -> None:
    waiting = Session(tracker, KEY, request_timeout_s=0.5)
    with Session(tracker, KEY), pytest.raises(MeasurementError, match=r"none of the 1 device\(s\).*free within 0.5 s"):
        waiting.reconnect()
    with Session(tracker, KEY) as session:
        assert session.facts()["name"] == "pretended"


def test_an_unknown_key_names_the_known_ones(tracker: TrackerAddress) -> None:
    with pytest.raises(MeasurementError, match=f"no device with key 'other'.* has {KEY};"):
        Session(tracker, "other", request_timeout_s=0.2).reconnect()


@pytest.mark.slow
def test_a_client_that_is_killed_while_it_measures_gives_the_device_back(tracker: TrackerAddress) -> None:
    script = "    print('measures', flush=True)\n    session.measure(sys.argv[3].encode(), [Point(1, 1)])\n"
    with client_process(tracker, "hang", 3.0, script) as client:
        assert client.stdout is not None and client.stdout.readline() == b"measures\n"
        time.sleep(0.3)
        client.kill()
    with Session(tracker, KEY) as session:
        assert session.facts()["name"] == "pretended"


def test_the_server_s_command_offers_a_device_until_it_is_told_to_end(tracker: TrackerAddress) -> None:
    command = [sys.executable, "-m", "tvm_coexec.rpc.server", "--tracker", str(tracker), "--key", "by-command"]
    with subprocess.Popen(command, stdout=-1) as server:
        assert (
            server.stdout is not None
            and server.stdout.readline() == f"offering by-command at the tracker {tracker}\n".encode()
        )
        started = psutil.Process(server.pid).children(recursive=True)
        loaded = " ".join(one.path for process in started for one in process.memory_maps())
        assert "libtvm_runtime.so" in loaded and "libtvm_compiler.so" not in loaded
        with Session(tracker, "by-command") as session, pytest.raises(RefusedError, match="is no module"):
            session.measure(b"nonsense", POINTS)
        server.terminate()
        assert server.wait(10.0) == 0
    assert started and not psutil.wait_procs(started, timeout=5.0)[1]


@pytest.mark.slow
def test_a_log_on_a_full_disk_ends_no_server(tracker: TrackerAddress) -> None:
    command = [sys.executable, "-m", "tvm_coexec.rpc.server", "--tracker", str(tracker), "--key", "full"]
    with Path("/dev/full").open("w") as full, subprocess.Popen(command, stdout=full, stderr=full) as server:
        with Session(tracker, "full", request_timeout_s=60.0) as session, pytest.raises(RefusedError):
            session.measure(b"nonsense", POINTS)
        server.terminate()
        assert server.wait(10.0) == 0


def test_the_server_s_command_names_a_tracker_that_is_not_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.environ", os.environ.copy())  # what a server's processes are given stays with them
    port = free_port()
    assert server_main(["--tracker", f"127.0.0.1:{port}", "--key", "any"]) == 1
    assert f"error: the tracker at 127.0.0.1:{port} is out of reach" in capsys.readouterr().err


@pytest.mark.slow
def test_a_layer_is_checked_and_timed_on_the_device_of_this_machine(tmp_path: Path) -> None:
    layer = Linear(5, 40, 100, ("bias", "relu"))
    with local_tracker(DeviceChoice()) as address, Session(address, device_key(None)) as session:
        facts = session.facts()
        hardware = target_for(facts).hardware
        cpu, gpu = (schedules.family(layer).default_variant(layer, side, hardware) for side in ("cpu", "gpu"))
        path = tmp_path / "layer.module"
        single_layer(layer, cpu, gpu, target_for(facts), facts).write(path)
        measurement = session.measure(path, [Point(2, 2, repeats=3), Point(0, 4, repeats=5), Point(4, 0, repeats=1)])
        runs_us = session.time_runs(path, [{"layer": 4}, {"layer": 1}], repeats=3)
        with pytest.raises(RefusedError, match="no layer 'other'"):
            session.time_runs(path, [{"other": 4}], repeats=3)
        for content, step, message in ((path.read_bytes()[:100], 0, "is no module"), (path.read_bytes(), 1, "Index")):
            with pytest.raises(RefusedError, match=message):
                session.measure(content, [Point(2, 2)], step=step)
    assert facts["name"] and facts["driver_version"]
    assert [(len(p.cpu_us), len(p.gpu_us), len(p.wall_us)) for p in measurement.points] == [
        (3, 3, 3),
        (0, 5, 5),
        (1, 0, 1),
    ]
    assert [len(times_us) for times_us in runs_us] == [3, 3] and all(us > 0 for times_us in runs_us for us in times_us)
    assert all(time_us > 0 for point in measurement.points for time_us in point.wall_us)
    assert measurement.max_rel_error is not None and 0 < measurement.max_rel_error <= 1e-5
