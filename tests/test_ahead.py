"""Compiling ahead: on cores that nothing is measured on, and the same modules as are compiled when asked for."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_tuning import FACTS, LAYER, FakeSession

from tvm_coexec.compiler.target import target_for
from tvm_coexec.errors import KernelError
from tvm_coexec.profile import Profile
from tvm_coexec.tuning import ahead
from tvm_coexec.tuning.ahead import ModulesAhead, module_of, spare_cores
from tvm_coexec.tuning.tuner import Tuner, training_points

TARGET = target_for(FACTS)


@pytest.fixture
def modules() -> Iterator[ModulesAhead]:
    with ModulesAhead(TARGET, FACTS, tuple(os.sched_getaffinity(0))[:1]) as modules:
        yield modules


def test_local_devices_leave_the_cores_of_neither_side_but_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "usable_cores", lambda: (0, 1, 2, 3, 4))
    assert spare_cores({"cpu_cores": [1], "gpu_cores": [0]}, is_local=True) == (3, 4)
    assert spare_cores({"cpu_cores": [0, 1, 2, 3], "gpu_cores": []}, is_local=True) == ()
    assert spare_cores({"cpu_cores": [0, 1, 2, 3], "gpu_cores": []}, is_local=False) == (0, 1, 2, 3, 4)


def test_modules_are_those_compiled_when_asked_for_and_each_kernel_is_measured(
    modules: ModulesAhead, tmp_path: Path
) -> None:
    session = FakeSession()
    one = Tuner(session, Profile.create(tmp_path / "p", FACTS), TARGET, modules)  # type: ignore[arg-type]
    sent: list[bytes] = []
    measure = session.measure
    session.measure = lambda module, points, **_: (sent.append(module), measure(module, points))[1]  # type: ignore[assignment]
    works = [(candidate, training_points(LAYER), False) for candidate in one.candidates(LAYER)]
    assert list(one.measure_all(iter(works))) == works
    assert sent == [module_of(candidate, TARGET, FACTS) for candidate, *_ in works]
    assert list(one.measure_all(iter(works))) == works and len(sent) == len(works)


@pytest.mark.slow
def test_what_does_not_compile_is_said_when_it_is_asked_for(modules: ModulesAhead, tmp_path: Path) -> None:
    one = Tuner(FakeSession(), Profile.create(tmp_path / "p", FACTS), TARGET)  # type: ignore[arg-type]
    candidate = one.default_candidate(LAYER)

    def fail() -> bytes:
        raise KernelError("the variant does not compile")

    modules._begun[candidate] = modules._pool.submit(fail)
    with pytest.raises(KernelError, match="does not compile"):
        modules.take(candidate)


@pytest.mark.slow
def test_a_process_that_ends_leaves_the_compiling_to_who_asks(modules: ModulesAhead, tmp_path: Path) -> None:
    one = Tuner(FakeSession(), Profile.create(tmp_path / "p", FACTS), TARGET)  # type: ignore[arg-type]
    candidate = one.default_candidate(LAYER)
    modules._begun[candidate] = modules._pool.submit(os._exit, 1)
    assert modules.take(candidate) == module_of(candidate, TARGET, FACTS)
