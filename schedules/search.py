"""The search space of dense kernels has the register tiles and work-groups that suit a number of rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm_coexec.layers import FLOAT32, TILE, Hardware, Variant, item_bytes

_MAX_ROWS = 14
"""Rows of a register tile at most: with two vectors of channels they fill the 32 registers of AVX-512."""
_ENOUGH_ACCUMULATORS = 8
"""Independent multiply-adds in flight that hide their latency on every core met so far."""
_FEW_REGISTERS = 16
"""Machines with no more registers cannot multiply by an element in memory: a tile of one vector loads each factor."""
_WORTH_A_VECTOR = 0.9
"""Such a tile pays where it leaves out a tenth of what two vectors would compute in vain."""
_NEAREST_CACHE_BYTES = 24 << 10
"""Weights that stay in the first-level cache, with room for a block of rows."""
_POSITION_COST = 4.0
"""Products that could be added up in the time that finding a row's own position in an image takes."""
_UNROLLS = (1, 4)
"""Steps of the reduction that are written out one after the other."""
_ENOUGH_WRITTEN_OUT, _ENOUGH_NARROW = 24, 28
"""Multiply-adds in the body of the innermost loop beside which its own instructions do not count, and those of narrow
vectors, of which a large core computes four a cycle: by LLVM's model of neoverse-v1 24 take 88 % of its peak, 96 98."""
WEIGHT_COST = 4
"""Multiply-adds that reading a weight costs, where the weights do not stay in a cache."""
_FEW_ROWS = range(8, 257)
"""Rows for which it takes a fair part of the time to get the weights from memory, and that leave time for it meanwhile.

With 197 rows a Transformer's linear layers gain a tenth on an x86 server's cores, with 49 convolutions a third.
"""
_ENOUGH_WORK = 4000
"""Vector operations after which the launch of a work-group on a CPU device no longer counts."""


@dataclass(frozen=True)
class Space:
    """What the search knows of a layer.

    Parameters
    ----------
    rows
        Rows of the output.
    padded_rows
        Rows that are computed where a block has so many.
    reduction
        Extent of the innermost reduction axis, of which ``k_split`` and ``unroll`` are divisors.
    taps
        Products that are added up for one output element, if rows are pixels: where they are few, what else a block of
        rows takes counts.
    channels
        Output channels, if parts of a tile that hold none are left out.
    parts
        Units of rows, each of which has whole blocks.
    line
        Rows of a line of the image, where blocks may run on from one to the next: rows then have places of their own.
    weighted
        Whether there are weights that may be fetched before they are needed.
    width
        Channels of a tile that are computed.
    """

    rows: int
    padded_rows: Callable[[int], int]
    reduction: int
    taps: int | None = None
    channels: int = TILE
    parts: int = 1
    line: int | None = None
    weighted: bool = False
    width: int = TILE


NARROW_LANES, _WRITTEN_OUT_TAPS = 4, 32
"""LLVM writes so short a reduction out as a whole and reads ahead in it, for which narrow vectors take more registers:
of LLVM's models of Arm's cores, each took 27 taps at 97 % of its peak or better with half of the registers for sums,
and at 56 to 77 % with three quarters of them, since sums were then kept on the stack."""

_SUMS_OF_EIGHT = {(False, False): 8, (False, True): 5, (True, False): 5, (True, True): 4}
"""Registers of eight that sums of narrow vectors may take, by whether cores run in order, and whether LLVM is left to
write out the reduction, as of Winograd's products. By LLVM's models, more sums are kept on the stack: 56x56 pixels of
64 channels take neoverse-v1 98 % of its peak by 20 sums and 85 by 24, cortex-a55 85 by 16 and 70 by 20; a linear layer
of 196 rows takes cortex-a55 84 % by 20 and 69 by 24."""
_RELOAD, _CROWDED_RELOAD = 0.4, 0.8
"""What reading weights again costs a tile of one row, and one that may not have all registers: by the same models, two
rows of 32 channels take cortex-a55 65 % of its peak, five of 16 83."""

RegisterTile = tuple[int, int, int]
"""``(rows, channels, k_split)``."""


def dense_variants(
    implementation: str,
    side: str,
    hardware: Hardware,
    space: Space,
    rank: Callable[[Hardware, Space], list[RegisterTile]] | None = None,
) -> list[Variant]:
    """List parameters of ``register_tiles.schedule_cpu`` or ``.schedule_gpu``, and ``k_split``, most promising first.

    ``rank`` lists register tiles, the best first, where the family's kernels are not bound by their accumulators.
    """
    hardware = hardware.for_channels(space.width)
    if side == "gpu" and hardware.opencl_type == "gpu":
        return _gpu_variants(implementation, hardware, space)
    tiles = (rank or register_tiles)(hardware, space)
    if side == "cpu":
        return _cpu_variants(implementation, hardware, tiles, space)
    # Kernels that are bound by their accumulators need two vectors there; a family with a ranking of its own knows.
    if rank is None and space.channels % TILE == 0:
        tiles = [tile for tile in tiles if tile[1] >= 2 * hardware.lanes]
    return _cpu_device_variants(implementation, hardware, tiles, space)


def register_tiles(hardware: Hardware, space: Space) -> list[RegisterTile]:
    """Tiles whose accumulators fit the registers, by estimated cost.

    The estimate counts padded rows, weights read again for each block of rows, and latency that stays exposed.
    """
    lanes = hardware.lanes
    most, reload_cost = _limits(hardware, space)
    ranked = []
    for channels in {space.width, max(space.width // 2, lanes), max(space.width // 4, lanes)}:
        vectors = channels // lanes
        is_short = vectors == 1 and channels < space.width and hardware.vector_registers <= _FEW_REGISTERS
        if is_short and not _saves(space.channels, channels):
            continue
        for rows in range(1, min(_MAX_ROWS, space.rows) + 1):
            for k_split in (1, 2, 4):
                accumulators = rows * vectors * k_split
                # Each part of the reduction has weights of its own in flight. A sum that finds no register is stored
                # and read again in every step, which takes up to twice as long where addresses are alike.
                left = hardware.vector_registers - accumulators - vectors * k_split
                if space.reduction % k_split or left < 1:  # one is for the element of the input
                    continue
                if accumulators > most:
                    continue
                padding = space.padded_rows(rows) / space.rows * _filled_up(space.channels, channels)
                exposed = max(1.0, _ENOUGH_ACCUMULATORS / accumulators)
                reload = reload_cost / rows + 0.1 * (space.width / channels - 1) + 0.02 * (k_split - 1)
                crowded = 0.05 if left < hardware.vector_registers // 8 else 0.0
                scattered = _POSITION_COST / (space.taps or math.inf) if (space.line or rows) % rows else 0.0
                ranked.append((padding * exposed * (1 + reload + crowded + scattered), (rows, channels, k_split)))
    return [tile for _, tile in sorted(ranked)]


def _limits(hardware: Hardware, space: Space) -> tuple[int, float]:
    """The sums beside which LLVM keeps all that it reads ahead in registers, and what reading weights costs a row."""
    if hardware.lanes > NARROW_LANES:
        return hardware.vector_registers, _RELOAD
    if (space.taps or math.inf) <= _WRITTEN_OUT_TAPS:
        return hardware.vector_registers // 2, _RELOAD
    eighths = _SUMS_OF_EIGHT[hardware.in_order, space.reduction == 1]
    return hardware.vector_registers * eighths // 8, _RELOAD if eighths == 8 else _CROWDED_RELOAD


def _filled_up(channels: int, together: int) -> float:
    """Channels that are computed where so many are computed together, over those that exist."""
    return -(-channels // together) * together / channels


def _saves(channels: int, together: int) -> bool:
    return _filled_up(channels, together) <= _WORTH_A_VECTOR * _filled_up(channels, 2 * together)


def _orders(hardware: Hardware, space: Space, rows: int) -> tuple[int, ...]:
    """Weights that are always near need no tile to be finished first: a block of rows is, which is stored in one go.

    So is it on cores that run in order, by LLVM's model of cortex-a55 in 85 % of the time.
    """
    if space.rows <= rows:
        return (0,)
    weight_bytes = item_bytes(FLOAT32) * (space.taps or math.inf) * space.channels
    if weight_bytes <= _NEAREST_CACHE_BYTES:
        return (1,)
    return (1, 0) if hardware.in_order else (0, 1)


def _unrolls(hardware: Hardware, space: Space, tile: RegisterTile) -> list[int]:
    """The one first that writes out enough multiply-adds for the loop's own instructions not to count."""
    rows, channels, k_split = tile
    vectors = channels // hardware.lanes
    fitting = [unroll for unroll in _UNROLLS if (space.reduction // k_split) % unroll == 0]
    enough = _ENOUGH_NARROW if hardware.lanes <= NARROW_LANES else _ENOUGH_WRITTEN_OUT
    return sorted(fitting, key=lambda unroll: unroll * rows * vectors * k_split < enough)


def _cpu_variants(implementation: str, hardware: Hardware, tiles: list[RegisterTile], space: Space) -> list[Variant]:
    return [
        Variant.make(
            implementation,
            rows=rows,
            channels=channels,
            k_split=k_split,
            order=order,
            unroll=unroll,
            **_prefetch(space),
        )
        for rows, channels, k_split in tiles[:6]
        for order in _orders(hardware, space, rows)
        for unroll in _unrolls(hardware, space, (rows, channels, k_split))
    ]


def _cpu_device_variants(
    implementation: str, hardware: Hardware, tiles: list[RegisterTile], space: Space
) -> list[Variant]:
    """Give a work-group one work-item: a CPU device runs a work-group's items one after the other."""
    lanes = hardware.lanes
    return [
        _gpu_variant(
            implementation,
            (rows, lanes, 1, 1),
            k_split=k_split,
            order=order,
            unroll=unroll,
            **({"channels": channels} if channels < TILE else {}),
            **_run(rows, hardware, space),
            **_prefetch(space),
        )
        for rows, channels, k_split in tiles[:6]
        for order in _orders(hardware, space, rows)
        for unroll in _unrolls(hardware, space, (rows, channels, k_split))
    ]


def _prefetch(space: Space) -> dict[str, int]:
    """Whether a kernel fetches weights before it needs them."""
    return {"prefetch": 1} if space.weighted and space.rows in _FEW_ROWS else {}


def _run(rows: int, hardware: Hardware, space: Space) -> dict[str, int]:
    """How many blocks a work-item computes one after the other: enough of them, and a divisor of all.

    A device of one core goes through all work-groups in a loop of ours, in which the next one costs nothing.
    """
    if space.taps is None or hardware.workers == 1:
        return {}
    blocks = space.padded_rows(rows) // rows // space.parts
    wanted = _ENOUGH_WORK / (rows * (space.width // hardware.lanes) * space.taps)
    return {"run": max(run for run in range(1, blocks + 1) if blocks % run == 0 and (run == 1 or run < 2 * wanted))}


def _gpu_variants(implementation: str, hardware: Hardware, space: Space) -> list[Variant]:
    """List work-groups of up to 256 items, each with a few rows of four or eight channels."""
    found = []
    for rows in (4, 8, 2, 1):
        for row_threads in (8, 4, 16, 1):
            block = rows * row_threads
            padded = -(-space.padded_rows(rows) // space.parts // block) * block * space.parts
            for channel_threads, lanes in _fitting(((8, 4), (4, 8), (4, 4)), space.width):
                group = channel_threads * row_threads
                if group <= hardware.max_group_size and (padded <= 1.25 * space.rows or block <= 4):
                    for order in (0, 1):
                        geometry = (rows, lanes, channel_threads, row_threads)
                        found.append(_gpu_variant(implementation, geometry, k_split=1, order=order, unroll=1))
    return found


def _fitting(geometries: Sequence[tuple[int, int]], width: int) -> list[tuple[int, int]]:
    """Threads along the channels and lanes of each, without threads for what is not computed of a tile."""
    return list(dict.fromkeys((min(threads, width // lanes), lanes) for threads, lanes in geometries))


def _gpu_variant(implementation: str, geometry: tuple[int, int, int, int], **params: int) -> Variant:
    named = zip(("rows", "lanes", "channel_threads", "row_threads"), geometry, strict=True)
    return Variant.make(implementation, **dict(named), **params)
