"""Plans of whole networks on a device whose times are known."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from lowering import lower
from synthetic_device import HARDWARE, OVERHEADS, trained

from tvm_coexec import schedules
from tvm_coexec.graph import Graph, Node, Tensor
from tvm_coexec.graph.dependencies import Read, Work
from tvm_coexec.layers import AnyLayer, Conv2d, Linear, RowWise, Variant
from tvm_coexec.planning.chances import Time
from tvm_coexec.planning.division import Division, Half, Overheads
from tvm_coexec.planning.network import assemble, plan_network, reads_of
from tvm_coexec.planning.plan import LayerPlan
from tvm_coexec.planning.split import Planner
from tvm_coexec.planning.synchronisations import synchronisations
from tvm_coexec.prediction.base_time import BaseTime
from tvm_coexec.prediction.noise import Noise
from tvm_coexec.prediction.surroundings import Surroundings
from tvm_coexec.profile.trial_runs import TrialRun

ESTIMATES = {side: BaseTime((("constant", 1.0), ("flops", 1e-5), ("bytes", 1e-4))) for side in ("cpu", "gpu")}


def planner(estimates=ESTIMATES, split_us=OVERHEADS.split_us):
    return Planner(trained("cpu"), trained("gpu"), HARDWARE, Overheads(split_us), estimates=estimates)


def planner_of_measured(graph: Graph) -> Planner:
    """A planner that knows every kernel of the graph by measurement."""
    known = planner()
    kernels = {
        (side, layer): frozenset(schedules.family(layer).variants(layer, side, known.hardware))
        for layer in {node.layer for node in graph.nodes}
        for side in ("cpu", "gpu")
    }
    return replace(known, measured=kernels)


def network(*layers):
    """A chain; a layer with a residual adds the first layer's output."""
    graph = Graph({"x": Tensor("x", layers[0].input_sizes[0])}, ["x"], [], [])
    for number, layer in enumerate(layers):
        residual = "t0" if "residual" in layer.epilogue else None
        source = f"t{number - 1}" if number else "x"
        graph.tensors[f"t{number}"] = Tensor(f"t{number}", layer.output_size)
        graph.nodes.append(Node(f"n{number}", layer, source, residual, f"t{number}"))
    return graph


def planned(*layers, **settings):
    return plan_network(network(*layers), planner(**settings), "device", "svm")


def test_a_network_of_one_layer_is_planned_as_the_layer_is():
    for layer in (Linear(197, 768, 3072), Linear(1, 64, 64), Linear(500, 4000, 30)):
        plan, alone = planned(layer), planner().plan_layer("n0", layer)
        assert plan.layers == (alone,)
        assert plan.total_us == pytest.approx(alone.total_us)


def test_a_chain_of_large_layers_is_split_throughout_and_takes_their_sum():
    plan = planned(*[Linear(197, 768, 768)] * 6)
    assert all(0.4 < layer.cpu_units / layer.layer.units < 0.6 for layer in plan.layers)
    assert plan.total_us == pytest.approx(sum(layer.total_us for layer in plan.layers), rel=0.02)
    gpu_units = plan.layers[0].gpu_units
    assert [(sync.layer, sync.side) for sync in plan.syncs[:2]] == [("n1", "cpu"), ("n1", "gpu")]
    assert plan.syncs[0].why == f"reads all channels of 'n0', whose first {gpu_units} tiles the GPU computes"
    assert plan.syncs[-1].layer is None


def test_a_network_is_expected_to_take_longer_where_halves_are_disturbed():
    graph, quiet = network(*[Linear(197, 768, 768)] * 6), planner()
    twice = Noise({"cpu": 2.0, "gpu": 2.0}, {"cpu": 2.0, "gpu": 2.0})
    plan, disturbed = (plan_network(graph, one, "device", "svm") for one in (quiet, replace(quiet, noise=twice)))
    assert disturbed.layers == plan.layers
    assert 1.9 < disturbed.total_us / plan.total_us < 2.0, "synchronisation takes what it takes"


def test_every_synchronisation_of_the_runtime_is_in_the_plan():
    layers = [Linear(50, 768, 768), Linear(50, 768, 32), Linear(50, 32, 768, ("residual",)), Linear(50, 768, 768)]
    graph = network(*layers)
    plan = plan_network(graph, planner(), "device", "svm")
    works = [
        Work(layer.cpu_units, layer.gpu_units, reads) for layer, reads in zip(plan.layers, reads_of(graph), strict=True)
    ]
    assert len(plan.syncs) == lower(works, "svm").sync_count


MEMORY = "overwrites memory that the CPU needs until its half of 'n2' is done"


@pytest.mark.parametrize(
    ("reads", "why"),
    [
        ((Read(3, overwrites=True),), MEMORY),
        (
            (Read(2), Read(3, overwrites=True)),
            f"reads all channels of 'n1', whose last 12 tiles the CPU computes, and {MEMORY}",
        ),
        ((Read(3), Read(3, overwrites=True)), "reads all channels of 'n2', whose last 12 tiles the CPU computes"),
    ],
)
def test_a_wait_names_the_data_and_the_memory_that_it_is_for(reads: tuple[Read, ...], why: str) -> None:
    graph = network(*[Linear(50, 768, 768)] * 4)
    layers = [planner().plan_split(node.name, node.layer, 12) for node in graph.nodes]
    syncs = list(synchronisations(layers, [(), (), (), reads]))
    assert [(sync.layer, sync.side, sync.awaits) for sync in syncs] == [
        ("n3", "cpu", "n2"),
        ("n3", "gpu", "n2"),
        (None, "cpu", "n3"),
    ]
    assert syncs[1].why == why


def test_row_wise_layers_that_nobody_measured_follow_each_other():
    norm, softmax = RowWise("layer_norm", 4096, 256, epsilon=1e-5), RowWise("softmax", 4096, 256)
    plan = planned(norm, softmax, softmax)
    assert len({layer.cpu_units for layer in plan.layers}) == 1 and 0 < plan.layers[0].cpu_units < 512
    assert plan.layers[1].reason == (
        "split as 'n0' is, of which it needs nothing that the other side computes; "
        "the times are estimates, since the profile is not tuned for rowwise layers"
    )
    assert [sync.layer for sync in plan.syncs] == [None]


@pytest.mark.parametrize("estimates", [ESTIMATES, {}], ids=["estimates", "nothing known"])
def test_a_kernel_that_failed_does_not_come_back_where_only_estimates_are_known(estimates):
    layer = Conv2d(28, 28, 64, 256, 3, padding=1)
    variants = {side: schedules.family(layer).variants(layer, side, HARDWARE) for side in ("cpu", "gpu")}
    first = {(side, layer): frozenset(found[:1]) for side, found in variants.items()}
    for division in replace(planner(estimates), failed=first).divisions(layer).values():
        assert division.cpu is None or division.cpu.variant == variants["cpu"][1]
        assert division.gpu is None or division.gpu.variant == variants["gpu"][1]
    everything = {(side, layer): frozenset(found) for side, found in variants.items()}
    (alone,) = replace(planner(estimates), failed=everything).divisions(layer).values()
    assert alone.cpu is not None and alone.cpu.variant == variants["cpu"][0], "one side has to go on"


def test_without_estimates_layers_that_nobody_measured_stay_on_the_cpu():
    plan = planned(Linear(50, 768, 768), RowWise("softmax", 50, 768), estimates={})
    assert (plan.layers[1].gpu, plan.layers[1].cpu_us) == (None, 0.0)
    assert "not tuned for rowwise layers" in plan.layers[1].reason


def test_a_tiny_layer_stays_whole_between_large_ones():
    plan = planned(Linear(197, 768, 768), Linear(197, 768, 64), Linear(197, 64, 768), split_us=500.0)
    assert plan.layers[1].cpu_units in (0, 2)
    assert "alone" in plan.layers[1].reason


def test_a_residual_is_read_unit_by_unit_and_an_input_as_a_whole():
    graph = network(Linear(50, 768, 768), Linear(50, 768, 768), Linear(50, 768, 768, ("residual",)))
    assert reads_of(graph) == [(), (Read(1),), (Read(2), Read(1, local=("channels",)))]
    graph.nodes[2].residual = graph.nodes[2].input
    assert reads_of(graph)[2] == (Read(2), Read(2))


def test_plans_made_elsewhere_are_put_together_alike():
    graph = network(Linear(50, 768, 768), Linear(50, 768, 768))
    layers = [
        planner().plan_split(node.name, node.layer, units) for node, units in zip(graph.nodes, (0, 24), strict=True)
    ]
    plan = assemble(graph, layers, OVERHEADS, "device", "svm", Noise())
    assert plan.total_us == pytest.approx(layers[0].gpu_us + layers[1].cpu_us + OVERHEADS.split_us)
    assert [(sync.layer, sync.awaits, sync.why) for sync in plan.syncs] == [
        ("n1", "n0", "reads 'n0', which the GPU computes")
    ]


class ProportionalPlanner:
    """Expects of either side the same time for the same share of a layer."""

    overheads, estimates, noise, surroundings = OVERHEADS, ESTIMATES, Noise(), Surroundings()
    trial_runs: Mapping[str, Sequence[TrialRun]] = {}

    def __init__(self, outgrown: "ProportionalPlanner | None" = None, slower: float = 1.0) -> None:
        self.outgrown, self.slower, self.streams_weights = outgrown, slower, slower > 1

    def for_network(self, graph: Graph) -> "ProportionalPlanner":
        return self

    def for_kernels(self, layers: Sequence[LayerPlan]) -> "ProportionalPlanner":
        return self.outgrown or self

    def learning_from(self, trial_runs: Sequence[TrialRun], untried: float = 1.0) -> "ProportionalPlanner":
        return self

    def knows(self, layer: AnyLayer) -> bool:
        return True

    def divisions(self, layer: AnyLayer) -> dict[int, Division]:
        variant = Variant.make("direct", rows=1)

        def half(units: int) -> Half | None:
            us = self.slower * layer.flops / 1e5 * units / layer.units
            return Half(variant, Time.sure(us)) if units else None

        found = {}
        for units in range(layer.units + 1):
            halves = half(units), half(layer.units - units)
            found[units] = Division(units, *halves, max(one.us if one else 0.0 for one in halves))
        return found


def images(*layers: Conv2d) -> Graph:
    """A chain of images; a layer with a residual adds the first layer's output."""
    graph = network(*layers)
    for name, size in [("x", layers[0].input_sizes[0]), *((f"t{i}", one.output_size) for i, one in enumerate(layers))]:
        graph.tensors[name] = Tensor(name, size, 1, size)
    return graph


def test_a_network_whose_kernels_read_more_weights_than_the_cache_holds_is_planned_anew() -> None:
    graph = images(*[Conv2d(14, 14, 64, 64, 3, 1, 1)] * 2)
    plan, anew = (
        plan_network(graph, ProportionalPlanner(outgrown), "device", "svm")
        for outgrown in (None, ProportionalPlanner(slower=3.0))
    )
    assert anew.layers[0].cpu_us == pytest.approx(3 * plan.layers[0].cpu_us)


def test_layers_of_one_tile_are_divided_by_lines() -> None:
    narrow = Conv2d(56, 56, 32, 32, 1)
    around = Conv2d(56, 56, 32, 32, 3, 1, 1)
    graph = images(around, narrow, narrow, around)
    plan = plan_network(graph, ProportionalPlanner(), "device", "svm")
    assert [layer.layer.axis for layer in plan.layers] == ["lines"] * 4
    assert {layer.cpu_units for layer in plan.layers} == {7}
    assert plan.layers[0].reason.startswith("split by lines: ")
    assert plan.layers[1].reason == "split as 'n0' is, of which it needs nothing that the other side computes"
    syncs = plan.syncs
    assert [(sync.layer, sync.side) for sync in syncs] == [("n3", "cpu"), ("n3", "gpu"), (None, "cpu")], (
        "pointwise layers wait for nobody"
    )
    assert syncs[0].why == "reads all lines of 'n2', whose first 7 line blocks the GPU computes"


def test_a_residual_may_be_read_along_either_axis() -> None:
    narrow = Conv2d(56, 56, 32, 32, 1)
    graph = images(narrow, narrow, replace(narrow, epilogue=("residual",)))
    assert reads_of(graph)[2] == (Read(2, ("lines",)), Read(1, ("channels", "lines")))
