"""Compiles halves: LLVM object code for the CPU, OpenCL source for the GPU. What was compiled once is kept on disk."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from tvm_coexec import layers, schedules
from tvm_coexec.cache import Cache, digest_of, digest_of_sources, user_cache
from tvm_coexec.errors import KernelError, last_line
from tvm_coexec.layers import AnyLayer, ImageLayouts, Variant, layer_to_json
from tvm_coexec.schedules.dispatch import Dispatch

from . import broadcasts, vector_pointers
from .broadcasts import with_short_broadcasts
from .target import Target
from .vector_pointers import with_vector_pointers

if TYPE_CHECKING:
    from tvm_coexec.schedules.frame import Launch, Operand
    from tvm_coexec.schedules.halo import Halo

_MOST_CACHE_BYTES = 1 << 30
"""Kernels of a network take some megabytes: room for some hundred networks and devices."""

_LONGEST_REASON = 300
"""Characters of what TVM says; it may print an expression as long as a kernel."""

_ROOM_BYTES = 1 << 20
"""No kernel's object code is larger."""


@dataclass(frozen=True)
class Kernel:
    """One compiled kernel of a half.

    Parameters
    ----------
    code
        An object file or OpenCL source.
    operands
        Name, shape and type of each buffer, and whether it is read as an image, in the order of the arguments.
    """

    symbol: str
    side: str
    code: bytes
    operands: tuple[tuple[str, tuple[int, ...], str, bool], ...]
    dispatch: Dispatch


@cache
def kept_kernels() -> Cache:
    """What was compiled before."""
    return user_cache("kernels", _MOST_CACHE_BYTES)


def compile_half(
    layer: AnyLayer, side: str, variant: Variant, target: Target, layouts: ImageLayouts | None = None
) -> tuple[Kernel, ...]:
    """Compile the kernels of one half in the order in which they run, or take them from the cache.

    Raises
    ------
    KernelError
        The variant does not compile for this layer and target.
    """
    variant = variant.kernel
    return _from_cache(
        [layer_to_json(layer), variant.to_json(), repr(layouts)],
        f"{layer.op}_{side}",
        side,
        target,
        lambda: schedules.family(layer).build(layer, side, variant, layouts),
        f"variant {variant} of {layer}",
    )


def compile_clearing(halo: Halo, side: str, target: Target) -> tuple[Kernel, ...]:
    """Compile the kernel that clears an image's halo, or take it from the cache."""

    def build() -> Sequence[Launch]:
        from tvm_coexec.schedules.halo_kernels import clearing

        return (clearing(halo, side),)

    return _from_cache(
        [repr(halo)],
        f"halo_{side}",
        side,
        target,
        build,
        f"the clearing of {halo}",
    )


def _from_cache(
    described: list[Any], name: str, side: str, target: Target, build: Callable[[], Sequence[Launch]], what: str
) -> tuple[Kernel, ...]:
    """What was compiled of the same description, else what is compiled now; ``name`` begins the symbols."""
    key = json.dumps([name, *described, target.key(side), _generator_key()])
    kept = kept_kernels().get(key)
    if kept is not None:
        return _from_bytes(kept, side)
    kernels = _generate(build, side, target, f"{name}_{digest_of(key)}", what)
    kept_kernels().put(key, _to_bytes(kernels))
    return kernels


def _to_bytes(kernels: Sequence[Kernel]) -> bytes:
    """Write a line that describes the kernels, then the code of each."""
    heads = [
        {"symbol": k.symbol, "bytes": len(k.code), "operands": k.operands, "dispatch": asdict(k.dispatch)}
        for k in kernels
    ]
    return b"\n".join([json.dumps(heads).encode(), b"".join(kernel.code for kernel in kernels)])


def _from_bytes(content: bytes, side: str) -> tuple[Kernel, ...]:
    """What :func:`_to_bytes` was given."""
    line, _, rest = content.partition(b"\n")
    kernels = []
    for head in json.loads(line):
        code, rest = rest[: head["bytes"]], rest[head["bytes"] :]
        operands = tuple((name, tuple(shape), *rest) for name, shape, *rest in head["operands"])
        dispatch = Dispatch(**head["dispatch"] | {key: tuple(head["dispatch"][key]) for key in ("grid", "group")})
        kernels.append(Kernel(head["symbol"], side, code, operands, dispatch))
    return tuple(kernels)


@cache
def _generator_key() -> str:
    """Changes with TVM and with every line of the schedules, of the layers that they compute, and of this text."""
    files = (__file__, broadcasts.__file__, vector_pointers.__file__)
    return digest_of_sources(
        [importlib.metadata.version("apache-tvm")], [*files, *schedules.__path__, *layers.__path__]
    )


def _generate(
    build: Callable[[], Sequence[Launch]], side: str, target: Target, name: str, what: str
) -> tuple[Kernel, ...]:
    import tvm

    kernels = []
    try:
        for number, launch in enumerate(build()):
            symbol = f"{name}_{number}"
            named = tvm.IRModule({symbol: launch.module["main"].with_attr("global_symbol", symbol)})
            is_cpu, operands = side == "cpu", launch.operands
            code = _object_code(named, target) if is_cpu else _opencl_source(named, target, symbol, operands)
            described = tuple((one.name, tuple(one.shape), one.dtype, one.is_image) for one in operands)
            kernels.append(Kernel(symbol, side, code, described, launch.dispatch))
    except (RuntimeError, TypeError, ValueError, ArithmeticError) as error:
        raise KernelError(f"{what} does not compile: {last_line(error)[:_LONGEST_REASON]}") from error
    return tuple(kernels)


def _object_code(module: Any, target: Target) -> bytes:
    import tvm

    compiled = tvm.compile(module, target=tvm.target.Target(target.llvm_options()))
    # LLVM writes to a file alone, and ends the process where a disk is full: this file lies in memory.
    with os.fdopen(os.memfd_create("kernel.o"), "r+b", buffering=0) as file:
        file.write(bytes(_ROOM_BYTES))  # an error of ours where the process may write no files
        compiled.mod.write_to_file(f"/proc/self/fd/{file.fileno()}", "o")
        file.seek(0)
        return file.read()


def _opencl_source(module: Any, target: Target, symbol: str, operands: Sequence[Operand]) -> bytes:
    """Give the kernel's source; its arguments must be the operands, then begin and count."""
    import tvm

    compiled = tvm.compile(module, target=tvm.target.Target("opencl", host="c"))  # what would launch it is thrown away
    source: str = next(part for part in compiled.mod.imports if part.kind == "opencl").inspect_source()
    source = _with_all_parameters(source, symbol, [*parameter_names(operands), "begin", "count"])
    if target.hardware.opencl_type == "cpu":
        source = _with_wide_indices(source, symbol)
    return finished_source(source, operands).encode()


def _with_all_parameters(source: str, symbol: str, expected: Sequence[str]) -> str:
    """The kernel with the parameters that are expected, of which TVM leaves out what is not read.

    A convolution of so few pixels that all its taps lie in the padding reads no input.
    """
    declarations = re.findall(rf"__kernel void {symbol}_kernel\((.*?)\)\s*\{{", source)
    parameters = [text.strip() for text in declarations[0].split(",")] if len(declarations) == 1 else []
    given = {text.replace("*", " ").split()[-1]: text for text in parameters}
    if list(given) != [name for name in expected if name in given] or not {"begin", "count"} <= given.keys():
        raise KernelError(f"TVM gave {symbol} the arguments {list(given)} instead of {list(expected)}")
    if len(given) == len(expected):
        return source
    written = ", ".join(given.get(name, f"__global float* restrict {name}") for name in expected)
    return re.sub(rf"(__kernel void {symbol}_kernel\()[^)]*\)", rf"\g<1>{written})", source)


def parameter_names(operands: Sequence[Operand]) -> list[str]:
    """What TVM calls the pointers of a kernel."""
    return [f"p{position:02d}_{operand.name}_ptr" for position, operand in enumerate(operands)]


def finished_source(source: str, operands: Sequence[Operand]) -> str:
    """OpenCL C as TVM writes it, with what its kernels call, and in the form that compilers for GPUs want."""
    from tvm_coexec.schedules.extrema import with_extrema
    from tvm_coexec.schedules.prefetch import with_fetch
    from tvm_coexec.schedules.weight_images import with_images

    images = [name for name, one in zip(parameter_names(operands), operands, strict=True) if one.is_image]
    return with_images(with_vector_pointers(with_short_broadcasts(with_extrema(with_fetch(source)))), images)


def _with_wide_indices(source: str, symbol: str) -> str:
    """The kernel with indices of 64 bits, which a CPU adds to addresses as they are.

    Compilers extend those of 32 bits at every access, since they lose track of what does not overflow: depthwise and
    direct convolutions take 20 to 30 % longer. Kernels of integer data stay as they are, and those with a ``select``,
    whose condition must be as wide as what it selects.
    """
    head, opening, definition = source.rpartition(f"__kernel void {symbol}_kernel(")
    parameters, brace, body = definition.partition("{")
    if re.search(r"\bint\d*\s*\*|\bselect\(", definition):
        return source
    body = re.sub(r"\bint\b", "long", body).replace("convert_int(", "convert_long(")
    return f"{head}{opening}{parameters}{brace}{body}"
