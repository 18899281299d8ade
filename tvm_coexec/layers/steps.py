"""The steps that may follow a layer's result: constants for each channel, a residual, and activations with numbers.

A step is a text, so that a layer stays plain values: a name, behind which its numbers stand in brackets, as in
``leaky_relu(0.1)``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

_NUMBERS = {
    "relu": 0,
    "gelu": 0,
    "gelu_tanh": 0,
    "silu": 0,
    "relu6": 0,
    "hard_swish": 0,
    "sigmoid": 0,
    "abs": 0,
    "clip": 2,
    "elu": 2,
    "erf": 0,
    "exp": 0,
    "hard_sigmoid": 2,
    "inverse_root": 1,
    "leaky_relu": 1,
    "mish": 0,
    "negative": 0,
    "softplus": 0,
    "square": 0,
    "tanh": 0,
}
"""How many numbers each activation takes."""

ACTIVATIONS = tuple(_NUMBERS)
"""Functions of one value that a step may be; ``gelu`` is the erf form.

Their numbers: the bounds of ``clip``; ``alpha`` of ``leaky_relu``; ``alpha`` and a factor of the whole of ``elu``, by
which it is also SELU; ``alpha`` and ``beta`` of ``hard_sigmoid``, which limits ``alpha · x + beta`` to 0 … 1; the
summand, above 0, under the root of ``inverse_root``, which takes what is below 0 for 0.
"""

PER_CHANNEL = ("bias", "scale", "prelu")
"""Steps with a constant for each channel: a summand, a factor, and a factor of negative values alone."""

EPILOGUE_STEPS = ("residual", *PER_CHANNEL, *ACTIVATIONS)
"""Names of all steps."""

_MOVES_ZERO = ("exp", "inverse_root", "sigmoid", "softplus")
_NONNEGATIVE = ("abs", "exp", "inverse_root", "relu", "relu6", "sigmoid", "hard_sigmoid", "softplus", "square")


def step(name: str, *numbers: float) -> str:
    """Write a step as text."""
    return f"{name}({','.join(repr(float(number)) for number in numbers)})" if numbers else name


def step_name(text: str) -> str:
    """Name a step, without its numbers."""
    return text.partition("(")[0]


def step_numbers(text: str) -> tuple[float, ...]:
    """Read the numbers of a step."""
    numbers = text.partition("(")[2].removesuffix(")")
    return tuple(float(number) for number in numbers.split(",")) if numbers else ()


def check_epilogue(epilogue: Sequence[str]) -> None:
    """Refuse steps that no kernel knows, wrong counts of numbers, and a second residual."""
    for text in epilogue:
        name = step_name(text)
        if name not in EPILOGUE_STEPS:
            raise ValueError(f"unknown epilogue step {text!r}; known: {', '.join(EPILOGUE_STEPS)}")
        if len(step_numbers(text)) != _NUMBERS.get(name, 0):
            raise ValueError(f"epilogue step {text!r} must have {_NUMBERS.get(name, 0)} numbers")
    if epilogue.count("residual") > 1:
        raise ValueError(f"epilogue {tuple(epilogue)} names 'residual' twice; a kernel takes one")


def step_operands(epilogue: Sequence[str]) -> tuple[str | None, ...]:
    """The operand of each step, None where it has none: ``bias``, of a second such step ``bias1``, and so on."""
    met: Counter[str] = Counter()
    operands: list[str | None] = []
    for text in epilogue:
        if text in (*PER_CHANNEL, "residual"):
            operands.append(f"{text}{met[text] or ''}")
            met[text] += 1
        else:
            operands.append(None)
    return tuple(operands)


def fused_operands(epilogue: Sequence[str]) -> tuple[str, ...]:
    """List the operands of an epilogue in order."""
    return tuple(operand for operand in step_operands(epilogue) if operand is not None)


def channel_constants(epilogue: Sequence[str]) -> tuple[str, ...]:
    """The operands that have a constant for each channel, in order."""
    return tuple(operand for operand in fused_operands(epilogue) if operand != "residual")


def keeps_zero(text: str) -> bool:
    """Whether a step leaves a channel zero whose operands all are."""
    name, numbers = step_name(text), step_numbers(text)
    if name == "clip":
        return numbers[0] <= 0 <= numbers[1]
    return numbers[1] <= 0 if name == "hard_sigmoid" else name not in _MOVES_ZERO


def is_nonnegative(text: str) -> bool:
    """Whether a step's results are never below zero."""
    name = step_name(text)
    return step_numbers(text)[0] >= 0 if name == "clip" else name in _NONNEGATIVE


def elu(alpha: float = 1.0, factor: float = 1.0) -> str:
    """Write the step of the exponential linear unit, or with a factor of SELU."""
    return step("elu", alpha, factor)


def clip(low: float = -math.inf, high: float = math.inf) -> str:
    """The step that limits to a range, under the name by which it is best known."""
    return {(0.0, math.inf): "relu", (0.0, 6.0): "relu6"}.get((low, high), step("clip", low, high))
