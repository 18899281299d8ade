"""Run a module on arrays, time it, or show what both sides do in one run.

Inputs come from .npy files or from one .npz file; without any, random numbers are used. Neither a compiler nor the
predictors are needed.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_coexec.errors import first_line, readable
from tvm_coexec.files import read_file

from .opening import opened, random_inputs
from .options import (
    add_core_options,
    add_device_option,
    add_timeout_option,
    add_tracker_options,
    check_out,
    number_of_runs,
)

if TYPE_CHECKING:
    import numpy as np

    from tvm_coexec.rpc.far_module import FarModule
    from tvm_coexec.runtime.module import Module

_ARRAYS = (b"\x93NUMPY", b"PK")
"""How files of one array, and of several by name, begin."""

_LONGEST_NAME = 65_000
"""Bytes; the file format counts them by 16 bits."""

EXAMPLES = """\
examples:
  tvm-coexec run model.coexec --input x.npy --out y.npz
  tvm-coexec run model.coexec --benchmark 100
  tvm-coexec run model.coexec --timeline
  tvm-coexec run model.coexec --tracker 192.168.0.2:9190 --key my-phone --benchmark 100
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("module", metavar="MODULE", help="made by `tvm-coexec build`")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        dest="inputs",
        metavar="FILE",
        help="a .npy file for each input, in the model's order, or one .npz file with all by name",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the outputs by name to an .npz file")
    parser.add_argument("--benchmark", type=number_of_runs, default=0, metavar="N", help="time N runs")
    parser.add_argument("--timeline", action="store_true", help="print what both sides did in one run, waits included")
    add_timeout_option(parser)
    add_device_option(parser)
    add_core_options(parser)
    add_tracker_options(parser)


def run(
    *,
    module: str,
    inputs: Sequence[str],
    out: Path | None,
    benchmark: int,
    timeline: bool,
    timeout: float,
    device: str | None,
    cpu_cores: tuple[int, ...] | None,
    gpu_cores: tuple[int, ...] | None,
    tracker: str | None,
    key: str | None,
) -> int:
    check_out(out)
    from tvm_coexec.opencl.choice import DeviceChoice

    choice = DeviceChoice(device, cpu_cores, gpu_cores)
    with opened(module, choice, tracker, key, timeout_s=timeout) as one:
        _show(one.module, one.label, inputs, out, benchmark, timeline=timeline)
    return 0


def _show(
    module: Module | FarModule, label: str, inputs: Sequence[str], out: Path | None, benchmark: int, *, timeline: bool
) -> None:
    arrays = _arrays(inputs, module)
    results = module(**arrays) if isinstance(arrays, Mapping) else module(*arrays)
    named = results if isinstance(results, Mapping) else {module.manifest.outputs[0]: results}
    for name, array in named.items():
        print(f"{readable(name)}: {array.dtype} {array.shape}, from {array.min():.6g} to {array.max():.6g}")
    if out is not None:
        _save(out, named)
    if benchmark:
        print(f"{label}: {module.benchmark(repeats=benchmark)}")
    if timeline:
        for event in module.profile():
            took_us = event.end_us - event.start_us
            print(f"{event.start_us:10.1f} {took_us:9.1f} us  {event.side} {event.kind:12} {readable(event.step)}")


def _arrays(files: Sequence[str], module: Module | FarModule) -> dict[str, np.ndarray] | list[np.ndarray]:
    """The inputs, by name or in order, from files or at random."""
    if not files:
        return random_inputs(module)
    loaded = [_load(file) for file in files]
    return loaded[0] if len(loaded) == 1 and isinstance(loaded[0], dict) else loaded


def _save(out: Path, named: Mapping[str, np.ndarray]) -> None:
    """Write arrays as numpy's ``savez`` does, which takes no file's name as it is and no array called ``file``.

    Raises
    ------
    InputError
        An array's name could not be read back.
    """
    import numpy as np

    from tvm_coexec.errors import InputError
    from tvm_coexec.files import whole_file

    for name in named:
        if not _can_name_an_entry(name):
            raise InputError(
                f"--out {out}: no .npz file can hold an array called {readable(name)!r}; give the model's output "
                "another name"
            )
    with whole_file(out) as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in named.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.save(entry, array, allow_pickle=False)


def _can_name_an_entry(name: str) -> bool:
    try:
        return "\0" not in name and len(name.encode()) <= _LONGEST_NAME
    except UnicodeEncodeError:
        return False


def _load(file: str) -> Any:
    import numpy as np

    from tvm_coexec.errors import InputError

    try:
        raw = read_file(Path(file))
    except OSError as error:
        raise InputError(f"cannot read {file} ({error.strerror}); name a .npy or .npz file") from None
    if raw and not raw.startswith(_ARRAYS):
        raise InputError(f"cannot read {file} as .npy or .npz (it begins as neither does); save it anew with numpy")
    try:
        content = np.load(io.BytesIO(raw), allow_pickle=False)
        return dict(content) if isinstance(content, np.lib.npyio.NpzFile) else content
    except Exception as error:  # numpy raises whatever a damaged header leads it to
        reason = first_line(error) if str(error) else type(error).__name__
        raise InputError(f"cannot read {file} as .npy or .npz ({reason}); save it anew with numpy") from None
