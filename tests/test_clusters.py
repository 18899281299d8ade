"""Which cores are alike, what they are called, and which of a phone's are the big ones."""

from pathlib import Path

import pytest
from phones.kinds import disguise

from tvm_coexec.machine import clusters as module
from tvm_coexec.machine.clusters import Cluster, clusters, clusters_of


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (
            "cortex-a76",
            ["4×Cortex-A55 1.80 GHz LITTLE", "3×Cortex-A76 2.42 GHz big", "1×Cortex-A76 2.84 GHz big"],
        ),
        ("cortex-a53", ["4×Cortex-A53 1.40 GHz LITTLE", "4×Cortex-A53 2.02 GHz big"]),
    ],
)
def test_a_phone_s_clusters_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, expected: list[str]
) -> None:
    disguise(kind, "fp asimd", tmp_path)
    monkeypatch.setattr(module, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(module, "_CPU_FOLDER", tmp_path / "sys/devices/system/cpu")
    assert [str(cluster) for cluster in clusters()] == expected
    assert sorted(core for cluster in clusters() for core in cluster.cores) == list(range(8))


def test_a_phone_that_tells_no_frequencies_has_kinds_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disguise("cortex-a76", "fp asimd", tmp_path)
    monkeypatch.setattr(module, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(module, "_CPU_FOLDER", tmp_path / "nothing")
    assert [str(cluster) for cluster in clusters()] == ["4×Cortex-A55 LITTLE", "4×Cortex-A76 big"]


def test_an_unknown_core_keeps_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text("processor: 0\nCPU implementer: 0x99\nCPU part: 0x12\n\nprocessor: 1\n")
    monkeypatch.setattr(module, "_CPUINFO", tmp_path / "cpuinfo")
    assert [cluster.name for cluster in clusters()] == ["implementer 0x99 0x12", "core"]


def test_cores_that_are_all_alike_are_neither_big_nor_little() -> None:
    assert clusters_of({0: ("A core", 2000.0), 1: ("A core", 2000.0)}) == (Cluster("A core", (0, 1), 2000.0),)


def test_this_machine_s_cores_are_all_in_one_cluster_each() -> None:
    numbers = [core for cluster in clusters() for core in cluster.cores]
    assert numbers and len(set(numbers)) == len(numbers)
