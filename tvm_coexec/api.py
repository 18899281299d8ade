"""Building a module from a model: the graph is read, every layer planned, every half compiled."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_coexec.files import read_json

from .compiler.packaging import package_plan
from .compiler.target import check_facts, target_for
from .errors import InputError
from .frontends import ReadModel, read_model
from .graph import Graph
from .layers import AnyLayer
from .module.package import Package
from .opencl.choice import DeviceChoice
from .planning.division import Overheads
from .planning.from_profile import check_tuned, planner
from .planning.plan import Plan
from .planning.rules import Split, check_split, plan_by_rule
from .planning.split import Planner
from .profile import Profile
from .profile.profile import check_same_device
from .profile.records import Sample
from .runtime.device import Device, open_chosen, warn_of_one_core
from .runtime.loaded import TIMEOUT_S
from .runtime.module import Module
from .tuning.splits import measure_splits

if TYPE_CHECKING:
    from .frontends import Model, Shapes, Values


def build(
    model: Model,
    *,
    device: Device | str | None = None,
    profile: str | os.PathLike[str] | None = None,
    split: Split = "predicted",
    cpu_cores: Sequence[int] | None = None,
    gpu_cores: Sequence[int] | None = None,
    timeout_s: float = TIMEOUT_S,
    yields: bool = False,
    adapt: bool = False,
    check: bool = False,
    shapes: Shapes | None = None,
    values: Values | None = None,
) -> Module:
    """Build a module whose layers run on the CPU and the GPU at the same time.

    Parameters
    ----------
    model
        Path of an ONNX or TFLite file, an ONNX model, a program of ``torch.export``, or a Relax module.
    device
        An open device, or any unambiguous part of a device's name.
    profile
        A profile that ``tvm-coexec tune`` made for this device.
    split
        How each layer is divided. ``"predicted"``: by the profile's predictors; a model that the profile was tuned for
        by the best plan of its trial runs. ``"measured"``: every layer is measured at several splits, here and now;
        what the profile already holds is used. Both choose between channels and lines. ``"cpu"``, ``"gpu"``: all
        layers on one side. A number from 0 to 1: the CPU's share of every layer's channels. A dict from layer names to
        the CPU's tiles of channels (an int) or its share (a float); layers left out are predicted, or halved where
        there is no profile. A :class:`tvm_coexec.planning.plan.Plan` of this model, which may come from a file.
    cpu_cores, gpu_cores
        Cores for either side; see :func:`tvm_coexec.runtime.device.open_device`.
    timeout_s
        Bound on every wait of one processor for the other.
    yields
        Give up the CPU while waiting, at the price of a slower wake-up. On one core both sides always do.
    adapt
        Let splits follow the device while the module runs; see :func:`tvm_coexec.load`.
    check
        Run the module once on random inputs, and compare what it computes with an engine that shares no code with it:
        ONNX Runtime or ONNX's reference evaluator, LiteRT, or torch itself.
    shapes
        Shapes of inputs by name, where the model leaves dimensions open: ``{"x": (1, 3, 320, 320)}``.
    values
        Values of inputs by name that are always the same, such as a rate: ``{"sr": 16000}``. They are constants of the
        module, which has no such inputs: what follows from them is computed now. A number stands for all elements.

    Raises
    ------
    ModelError
        The model holds what cannot be built, with operator and node named; or no engine can check it.
    InputError
        The split or the profile does not fit.
    KernelError
        The check finds an output that differs; the first node whose value differs is named.
    """
    read = read_checked(model, shapes, values, [split], profile)
    if not isinstance(device, Device):
        cpu, gpu = (None if cores is None else tuple(cores) for cores in (cpu_cores, gpu_cores))
        device = open_for(profile, DeviceChoice(device, cpu, gpu))
    graph = read.to_graph()
    del read  # which holds the weights a second time
    module = build_graph(graph, device, profile=profile, split=split, timeout_s=timeout_s, yields=yields, adapt=adapt)
    if check:
        from .verification import NetworkCheck

        NetworkCheck(model, graph).verdict(module).raise_for_findings()
    return module


def read_checked(
    model: Model,
    shapes: Shapes | None,
    values: Values | None,
    splits: Iterable[Split],
    profile: str | os.PathLike[str] | None,
) -> ReadModel:
    """Read a model, once rules and profile were looked at: what is wrong with any is told before a device is opened."""
    for split in splits:
        check_split(split, profile is not None)
    if profile is not None:
        with Profile.open(profile) as opened:
            check_tuned(opened)
    return read_model(model, shapes, values)


def open_for(profile: str | os.PathLike[str] | None, choice: DeviceChoice) -> Device:
    """Open a device of this machine, unless the profile is of another: that is told before much is done for it."""
    if profile is not None:
        here = choice.check()
        if set(here["cpu_cores"]).isdisjoint(here["gpu_cores"]):  # on one core no profile is used
            with Profile.open(profile) as opened:
                check_same_device(opened.path, opened.facts, here)
    return open_chosen(choice)


def build_graph(
    graph: Graph,
    device: Device,
    *,
    profile: str | os.PathLike[str] | None = None,
    split: Split = "predicted",
    timeout_s: float = TIMEOUT_S,
    yields: bool = False,
    adapt: bool = False,
) -> Module:
    """Build a module of a graph that was read before; see :func:`build`."""
    facts = device.facts()
    plan = plan_graph(graph, device, profile=profile, split=split)
    built = package_plan(graph, plan, target_for(facts), facts, _progress)
    return Module(built, device, timeout_s=timeout_s, yields=yields, adapt=adapt)


def _progress(nodes: Any) -> Any:
    from tqdm import tqdm

    return tqdm(nodes, desc="compiling", unit="layer", leave=False)


def plan_graph(
    graph: Graph, device: Device, *, profile: str | os.PathLike[str] | None = None, split: Split = "predicted"
) -> Plan:
    """Divide every layer of a graph; see :func:`build`."""

    def measure(layers: Sequence[AnyLayer]) -> tuple[Sequence[Sample], Overheads]:
        return measure_splits(layers, device, profile)

    if device.shares_core:
        if profile is not None:
            warnings.warn(f"the profile {profile} is not used: on one core nothing is planned by one", stacklevel=3)
            profile = None
        if split not in ("cpu", "gpu"):
            warn_of_one_core(device)
            split = "cpu"
    facts = device.facts()
    return plan_by_rule(graph, split, facts, target_for(facts).hardware, _planner(profile, facts), measure)


def _planner(profile: str | os.PathLike[str] | None, facts: Mapping[str, Any]) -> Planner | None:
    if profile is None:
        return None
    with Profile.open(profile) as opened:
        opened.check_device(facts)
        return planner_of(opened)


def planner_of(profile: Profile) -> Planner:
    """The planner of a tuned profile; the profile's facts have to be what a build needs."""
    _check_own_facts(profile)
    return planner(profile, target_for(profile.facts).hardware)


def _check_own_facts(profile: Profile) -> None:
    check_facts(profile.facts, f"the profile {profile.path}", "restore it, or tune into another directory")


def package(
    model: Model,
    target: Device | Mapping[str, Any] | str | os.PathLike[str],
    *,
    profile: str | os.PathLike[str] | None = None,
    split: Split = "predicted",
    shapes: Shapes | None = None,
    values: Values | None = None,
) -> Package:
    """Build a module for a device that need not be at hand; ``write`` makes its file, to be loaded there.

    Parameters
    ----------
    model
        As for :func:`build`.
    target
        What the device says of itself: a file that ``tvm-coexec devices --facts FILE`` wrote on its machine, the
        directory of its profile, the facts themselves, or an open device.
    profile
        The device's profile; by default the target, if that is one.
    split
        As for :func:`build`, but for ``"measured"``.
    shapes, values
        As for :func:`build`.

    Raises
    ------
    InputError
        The target is none of these, or the split needs the device.
    ToolchainError
        There is no compiler for the target's CPU; the message names those that would do.
    """
    facts = facts_of(target)
    if profile is None and isinstance(target, str | os.PathLike) and Path(target).is_dir():
        profile = target

    def measure(layers: Sequence[AnyLayer]) -> tuple[Sequence[Sample], Overheads]:
        raise InputError("split='measured' needs the device: open it and use build(), or tune a profile on it")

    built_for, graph = target_for(facts), read_checked(model, shapes, values, [split], profile).to_graph()
    plan = plan_by_rule(graph, split, facts, built_for.hardware, _planner(profile, facts), measure)
    return package_plan(graph, plan, built_for, facts, _progress)


def facts_of(target: Device | Mapping[str, Any] | str | os.PathLike[str]) -> dict[str, Any]:
    """What a device says of itself, from wherever that was kept; see :func:`package`."""
    if isinstance(target, Device):
        return target.facts()
    remedy = "write it anew by `tvm-coexec devices --facts FILE`"
    if isinstance(target, Mapping):
        check_facts(target, "the target", remedy)
        return dict(target)
    path = Path(target)
    if path.is_dir():
        with Profile.open(path) as profile:
            _check_own_facts(profile)
            return profile.facts
    try:
        facts = read_json(path)
    except OSError as error:
        raise InputError(
            f"cannot read the facts {str(target)!r} ({error.strerror}); give the path of their file"
        ) from None
    except ValueError as error:
        raise InputError(
            f"{str(target)!r} holds no facts of a device ({error}); let `tvm-coexec devices --facts FILE` write it"
        ) from None
    check_facts(facts, repr(str(target)), remedy)
    return dict(facts)
