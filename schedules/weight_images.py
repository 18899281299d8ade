"""Weights that OpenCL kernels read as an image over the buffer that holds them: through the cache of texture units.

The image has one pixel of four elements for each vector of the weights, and rows of a fixed width, so that every device
that makes images of buffers can make it. TVM writes an access to a buffer of vectors, which becomes one to a pixel.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tvm_coexec.layers import IMAGE_WIDTH, Hardware

if TYPE_CHECKING:
    from .frame import Operand

_LANES = 4
"""Floats of a pixel of four channels."""
_PIXEL = "coexec_pixel"
_SOURCE = f"""\
#ifndef COEXEC_IMAGE_WIDTH
#define COEXEC_IMAGE_WIDTH {IMAGE_WIDTH}
static inline float4 {_PIXEL}(__read_only image2d_t image, int index) {{
  return read_imagef(image, (int2)(index % COEXEC_IMAGE_WIDTH, index / COEXEC_IMAGE_WIDTH));
}}
#endif
"""


def fits_image(elements: int, hardware: Hardware) -> bool:
    """Whether a device makes an image of a buffer of so many floats."""
    return 0 < elements <= hardware.image_rows * IMAGE_WIDTH * _LANES


def with_image(operands: Sequence[Operand]) -> tuple[Operand, ...]:
    """The operands of a kernel, of which it reads the weights as an image."""
    return tuple(replace(one, is_image=True) if one.name == "weights" else one for one in operands)


def with_images(source: str, parameters: Iterable[str]) -> str:
    """OpenCL C as TVM writes it, in which some parameters, buffers of ``float4``, are images instead."""
    for name in parameters:
        source = re.sub(
            rf"__global (?:const )?float4\*(?: restrict)? {name}\b", f"__read_only image2d_t {name}", source
        )
        source = _with_pixels(source, name)
    return _SOURCE + source if _PIXEL in source else source


def _with_pixels(source: str, name: str) -> str:
    """Read pixels where elements of a buffer are read."""
    parts, position = [], 0
    while (start := source.find(f"{name}[", position)) >= 0:
        end, depth = start + len(name) + 1, 1
        while depth:
            depth += {"[": 1, "]": -1}.get(source[end], 0)
            end += 1
        parts += [source[position:start], f"{_PIXEL}({name}, {source[start + len(name) + 1 : end - 1]})"]
        position = end
    return "".join([*parts, source[position:]])
