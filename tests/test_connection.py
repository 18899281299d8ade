"""When TVM's connections are shut down."""

import gc
import socket
import threading
import time

from tvm_coexec.rpc.connection import Connection, watch_link


def test_a_connection_is_shut_down_when_its_last_call_returns_and_before_its_functions_go() -> None:
    happened: list[str] = []
    free = threading.Event()

    def wait_until(last: str) -> None:
        deadline = time.monotonic() + 10.0
        while happened[-1:] != [last] and time.monotonic() < deadline:
            time.sleep(0.01)
            gc.collect()

    class Function:
        def __call__(self, request: str) -> str:
            free.wait()
            happened.append(request)
            return request

        def __del__(self) -> None:
            happened.append("freed")

    class Remote:
        def get_function(self, name: str) -> object:
            return (lambda: happened.append("closed")) if name == "CloseRPCConnection" else Function()

    connection = Connection(Remote())
    called = connection.call("wait", "called")
    connection.shut_down()
    assert not happened
    free.set()
    assert called.result(10.0) == "called"
    wait_until("closed")
    assert happened == ["called", "closed"]
    del connection, called
    wait_until("freed")
    assert happened == ["called", "closed", "closed", "freed"]


def test_the_kernel_watches_the_way_to_a_server_and_no_other() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("127.0.0.1", 0)) as another:
        ports = [one.getsockname()[1] for one in (server, another)]
        with (
            socket.create_connection(("127.0.0.1", ports[0])) as watched,
            socket.create_connection(("127.0.0.1", ports[1])) as left_alone,
        ):
            watch_link("localhost", ports[0])
            kept = [one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) for one in (watched, left_alone)]
            assert kept == [1, 0] and watched.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) < 60
