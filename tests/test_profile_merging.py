"""Merged profiles hold every sample once; what differs between two is told."""

import shutil
import sqlite3
import warnings
from pathlib import Path

import numpy as np
import pytest
from test_profile import CANDIDATE, CPU_ALONE, FACTS, GPU_ALONE, TRIAL_RUN, times

from tvm_coexec import cli
from tvm_coexec.errors import FileFormatError
from tvm_coexec.profile import Profile, merging, store
from tvm_coexec.profile.comparing import time_ratios
from tvm_coexec.profile.merging import merge
from tvm_coexec.profile.records import Point, PointTimes, samples_of

CO_RUN = Point(10, 14)


def test_every_sample_is_merged_once_and_those_of_another_driver_stay_apart(tmp_path: Path) -> None:
    with Profile.create(tmp_path / "a", FACTS) as a:
        a.add_samples(samples_of(CANDIDATE, [times(CPU_ALONE)]))
        a.add_failure(CANDIDATE, "the kernel hangs")
        a.add_trial_runs([TRIAL_RUN])
        a.describe(families=["linear"], planning={"overheads": {"split_us": 1}})
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with Profile.open(tmp_path / "b", FACTS) as b:
        b.add_samples(samples_of(CANDIDATE, [times(GPU_ALONE)]))
        b.describe(families=["linear", "conv2d"])
    with Profile.create(tmp_path / "older", {**FACTS, "driver_version": "0.9"}) as older:
        older.add_samples(samples_of(CANDIDATE, [times(CO_RUN)]))
    with Profile.open(tmp_path / "b", {**FACTS, "kernel": "a newer one"}) as b:
        b.add_samples(samples_of(CANDIDATE, [times(Point(12, 12))]))
    merge(tmp_path / "all", [tmp_path / "older", tmp_path / "a", tmp_path / "b"])
    with Profile.open(tmp_path / "all") as merged:
        assert [run.samples for run in merged.runs()] == [2, 2, 2]
        assert [run.is_current for run in merged.runs()] == [
            run.facts["driver_version"] == "1.0" for run in merged.runs()
        ]
        assert len(list(merged.samples())) == 4 and merged.failures() == {"the kernel hangs": 1}
        assert [len(runs) for runs in merged.trial_runs().values()] == [1]
        assert merged.families == ("conv2d", "linear") and merged.planning == {"overheads": {"split_us": 1}}


def test_devices_that_began_at_once_keep_runs_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs bear no device, and the same samples are those of a copy, unless the profile has them twice itself."""
    monkeypatch.setattr(store, "now", lambda: "2026-11-30T12:00:00.000+00:00")
    with Profile.create(tmp_path / "a", FACTS) as a:
        for device in ("phone:1", "phone:2"):
            a.add_samples(samples_of(CANDIDATE, [times(CPU_ALONE)]), device)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    merge(tmp_path / "all", [tmp_path / "a", tmp_path / "b"])
    with Profile.open(tmp_path / "all") as merged:
        assert [run.samples for run in merged.runs()] == [1, 1]


def test_a_clock_that_was_set_back_makes_no_later_run_an_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Profile.create(tmp_path / "a", FACTS).close()
    for hour, driver in ((12, "0.9"), (7, "1.0")):
        monkeypatch.setattr(store, "now", lambda hour=hour: f"2026-11-30T{hour:02}:00:00.000+00:00")
        with Profile.open(tmp_path / "a", {**FACTS, "driver_version": driver}) as a:
            a.add_samples(samples_of(CANDIDATE, [times(CPU_ALONE)]))
    merge(tmp_path / "all", [tmp_path / "a"])
    with Profile.open(tmp_path / "all") as merged:
        assert [(run.facts["driver_version"], run.is_current) for run in merged.runs()] == [
            ("0.9", False),
            ("1.0", True),
        ]


def test_profiles_of_other_devices_are_not_merged(tmp_path: Path) -> None:
    Profile.create(tmp_path / "a", FACTS).close()
    Profile.create(tmp_path / "b", {**FACTS, "cpu_model": "another"}).close()
    with pytest.raises(FileFormatError, match="belongs to a device with the CPU 'another'"):
        merge(tmp_path / "all", [tmp_path / "a", tmp_path / "b"])
    assert not (tmp_path / "all").exists()


def test_what_differs_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slower = PointTimes(24, 0, (3.0, 5.0, 18.0), (), (20.0,))
    with Profile.create(tmp_path / "a", FACTS) as a, Profile.create(tmp_path / "b", {**FACTS, "kernel": "6"}) as b:
        a.add_samples(samples_of(CANDIDATE, [times(CPU_ALONE), times(GPU_ALONE)]))
        b.add_samples(samples_of(CANDIDATE, [slower]))
        ratios = time_ratios(a.samples(), b.samples())
    np.testing.assert_allclose(ratios["cpu"], [2.0])
    assert cli.main(["profile", "diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "kernel: None here, 6 there",
        "samples that count: 2 here, 1 there",
        "cpu: 1 halves were measured in both; there they take 2.00 times as long (geometric mean; 10 %: 2.00, "
        "90 %: 2.00)",
        "gpu: no half was measured in both",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "a", "b"], "takes one profile"),
        (["diff", "a"], "takes two profiles"),
        (["merge", "a", "--out", "c"], "takes two profiles or more"),
        (["merge", "a", "b"], "name it by --out"),
        (["show", "a", "--out", "c"], "name it by --out"),
    ],
)
def test_what_an_action_does_not_take_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["profile", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_plan_for_a_device_with_another_driver_is_warned_of(tmp_path: Path) -> None:
    with Profile.create(tmp_path / "p", FACTS) as profile:
        profile.add_samples(samples_of(CANDIDATE, [times(CPU_ALONE)]))
        with pytest.raises(FileFormatError, match=r"is measured with driver '1.0', this device has '2.0'"):
            profile.check_device({**FACTS, "driver_version": "2.0"})
    with Profile.open(tmp_path / "p") as profile:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            profile.check_device(FACTS)
        with pytest.warns(UserWarning, match=r"driver '1.0', the device now has '2.0'; its predictions may not hold"):
            profile.check_device({**FACTS, "driver_version": "2.0"})


def two_profiles(folder: Path) -> list[Path]:
    for name in ("a", "b"):
        with Profile.create(folder / name, FACTS) as profile:
            profile.add_samples(samples_of(CANDIDATE, [times(CPU_ALONE)]))
    return [folder / "a", folder / "b"]


@pytest.mark.parametrize("is_there", [False, True])
def test_a_merge_for_which_there_is_no_room_leaves_what_was_there(
    is_there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty folder, to which a link may lead, and what another process is writing to it."""
    sources, place, link = two_profiles(tmp_path), tmp_path / "place", tmp_path / "c"
    link.symlink_to(place)
    writing = place / ".0123456789abcdef.partial"
    if is_there:
        writing.mkdir(parents=True)

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(merging, "_copy_run", full)
        with pytest.raises(OSError, match="disk is full") as told:
            merge(link, sources)
    assert cli.one_line(told.value) == f"{link} cannot be used (database or disk is full); free some space there"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c", *(["place"] * is_there)]
    assert not is_there or list(place.iterdir()) == [writing]
    merge(link, sources)
    with Profile.open(place) as merged:
        assert len(list(merged.samples())) == 2


def test_a_merge_into_a_folder_of_others_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    sources, place = two_profiles(tmp_path), tmp_path / "c"
    place.mkdir()
    (place / "letter").touch()
    with pytest.raises(FileFormatError, match=f"{place} exists already"):
        merge(place, sources)
    assert [path.name for path in place.iterdir()] == ["letter"]


def test_a_profile_whose_damage_shows_when_it_is_merged_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy(_: object, source: str, *__: object) -> int:
        if source == "source1":
            raise sqlite3.DatabaseError("database disk image is malformed")
        return 1

    monkeypatch.setattr(merging, "_copy_run", copy)
    sources = two_profiles(tmp_path)
    with pytest.raises(FileFormatError, match=rf"^{sources[1] / 'samples.sqlite'} is damaged \(database disk image"):
        merge(tmp_path / "c", sources)
    assert not (tmp_path / "c").exists()
