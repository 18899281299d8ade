"""The padding that formats leave to a rule, of what slides over images."""

from __future__ import annotations

from collections.abc import Sequence


def same_padding(
    sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[int]:
    """Padding along each axis, both ends together, with which there is a window for each stride begun."""
    windows = zip(sizes, kernel, strides, dilations, strict=True)
    return [max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0) for size, k, s, d in windows]
