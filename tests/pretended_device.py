"""A device that only pretends: in a server's process it does what an uploaded file says, a fault among that."""

import json
import os
import signal
import sys
import time
import types
from pathlib import Path
from typing import Any

import cloudpickle
import psutil

from tvm_coexec.errors import KernelError
from tvm_coexec.opencl.choice import DeviceChoice
from tvm_coexec.rpc import remote

ordered: list[str] = []
"""In the process of a session: the networks that ran, one after the other."""
devices: list[types.SimpleNamespace] = []
"""Likewise: the devices that were opened."""


def write_to_client(content: bytes) -> None:
    """In the process of a session: as if two processes wrote at once."""
    (client,) = psutil.Process().net_connections("tcp")  # and nothing else of the server's is open
    os.write(client.fd, content)


class PretendedModule:
    """Does what the uploaded file says."""

    def __init__(self, orders: dict[str, Any]) -> None:
        self.orders = orders
        self.inputs_are_random = False
        self.splits = {"first": 1, "second": 0}
        self.asked = 0

    def error_bound(self, step: int) -> float:
        return 1e-5

    def check_step(self, step: int, cpu_units: int, gpu_units: int, *, seed: int) -> float:
        return {"be wrong": 0.5, "be nan": float("nan")}.get(self.orders["do"], cpu_units * 1e-7)

    def time_step(
        self, step: int, cpu_units: int, gpu_units: int, *, repeats: int, walls: bool
    ) -> types.SimpleNamespace:
        match self.orders["do"]:
            case "raise":
                raise KernelError("first line\nthe kernel does not compile")
            case "raise unexpectedly":
                raise ZeroDivisionError("a trace\ndivision by nothing")
            case "hang":
                time.sleep(3600)
            case "exit":
                os._exit(3)
            case "be killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "leave a kernel that hangs":
                devices[-1].hang = "the kernel of another module hangs"
            case "write nonsense":
                write_to_client(b"a message of another process")
        times_us = [float(step + index) for index in range(repeats)]
        return types.SimpleNamespace(
            cpu_us=times_us if cpu_units else [], gpu_us=times_us if gpu_units else [], wall_us=times_us
        )

    def randomize_inputs(self) -> None:
        self.inputs_are_random = True

    def benchmark(self, *, repeats: int, warmup: int) -> types.SimpleNamespace:
        assert self.inputs_are_random
        if self.orders["do"] == "raise":
            raise KernelError("the network does not run")
        if self.orders["do"] == "tell":
            self.asked += 1
            return types.SimpleNamespace(latency_us=(2.0 if self.asked in self.orders["slow"] else 1.0,) * repeats)
        ordered.append(self.orders["name"])
        return types.SimpleNamespace(latency_us=(float(len(ordered)),) * repeats)

    def time_halves(self, *, repeats: int) -> list[tuple[list[float], list[float]]]:
        return [([1.0] * repeats, [2.0] * repeats), ([], [3.0] * repeats)]


def prepare_pretended_device() -> None:
    """In the server's process: put a device and modules in the place of the real ones."""
    opened = []

    def open_chosen(choice: DeviceChoice) -> types.SimpleNamespace:
        opened.append(os.getpid())
        facts = {"name": "pretended", "opened_by": opened, "pid": os.getpid()}
        device = types.SimpleNamespace(facts=lambda: facts, hang=None)
        devices.append(device)
        return device

    def load(path: str, *, device: types.SimpleNamespace) -> PretendedModule:
        return PretendedModule(json.loads(Path(path).read_bytes()))

    remote.open_chosen = open_chosen  # type: ignore[assignment]
    module = types.ModuleType("tvm_coexec.runtime.module")
    module.load = load  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    remote.register(DeviceChoice())


cloudpickle.register_pickle_by_value(sys.modules[__name__])
