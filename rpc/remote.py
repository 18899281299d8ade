"""What a session can ask of a device whose server is ours.

The functions take and give JSON. They are registered before a session's process is forked, and nothing of OpenCL is
touched until one of them is called in it: OpenCL does not survive a fork.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_coexec.errors import CoexecError, DeviceError, last_line
from tvm_coexec.module.package import identity_of
from tvm_coexec.opencl.choice import DeviceChoice
from tvm_coexec.runtime.device import Device, open_chosen

from .measuring import DeviceFaultError, Measuring, WrongResultError

if TYPE_CHECKING:
    from tvm_coexec.runtime.module import Module

FACTS = "tvm_coexec.facts"
MEASURE = "tvm_coexec.measure"
RUN = "tvm_coexec.run"
RUN_TRIALS = "tvm_coexec.run_trials"

_WORK_PATH = "tvm.rpc.server.workpath"


class SessionFunctions(Measuring):
    """The functions of one session; the device is opened by the first call that needs it."""

    def __init__(self, choice: DeviceChoice) -> None:
        super().__init__()
        self._choice = choice
        self._opened: Device | None = None
        self._loaded: dict[str, tuple[bytes, Module]] = {}
        """Each module by its name, with what tells the file that it is from apart from others."""

    def facts(self, request: Any) -> dict[str, Any]:
        """Everything that a measurement on the device depends on."""
        return self._device().facts()

    def load(self, name: str) -> Module:
        """Open the module on the device; one whose file was not sent anew is there already, with all its constants."""
        import tvm_ffi

        from tvm_coexec.runtime.module import load

        device = self._device()
        if device.hang is not None:  # since an earlier module: this one is innocent, and a new session computes it
            raise DeviceFaultError(device.hang)
        path = Path(tvm_ffi.get_global_func(_WORK_PATH)(name))
        sent = identity_of(path)  # the file's time would not do: two may be sent within its step
        if name not in self._loaded or self._loaded[name][0] != sent:
            self._loaded.pop(name, None)  # its memory is free before that of the next one is taken
            self._loaded[name] = (sent, load(path, device=device))
        return self._loaded[name][1]

    def _device(self) -> Device:
        if self._opened is None:
            try:
                self._opened = open_chosen(self._choice)
            except DeviceError as error:
                raise DeviceFaultError(str(error)) from None
        return self._opened


def register(choice: DeviceChoice) -> None:
    """Offer the functions to the sessions of this process's RPC server."""
    import tvm_ffi

    functions = SessionFunctions(choice)
    offered = {
        FACTS: functions.facts,
        MEASURE: functions.measure,
        RUN: functions.run,
        RUN_TRIALS: functions.run_trials,
    }
    for name, function in offered.items():
        tvm_ffi.register_global_func(name, _answering(function), override=True)


def _answering(function: Callable[[Any], Any]) -> Callable[[str], str]:
    """Wrap a function so that its result, or its error, travels as JSON."""

    def answer(request: str) -> str:
        try:
            return json.dumps({"result": function(json.loads(request))})
        except CoexecError as error:
            kinds = {"of_device": DeviceFaultError, "is_wrong": WrongResultError}
            told = {name: isinstance(error, kind) for name, kind in kinds.items()}
            return json.dumps({"error": last_line(error), **told})
        except Exception as error:  # whatever it is, the caller on the other machine has to learn of it
            traceback.print_exc(file=sys.stderr)
            return json.dumps({"error": f"{type(error).__name__}: {last_line(error)}", "of_device": False})

    return answer
