"""Torch's operators that write elements, say where extremes lie, or compute what TVM's importer lacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends import to_graph

torch = pytest.importorskip("torch", reason="needs torch, to export programs")
from torch_networks import Function, check_against_torch, random_tensor  # noqa: E402 - torch is there from here on

nn, F = torch.nn, torch.nn.functional

X = random_tensor(3, 4, 5)
MASK = torch.tensor([True, False, True, True])


def _assigning(places: Callable[[Any], Any], value: Callable[[Any], Any]) -> Callable[..., Any]:
    """What a copy is after an assignment to some places of it."""

    def assign(x: Any, *others: Any) -> Any:
        copy = x.clone()
        copy[places((x, *others))] = value(x)
        return copy

    return assign


NUMBERS = torch.tensor([2, -1])
WHOLE = torch.arange(12).reshape(3, 4) - 5
NAN, INF = float("nan"), float("inf")
SPECIAL = torch.tensor([[NAN, 1, INF, -INF], [3, NAN, NAN, 2], [NAN] * 4, [-INF] * 4])

FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "assigned to rows": (_assigning(lambda _: torch.tensor([0, 2]), lambda x: x[:2] + 1), (X,)),
    "assigned to columns": (_assigning(lambda _: (slice(None), torch.tensor([3, 0])), lambda x: x[:, :2]), (X,)),
    "assigned to elements": (_assigning(lambda _: (torch.tensor([0, 2]), torch.tensor([1, -1])), lambda _: 7.0), (X,)),
    "assigned to axes that are apart": (
        _assigning(lambda _: (torch.tensor([0, 1]), slice(None), torch.tensor([2, 0])), lambda x: x[:2, :, 0]),
        (X,),
    ),
    "assigned to a table of columns": (
        _assigning(lambda _: (slice(None), torch.tensor([[0], [2]])), lambda x: x[:, :1, None]),
        (X,),
    ),
    "assigned where an input says": (_assigning(lambda read: (slice(None), read[1]), lambda x: x[:, :2]), (X, NUMBERS)),
    "assigned where a mask is true": (_assigning(lambda read: read[0] < 0, lambda _: 0.5), (X,)),
    "assigned to rows of a mask": (_assigning(lambda read: read[0][:, :, 0] > 0, lambda x: x[0, 0]), (X,)),
    "assigned to columns of a mask": (
        _assigning(lambda read: (slice(None), read[0][0, :, 0] > 0), lambda _: 0.0),
        (X,),
    ),
    "assigned to a mask that is known": (_assigning(lambda _: (slice(None), MASK), lambda x: x[:, :3]), (X,)),
    "added at rows": (
        lambda x: x.index_put((torch.tensor([0, 0]),), torch.ones(2, 4, 5), accumulate=True),
        (X,),
    ),
    "added where a mask is true": (lambda x: x.index_put((x > 0,), torch.ones(()), accumulate=True), (X,)),
    "scattered": (lambda x, i: x.scatter(-1, i, x * 2), (random_tensor(3, 4), torch.tensor([[3, 1], [0, 2]]))),
    "scattered number": (lambda x, i: x.scatter(0, i, 2.0), (random_tensor(3, 4), torch.tensor([[2, 1], [0, 0]]))),
    "scattered sums": (lambda x, i: x.scatter_add(1, i, x), (random_tensor(3, 4), torch.tensor([[1, 1], [0, 3]]))),
    "scattered maxima": (
        lambda x, i: x.scatter_reduce(1, i, x * 2, "amax"),
        (random_tensor(3, 4), torch.tensor([[1, 1], [0, 3]])),
    ),
    "maxima with places": (lambda x: F.max_pool2d(x, 3, 2, 1, return_indices=True), (random_tensor(2, 3, 7, 6),)),
    "maxima with places of one image": (
        lambda x: F.max_pool2d(x, 2, dilation=2, ceil_mode=True, return_indices=True),
        (random_tensor(3, 7, 6),),
    ),
    "maxima with places beside NaN": (lambda x: F.max_pool2d(x[None], 2, 1, return_indices=True), (SPECIAL,)),
    "maxima of volumes with places": (
        lambda x: F.max_pool3d(x, 2, padding=1, return_indices=True),
        (random_tensor(1, 2, 4, 3, 5),),
    ),
    "maxima put back": (
        lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2, output_size=(7, 6)),
        (random_tensor(2, 3, 7, 6),),
    ),
    "maxima of windows of two sizes": (lambda x: F.adaptive_max_pool2d(x, (3, 2)), (random_tensor(2, 3, 7, 5),)),
    "maxima of windows of one axis": (lambda x: F.adaptive_max_pool1d(x, 2), (random_tensor(2, 3, 7),)),
    "largest of an axis": (lambda x: tuple(x.max(1)), (X,)),
    "least of an axis": (lambda x: tuple(x.min(-1, keepdim=True)), (X,)),
    "largest of an axis beside NaN": (lambda x: tuple(x.max(1)), (SPECIAL,)),
    "least of an axis beside NaN": (lambda x: tuple(x.min(1)), (SPECIAL,)),
    "largest of the least whole numbers": (lambda x: tuple(x.max(0)), (torch.full((2, 3), -(2**63)),)),
    "largest of truth values": (lambda x: tuple(x.max(1)), (WHOLE > 0,)),
    "largest of one number": (lambda x: tuple(x.max(0)), (torch.tensor(2.0),)),
    "sorted with NaN": (lambda x: tuple(x[:2].sort(dim=1, stable=True)), (SPECIAL,)),
    "largest numbers with NaN": (lambda x: tuple(x[:1].topk(2, 1)), (SPECIAL,)),
    "any number is true": (lambda x: (x[1:].any(1), x[1:].any(0, keepdim=True), (x * 0).any((0, 1))), (SPECIAL,)),
    "both are true": (lambda x: ((x > 0) * (x < 1)).float(), (X,)),
    "one is true": (lambda x: ((x > 0) + (x < -1)).float(), (X,)),
    "is finite": (lambda x: torch.isfinite(x).float(), (X,)),
    "sum with a factor": (lambda x, y: torch.add(x, y, alpha=2), (X, random_tensor(4, 1))),
    "sum of whole numbers with a factor": (lambda x, i: torch.add(x, i, alpha=3), (X, torch.arange(5))),
    "difference with a factor": (lambda x, y: torch.sub(x, y, alpha=0.3), (X, random_tensor(4, 1))),
    "sum of whole numbers and a fraction": (lambda i: i + 1.5, (WHOLE,)),
    "whole numbers times a fraction": (lambda i: i * 1.5, (WHOLE,)),
    "fraction less whole numbers": (lambda i: 1.5 - i, (WHOLE,)),
    "quotient of whole numbers": (lambda i: i / 2, (WHOLE,)),
    "whole numbers beside a fraction": (
        lambda i: (i >= 1.5, i > 0.5, i <= -0.5, i < 1.5, i == 1.5, i != 1.5),
        (WHOLE,),
    ),
    "truth values beside a fraction": (lambda i: ((i > 0) >= 0.5, (i > 0) + 1.5, (i > 0) == 2), (WHOLE,)),
    "truth values beside truth values": (lambda i: ((i > 0) == (i < 3), (i > 0) != (i < 3)), (WHOLE,)),
    "truth values and a truth value": (lambda i: ((i > 0) + True, (i > 0) * False), (WHOLE,)),
    "number less a factor": (lambda x: torch.rsub(x, 3, alpha=0.3), (X,)),
    "difference turned round": (lambda x, y: torch.rsub(x, y, alpha=2), (X, random_tensor(4, 1))),
    "one of two whole numbers": (lambda x: torch.where(x > 0, 1, 0), (X,)),
    "mean of what are numbers": (lambda x: torch.where(x > 0, x, float("nan")).nanmean(1).nan_to_num(), (X,)),
    "is another number": (lambda x: ((x / (x > 0)) != 2).float(), (X,)),
    "through bfloat16": (lambda x: (x > 0).bfloat16().float() + x, (X,)),
    "products of all before": (lambda x: x.cumprod(1), (X,)),
    "product of all before, of one number": (lambda x: x.cumprod(0), (torch.tensor(2.0),)),
    "power of two": (torch.exp2, (X,)),
    "power of two, of whole numbers": (torch.exp2, (WHOLE,)),
    "hypotenuse of infinite and huge sides": (
        torch.hypot,
        (torch.tensor([INF, NAN, -INF, 3e30]), torch.tensor([NAN, INF, 1, 4e30])),
    ),
    "hypotenuse of tiny sides": (torch.hypot, (torch.tensor([3e-30]), torch.tensor([4e-30]))),
    "hypotenuse": (lambda x: torch.hypot(x, x + 1), (X,)),
    "variance and mean": (lambda x: torch.var_mean(x, (0, 2)), (X,)),
    "variance and mean of one number": (lambda x: torch.var_mean(x, correction=0), (torch.tensor(2.0),)),
    "deviation and mean of all": (lambda x: torch.std_mean(x, correction=0), (X,)),
    "parts of one number": (lambda x: x.unfold(0, 1, 1), (torch.tensor(2.0),)),
    "overlapping parts": (lambda x: x.unfold(1, 3, 2), (random_tensor(2, 9, 4),)),
    "rounded as if quantised": (lambda x: torch.fake_quantize_per_tensor_affine(x, 0.07, 3, -20, 20), (X,)),
    "distances": (torch.cdist, (random_tensor(2, 3, 4), random_tensor(2, 5, 4))),
    "distances along streets": (lambda x, y: torch.cdist(x, y, p=1), (random_tensor(3, 4), random_tensor(5, 4))),
    "how many numbers differ": (lambda x, y: torch.cdist(x.round(), y.round(), p=0), (X, random_tensor(3, 2, 5))),
    "distances of many from the same": (torch.cdist, (random_tensor(2, 3, 4), random_tensor(5, 4))),
    "largest distances": (
        lambda x, y: torch.cdist(x, y, p=float("inf")),
        (random_tensor(3, 4), random_tensor(5, 4)),
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    function, inputs = FUNCTIONS[name]
    check_against_torch(Function(function), *inputs)


def test_an_encoder_whose_decoder_puts_maxima_back() -> None:
    def segment(encode: Any, decode: Any, x: Any) -> Any:
        maxima, places = F.max_pool2d(encode(x), 2, return_indices=True)
        return decode(F.max_unpool2d(F.relu(maxima), places, 2))

    parts = {"encode": nn.Conv2d(3, 8, 3, padding=1), "decode": nn.Conv2d(8, 4, 3, padding=1)}
    check_against_torch(Function(segment, **parts), random_tensor(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda x: x.scatter_reduce(1, torch.zeros(1, 1, 1, dtype=torch.int64), x, "mean"),
            "^aten.scatter_reduce.two .* reduces by mean",
        ),
        (lambda x: x.index_put((x[:, 0, 0] > 0,), x[:2]), "^aten.index_put .* as many numbers as its mask has places"),
        (lambda x: x.index_put((x[:, 0, 0] > 0, torch.tensor(1)), torch.ones(5)), "a mask and other indices"),
    ],
)
def test_what_only_the_run_tells_is_refused(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        to_graph(torch.export.export(Function(function).eval(), (X,)))
