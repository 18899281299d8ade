"""The C runtime on a device that TVM's RPC alone reaches: sent there, loaded, and asked by lines of ``key=value``."""

from __future__ import annotations

import platform
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from tvm_coexec.errors import KernelError
from tvm_coexec.runtime.library import library_file

from .connection import Connection
from .measuring import DeviceFaultError

_LIBRARY = "libcoexec.so"
_SHELLS = ("/bin/sh", "/system/bin/sh")
"""Programs of which a device has one: it shows for what CPU and what system programs are built there."""
_MACHINES = {62: "x86_64", 183: "aarch64"}
"""CPUs by the number at byte 18 of a program's file."""
_ANDROID_LOADER = b"/system/bin/linker"

_WAIT_US = 120_000_000
"""How long a side waits for the other: some drivers take a minute or more for a kernel's first launch."""
_GPU_HANGS, _NO_DEVICE = "5", "8"
"""Values of ``coexec_status``: the device is of no use in this process, and no device can be opened."""


class FarRuntime:
    """The C runtime in one session.

    Parameters
    ----------
    wait_for
        Gives the answer to a request, or raises the error of a session that is lost.
    """

    def __init__(self, connection: Connection, wait_for: Callable[[Future[Any]], Any]) -> None:
        self._connection, self._wait_for = connection, wait_for
        self._hangs = False

    def upload(self, content: bytes, name: str) -> None:
        """Send a file."""
        self._wait_for(self._connection.upload(content, name))

    def download(self, name: str) -> bytes:
        """Fetch a file; nothing if it is not there."""
        return bytes(self._wait_for(self._connection.download(name)))

    def send(self) -> str:
        """Build the C runtime for the device, and load it there; the triple that it was built for."""
        from tvm_coexec.compiler.toolchain import runtime_library

        triple = self._triple()
        is_like_this_one = triple == f"{platform.machine()}-linux-gnu"
        self.upload(library_file().read_bytes() if is_like_this_one else runtime_library(triple), _LIBRARY)
        self._wait_for(self._connection.load(_LIBRARY))
        self.ask("guard")  # TVM's server in Python would stop serving when the session's process dies
        return triple

    def _triple(self) -> str:
        from tvm_coexec.compiler.target import ANDROID

        for shell in _SHELLS:
            program = self.download(shell)
            machine = _MACHINES.get(int.from_bytes(program[18:20], "little"))
            if program[:4] == b"\x7fELF" and machine is not None:
                return f"{machine}-linux-{ANDROID if _ANDROID_LOADER in program else 'gnu'}"
        raise DeviceFaultError(
            "its server does not show what CPU it has; use a device with aarch64 or x86_64, and Linux"
        )

    def ask(self, function: str, **values: object) -> list[tuple[str, str]]:
        """Call a function of the C runtime; the pairs that it answers.

        Raises
        ------
        DeviceFaultError, KernelError
            It failed, and the device is at fault, or what was asked is. The first call that the GPU hangs at is at
            fault itself; for those after it in the session the device is.
        """
        if "module" in values:
            values["timeout_us"] = _WAIT_US
        lines = [line.partition("=") for line in self._text(function, **values).splitlines()]
        answer = [(key, value) for key, _, value in lines]
        failed = dict(answer[:2])
        if "status" in failed:
            is_fault = failed["status"] == _NO_DEVICE or (self._hangs and failed["status"] == _GPU_HANGS)
            self._hangs |= failed["status"] == _GPU_HANGS
            raise (DeviceFaultError if is_fault else KernelError)(failed.get("error", "no reason is given"))
        return answer

    def _text(self, function: str, **values: object) -> str:
        request = "\n".join(
            f"{key}={int(value) if isinstance(value, bool) else value}" for key, value in values.items()
        )
        try:
            return str(self._wait_for(self._connection.call(f"{_LIBRARY}:coexec_{function}", request)))
        except AttributeError:  # what TVM raises where a library has no such function
            raise DeviceFaultError(
                "the C runtime that is loaded there is older; end its server, and start it anew"
            ) from None

    def file(self, path: str) -> str:
        """What a file of the device holds; nothing where it cannot be read."""
        text = self._text("text", file=path)
        return "" if text.startswith("status=") else text
