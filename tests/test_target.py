"""What code is generated for: never for instructions that the device's CPU lacks."""

import platform
from importlib import metadata

import pytest

from tvm_coexec.compiler.target import target_for
from tvm_coexec.errors import DeviceError
from tvm_coexec.machine import facts as machine
from tvm_coexec.machine.facts import machine_facts, versions

OPENCL = {"device_type": "gpu", "max_group_size": 256, "compute_units": 1}


def llvm_cpu(features: list[str], machine: str = "x86_64") -> str:
    return dict(target_for({"machine": machine, "cpu_features": features, **OPENCL}).llvm)["mcpu"]


def test_a_device_like_this_machine_gets_its_own_code() -> None:
    from tvm.target.codegen import llvm_get_system_cpu

    facts = machine_facts(0)
    assert llvm_cpu(facts["cpu_features"], facts["machine"]) == llvm_get_system_cpu()
    assert llvm_cpu([*facts["cpu_features"], "avx9000"], facts["machine"]) == llvm_get_system_cpu()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="needs an x86-64 machine")
@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ([], "x86-64"),
        (["avx2", "fma"], "x86-64"),
        (["avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"], "x86-64-v3"),
        (["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"], "x86-64-v4"),
    ],
)
def test_a_device_that_lacks_instructions_gets_what_it_has(features: list[str], expected: str) -> None:
    assert llvm_cpu(features) == expected


@pytest.mark.parametrize(
    ("vendor", "registers", "reads_late"),
    [("QUALCOMM", 170, False), ("ARM", 66, True), ("NVIDIA Corporation", 250, False), (None, 250, False)],
)
def test_a_gpu_s_vendor_says_how_many_registers_an_item_has(
    vendor: str | None, registers: int, reads_late: bool
) -> None:
    facts = {"machine": "aarch64", "cpu_features": ["asimd"], **OPENCL} | ({"vendor": vendor} if vendor else {})
    hardware = target_for(facts).hardware
    assert (hardware.item_registers, hardware.reads_late) == (registers, reads_late)


def test_a_gpu_s_local_memory_may_be_ordinary_memory() -> None:
    facts = {"machine": "aarch64", "cpu_features": ["asimd"], **OPENCL}
    for kind, own in ((1, True), (2, False), (None, True)):
        known = {} if kind is None else {"local_memory_type": kind}
        assert target_for(facts | known).hardware.has_local_memory is own


def test_another_kind_of_cpu_is_refused() -> None:
    with pytest.raises(DeviceError, match="kind abacus, for which nothing is built"):
        llvm_cpu([], "abacus")


@pytest.mark.skipif(platform.machine() == "aarch64", reason="needs another machine than an arm64 one")
@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (["fp", "asimd", "crc32"], "+neon -lse -rdm -dotprod -fullfp16 -rcpc -i8mm -bf16"),
        (
            ["asimd", "atomics", "asimdrdm", "asimddp", "asimdhp", "lrcpc"],
            "+neon +lse +rdm +dotprod +fullfp16 +rcpc -i8mm -bf16",
        ),
    ],
)
def test_a_phone_gets_the_instructions_that_its_facts_name(features: list[str], expected: str) -> None:
    target = target_for({"machine": "aarch64", "cpu_features": features, **OPENCL})
    assert dict(target.llvm) == {
        "kind": "llvm",
        "mtriple": "aarch64-linux-gnu",
        "mcpu": "cortex-a76",
        "mattr": tuple(expected.split()),
    }
    assert target.triple == "aarch64-linux-gnu"
    assert (target.hardware.vector_bytes, target.hardware.vector_registers) == (16, 32)


@pytest.mark.skipif(platform.machine() == "aarch64", reason="needs another machine than an arm64 one")
@pytest.mark.parametrize(("cores", "in_order"), [([0, 1], True), ([1, 2], False), ([2, 3], False), ([], False)])
def test_code_is_made_for_cores_that_run_in_order_where_all_of_them_do(cores: list[int], in_order: bool) -> None:
    clusters = [{"name": "Cortex-A55", "cores": [0, 1]}, {"name": "Cortex-A76", "cores": [2]}]
    facts = {"machine": "aarch64", "cpu_features": ["asimd"], "clusters": clusters, "cpu_cores": cores, **OPENCL}
    target = target_for(facts)
    assert target.hardware.in_order is in_order
    assert dict(target.llvm)["mcpu"] == ("cortex-a55" if in_order else "cortex-a76")


def test_android_is_a_system_of_its_own() -> None:
    facts = {"machine": platform.machine(), "is_android": True, "cpu_features": [], **OPENCL}
    assert target_for(facts).triple == f"{platform.machine()}-linux-android29"


@pytest.mark.parametrize(("installed", "found"), [("xgboost", "3.1"), ("xgboost-cpu", "3.1"), ("other", None)])
def test_the_distribution_of_a_library_may_have_another_name(
    monkeypatch: pytest.MonkeyPatch, installed: str, found: str | None
) -> None:
    def version(name: str) -> str:
        if name != installed:
            raise metadata.PackageNotFoundError(name)
        return "3.1"

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(machine, "_version", machine._version.__wrapped__)
    assert versions("xgboost")["xgboost"] == found
