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
from typing import IO, TYPE_CHECKING

from tvm_coexec.errors import first_line, readable
from tvm_coexec.files import open_file

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

_ARRAY = b"\x93NUMPY"
_ARRAYS = (_ARRAY, b"PK")
"""How files of one array, and of several by name, begin."""

_LONGEST_HEADER = 10_000
"""Bytes of an array's header at most, as numpy has it."""

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
    results = module(**arrays)
    named = results if isinstance(results, Mapping) else {module.manifest.outputs[0]: results}
    for name, array in named.items():
        span = f"from {array.min():.6g} to {array.max():.6g}" if array.size else "without elements"
        print(f"{readable(name)}: {array.dtype} {array.shape}, {span}")
    if out is not None:
        _save(out, named)
    if benchmark:
        print(f"{label}: {module.benchmark(repeats=benchmark)}")
    if timeline:
        for event in module.profile():
            took_us = event.end_us - event.start_us
            print(f"{event.start_us:10.1f} {took_us:9.1f} us  {event.side} {event.kind:12} {readable(event.step)}")


def _arrays(files: Sequence[str], module: Module | FarModule) -> dict[str, np.ndarray]:
    """Give the inputs by name, from files or at random.

    Raises
    ------
    InputError
        The files are not the inputs: for one that says so, its data are not read, which may be any number of bytes.
    """
    from tvm_coexec.errors import InputError

    if not files:
        return random_inputs(module)
    shapes = module.input_shapes
    types = {name: (view.dtype, shapes[name]) for name, view in module.inputs.items()}
    if len(files) > len(types):
        names = ", ".join(map(readable, types))
        raise InputError(f"the module takes {len(types)} inputs ({names}), {len(files)} files were given")
    if len(files) == 1:
        return _load(files[0], next(iter(types)), types)
    arrays: dict[str, np.ndarray] = {}
    for file, name in zip(files, types, strict=False):
        arrays |= _load(file, name, {name: types[name]})
    return arrays


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


def _load(file: str, own: str, types: Mapping[str, tuple[np.dtype, tuple[int, ...]]]) -> dict[str, np.ndarray]:
    """The arrays in a file by the inputs' names; an array alone is the input ``own``."""
    from tvm_coexec.errors import InputError

    try:
        with open_file(file) as opened:
            begins = opened.read(max(map(len, _ARRAYS)))
            opened.seek(0)
            if begins.startswith(_ARRAY):
                return {own: _array(opened, file, own, types)}
            if begins and not begins.startswith(_ARRAYS):
                raise InputError(
                    f"cannot read {file} as .npy or .npz (it begins as neither does); save it anew with numpy"
                )
            with zipfile.ZipFile(opened) as archive:
                arrays = {}
                for entry in archive.infolist():
                    name = entry.filename.removesuffix(".npy")
                    with archive.open(entry) as member:
                        arrays[name] = _array(member, file, name, types)
                return arrays
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read {file} ({error.strerror}); name a .npy or .npz file") from None
    except Exception as error:  # numpy raises whatever a damaged header leads it to
        reason = first_line(error) if str(error) else type(error).__name__
        raise InputError(f"cannot read {file} as .npy or .npz ({reason}); save it anew with numpy") from None


def _array(
    stream: IO[bytes], file: str, name: str, types: Mapping[str, tuple[np.dtype, tuple[int, ...]]]
) -> np.ndarray:
    """Read an array once its header is seen to be the input's: a file of little can be unpacked to gigabytes."""
    from numpy.lib import format as npy

    from tvm_coexec.errors import InputError

    if name not in types:
        names = ", ".join(map(readable, types))
        raise InputError(f"{file}: input {readable(name)!r} is unknown; the inputs are {names}")
    header = io.BytesIO(stream.read(_LONGEST_HEADER))
    read_header = npy.read_array_header_1_0 if npy.read_magic(header) == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read_header(header)
    if (dtype, shape) != types[name]:
        wanted, wanted_shape = types[name]
        raise InputError(
            f"{file}: input {readable(name)!r} must be a {wanted} array of shape {wanted_shape}, not {dtype} {shape}"
        )
    stream.seek(0)
    return npy.read_array(stream, allow_pickle=False)
