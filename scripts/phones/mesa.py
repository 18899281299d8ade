"""Mesa's compilers for phones' GPUs, on a kernel driver that does nothing: what becomes of OpenCL kernels there.

Nothing is run: there is no such GPU. Registers, waves, spills and instructions are what the compiler tells.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tvm_coexec.errors import InputError

from .roots import add_python_packages, home, once, unpack

ADRENOS = {"adreno-630": 630, "adreno-740": 740}
"""GPUs by the number that Mesa's driver knows them by."""

_RELEASE, _PYTHON = "trixie", "3.13"
_PACKAGES = "mesa-opencl-icd,mesa-drm-shim,ocl-icd-libopencl1,python3-minimal,libpython3-stdlib,coreutils"
_PYTHON_PACKAGES = ("pyopencl", "numpy")

_ENTER = """
set -e
mount --bind /dev "$1/dev"
mkdir -p "$1/kernels" && mount --bind "$2" "$1/kernels"
exec chroot "$1" /usr/bin/env -i -C /kernels PATH=/usr/bin HOME=/tmp PYOPENCL_NO_CACHE=1 MESA_SHADER_CACHE_DISABLE=1 \
  RUSTICL_ENABLE=freedreno FD_GPU_ID="$3" IR3_SHADER_DEBUG=cs OCL_ICD_VENDORS=libRusticlOpenCL.so.1 \
  LD_PRELOAD=/usr/lib/x86_64-linux-gnu/libfreedreno_noop_drm_shim.so \
  /usr/bin/python3 -W ignore compile_kernels.py "${@:4}"
"""


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of one kernel.

    Parameters
    ----------
    registers
        Registers of four 32-bit components, of each work-item.
    waves
        How many waves of work-items a processor can hold at once.
    private_bytes
        Memory of each work-item: what registers do not hold, and arrays that are indexed.
    wide, scalar
        Accesses to global memory of more than one component, and of one.
    """

    instructions: int
    registers: int
    waves: int
    private_bytes: int
    wide: int
    scalar: int


def compile_for_adreno(gpu: str, kernels: Mapping[str, str], folder: Path) -> dict[str, Compiled | str]:
    """Compile kernels, given by name and source; the reason instead where the compiler refuses one.

    Parameters
    ----------
    folder
        An empty one for the sources.
    """
    root = home() / "mesa"
    once(root, _make_root)
    for name, source in kernels.items():
        (folder / f"{name}.cl").write_text(source)
    shutil.copy(Path(__file__).with_name("compile_kernels.py"), folder)
    command = ["unshare", "--mount", "bash", "-c", _ENTER, "-", str(root), str(folder), str(ADRENOS[gpu])]
    command += [f"{name}.cl" for name in kernels]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    answers = {Path(one["file"]).stem: one for one in map(json.loads, done.stdout.splitlines())}
    if set(answers) != set(kernels):
        last = ["", *done.stderr.strip().splitlines()][-1]
        raise InputError(f"Mesa's compiler for {gpu} ends before it has seen all kernels ({last})")
    printed = _printed_by_file(done.stderr)
    return {name: answers[name].get("error") or _read(answers[name], printed[name]) for name in kernels}


def _make_root(folder: Path) -> None:
    unpack(_RELEASE, "amd64", _PACKAGES, folder, with_backports=True)
    add_python_packages(folder, _PYTHON, "x86_64", _PYTHON_PACKAGES)


def _printed_by_file(text: str) -> dict[str, str]:
    parts = re.split(r"^FILE (.+)\.cl$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _read(answer: Mapping[str, int], printed: str) -> Compiled:
    """Read the compiler's statistics of a kernel's last version: it may print one for each size of waves."""
    facts = {name: int(number) for number, name in re.findall(r"(\d+) (instr|full|max_waves)\b", printed)}
    widths = [int(width) for width in re.findall(r"\b(?:ldg|stg|ldib|stib|isam)\S* .*?, (\d+)$", printed, re.MULTILINE)]
    return Compiled(
        facts["instr"],
        facts["full"],
        facts["max_waves"],
        answer["private_bytes"],
        sum(width > 1 for width in widths),
        sum(width == 1 for width in widths),
    )
