"""Reads what Mesa's compilers print of a kernel: its last version is what counts, where they print several."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of one kernel.

    Parameters
    ----------
    registers
        Registers of each work-item: of four 32-bit components on Adreno, of one on Mali.
    together
        On Adreno the waves of work-items that a processor can hold at once; on Mali 2 where it holds twice the threads,
        since they need half of the registers, else 1.
    largest_group
        Most work-items that a work-group may have.
    private_bytes
        Memory of each work-item: what registers do not hold, and arrays that are indexed.
    wide, scalar
        Accesses to global memory of more than one component, and of one.
    access_cycles
        Cycles in which Mali's unit for memory is busy, each loop counted once; None on Adreno.
    spilled
        Stores to private memory and loads of them, where registers do not suffice; None on Adreno.
    """

    instructions: int
    registers: int
    together: int
    largest_group: int
    private_bytes: int
    wide: int
    scalar: int
    access_cycles: float | None = None
    spilled: int | None = None


def by_file(text: str) -> dict[str, str]:
    """What was printed after each file's name."""
    parts = re.split(r"^FILE (.+)\.cl$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def read_adreno(answer: Mapping[str, int], printed: str) -> Compiled:
    facts = {name: int(number) for number, name in re.findall(r"(\d+) (instr|full|max_waves)\b", printed)}
    widths = re.findall(r"\b(?:ldg|stg|ldib|stib|isam)\S* .*?, (\d+)$", printed, re.MULTILINE)
    return Compiled(
        facts["instr"],
        facts["full"],
        facts["max_waves"],
        answer["largest_group"],
        answer["private_bytes"],
        *_wide_and_scalar(widths),
    )


def read_mali(answer: Mapping[str, int], printed: str) -> Compiled:
    """Bifrost's compiler and Valhall's call the same unit by two names; both print each of their stages."""
    numbers = re.findall(r"([\d.]+) (instrs|registers used|threads|ls|ldst)\b", printed)
    facts = {name: float(number) for number, name in numbers}
    spills, fills = re.findall(r"(\d+):(\d+) spills:fills", printed)[-1]
    last_stage = printed.rpartition("block0 {")[2]
    accesses = re.findall(r"\b(?:LOAD|STORE)\.i(\d+)(?!\S*\.(?:wls|tl)\b)\S* .*byte_offset", last_stage)
    return Compiled(
        int(facts["instrs"]),
        int(facts["registers used"]),
        int(facts["threads"]),
        answer["largest_group"],
        answer["private_bytes"],
        *_wide_and_scalar(int(bits) // 32 for bits in accesses),
        facts["ls"] if "ls" in facts else facts["ldst"],
        int(spills) + int(fills),
    )


def _wide_and_scalar(components: Iterable[int | str]) -> tuple[int, int]:
    is_wide = [int(count) > 1 for count in components]
    return sum(is_wide), len(is_wide) - sum(is_wide)
