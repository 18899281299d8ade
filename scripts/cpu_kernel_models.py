"""How good are the CPU's kernels on cores that are not at hand? LLVM's machine models judge the hottest loop of each.

    python scripts/cpu_kernel_models.py --cpus cortex-a55,neoverse-n1 --out out/models

For each kernel: its loop with most fused multiply-adds (FMAs), how many of these a core does a cycle by llvm-mca,
beside the model's peak, and how often the loop reads or writes the stack, which shows registers that did not suffice.
Caches are not modelled. Arm's cortex-a76 to a78 are modelled as neoverse-n1, a710 as n2, x1 and later nearly as v1.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from reporting import describe, markdown_table, run_main

from tvm_coexec import schedules
from tvm_coexec.compiler.kernels import compile_half
from tvm_coexec.compiler.target import Target, target_for
from tvm_coexec.errors import InputError, ToolchainError
from tvm_coexec.files import whole_file
from tvm_coexec.layers import AnyLayer, Conv2d, Hardware, Linear, Variant


@dataclass(frozen=True)
class Core:
    """A core as LLVM models it.

    Parameters
    ----------
    target
        What code is made for that it runs.
    peak
        float32 FMAs a cycle, each lane of a vector counted.
    """

    target: Target
    peak: int


def _phone(core: str) -> Target:
    """Make the target of a phone with such a core, as the phone's facts would."""
    gpu = {"device_type": "gpu", "max_group_size": 256, "compute_units": 1}
    features = ["asimd", "atomics", "asimdrdm", "asimddp", "asimdhp", "lrcpc"]
    cpu = {"machine": "aarch64", "is_android": True, "cpu_features": features, "cpu_cores": [0]}
    return target_for({**cpu, **gpu, "clusters": [{"name": core, "cores": [0]}]})


_X86 = "x86_64-linux-gnu"
CORES = {
    "cortex-a55": Core(_phone("Cortex-A55"), 4),
    "neoverse-n1": Core(_phone("Cortex-A76"), 8),
    "neoverse-n2": Core(_phone("Cortex-A710"), 8),
    "neoverse-v1": Core(_phone("Cortex-X1"), 16),
    "znver3": Core(Target((("kind", "llvm"), ("mtriple", _X86), ("mcpu", "znver3")), Hardware(32, 16), _X86), 16),
}

_RELU, _RELU6 = ("bias", "relu"), ("bias", "relu6")
LAYERS: tuple[AnyLayer, ...] = (
    Linear(196, 768, 768, ("bias",)),
    Linear(1, 768, 1000, ("bias",)),
    Conv2d(56, 56, 64, 64, 3, 1, 1, epilogue=_RELU),
    Conv2d(28, 28, 128, 128, 3, 2, 1, epilogue=_RELU),
    Conv2d(112, 112, 32, 16, 1, epilogue=("bias",)),
    Conv2d(14, 14, 512, 128, 1, epilogue=_RELU),
    Conv2d(224, 224, 3, 32, 3, 2, 1, epilogue=_RELU6),
    Conv2d(56, 56, 144, 144, 3, 1, 1, groups=144, epilogue=_RELU6),
)
"""Kinds of layers that take most of a network's time, the first one of a network and a depthwise one among them."""

_ITERATIONS = 100
"""After so many a loop's mean changes no more in its third digit."""
_BRANCH = re.compile(r"(b|b\.\w+|cbn?z|tbn?z|ret|br|j\w+)\b")
_RETURN_OR_JUMP = re.compile(r"(b|ret|br|jmp\w*|retq?)\b")
_TARGET = re.compile(r"^(?:b|b\.\w+|cbn?z \w+,|tbn?z \w+, #\w+,|j\w+) (0x[0-9a-f]+)")
_STACK = re.compile(r"\[(sp|x29)|\(%r[sb]p\)")
_FMAS = (  # what an instruction looks like, and the FMAs that it does
    (re.compile(r"fml[as] v\d+\.4s"), 4),
    (re.compile(r"f(madd|mla) s\d"), 1),
    (re.compile(r"vfn?m(add|sub)\d+ps .*%ymm"), 8),
    (re.compile(r"vfn?m(add|sub)\d+ps .*%xmm"), 4),
    (re.compile(r"vfn?m(add|sub)\d+ss"), 1),
)


@dataclass(frozen=True)
class Judged:
    """A kernel's hottest loop on a core."""

    layer: str
    variant: str
    cpu: str
    fmas_a_cycle: float
    peak: int
    stack_accesses: int
    instructions: int

    @property
    def share(self) -> float:
        """The share of the peak that the loop reaches."""
        return self.fmas_a_cycle / self.peak


def tool(name: str) -> str:
    """Find a program of LLVM: the newest that is installed."""
    versions = [f"{name}-{number}" for number in range(30, 15, -1)]
    found = next(filter(None, map(shutil.which, versions)), None)
    if found is None:
        raise ToolchainError(f"{name} of LLVM 16 or newer is missing; try `apt install llvm-19`")
    return found


def judge(layer: AnyLayer, variant: Variant, cpu: str) -> list[Judged]:
    """The kernels of a half, in their order; those without FMAs are left out."""
    core = CORES[cpu]
    judged = []
    for kernel in compile_half(layer, "cpu", variant, core.target):
        loop = hottest_loop(disassembled(kernel.code))
        if not fmas(loop):
            continue
        a_cycle = fmas(loop) / cycles(loop, str(core.target.triple), cpu)
        stack = sum(bool(_STACK.search(line)) for line in loop)
        judged.append(Judged(describe(layer), str(variant), cpu, a_cycle, core.peak, stack, len(loop)))
    return judged


def disassembled(code: bytes) -> list[tuple[int, str]]:
    """Give the address and text of each instruction of an object file."""
    with tempfile.NamedTemporaryFile(suffix=".o") as file:
        file.write(code)
        file.flush()
        text = _output([tool("llvm-objdump"), "-d", "--no-show-raw-insn", "--mattr=+all", file.name])
    lines = [line.split("\t", 1) for line in text.splitlines() if re.match(r"\s*[0-9a-f]+:\s", line)]
    return [(int(a.strip().rstrip(":"), 16), t.replace("\t", " ").split(" <")[0].strip()) for a, t in lines]


def hottest_loop(code: list[tuple[int, str]]) -> list[str]:
    """The basic block with most FMAs among those that end in a conditional branch; among all where none has any."""
    found = list(blocks(code))
    loops = [block for block in found if _BRANCH.match(block[-1]) and not _RETURN_OR_JUMP.match(block[-1])]
    hottest = max(loops or found, key=fmas)
    return hottest if fmas(hottest) else max(found, key=fmas)


def blocks(code: list[tuple[int, str]]) -> Iterator[list[str]]:
    """Cut code into basic blocks: what lies between the targets of branches and branches."""
    targets = {int(match[1], 16) for _, text in code if (match := _TARGET.match(text))}
    block: list[str] = []
    for address, text in code:
        if address in targets and block:
            yield block
            block = []
        block.append(text)
        if _BRANCH.match(text):
            yield block
            block = []
    if block:
        yield block


def fmas(block: list[str]) -> int:
    """Fused multiply-adds of float32 in a block, each lane counted."""
    return sum(next((count for looks, count in _FMAS if looks.match(text)), 0) for text in block)


def cycles(block: list[str], triple: str, cpu: str) -> float:
    """What one iteration takes when it runs again and again."""
    body = "\n".join(text for text in block if not _BRANCH.match(text) and not text.startswith(("bl ", "call")))
    command = [tool("llvm-mca"), f"-mtriple={triple}", f"-mcpu={cpu}", f"-iterations={_ITERATIONS}"]
    found = re.search(r"Total Cycles:\s+(\d+)", _output(command, body))
    if found is None:
        raise ToolchainError(f"llvm-mca does not tell the cycles of a loop on {cpu}; try a newer LLVM")
    return int(found[1]) / _ITERATIONS


def _output(command: list[str], text: str | None = None) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ToolchainError(f"{command[0]} fails: {[*done.stderr.strip().splitlines(), ''][0]}")
    return done.stdout


def judge_all(cpus: list[str]) -> list[Judged]:
    """Judge every layer's default variant on every core."""
    judged = []
    for layer in LAYERS:
        for cpu in cpus:
            hardware = CORES[cpu].target.hardware
            judged += judge(layer, schedules.family(layer).default_variant(layer, "cpu", hardware), cpu)
    return judged


def render(judged: list[Judged]) -> str:
    """The table of what was judged."""
    rows = [
        [
            *(one.layer, one.variant, one.cpu, f"{one.fmas_a_cycle:.2f} of {one.peak}", f"{one.share:.0%}"),
            *(one.stack_accesses, one.instructions),
        ]
        for one in judged
    ]
    header = ["layer", "variant", "core", "FMAs a cycle", "share", "stack accesses", "instructions"]
    return "LLVM's machine models; nothing was run.\n\n" + markdown_table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpus", default=",".join(CORES), metavar="LIST", help="of %(default)s")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    options = parser.parse_args()
    unknown = [cpu for cpu in options.cpus.split(",") if cpu not in CORES]
    if unknown:
        raise InputError(f"no core named {unknown[0]!r}; choose from {', '.join(CORES)}")
    options.out.mkdir(parents=True, exist_ok=True)
    judged = judge_all(options.cpus.split(","))
    text = render(judged)
    for name, content in (("result.json", json.dumps([asdict(one) for one in judged], indent=1)), ("result.md", text)):
        with whole_file(options.out / name) as file:
            file.write(content.encode())
    print(text)


if __name__ == "__main__":
    run_main(main)
