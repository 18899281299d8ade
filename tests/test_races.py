"""ThreadSanitizer on the C library and on both halves of layers, beside an OpenCL whose queues are threads.

Whatever one side reads of the other's has to be ordered by a flag, an event or a queue, or the sanitizer reports it.
"""

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_modules import chain, with_constants, with_kernels

from tvm_coexec.compiler import packaging
from tvm_coexec.compiler.toolchain import c_compiler
from tvm_coexec.runtime.device import open_device
from tvm_coexec.runtime.library import MECHANISMS, SOURCE_FOLDER

pytestmark = pytest.mark.slow  # the sanitizer makes compiling long

STUB = Path(__file__).with_name("stub")
ROWS, WIDTH, DEPTH, RUNS = 3, 128, 6, 12
MANY_BYTES = 9 << 20
"""So many constants are read by two threads, more than one piece by each."""
COMMAND = ("-std=c11", "-g", "-O1", "-pthread", "-ffp-contract=off", f"-DROWS={ROWS}", f"-DWIDTH={WIDTH}")


def compiled(path: Path, sources: list[Path], *options: str) -> Path:
    command = [c_compiler(), *COMMAND, *options, *map(str, sources), "-o", str(path), "-ldl", "-lm"]
    subprocess.run(command, check=True)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, the stub and the module, all but the program's system libraries seen by the sanitizer."""
    folder = tmp_path_factory.mktemp("races")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(packaging, "chains_kernels", lambda device: False)
        built = with_kernels(chain(open_device(), DEPTH, ROWS, WIDTH)[0], tiles=30, in_channels=100)
        package = with_constants(built, many=np.ones(MANY_BYTES, np.uint8))
    symbols = {launch.function for step in package.manifest.steps if step.cpu for launch in step.cpu.launches}
    symbols_option = "-DSYMBOLS=" + " ".join(f"F({symbol})" for symbol in sorted(symbols))
    shared = ("-fsanitize=thread", "-fPIC", "-shared")
    code = compiled(folder / "code.so", [STUB / "cpu_code.c"], *shared, symbols_option)
    replace(package, library=code.read_bytes()).write(folder / "m.coexec")
    compiled(folder / "opencl.so", [STUB / "opencl.c"], *shared)
    compiled(folder / "races", [STUB / "races.c", *sorted(SOURCE_FOLDER.glob("*.c"))], "-fsanitize=thread", "-rdynamic")
    return folder


def run(
    folder: Path, mechanism: str, handles: str, refused: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    files = (str(folder / name) for name in ("races", "m.coexec", "opencl.so"))
    command = [*files, str(MECHANISMS[mechanism]), handles, str(RUNS), str(refused)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize(
    ("mechanism", "handles"), [("svm", "one"), ("svm", "own"), ("event", "one"), ("event", "own"), ("mapped", "own")]
)
def test_no_access_of_both_sides_and_all_threads_is_a_race(mechanism: str, handles: str, folder: Path) -> None:
    done = run(folder, mechanism, handles, STUB_SVM="1" if mechanism == "svm" else "0")
    assert (done.returncode, done.stdout) == (0, f"8 threads, {RUNS} runs each, none failed\n"), done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("mechanism", "handles"), [("svm", "one"), ("svm", "own"), ("event", "own"), ("mapped", "own")]
)
def test_a_run_whose_commands_are_refused_fails_and_those_after_it_are_right(
    mechanism: str, handles: str, folder: Path
) -> None:
    done = run(folder, mechanism, handles, 4, STUB_SVM="1" if mechanism == "svm" else "0")
    assert (done.returncode, done.stdout) == (0, f"8 threads, {RUNS} runs each, some failed\n"), done.stderr
    assert done.stderr == ""


def test_a_device_that_loses_data_in_mapped_memory_is_refused(folder: Path) -> None:
    done = run(folder, "mapped", "one", STUB_LOSES="1")
    assert done.returncode == 1
    assert (
        "stub: stub loses data in mapped memory, in hand-over 4321 of 100000; use the mechanism 'event'" in done.stderr
    )


def test_memory_that_is_mapped_where_vectors_cannot_be_read_is_not_used(folder: Path) -> None:
    done = run(folder, "mapped", "own", STUB_OFFSET="16")
    assert done.returncode == 1 and "stub maps no buffer of" in done.stderr and "at an aligned address" in done.stderr


def test_flags_in_shared_virtual_memory_are_refused_where_there_is_none(folder: Path) -> None:
    assert "no fine-grained shared virtual memory" in run(folder, "svm", "one", STUB_SVM="0").stderr


def test_a_driver_that_takes_hints_is_told_that_the_screen_comes_first(folder: Path) -> None:
    assert "a queue of priority 4" in run(folder, "svm", "own", STUB_TELLS="1").stderr.splitlines()
