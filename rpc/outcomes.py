"""What measuring in a session comes to: times, or an error that says whether module, device or session failed."""

from __future__ import annotations

from dataclasses import dataclass

from tvm_coexec.errors import MeasurementError
from tvm_coexec.profile.records import PointTimes


class RefusedError(MeasurementError):
    """The device is well and the session goes on; the module or the request is at fault."""


class WrongError(RefusedError):
    """The device is well, and what it computes by the module is wrong."""


class DeviceFailedError(MeasurementError):
    """The device cannot be opened; the module is not at fault."""


class SessionLostError(MeasurementError):
    """The session ended: its time was over, its process died, or its server vanished; the next call gets a new one."""


@dataclass(frozen=True)
class Measurement:
    """Times at each point asked for, and the largest relative error of the checks, None where nothing was checked."""

    points: tuple[PointTimes, ...]
    max_rel_error: float | None
