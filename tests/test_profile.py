"""Profiles: what is stored comes back, survives a kill, and is refused when damaged or foreign."""

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_coexec import cli
from tvm_coexec.errors import FileFormatError
from tvm_coexec.layers import Linear, RowWise, Variant
from tvm_coexec.planning.plan import LayerPlan, Plan
from tvm_coexec.profile import Profile, store
from tvm_coexec.profile.records import Candidate, NetworkTimes, Point, PointTimes, Sample, samples_of
from tvm_coexec.profile.trial_runs import TrialRun

FACTS = {
    "name": "pretended: gpu",
    "driver_version": "1.0",
    "mechanism": "svm",
    "cpu_cores": [1],
    "gpu_cores": [0],
}
CPU, GPU = Variant.make("direct", rows=6), Variant.make("direct", rows=8, lanes=16)
CANDIDATE = Candidate(Linear(48, 768, 768, ("bias",)), CPU, GPU)
PLANNED = LayerPlan("fc", CANDIDATE.layer, 10, CPU, GPU, 3.0, 4.0, 5.0, "split")
TIMES = NetworkTimes((6.0, 5.5), (((3.5,), (4.5,)),))
TRIAL_RUN = TrialRun("a network", Plan("pretended", "svm", (PLANNED,), 5.0), TIMES, "2026-11-27T23:30:44+00:00")
CO_RUN, CPU_ALONE, GPU_ALONE = Point(10, 14), Point(24, 0), Point(0, 24)


def times(point: Point) -> PointTimes:
    cpu_us, gpu_us = ((1.5, 2.5, 9.0) if units else () for units in (point.cpu_units, point.gpu_units))
    return PointTimes(point.cpu_units, point.gpu_units, cpu_us, gpu_us, (10.0, 11.0, 12.0))


variants = st.builds(
    lambda name, params: Variant.make(name, **params),
    st.text(max_size=8),
    st.dictionaries(st.sampled_from(["rows", "lanes", "group"]), st.integers(0, 2**31 - 1)),
)
sizes = st.integers(1, 2**31)
layers = st.one_of(
    st.builds(Linear, sizes, sizes, sizes, st.sampled_from([(), ("bias",), ("bias", "gelu", "residual")])),
    st.builds(RowWise, st.sampled_from(RowWise.KINDS), sizes, sizes, st.just(()), st.floats(0, 1)),
)
latencies = st.lists(st.floats(0, allow_nan=False, allow_infinity=False), min_size=1).map(tuple)
samples = st.builds(
    Sample, layers, st.sampled_from(["cpu", "gpu"]), variants, sizes, sizes, latencies, st.none() | variants
)


@given(st.lists(st.lists(samples, max_size=4), max_size=3))
@settings(max_examples=25)
def test_samples_come_back_in_order_and_exactly(batches: list[list[Sample]]) -> None:
    with TemporaryDirectory() as folder:
        with Profile.create(Path(folder) / "profile", FACTS) as profile:
            for batch in batches:
                profile.add_samples(batch)
        with Profile.open(Path(folder) / "profile") as profile:
            assert list(profile.samples()) == [sample for batch in batches for sample in batch]


def test_a_point_becomes_a_sample_of_each_side_that_worked() -> None:
    cpu, gpu, alone = samples_of(CANDIDATE, [times(CO_RUN), times(GPU_ALONE)])
    assert (cpu.side, cpu.variant, cpu.units, cpu.other_variant, cpu.other_units) == ("cpu", CPU, 10, GPU, 14)
    assert (gpu.side, gpu.variant, gpu.units, gpu.other_variant, gpu.other_units) == ("gpu", GPU, 14, CPU, 10)
    assert (alone.side, alone.units, alone.other_variant, alone.other_units) == ("gpu", 24, None, 0)
    assert cpu.median_us == 2.5


def test_tuning_learns_what_is_measured_already(tmp_path: Path) -> None:
    other_gpu = Candidate(CANDIDATE.layer, CPU, Variant.make("direct", rows=1))
    with Profile.create(tmp_path / "p", FACTS) as profile:
        assert not profile.has(CANDIDATE, CO_RUN)
        profile.add_samples(samples_of(CANDIDATE, [times(CO_RUN), times(CPU_ALONE)]))
    with Profile.open(tmp_path / "p", FACTS) as profile:
        assert profile.has(CANDIDATE, CO_RUN) and profile.has(CANDIDATE, CPU_ALONE)
        assert not profile.has(CANDIDATE, GPU_ALONE) and not profile.has(CANDIDATE, Point(14, 10))
        assert profile.has(other_gpu, CPU_ALONE), "the idle side's variant does not matter"
        assert not profile.has(other_gpu, CO_RUN)
        cpu_half = samples_of(CANDIDATE, [times(Point(11, 13))])[:1]
        profile.add_samples(cpu_half)
        assert not profile.has(CANDIDATE, Point(11, 13)), "one half of a point is not the point"


def test_what_was_measured_acquits_a_variant_of_its_partner_s_failure(tmp_path: Path) -> None:
    with Profile.create(tmp_path / "p", FACTS) as profile:
        profile.add_failure(CANDIDATE, "the kernel hangs")
        assert profile.failed_variants() == {
            ("cpu", CANDIDATE.layer): frozenset({CPU}),
            ("gpu", CANDIDATE.layer): frozenset({GPU}),
        }
        profile.add_samples([Sample(CANDIDATE.layer, "cpu", CPU, 2, 0, (1.0, 2.0))])
        assert profile.measured_variants() == {("cpu", CANDIDATE.layer): frozenset({CPU})}
        assert profile.failed_variants()["cpu", CANDIDATE.layer] == frozenset()
        assert profile.failed_variants()["gpu", CANDIDATE.layer] == frozenset({GPU})


def test_a_failed_candidate_is_remembered_with_its_reason(tmp_path: Path) -> None:
    with Profile.create(tmp_path / "p", FACTS) as profile:
        assert profile.failure(CANDIDATE) is None
        profile.add_failure(CANDIDATE, "the kernel hangs")
    with Profile.open(tmp_path / "p") as profile:
        assert profile.failure(CANDIDATE) == "the kernel hangs"
        assert profile.failure(Candidate(CANDIDATE.layer, GPU, CPU)) is None


def test_trial_runs_come_back_by_network_and_in_order(tmp_path: Path) -> None:
    other, again = replace(TRIAL_RUN, network="another"), replace(TRIAL_RUN, plan=replace(TRIAL_RUN.plan, total_us=7.0))
    with Profile.create(tmp_path / "p", FACTS) as profile:
        profile.add_trial_runs([TRIAL_RUN, other])
        profile.add_trial_runs([again])
    with Profile.open(tmp_path / "p") as profile:
        assert profile.trial_runs() == {"a network": [TRIAL_RUN, again], "another": [other]}


def test_conclusions_come_back(tmp_path: Path) -> None:
    score = {"mape_percent": 4.5, "within_10_percent": 90.0}
    report = {"cpu": {"inside_percent": 80.0, "scores": {"all features": score}}}
    with Profile.create(tmp_path / "p", FACTS) as profile:
        assert (profile.families, profile.report, profile.planning) == ((), None, None)
        profile.describe(families=["linear"], report=report)
        profile.describe(planning={"sync_us": 1.5})
    with Profile.open(tmp_path / "p") as profile:
        assert profile.families == ("linear",) and profile.report == report
        assert profile.planning == {"sync_us": 1.5} and profile.facts == FACTS
        assert profile.predictor_path("gpu") == tmp_path / "p" / "gpu.ubj"


def test_plain_sql_reads_everything_beside_a_sample(tmp_path: Path) -> None:
    with Profile.create(tmp_path / "p", FACTS) as profile:
        profile.add_samples(samples_of(CANDIDATE, [times(CO_RUN)]))
    database = sqlite3.connect(tmp_path / "p" / "samples.sqlite")
    rows = database.execute(
        "SELECT side, units, json_extract(layer, '$.n'), json_extract(other_variant, '$.rows'),"
        " json_extract(facts, '$.driver_version'), json_array_length(latency_us), measured >= started"
        " FROM samples JOIN runs ON runs.id = samples.run ORDER BY side"
    ).fetchall()
    database.close()
    assert rows == [("cpu", 10, 768, 8, "1.0", 3, 1), ("gpu", 14, 768, 6, "1.0", 3, 1)]


WRITER = """
import json, sys
from tests_samples import FACTS, batch
from tvm_coexec.profile import Profile, store
profile = Profile.open(sys.argv[1], FACTS)
for number in range(1, 1_000_000):
    profile.add_samples(batch(number))
    print(number, flush=True)
"""

WRITER_SAMPLES = f"""
from tvm_coexec.layers import Linear, Variant
from tvm_coexec.profile.records import Sample
FACTS = {FACTS!r}
def batch(number):
    layer, variant = Linear(1, 1, 1), Variant("direct")
    return [Sample(layer, "cpu", variant, units, 0, (float(number),) * 50) for units in range(1, 21)]
"""


@pytest.mark.parametrize("batches", [1, 7, 30])
def test_a_kill_loses_nothing_that_was_stored_and_leaves_no_part_of_a_batch(tmp_path: Path, batches: int) -> None:
    Profile.create(tmp_path / "p", FACTS).close()
    (tmp_path / "tests_samples.py").write_text(WRITER_SAMPLES)
    (tmp_path / "writer.py").write_text(WRITER)
    command = [sys.executable, str(tmp_path / "writer.py"), str(tmp_path / "p")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        stored = [int(writer.stdout.readline()) for _ in range(batches)][-1]
        writer.send_signal(signal.SIGKILL)
        stored = max([stored, *map(int, writer.stdout.read().split())])
    with Profile.open(tmp_path / "p", FACTS) as profile:
        numbers = [sample.latency_us[0] for sample in profile.samples()]
        assert set(numbers) >= set(range(1, stored + 1))
        assert all(numbers.count(number) == 20 for number in set(numbers))
        profile.add_samples(samples_of(CANDIDATE, [times(CO_RUN)]))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile of some pages, to be copied."""
    path = tmp_path_factory.mktemp("whole") / "p"
    with Profile.create(path, FACTS) as profile:
        for _ in range(50):
            profile.add_samples(samples_of(CANDIDATE, [times(CO_RUN), times(CPU_ALONE)]))
        profile.add_trial_runs([TRIAL_RUN])
    return path


def damage_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    description = json.loads((path / "profile.json").read_text())
    change(description)
    (path / "profile.json").write_text(json.dumps(description))


def overwrite(path: Path, begin: int, content: bytes) -> None:
    whole = bytearray((path / "samples.sqlite").read_bytes())
    whole[begin : begin + len(content)] = content
    (path / "samples.sqlite").write_bytes(whole)


def execute(path: Path, statement: str) -> None:
    database = sqlite3.connect(path / "samples.sqlite")
    with database:
        database.execute(statement)
    database.close()


def replace_bytes(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "profile.json").unlink(), "there is no profile"),
        (lambda path: (path / "profile.json").write_text('{"format": '), r"profile.json is damaged"),
        (lambda path: (path / "profile.json").write_bytes(b"\xff\xfe\x00"), r"profile.json is damaged"),
        (lambda path: (path / "profile.json").write_text("[]"), "is no profile"),
        (lambda path: damage_json(path, lambda d: d.update(format="other")), "is no profile"),
        (lambda path: damage_json(path, lambda d: d.update(version=99)), "version 99, this program reads version 8"),
        (lambda path: damage_json(path, lambda d: d.pop("report")), r"damaged \(report cannot be found\)"),
        (lambda path: (path / "samples.sqlite").unlink(), r"samples.sqlite is damaged"),
        (lambda path: (path / "samples.sqlite").write_bytes(b""), r"its version is 0"),
        (lambda path: overwrite(path, 0, b"nonsense"), r"samples.sqlite is damaged"),
        (lambda path: overwrite(path, 4096, bytes(4096)), r"samples.sqlite is damaged"),
        (lambda path: (path / "samples.sqlite").write_bytes((path / "samples.sqlite").read_bytes()[:9000]), "damaged"),
        (
            lambda path: replace_bytes(path / "samples.sqlite", b"    units INTEGER NOT", b"   `units INTEGER NOT"),
            "malformed database schema .samples",
        ),
        (lambda path: execute(path, "PRAGMA user_version = 9"), "its version is 9 instead of 8"),
        (lambda path: execute(path, "UPDATE samples SET layer = '{}'"), "sample of layer {} cannot be read"),
        (lambda path: execute(path, "UPDATE samples SET latency_us = '3'"), "cannot be read"),
        (lambda path: execute(path, "UPDATE samples SET canary_us = x''"), "units or times of layer .* cannot be read"),
        (lambda path: execute(path, "UPDATE samples SET units = 'few'"), "units or times of layer .* cannot be read"),
        (
            lambda path: execute(path, "UPDATE samples SET layer = CAST(x'7bff' AS TEXT)"),
            "samples.sqlite is damaged .'utf",
        ),
        (lambda path: execute(path, "UPDATE runs SET facts = '{'"), "facts of a run cannot be read"),
        (lambda path: execute(path, "DROP TABLE failures"), r"damaged \(it has no table failures\)"),
        (lambda path: execute(path, "UPDATE trial_runs SET content = '{}'"), "a trial run cannot be read: 'halves_us'"),
    ],
)
def test_damage_is_detected(whole: Path, tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    shutil.copytree(whole, tmp_path / "p")
    damage(tmp_path / "p")
    with pytest.raises(FileFormatError, match=message) as told, Profile.open(tmp_path / "p", FACTS) as profile:
        list(profile.samples())
        profile.trial_runs()
    assert "\n" not in str(told.value)


def test_creation_takes_no_place_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    Profile.create(tmp_path / "empty", FACTS).close()
    for path in (tmp_path / "empty", tmp_path):
        with pytest.raises(FileFormatError, match="exists already"):
            Profile.create(path, FACTS)
    (tmp_path / "file").touch()
    with pytest.raises(FileFormatError, match="file is a file, and a profile a folder"):
        Profile.create(tmp_path / "file", FACTS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file"]


def test_a_profile_opened_without_facts_takes_no_samples(tmp_path: Path) -> None:
    Profile.create(tmp_path / "p", FACTS).close()
    with Profile.open(tmp_path / "p") as profile, pytest.raises(ValueError, match="can only be read"):
        profile.add_samples([])


@pytest.mark.parametrize("name", ["", "profile.json", "samples.sqlite"])
def test_a_place_where_nothing_can_be_written_is_refused_at_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Profile.create(tmp_path / "p", FACTS).close()
    refused = tmp_path / "p" / name
    monkeypatch.setattr("os.access", lambda path, _mode: Path(path) != refused)
    with pytest.raises(OSError, match="Permission denied") as caught:
        Profile.check_place(tmp_path / "p")
    assert caught.value.filename == str(refused)


def test_what_cannot_be_read_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "profile.json").mkdir()
    with pytest.raises(FileFormatError, match=r"profile.json cannot be read \(.*\); check the path"):
        Profile.open(tmp_path)


KEEPER = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("BEGIN EXCLUSIVE")
print("kept", flush=True)
sys.stdin.read()
"""


def test_who_keeps_a_database_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Profile.create(tmp_path / "p", FACTS).close()
    monkeypatch.setattr(store, "_BUSY_TIMEOUT_S", 0.1)
    command = [sys.executable, "-c", KEEPER, str(tmp_path / "p" / "samples.sqlite")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as keeper:
        assert keeper.stdout is not None and keeper.stdout.readline() == b"kept\n"
        with pytest.raises(FileFormatError, match=rf"sqlite is locked by process {keeper.pid} \(python.*\); wait"):
            Profile.open(tmp_path / "p")
        keeper.communicate()
    Profile.open(tmp_path / "p").close()


def test_a_tuning_waits_for_who_reads_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_BUSY_TIMEOUT_S", 0.0)
    with Profile.create(tmp_path / "p", FACTS) as profile:
        reader = sqlite3.connect(tmp_path / "p" / "samples.sqlite", isolation_level=None, check_same_thread=False)
        reader.execute("BEGIN EXCLUSIVE")
        ending = threading.Timer(0.5, reader.close)
        ending.start()
        profile.add_samples(samples_of(CANDIDATE, [times(CPU_ALONE)]))
        ending.join()
        assert len(list(profile.samples())) == 1


def test_a_disk_that_is_full_when_a_profile_is_made_is_told_by_its_place(tmp_path: Path) -> None:
    """In a process of its own, in which no file may become longer."""
    script = "import resource, sys; from tvm_coexec.profile import Profile; from pathlib import Path\n"
    script += "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
    script += (
        "try: Profile.create(Path(sys.argv[1]), {})\nexcept OSError as error: print(error.filename, error.strerror)"
    )
    told = subprocess.run([sys.executable, "-c", script, tmp_path / "p"], capture_output=True, text=True, check=True)
    assert told.stdout == f"{tmp_path / 'p'} disk I/O error\n" and not list(tmp_path.iterdir())


def test_a_lack_of_room_for_a_new_profile_is_told_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "SCHEMA", f"PRAGMA max_page_count = 1; {store.SCHEMA}")
    with pytest.raises(OSError, match="disk is full") as told:
        Profile.create(tmp_path / "p", FACTS)
    assert cli.one_line(told.value).endswith("cannot be used (database or disk is full); free some space there")
