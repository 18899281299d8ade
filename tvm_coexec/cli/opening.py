"""Opens a module for a command, on a device of this machine or on one of a tracker."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from tvm_coexec.opencl.choice import DeviceChoice
    from tvm_coexec.rpc.far_module import FarModule
    from tvm_coexec.runtime.module import Module


@dataclass(frozen=True)
class Opened:
    """A module and the device that it runs on.

    Parameters
    ----------
    read
        Gives what a file of that device's machine holds.
    """

    module: Module | FarModule
    facts: Mapping[str, Any]
    read: Callable[[str], str]

    @property
    def label(self) -> str:
        return str(self.facts["label"])


@contextmanager
def opened(
    path: str, choice: DeviceChoice, tracker: str | None, key: str | None, *, timeout_s: float, session_s: float = 0.0
) -> Iterator[Opened]:
    """Open a module on the device that is named.

    Parameters
    ----------
    timeout_s
        Bound on every wait of one side for the other.
    session_s
        How long a tracker's device is needed, if for longer than usual.
    """
    if tracker is None and key is None:
        from tvm_coexec.machine.sensors import read_here
        from tvm_coexec.runtime.module import load

        loaded = load(
            path, device=choice.name, cpu_cores=choice.cpu_cores, gpu_cores=choice.gpu_cores, timeout_s=timeout_s
        )
        yield Opened(loaded, loaded.device.facts(), read_here)
        return
    from tvm_coexec.module.package import open_file
    from tvm_coexec.tuning.session import open_session

    with open_file(path) as file, open_session(choice, tracker, key, session_s=session_s) as session:
        yield Opened(session.open_module(file.read()), session.facts(), session.read_file)


def random_inputs(module: Module | FarModule) -> dict[str, np.ndarray]:
    """Draw random numbers for each input, by its name."""
    import numpy as np

    rng = np.random.default_rng(0)
    types = {name: view.dtype for name, view in module.inputs.items()}
    return {name: _random(rng, shape, types[name]) for name, shape in module.input_shapes.items()}


def _random(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Whole numbers are 0 and 1, which every table of tokens and every mask has."""
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype)
