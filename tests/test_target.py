"""What code is generated for: never for instructions that the device's CPU lacks."""

import platform

import pytest

from tvm_coexec.compiler.target import target_for
from tvm_coexec.errors import DeviceError
from tvm_coexec.runtime.machine import machine_facts

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


def test_another_kind_of_cpu_is_refused() -> None:
    with pytest.raises(DeviceError, match="cross-compiling is not supported"):
        llvm_cpu([], "abacus")
