"""Mesa's compilers for phones' GPUs, on a kernel driver that does nothing: what becomes of OpenCL kernels there.

Nothing is run: there is no such GPU. Registers, occupancy, spills and instructions are what the compiler tells.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tvm_coexec.errors import InputError

from .mesa_prints import Compiled, by_file, read_adreno, read_mali
from .parts import emulate_arm64
from .roots import add_python_packages, home, once, unpack

_RELEASE, _PYTHON = "trixie", "3.13"
_PACKAGES = "mesa-opencl-icd,mesa-drm-shim,ocl-icd-libopencl1,python3-minimal,libpython3-stdlib,coreutils"
_PYTHON_PACKAGES = ("pyopencl", "numpy")

_ENTER = """
set -e
mount --bind /dev "$1/dev"
mkdir -p "$1/kernels" && mount --bind "$2" "$1/kernels"
exec chroot "$1" /usr/bin/env -i -C /kernels PATH=/usr/bin HOME=/tmp PYOPENCL_NO_CACHE=1 MESA_SHADER_CACHE_DISABLE=1 \
  OCL_ICD_VENDORS=libRusticlOpenCL.so.1 "${@:3}"
"""


@dataclass(frozen=True)
class Driver:
    """A driver of Mesa's: where it is found, and how it is told which GPU to play and to print what it makes.

    Parameters
    ----------
    root
        Name of the root file system that has it.
    architecture, machine
        The CPU that Debian builds it for, in Debian's words and in Linux's.
    read
        Reads what it prints.
    """

    name: str
    root: str
    architecture: str
    machine: str
    number_name: str
    printing: str
    read: Callable[[Mapping[str, int], str], Compiled]

    def settings(self, gpu: str) -> list[str]:
        """The environment in which it plays a GPU."""
        shim = f"/usr/lib/{self.machine}-linux-gnu/lib{self.name}_noop_drm_shim.so"
        return [f"RUSTICL_ENABLE={self.name}", f"{self.number_name}={gpu}", self.printing, f"LD_PRELOAD={shim}"]

    def make_root(self, folder: Path) -> None:
        unpack(_RELEASE, self.architecture, _PACKAGES, folder, with_backports=True)
        add_python_packages(folder, _PYTHON, self.machine, _PYTHON_PACKAGES)


ADRENO = Driver("freedreno", "mesa", "amd64", "x86_64", "FD_GPU_ID", "IR3_SHADER_DEBUG=cs", read_adreno)
MALI = Driver(
    "panfrost", "mesa-arm64", "arm64", "aarch64", "PAN_GPU_ID", "BIFROST_MESA_DEBUG=shaders,shaderdb", read_mali
)

GPUS = {
    "adreno-630": (ADRENO, "630"),
    "adreno-740": (ADRENO, "740"),
    "mali-g52": (MALI, "7212"),
    "mali-g610": (MALI, "a867"),
}
"""The driver of each GPU, and the number that it knows the GPU by."""


def compile_kernels(gpu: str, kernels: Mapping[str, str]) -> dict[str, Compiled | str]:
    """Compile kernels, given by name and source; the reason instead where the compiler refuses one."""
    driver, number = GPUS[gpu]
    root = home() / driver.root
    once(root, driver.make_root)
    if driver.architecture == "arm64":
        emulate_arm64()
    with tempfile.TemporaryDirectory() as folder:
        for name, source in kernels.items():
            (Path(folder) / f"{name}.cl").write_text(source)
        shutil.copy(Path(__file__).with_name("compile_kernels.py"), folder)
        inside = ["/usr/bin/python3", "-W", "ignore", "compile_kernels.py", *(f"{name}.cl" for name in kernels)]
        command = ["unshare", "--mount", "bash", "-c", _ENTER, "-", str(root), folder, *driver.settings(number)]
        done = subprocess.run([*command, *inside], capture_output=True, text=True, errors="replace", check=False)
    answers = {Path(one["file"]).stem: one for one in map(json.loads, done.stdout.splitlines())}
    if set(answers) != set(kernels):
        last = ["", *done.stderr.strip().splitlines()][-1]
        raise InputError(f"Mesa's compiler for {gpu} ends before it has seen all kernels ({last})")
    printed = by_file(done.stderr)
    return {name: answers[name].get("error") or driver.read(answers[name], printed[name]) for name in kernels}
