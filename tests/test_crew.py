"""Several devices measure at once; what one loses another one measures: nothing is lost, nothing counted twice."""

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_tuning import FACTS, FakeSession, splits

from tvm_coexec.compiler.target import target_for
from tvm_coexec.errors import FileFormatError, MeasurementError
from tvm_coexec.layers import Linear
from tvm_coexec.profile import Profile
from tvm_coexec.profile.records import Point
from tvm_coexec.rpc.outcomes import DeviceFailedError, Measurement, RefusedError, SessionLostError
from tvm_coexec.tuning import crew
from tvm_coexec.tuning.tuner import Tuner, Work, training_points

LAYERS = [Linear(rows, 64, 128, ("bias",)) for rows in range(1, 5)]
HARMLESS = [Point(1, 1)]


class Device(FakeSession):
    """Does what it is told before it answers."""

    def __init__(self, address: str, before: Callable[[], None] = lambda: None, *, is_open: bool = True) -> None:
        super().__init__()
        self.address, self.is_open, self.before = address, is_open, before
        self.reconnected = 0

    def measure(self, module: bytes, points: list[Point], **options: object) -> Measurement:
        if points == HARMLESS:
            return Measurement((), 0.0)
        self.before()
        return super().measure(module, points, **options)

    def reconnect(self) -> None:
        self.reconnected += 1

    def close(self) -> None:
        pass


class Failing:
    """Raises errors, one a call, and then no more."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    def __call__(self) -> None:
        if self.errors:
            raise self.errors.pop(0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "_RETRY_S", (0.01, 0.02))


def tuner(path: Path, *devices: Any, patience_s: float = 60.0, told: list[str] | None = None) -> Tuner:
    profile, told = Profile.create(path / "p", FACTS), [] if told is None else told
    others = [(device, None) for device in devices[1:]]
    return Tuner(devices[0], profile, target_for(FACTS), others=others, patience_s=patience_s, tell=told.append)


def works(one: Tuner) -> list[Work]:
    return [(one.default_candidate(layer), training_points(layer), False) for layer in LAYERS]


def assert_measured_once(one: Tuner) -> None:
    """Every point of every layer is in the profile, and none twice."""
    kept = Counter((one.layer, one.side, one.units, one.other_units) for one in one.profile.samples())
    assert set(kept.values()) == {1} and one.profile.failures() == {}
    for layer in LAYERS:
        own = {(units, others) for (of, side, units, others) in kept if of == layer and side == "cpu"}
        assert own == {split for split in splits(training_points(layer)) if split[0]}


def test_devices_measure_at_once(tmp_path: Path) -> None:
    together = threading.Barrier(len(LAYERS), timeout=60)  # none goes on before all have begun
    one = tuner(tmp_path, *(Device(str(number), together.wait) for number in range(len(LAYERS))))
    wanted = works(one)
    assert sorted(map(str, one.measure_all(wanted))) == sorted(map(str, wanted))
    assert_measured_once(one)
    assert {address: record.measured for address, record in one.crew.records.items()} == dict.fromkeys("0123", 1)


@pytest.mark.parametrize(
    "errors",
    [
        (SessionLostError("lost"), MeasurementError("it is gone")),
        (DeviceFailedError("cannot be opened"), DeviceFailedError("cannot be opened")),
        (FileFormatError("the device is of another kind"),),
    ],
    ids=["vanished", "failing", "of another kind"],
)
def test_what_a_device_loses_is_measured_by_another_until_it_is_back(
    errors: tuple[Exception, ...], tmp_path: Path
) -> None:
    told: list[str] = []
    lost, good = Device("lost", Failing(*errors)), Device("good")
    one = tuner(tmp_path, lost, good, told=told)
    list(one.measure_all(works(one)))
    assert_measured_once(one)
    assert told == [f"a device takes no part for now: {errors[-1]}"]
    assert one.crew.records["lost"].losses == list(map(str, errors)) and lost.reconnected >= 1


def test_a_device_that_was_in_use_takes_part_once_it_is_free(tmp_path: Path) -> None:
    together = threading.Barrier(2, timeout=60)
    one = tuner(tmp_path, Device("first", together.wait), Device("second", together.wait, is_open=False))
    list(one.measure_all(works(one)))
    assert_measured_once(one)


def test_a_device_that_gives_wrong_results_blames_no_candidate(tmp_path: Path) -> None:
    class Wrong(Device):
        def measure(self, module: bytes, points: list[Point], **options: object) -> Measurement:
            raise RefusedError("the result is wrong by 0.5")

    one = tuner(tmp_path, Wrong("wrong"), Device("good"))
    list(one.measure_all(works(one)))
    assert_measured_once(one)
    one.close()


def test_where_no_device_comes_back_the_last_reason_is_told(tmp_path: Path) -> None:
    class Gone(Device):
        def measure(self, module: bytes, points: list[Point], **options: object) -> Measurement:
            raise MeasurementError(f"no device with key {self.address!r}")

    one = tuner(tmp_path, Gone("a"), patience_s=0.1)
    with pytest.raises(MeasurementError, match="no device with key 'a'"):
        list(one.measure_all(works(one)))
    one.close()
    assert one.profile.failures() == {}


def test_nothing_begins_when_the_time_is_over(tmp_path: Path) -> None:
    one = tuner(tmp_path, Device("first"))
    done: list[Work] = []
    for work in one.measure_all(works(one), lambda: len(done) == 2):
        done.append(work)
    assert done == works(one)[:2] and len({sample.layer for sample in one.profile.samples()}) == 2


def test_the_summary_says_what_interrupted_a_device_that_went_on(tmp_path: Path) -> None:
    one = tuner(tmp_path, Device("a phone", Failing(SessionLostError("its process died"))))
    list(one.measure_all(works(one)))
    (line,) = one.crew.summary()
    assert line == "the device at a phone: 4 measured, 0 failed, interrupted and tried again: its process died"
