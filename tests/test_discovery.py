"""Which device a name means, what is said of it, and that looking leaves no trace."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyopencl as cl
import pytest

from tvm_coexec.errors import DeviceError
from tvm_coexec.opencl import discovery, loader
from tvm_coexec.opencl.apart import check_apart
from tvm_coexec.opencl.choice import DeviceChoice
from tvm_coexec.opencl.discovery import DeviceInfo, find_device, list_devices

SVM = cl.device_svm_capabilities
FINE = SVM.COARSE_GRAIN_BUFFER | SVM.FINE_GRAIN_BUFFER
POCL = "Portable Computing Language"
INTEL = "Intel(R) OpenCL"


def fake_device(name: str, kind: int = cl.device_type.CPU, svm: int = FINE | SVM.ATOMICS, units: int = 64) -> Any:
    return SimpleNamespace(
        name=name,
        vendor="somebody",
        driver_version="1.0",
        version="OpenCL 3.0",
        type=kind,
        max_compute_units=units,
        max_work_group_size=256,
        global_mem_size=1 << 30,
        local_mem_size=1 << 15,
        local_mem_type=1,
        host_unified_memory=1,
        extensions="cl_khr_fp64 cl_khr_command_buffer",
        svm_capabilities=svm,
    )


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that decides which platforms, with which devices, there are."""

    def have(platforms: dict[str, list[Any]], problems: tuple[str, ...] = ()) -> list[DeviceInfo]:
        found = [(SimpleNamespace(name=name), devices) for name, devices in platforms.items()]
        monkeypatch.setattr(loader, "query_devices", lambda worker_count: (found, list(problems)))
        return list_devices()

    return have


def test_a_gpu_is_preferred_then_pocl_then_intel(devices: Any) -> None:
    gpu = fake_device("GeForce", cl.device_type.GPU)
    everything = {INTEL: [fake_device("Xeon")], POCL: [fake_device("cpu-Xeon")], "NVIDIA CUDA": [gpu]}
    assert [info.alias for info in devices(everything)] == ["nvidia", "pocl", "intel"]
    assert find_device().name == "nvidia: GeForce"
    del everything["NVIDIA CUDA"]
    devices(everything)
    assert find_device().name == "pocl: cpu-Xeon"


def test_a_gpu_with_shared_memory_is_preferred_to_one_without(devices: Any) -> None:
    discrete = fake_device("GeForce", cl.device_type.GPU, svm=SVM.COARSE_GRAIN_BUFFER)
    devices({"NVIDIA CUDA": [discrete], "ARM Platform": [fake_device("Mali-G78", cl.device_type.GPU)]})
    assert find_device().name == "mali: Mali-G78"


@pytest.mark.parametrize("name", ["pocl", "POCL", "pthread", "portable", "pocl: pthread-Intel Xeon", " pocl "])
def test_any_part_of_a_name_finds_the_device(devices: Any, name: str) -> None:
    devices({INTEL: [fake_device("AMD EPYC")], POCL: [fake_device("pthread-Intel Xeon")]})
    assert find_device(name).alias == "pocl"


def test_an_alias_beats_a_part_of_another_device(devices: Any) -> None:
    devices({POCL: [fake_device("pthread-Intel Xeon")], INTEL: [fake_device("Intel Xeon")]})
    assert find_device("intel").platform == INTEL


def test_an_ambiguous_name_is_refused_with_the_candidates(devices: Any) -> None:
    devices({POCL: [fake_device("pthread-Xeon")], INTEL: [fake_device("Xeon")]})
    with pytest.raises(DeviceError, match=r"'xeon' could be 'pocl: pthread-Xeon', 'intel: Xeon'; name more of it"):
        find_device("xeon")


def test_an_unknown_name_is_refused_with_what_there_is_and_the_remedy(devices: Any) -> None:
    devices({INTEL: [fake_device("Xeon")]})
    with pytest.raises(DeviceError, match=r"called 'pocl'; there is 'intel: Xeon'; try `apt install pocl-opencl-icd`"):
        find_device("pocl")


def test_no_device_at_all_names_cause_and_remedy(devices: Any) -> None:
    assert devices({}, problems=("the driver 'X' fails: out of luck",)) == []
    with pytest.raises(DeviceError, match=r"out of luck.*apt install pocl-opencl-icd.*pip install tvm-coexec\[intel\]"):
        find_device()


def test_equal_devices_get_different_names(devices: Any) -> None:
    pair = [fake_device("GeForce", cl.device_type.GPU), fake_device("GeForce", cl.device_type.GPU)]
    assert [info.name for info in devices({"NVIDIA CUDA": pair})] == ["nvidia: GeForce", "nvidia: GeForce #2"]
    assert find_device("nvidia: geforce").name == "nvidia: GeForce"
    assert find_device("#2").name == "nvidia: GeForce #2"


@pytest.mark.parametrize(
    ("platform", "alias"),
    [
        ("Intel(R) OpenCL Graphics", "intel-gpu"),
        ("AMD Accelerated Parallel Processing", "amd"),
        ("QUALCOMM Snapdragon(TM)", "adreno"),
        ("Zebra Compute 3", "zebra"),
    ],
)
def test_platforms_have_short_aliases(devices: Any, platform: str, alias: str) -> None:
    (info,) = devices({platform: [fake_device("thing", cl.device_type.GPU)]})
    assert info.alias == alias


@pytest.mark.parametrize(
    ("svm", "levels", "mechanism", "reason"),
    [
        (0, (), "event", "no shared virtual memory"),
        (SVM.COARSE_GRAIN_BUFFER, ("coarse",), "event", "only coarse-grained"),
        (FINE, ("coarse", "fine"), "event", "without atomics"),
        (FINE | SVM.ATOMICS, ("coarse", "fine", "atomics"), "svm", "with atomics"),
    ],
)
def test_the_mechanism_follows_from_the_shared_memory(
    devices: Any, svm: int, levels: tuple[str, ...], mechanism: str, reason: str
) -> None:
    (info,) = devices({POCL: [fake_device("cpu", svm=svm)]})
    assert (info.svm, info.mechanism) == (levels, mechanism)
    assert reason in info.mechanism_reason


def test_a_driver_of_opencl_1_2_has_no_shared_memory(devices: Any) -> None:
    class OldDevice(SimpleNamespace):
        @property
        def svm_capabilities(self) -> int:
            raise cl.LogicError("clGetDeviceInfo", cl.status_code.INVALID_VALUE, "")

    fields = vars(fake_device("Mali-T760", cl.device_type.GPU))
    del fields["svm_capabilities"]
    (info,) = devices({"ARM Platform": [OldDevice(**fields)]})
    assert (info.svm, info.mechanism) == ((), "event")


def test_a_cpu_device_counts_the_cores_that_it_would_get(devices: Any) -> None:
    cpu, gpu = fake_device("cpu", units=4096), fake_device("gpu", cl.device_type.GPU, units=4096)
    units = {info.device_type: info.compute_units for info in devices({POCL: [cpu], "NVIDIA CUDA": [gpu]})}
    assert units["gpu"] == 4096
    assert units["cpu"] <= max(1, (os.cpu_count() or 1) // 2)


def test_what_is_known_survives_json(device_name: str) -> None:
    info = find_device(device_name)
    assert info.alias == device_name
    fields = json.loads(json.dumps(info.to_json()))
    assert DeviceInfo(**{**fields, "svm": tuple(fields["svm"])}) == info
    assert find_device(info.name) == info


def run_python(code: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


def test_importing_does_not_start_opencl() -> None:
    code = "import sys, tvm_coexec.opencl.discovery, tvm_coexec.runtime.device; print('pyopencl' in sys.modules)"
    assert run_python(code) == "False"


def test_looking_leaves_the_environment_as_it_was() -> None:
    code = (
        "import os; before = dict(os.environ)\n"
        "from tvm_coexec.opencl.discovery import list_devices; list_devices()\n"
        "print({k: v for k, v in os.environ.items() if before.get(k) != v and k != 'PYOPENCL_HOME'})"
    )
    assert run_python(code) == "{}"


def test_the_users_choice_of_drivers_is_respected(tmp_path: Path) -> None:
    code = (
        "from tvm_coexec.errors import DeviceError\n"
        "from tvm_coexec.opencl.discovery import find_device\n"
        "try: find_device()\n"
        "except DeviceError as error: print(error)"
    )
    assert "OCL_ICD_VENDORS limits the drivers" in run_python(code, OCL_ICD_VENDORS=f"{tmp_path}/")


def test_intels_pip_runtime_is_found_beside_the_systems_drivers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "lib" / "libintelocl.so"
    system = tmp_path / "vendors"
    system.mkdir()
    (system / "pocl.icd").write_text("libpocl.so.2\n")
    monkeypatch.setattr(loader, "intel_library", lambda: library)
    monkeypatch.setattr(loader, "_SYSTEM_VENDORS", system)
    for name in ("OCL_ICD_VENDORS", "OPENCL_VENDOR_PATH"):
        monkeypatch.delenv(name, raising=False)
    with loader._vendors():
        folder = Path(os.environ["OCL_ICD_VENDORS"])
        entries = {entry.name: entry.read_text().strip() for entry in folder.iterdir()}
    assert entries == {"pocl.icd": "libpocl.so.2", "intel-pip.icd": str(library)}
    assert "OCL_ICD_VENDORS" not in os.environ
    assert not folder.exists()


def test_alias_table_prefers_the_more_special_name() -> None:
    assert discovery.alias_of("Intel(R) FPGA Emulation Platform for OpenCL(TM)") == "fpga"


def test_a_process_that_fails_before_it_has_looked_for_devices_is_no_drivers_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyopencl.py").write_text("raise ImportError('not the one')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DeviceError, match=r"the process that looks for OpenCL devices fails: .*not the one"):
        check_apart(DeviceChoice("pocl"))
