"""Samples of older kernels, other devices, drivers and compilers: what a profile keeps apart, leaves out or refuses."""

import sqlite3
import warnings
from contextlib import closing
from pathlib import Path

import pytest
from test_profile import CANDIDATE, CPU, CPU_ALONE, FACTS, GPU, GPU_ALONE, execute, times

from tvm_coexec.errors import FileFormatError
from tvm_coexec.profile import Profile, store
from tvm_coexec.profile.records import Candidate, Point, samples_of


def test_samples_and_failures_of_older_kernels_count_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Candidate(CANDIDATE.layer, GPU, CPU)
    with Profile.create(tmp_path / "p", FACTS) as profile:
        profile.add_samples(samples_of(CANDIDATE, [times(CPU_ALONE)]))
        profile.add_failure(other, "the kernel hangs")
        assert profile.failures() == {"the kernel hangs": 1}
    monkeypatch.setattr(store, "GENERATOR_VERSION", store.GENERATOR_VERSION + 1)
    with Profile.open(tmp_path / "p") as profile:
        assert list(profile.samples()) == [] and not profile.measured_variants() and not profile.failed_variants()
    with Profile.open(tmp_path / "p", FACTS) as profile:
        assert profile.failure(other) is None and not profile.failures()
        profile.add_samples(samples_of(CANDIDATE, [times(GPU_ALONE)]))
        assert [sample.side for sample in profile.samples()] == ["gpu"]
        assert [(run.samples, run.failures, run.is_current) for run in profile.runs()] == [(1, 1, False), (1, 0, True)]


def test_layers_that_only_an_older_release_had_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Profile.create(tmp_path / "p", FACTS) as profile:
        profile.add_samples(samples_of(CANDIDATE, [times(CPU_ALONE), times(GPU_ALONE)]))
    with closing(sqlite3.connect(tmp_path / "p" / "samples.sqlite")) as database, database:
        database.execute("UPDATE samples SET layer = replace(layer, 'linear', 'fully_connected') WHERE side = 'gpu'")
    with Profile.open(tmp_path / "p") as profile, pytest.raises(FileFormatError, match="unknown layer op 'fully_"):
        list(profile.samples())
    monkeypatch.setattr(store, "GENERATOR_VERSION", store.GENERATOR_VERSION + 1)
    with Profile.open(tmp_path / "p") as profile:
        assert [sample.side for sample in profile.samples(are_current=False)] == ["cpu"]


def test_who_only_looks_leaves_no_run_behind(tmp_path: Path) -> None:
    with Profile.create(tmp_path / "p", FACTS) as profile:
        profile.add_samples(samples_of(CANDIDATE, [times(CPU_ALONE)]))
    with (
        pytest.warns(UserWarning, match="driver"),
        Profile.open(tmp_path / "p", {**FACTS, "driver_version": "2"}) as other,
    ):
        assert list(other.samples()) == []
    with Profile.open(tmp_path / "p") as profile:
        assert [run.is_current for run in profile.runs()] == [True] and len(list(profile.samples())) == 1


def test_another_compiler_is_another_origin(tmp_path: Path) -> None:
    with Profile.create(tmp_path / "p", {**FACTS, "versions": {"tvm": "1"}}) as profile:
        profile.add_samples(samples_of(CANDIDATE, [times(CPU_ALONE)]))
    with Profile.open(tmp_path / "p", {**FACTS, "versions": {"tvm": "2"}}) as profile:
        assert list(profile.samples()) == []


@pytest.mark.parametrize("year", [2020, 2999], ids=["long ago", "while a clock was wrong"])
def test_what_failed_is_tried_again_after_a_while(year: int, tmp_path: Path) -> None:
    with Profile.create(tmp_path / "p", FACTS) as profile:
        profile.add_failure(CANDIDATE, "the kernel hangs")
    execute(tmp_path / "p", f"UPDATE failures SET failed = '{year}-01-01T00:00:00.000+00:00'")
    with Profile.open(tmp_path / "p") as profile:
        assert profile.failure(CANDIDATE) is None and not profile.failed_variants()


def test_another_device_is_refused_by_name_and_by_cores(tmp_path: Path) -> None:
    Profile.create(tmp_path / "p", FACTS).close()
    with pytest.raises(FileFormatError, match="belongs to 'pretended: gpu', the device is 'other'"):
        Profile.open(tmp_path / "p", {**FACTS, "name": "other"})
    with pytest.raises(FileFormatError, match="belongs to a device with the CPU None, this one's is 'other'"):
        Profile.open(tmp_path / "p", {**FACTS, "cpu_model": "other"})
    with pytest.raises(FileFormatError, match="measured with the mechanism 'svm', the device is open with 'event'"):
        Profile.open(tmp_path / "p", {**FACTS, "mechanism": "event"})
    with pytest.raises(FileFormatError, match="measured with 1 GPU cores, not 2"):
        Profile.open(tmp_path / "p", {**FACTS, "gpu_cores": [0, 2]})


def test_another_driver_is_warned_of_and_kept_apart(tmp_path: Path) -> None:
    with Profile.create(tmp_path / "p", FACTS) as profile:
        profile.add_samples(samples_of(CANDIDATE, [times(CPU_ALONE)]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Profile.open(tmp_path / "p", FACTS).close()
    newer = {**FACTS, "driver_version": "2.0"}
    with pytest.warns(UserWarning, match=r"driver '1.0', the device now has '2.0'"):
        profile = Profile.open(tmp_path / "p", newer)
    with profile:
        profile.add_samples(samples_of(CANDIDATE, [times(GPU_ALONE)]))
        assert [sample.side for sample in profile.samples()] == ["gpu"]
        assert not profile.has(CANDIDATE, Point(CPU_ALONE.cpu_units, 0))
        assert [(run.facts["driver_version"], run.samples, run.is_current) for run in profile.runs()] == [
            ("1.0", 1, False),
            ("2.0", 1, True),
        ]
    database = sqlite3.connect(tmp_path / "p" / "samples.sqlite")
    runs = database.execute(
        "SELECT side, json_extract(facts, '$.driver_version') FROM samples JOIN runs ON runs.id = run ORDER BY side"
    ).fetchall()
    count = database.execute("SELECT count(*) FROM runs").fetchone()
    database.close()
    assert runs == [("cpu", "1.0"), ("gpu", "2.0")] and count == (2,)


def test_devices_of_one_kind_have_runs_of_their_own(tmp_path: Path) -> None:
    with Profile.create(tmp_path / "p", FACTS) as profile:
        for device in ("a", "b", "a"):
            profile.add_samples(samples_of(CANDIDATE, [times(CPU_ALONE)]), device)
        profile.add_failure(CANDIDATE, "of whichever")
        first, second, third = (sample.run for sample in profile.samples())
        assert first == third != second
        assert [(run.samples, run.is_current) for run in profile.runs()] == [(2, True), (1, True)]
    with Profile.open(tmp_path / "p", FACTS) as profile:
        profile.add_samples(samples_of(CANDIDATE, [times(CPU_ALONE)]))
        assert [sample.run for sample in profile.samples()][-1] == second  # the latest of such facts goes on
    with Profile.open(tmp_path / "p", FACTS) as profile:
        profile.add_samples(samples_of(CANDIDATE, [times(CPU_ALONE)]), "a")
        assert [sample.run for sample in profile.samples()][-1] not in (first, second), "which may be another device's"
