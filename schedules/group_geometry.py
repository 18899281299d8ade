"""How the work-groups of a GPU that compute attention share it out; nothing here needs a compiler."""

from __future__ import annotations

from tvm_coexec.layers import Attention, Hardware

from .dispatch import Dispatch
from .product import LANES

KEYS = 32
"""Keys and values that a work-group holds in local memory."""
SHARERS = KEYS // LANES
"""Items that share a query; each has a vector of scores."""


def vectors(dim: int) -> int:
    """Vectors that hold so many columns."""
    return -(-dim // LANES)


def own_vectors(layer: Attention) -> int:
    """Vectors of a query's result that an item adds up."""
    return -(-vectors(layer.value_dim) // SHARERS)


def local_shapes(layer: Attention, rows: int) -> dict[str, tuple[int, int]]:
    """What is in local memory, in vectors; some rows have one more than they need, against bank conflicts."""
    return {
        "queries": (rows, vectors(layer.head_dim) + 1),
        "keys": (KEYS, vectors(layer.head_dim) + 1),
        "values": (KEYS, vectors(layer.value_dim)),
        "scores": (rows, SHARERS + 1),
        "powers": (rows, SHARERS + 1),
    }


def fits(layer: Attention, rows: int, hardware: Hardware) -> bool:
    """Whether the device can hold a work-group of so many queries."""
    local_bytes = 4 * LANES * sum(lines * width for lines, width in local_shapes(layer, rows).values())
    return rows * SHARERS <= hardware.max_group_size and local_bytes <= hardware.local_bytes


def dispatch(layer: Attention, rows: int) -> Dispatch:
    """Launch geometry of a half."""
    blocks = -(-layer.queries // rows)
    grid = (layer.unit_heads * layer.batch * blocks, 1)
    return Dispatch(grid, (rows * SHARERS, 1), unit_axis=1, padded_rows=layer.batch * blocks * rows)
