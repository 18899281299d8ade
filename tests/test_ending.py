"""A signal ends a command wherever it arrives, in a line, and lets it tidy up."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from slow import slow_except
from small_modules import chain

from tvm_coexec.runtime.device import Device

COMMAND = """
import os, signal, sys, time, weakref
from tvm_coexec import cli
from tvm_coexec.cli import devices

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell lets what runs in the background ignore
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup lets be ignored

class Thing:
    pass

def tell():
    os.kill(os.getpid(), int(sys.argv[1]))

def in_a_finalizer():
    thing = Thing()
    weakref.finalize(thing, tell)

def in_a_library_that_goes_on():
    try:
        tell()
    except BaseException:
        pass

def in_a_library_that_makes_another_error():
    try:
        tell()
    except BaseException:
        raise RuntimeError from None

def in_a_command():
    try:
        tell()
    finally:
        time.sleep(1.5)
        print("tidied up", flush=True)

def run(**_):
    globals()[sys.argv[2]]()
    time.sleep(60)
    return 0

devices.run = run
sys.exit(cli.main(["devices"]))
"""


PLACES = ["in_a_finalizer", "in_a_library_that_goes_on", "in_a_library_that_makes_another_error", "in_a_command"]
TOLD = [(signal.SIGINT, "tvm-coexec: interrupted\n"), (signal.SIGTERM, ""), (signal.SIGHUP, "")]


@pytest.mark.parametrize(
    ("number", "told", "where"),
    slow_except(
        [(number, told, where) for number, told in TOLD for where in PLACES],
        *(0, 1, 2, 3, len(PLACES), 3 * len(PLACES) - 1),
    ),
)
def test_a_signal_ends_a_command_wherever_it_arrives(number: int, told: str, where: str) -> None:
    command = [sys.executable, "-c", COMMAND, str(int(number)), where]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)
    tidied = "tidied up\n" if where == "in_a_command" else ""
    assert (done.returncode, done.stderr, done.stdout) == (128 + number, told, tidied)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_is_ignored_ends_nothing(number: int) -> None:
    ignore = f"signal.signal({int(number)}, signal.SIG_IGN)"
    code = COMMAND.replace("time.sleep(60)", "print('went on')").replace("def tell", f"{ignore}\n\ndef tell")
    command = [sys.executable, "-c", code, str(int(number)), "in_a_command"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "tidied up\nwent on\n")


@pytest.mark.slow
def test_a_long_benchmark_is_interrupted(device: Device, tmp_path: Path) -> None:
    chain(device, 1, 8, 64)[0].write(tmp_path / "m.coexec")
    command = [sys.executable, "-m", "tvm_coexec", "run", "m.coexec", "--device", device.info.alias]
    command += ["--benchmark", "1000000", "--out", "y.npz"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "y.npz").exists():  # which is written before anything is timed
            time.sleep(0.05)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert (process.communicate()[1], process.returncode) == ("", 128 + signal.SIGTERM)
