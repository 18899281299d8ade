"""Makes what phones are started from, once: an emulator, and a root file system with PoCL and TVM's RPC server."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path

from .commands import run
from .kinds import KINDS, disguise
from .roots import add_python_packages, home, once, unpack

_PHONE_RELEASE = "bookworm"
_PHONE_PACKAGES = "pocl-opencl-icd,clinfo,python3-minimal,libpython3-stdlib,bash,dash,coreutils"
_PHONE_PYTHON = "3.11"
_EMULATOR_RELEASE = "trixie"
"""The qemu of earlier releases shows a program the features of the host's CPU, not of the one it plays."""

_INSTALLED_HERE = ("apache-tvm", "apache-tvm-ffi")
"""Packages of which the phone gets the same version: the two ends of TVM's RPC have to speak alike."""
_SERVER_NEEDS = ("cloudpickle", "psutil", "tornado")

_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_BINFMT_NAME = "tvm-coexec-phone"
_ARM64_PROGRAM = (
    r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00",
    r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff",
)
"""How the file of an arm64 program begins, and which bits of that count."""


def make() -> None:
    """Make whatever is not there yet."""
    emulate_arm64()
    once(home() / "root", _make_root)
    for kind in KINDS:
        once(home() / kind, lambda folder, kind=kind: _make_kind(kind, folder))
    (home() / "phone").mkdir(exist_ok=True)


def emulate_arm64() -> None:
    """Have this machine start arm64 programs."""
    once(home() / "emulator", _make_emulator)
    _run_arm64_by(home() / "emulator" / "qemu")


def _make_emulator(folder: Path) -> None:
    """The emulator as it is, and a copy that lets a phone show its own ``/proc/cpuinfo``.

    qemu answers those who read that file itself, with cores of one kind, as many as the host has.
    """
    unpack(_EMULATOR_RELEASE, "amd64", "qemu-user", folder / "release")
    own = folder / "release" / "usr" / "bin" / "qemu-aarch64"
    content = own.read_bytes()
    for path, bytes_ in ((folder / "qemu-own-cpuinfo", content), (folder / "qemu", _without_cpuinfo(content))):
        path.write_bytes(bytes_)
        path.chmod(0o755)
    shutil.rmtree(folder / "release")


def _without_cpuinfo(emulator: bytes) -> bytes:
    return emulator.replace(b"/proc/cpuinfo\0", b"/proc/no-file\0")


def _make_root(folder: Path) -> None:
    unpack(_PHONE_RELEASE, "arm64", _PHONE_PACKAGES, folder)
    packages = [f"{name}=={metadata.version(name)}" for name in _INSTALLED_HERE] + list(_SERVER_NEEDS)
    add_python_packages(folder, _PHONE_PYTHON, "aarch64", packages)
    (folder / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/bash\n")
    (folder / "etc" / "hosts").write_text("127.0.0.1 localhost\n")


def _make_kind(kind: str, folder: Path) -> None:
    disguise(kind, _features(kind), folder)
    (folder / "pocl").mkdir()


def _features(kind: str) -> str:
    """The features of the CPU that the emulator plays, in the words of Linux."""
    root = home() / "root"
    emulator = [str(home() / "emulator" / "qemu-own-cpuinfo"), "-L", str(root), "-cpu", kind]
    shown = run([*emulator, str(root / "usr" / "bin" / "cat"), "/proc/cpuinfo"], f"emulate {kind}")
    return next(line.partition(":")[2].strip() for line in shown.splitlines() if line.startswith("Features"))


def _run_arm64_by(emulator: Path) -> None:
    """Have Linux start arm64 programs with the emulator, which it keeps open, so that it need not be in the phone."""
    if not (_BINFMT / "register").exists():
        run(
            ["mount", "-t", "binfmt_misc", "binfmt_misc", str(_BINFMT)],
            "mount binfmt_misc, which starts arm64 programs",
        )
    registered = _BINFMT / _BINFMT_NAME
    if registered.exists():
        if f"interpreter {emulator}\n" in registered.read_text():
            return
        registered.write_text("-1")
    magic, mask = _ARM64_PROGRAM
    (_BINFMT / "register").write_text(f":{_BINFMT_NAME}:M::{magic}:{mask}:{emulator}:PF")
