"""Programs of torch.export, judged by torch: networks of one kind each, read and computed in float64."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from reference import evaluate

import tvm_coexec
from tvm_coexec.errors import ModelError
from tvm_coexec.frontends import to_graph
from tvm_coexec.runtime.device import Device

torch = pytest.importorskip("torch", reason="needs torch, to export programs")
from torch_networks import Function, check_against_torch, ops, random_tensor  # noqa: E402 - torch is there from here on

nn, F = torch.nn, torch.nn.functional

FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "hard_sigmoid": (F.hardsigmoid, (random_tensor(2, 8, 5, 5),)),
    "hard_swish": (F.hardswish, (random_tensor(2, 8, 5, 5),)),
    "hard_tanh": (lambda x: F.hardtanh(x, -0.5, 0.7), (random_tensor(2, 8),)),
    "relu6": (F.relu6, (3 * random_tensor(2, 8),)),
    "elu": (lambda x: F.elu(x, 0.7), (random_tensor(2, 8),)),
    "selu": (F.selu, (random_tensor(2, 8),)),
    "leaky_relu": (lambda x: F.leaky_relu(x, negative_slope=0.3), (random_tensor(2, 8),)),
    "gelu_of_tanh": (lambda x: F.gelu(x, approximate="tanh"), (random_tensor(2, 8),)),
    "mish": (F.mish, (random_tensor(2, 8),)),
    "softplus": (F.softplus, (random_tensor(2, 8),)),
    "glu": (lambda x: F.glu(x, 1), (random_tensor(2, 8, 3),)),
    "floor_division": (lambda x: torch.div(x, 2, rounding_mode="floor"), (3 * random_tensor(4, 6),)),
    "truncated_division": (lambda x: torch.div(x, 0.7, rounding_mode="trunc"), (3 * random_tensor(4, 6),)),
    "remainder": (lambda x: torch.remainder(x, 0.7), (3 * random_tensor(4, 6),)),
    "position_encoding": (
        lambda x: x / 100 ** (2 * torch.div(torch.arange(6.0), 2, rounding_mode="floor") / 6),
        (random_tensor(4, 6),),
    ),
    "instance_norm": (lambda x: F.instance_norm(x, eps=0.3), (random_tensor(2, 4, 5, 6),)),
    "instance_norm_of_training": (
        lambda x: F.instance_norm(x, torch.tensor([0.3, -1.0]), torch.tensor([0.5, 2.0]), use_input_stats=False),
        (random_tensor(2, 2, 5, 6),),
    ),
    "any_of_small_numbers": (lambda x: (0.01 * x).any().float() + x, (random_tensor(2, 3),)),
    "group_norm": (lambda x: F.group_norm(x, 2, eps=0.3), (random_tensor(2, 4, 5, 6),)),
    "layer_norm_of_two_axes": (lambda x: F.layer_norm(x, (5, 6), eps=0.3), (random_tensor(2, 4, 5, 6),)),
    "normalise": (lambda x: F.normalize(x, dim=1), (random_tensor(2, 4, 5),)),
    "softmax_of_channels": (lambda x: x.softmax(1), (random_tensor(2, 4, 5, 6),)),
    "log_softmax": (lambda x: F.log_softmax(x, dim=-1), (random_tensor(2, 4),)),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), (random_tensor(1, 8, 3, 4),)),
    "pixel_unshuffle": (lambda x: F.pixel_unshuffle(x, 2), (random_tensor(1, 2, 6, 4),)),
    "channel_shuffle": (lambda x: F.channel_shuffle(x, 2), (random_tensor(1, 8, 3, 4),)),
    "unfold": (lambda x: F.unfold(x, 3, padding=1), (random_tensor(1, 2, 6, 4),)),
    "nearest": (lambda x: F.interpolate(x, scale_factor=2), (random_tensor(1, 2, 3, 4),)),
    "bilinear": (lambda x: F.interpolate(x, (7, 5), mode="bilinear"), (random_tensor(1, 2, 3, 4),)),
    "bilinear by a factor": (
        lambda x: F.interpolate(x, scale_factor=(1.7, 0.6), mode="bilinear"),
        (random_tensor(1, 2, 5, 8),),
    ),
    "bilinear, to one pixel": (
        lambda x: F.interpolate(x, (1, 1), mode="bilinear", align_corners=True),
        (random_tensor(1, 2, 5, 8),),
    ),
    "bilinear without aliasing": (
        lambda x: F.interpolate(x, (3, 9), mode="bilinear", antialias=True),
        (random_tensor(1, 2, 7, 6),),
    ),
    "nearest, by a factor whose size is a multiple": (
        lambda x: F.interpolate(x, scale_factor=(3.1, 1.1)),
        (random_tensor(1, 2, 4, 4),),
    ),
    "nearest, twice the size by another factor": (
        lambda x: F.interpolate(x, scale_factor=(2.1, 1.6)),
        (random_tensor(1, 2, 4, 4),),
    ),
    "bilinear, to the same size by a factor": (
        lambda x: F.interpolate(x, scale_factor=(1.1, 1.6), mode="bilinear"),
        (random_tensor(1, 2, 4, 4),),
    ),
    "bilinear without aliasing, to the same size by a factor": (
        lambda x: F.interpolate(x, scale_factor=(1.1, 1.6), mode="bilinear", antialias=True),
        (random_tensor(1, 2, 4, 4),),
    ),
    "bilinear without aliasing, to one line by corners": (
        lambda x: F.interpolate(x, (1, 8), mode="bilinear", antialias=True, align_corners=True),
        (random_tensor(1, 2, 4, 4),),
    ),
    "nearest, by no whole factor": (lambda x: F.interpolate(x, (9, 3)), (random_tensor(1, 2, 5, 4),)),
    "nearest by a factor": (lambda x: F.interpolate(x, scale_factor=1.7), (random_tensor(1, 2, 5, 8),)),
    "bicubic by a factor": (
        lambda x: F.interpolate(x, scale_factor=1.7, mode="bicubic"),
        (random_tensor(2, 2, 5, 4),),
    ),
    "bilinear_corners": (
        lambda x: F.interpolate(x, (7, 5), mode="bilinear", align_corners=True),
        (random_tensor(1, 2, 3, 4),),
    ),
    "average_pooling": (
        lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
        (random_tensor(1, 4, 7, 7),),
    ),
    "average_pooling_counted": (lambda x: F.avg_pool2d(x, 3, 2, 1), (random_tensor(1, 4, 7, 7),)),
    "max_pooling": (lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True), (random_tensor(1, 4, 8, 8),)),
    "adaptive_pooling": (lambda x: F.adaptive_avg_pool2d(x, (2, 3)), (random_tensor(1, 4, 8, 6),)),
    "adaptive_maxima": (lambda x: F.adaptive_max_pool2d(x, (2, 3)), (random_tensor(1, 4, 8, 6),)),
    "least_of_an_axis": (lambda x: torch.topk(x, 2, 1, largest=False), (random_tensor(2, 5, 3),)),
    "sorted_stably": (lambda x: torch.sort(x, stable=True, dim=1), (random_tensor(2, 5, 3),)),
    "sorted": (lambda x: torch.sort(x, 1, descending=True), (random_tensor(2, 5, 3),)),
    "running_sum": (lambda x: torch.cumsum(x, -1), (random_tensor(2, 5, 3),)),
    "running_count": (lambda x: torch.cumsum(x > 0, 1), (random_tensor(2, 5, 3),)),
    "places_of_a_grid": (
        lambda x, grid: F.grid_sample(x, grid.tanh(), padding_mode="border", align_corners=False),
        (random_tensor(1, 3, 7, 9), random_tensor(1, 5, 6, 2)),
    ),
    "reflect": (lambda x: F.pad(x, (1, 2, 1, 0), mode="reflect"), (random_tensor(1, 2, 5, 4),)),
    "roll": (lambda x: torch.roll(x, (1, 2), (2, 3)), (random_tensor(1, 2, 5, 4),)),
    "einsum": (
        lambda x, y: torch.einsum("bchw,bcij->bhwij", x, y),
        (random_tensor(1, 2, 3, 4), random_tensor(1, 2, 2, 3)),
    ),
    "minimum": (torch.minimum, (random_tensor(2, 3), random_tensor(2, 3))),
    "where": (lambda x: torch.where(x > 0, x, 2 * x), (random_tensor(4, 5),)),
    "two_outputs": (lambda x: (x.relu(), x.mean(1)), (random_tensor(4, 5),)),
    "maximum_of_an_axis": (lambda x: x.amax(1), (random_tensor(4, 5, 3),)),
    "variance": (lambda x: x.var(1, keepdim=True), (random_tensor(4, 5, 3),)),
    "norm": (lambda x: x.norm(dim=1), (random_tensor(4, 5, 3),)),
    "product": (lambda x: x.prod(1), (random_tensor(4, 5, 3),)),
    "rows_by_number": (lambda x, i: x[:, i], (random_tensor(4, 5, 3), torch.tensor([2, -1, 0]))),
    "columns_in_turn": (
        lambda x, i: torch.gather(x, 1, i),
        (random_tensor(2, 3), torch.tensor([[2, 0], [1, 1]])),
    ),
    "truth_of_all": (lambda x: torch.any(x > 0, dim=(0, 1)).float() + x, (random_tensor(2, 3),)),
    "truth_of_rows": (lambda x: torch.any(x > 1, dim=(1,), keepdim=True).float() + x, (random_tensor(2, 3),)),
    "classes": (lambda i: F.one_hot(i, 3).float(), (torch.tensor([2, 0, 1]),)),
    "elements_by_numbers": (lambda x, i: x[i, :, i], (random_tensor(4, 5, 3), torch.tensor([2, -1, 0]))),
}


@pytest.mark.parametrize(
    "pooling",
    [
        lambda x: F.adaptive_max_pool2d(x, (2, 3), return_indices=True),
        lambda x: F.adaptive_max_pool1d(x[0], 2, return_indices=True),
    ],
)
def test_places_of_maxima_are_refused(pooling: Callable[[torch.Tensor], Any]) -> None:
    program = torch.export.export(Function(pooling).eval(), (random_tensor(1, 4, 8, 6),))
    with pytest.raises(ModelError, match=r"max_pool.* is read for the indices of its maxima, which are not computed"):
        to_graph(program)


class Counter(torch.nn.Module):
    """Keeps how often it has run."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("runs", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        return x + self.runs


def test_what_changes_when_it_runs_is_refused() -> None:
    with pytest.raises(ModelError, match="changes runs when it runs"):
        to_graph(torch.export.export(Counter().eval(), (random_tensor(2, 3),)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    function, inputs = FUNCTIONS[name]
    check_against_torch(Function(function), *inputs)


INDEXED: dict[str, tuple[Callable[..., Any], list[list[float]]]] = {
    "gather": (lambda x, i: torch.gather(x, 0, i[:, None]), [[8], [0]]),
    "index": (lambda x, i: x[i], [[8, 9], [0, 1]]),
    "embedding": (lambda x, i: F.embedding(i, x), [[8, 9], [0, 1]]),
    "scatter": (lambda x, i: x.scatter(0, i[:, None], -torch.ones(2, 1)), [[-1, 1], [4, 5], [-1, 9]]),
    "index_put": (lambda x, i: x.index_put((i,), -torch.ones(2, 2)), [[-1, -1], [4, 5], [-1, -1]]),
    "index_put_of_two": (lambda x, i: x.index_put((i, i), -torch.ones(2)), [[-1, 1], [4, 5], [8, -1]]),
    "index_add": (lambda x, i: x.index_add(0, i, torch.ones(2, 2)), [[1, 2], [4, 5], [9, 10]]),
}


@pytest.mark.parametrize("name", INDEXED)
def test_indices_beyond_a_tensor_are_no_other_memory(name: str, device: Device) -> None:
    function, expected = INDEXED[name]
    x, within = torch.tensor([[0.0, 1.0], [4.0, 5.0], [8.0, 9.0]]), torch.tensor([1, 0])
    program = torch.export.export(Function(function), (x, within))
    module = tvm_coexec.build(program, device=device, split="cpu")
    for beyond, before in ((2**31 - 1, -5), (3, -(2**31))):
        np.testing.assert_array_equal(module(x.numpy(), np.array([beyond, before])), expected)


@pytest.mark.parametrize("affine", [True, False])
def test_a_normalisation_of_volumes(affine: bool) -> None:
    norm = nn.BatchNorm3d(5, affine=affine)
    norm.running_mean, norm.running_var = random_tensor(5), random_tensor(5).abs() + 0.5
    check_against_torch(nn.Sequential(nn.Conv3d(2, 5, 3, padding=1), norm).eval(), random_tensor(1, 2, 4, 5, 6))


def test_a_normalisation_of_numbers_of_eight_bytes() -> None:
    check_against_torch(nn.BatchNorm2d(6).double().eval(), random_tensor(1, 6, 3, 3).double())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_numbers_of_two_bytes_become_wider(dtype: torch.dtype) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 5)).eval().to(dtype)
    x = random_tensor(1, 3, 5, 5).to(dtype)
    with pytest.warns(UserWarning, match="float16 or bfloat16 is computed in float32"):
        graph = to_graph(torch.export.export(network, (x,)))
    (result,) = evaluate(graph, {graph.inputs[0]: x.float().numpy()}).values()
    assert {parameter.dtype for parameter in network.parameters()} == {dtype}, "the user's network stays as it is"
    expected = network.float()(x.float()).detach().numpy()
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


class NamesTypes(nn.Module):
    """Computes in float32 what has two bytes, and says so, as normalisations of language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = F.softmax(x, -1, dtype=torch.float32) + x.float().square()
        return self.linear(wide.to(x.dtype)) + torch.ones(8, dtype=x.dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_types_that_a_program_names_become_wider(dtype: torch.dtype) -> None:
    network, x = NamesTypes().eval().to(dtype), random_tensor(3, 6).to(dtype)
    graph = to_graph(torch.export.export(network, (x,)))
    (result,) = evaluate(graph, {graph.inputs[0]: x.float().numpy()}).values()
    np.testing.assert_allclose(result, network.float()(x.float()).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_a_convolutional_network() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
        nn.Softplus(),
    )
    graph = check_against_torch(network, random_tensor(2, 3, 8, 8))
    assert ops(graph)[:2] == ["conv2d", "pool"] and "opaque" in ops(graph)


def test_squeeze_and_excitation_by_hard_sigmoid() -> None:
    def excite(reduce: Any, expand: Any, x: Any) -> Any:
        return x * F.hardsigmoid(expand(F.relu(reduce(x.mean((2, 3), keepdim=True)))))

    graph = check_against_torch(
        Function(excite, reduce=nn.Conv2d(32, 8, 1), expand=nn.Conv2d(8, 32, 1)), random_tensor(1, 32, 7, 7)
    )
    assert "opaque" not in ops(graph)


def test_what_is_constant_is_computed_once() -> None:
    """Position encodings and biases by relative place come to no more than a constant."""
    table = nn.Embedding(9, 2)
    positions = torch.arange(25).reshape(5, 5) % 9
    network = Function(lambda table, x: x + table(positions).permute(2, 0, 1)[None], table=table)
    assert len(check_against_torch(network, random_tensor(1, 2, 5, 5)).nodes) == 1


def test_nodes_are_called_by_their_modules() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Linear(8, 16)

        def forward(self, x: Any) -> Any:
            return self.wide(x).square().sum(-1)

    graph = to_graph(torch.export.export(nn.Sequential(Block()).eval(), (random_tensor(4, 8),)))
    names = [node.name for node in graph.nodes]
    assert names[0] == "0.wide"
    assert all(name.startswith("0.") for name in names)


def test_outputs_are_called_by_their_keys() -> None:
    network = Function(lambda x: {"logits": x.relu(), "hidden": (x.tanh(), x.exp())})
    graph = to_graph(torch.export.export(network, (random_tensor(4, 8),)))
    assert graph.outputs == ["logits", "hidden_0", "hidden_1"]


def test_an_operator_that_cannot_be_imported_is_named_with_its_module() -> None:
    network = nn.Sequential(nn.Linear(4, 4), Function(torch.special.bessel_j0))
    with pytest.raises(ModelError, match=r"^aten.special_bessel_j0 \(node '1.special_bessel_j0'\) is no operator"):
        to_graph(torch.export.export(network, (random_tensor(4, 4),)))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda x: x + torch.randn(4), "makes random numbers, which no module can"),
        (lambda x: x * torch.randn_like(x), "makes random numbers, which no module can"),
        (lambda x: F.avg_pool2d(x, 2, divisor_override=3), "has a divisor_override, which is no average"),
    ],
)
def test_what_would_be_silently_another_number_is_refused(network: Any, message: str) -> None:
    program = torch.export.export(Function(network), (random_tensor(1, 2, 4, 4),))
    assert message in refusal(program)


def test_a_failing_import_says_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    program = torch.export.export(Function(lambda x: x[x > 0]), (random_tensor(4, 4),))
    capfd.readouterr()
    message = refusal(program)
    gc.collect()  # TVM's builder speaks when it dies
    assert message.startswith("TVM cannot import aten.index.Tensor (node 'index')")
    assert len(message.splitlines()) == 1
    assert capfd.readouterr().err == ""


def refusal(program: Any) -> str:
    with pytest.raises(ModelError) as caught:
        to_graph(program)
    return str(caught.value)
