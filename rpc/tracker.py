"""Finds the tracker that the user named, or starts one on loopback that ends with this process."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import asdict

from tvm_coexec.errors import DeviceError, InputError, MeasurementError
from tvm_coexec.opencl.choice import DeviceChoice
from tvm_coexec.processes import python

from .lease import TrackerAddress

LOOPBACK = "127.0.0.1"

_STOP_TIMEOUT_S = 10.0
"""Afterwards the helper and what it started are killed."""


def parse_tracker(text: str) -> TrackerAddress:
    """Read ``host:port``."""
    host, colon, port = text.rpartition(":")
    if not host or not colon or not port.isdecimal() or not 0 < int(port) < 65536:
        raise MeasurementError(f"cannot read the tracker's address {text!r}; write host:port, such as 127.0.0.1:9190")
    return TrackerAddress(host, int(port))


def check_beside_tracker(choice: DeviceChoice) -> None:
    """Refuse to choose a device or cores of this machine where a device at a tracker is meant."""
    if choice != DeviceChoice():
        raise InputError(
            "the devices of a tracker and their cores are chosen where their servers are started; leave out --device, "
            "--cpu-cores and --gpu-cores, or --tracker"
        )


def device_key(device: str | None) -> str:
    """Make the key under which a server offers a device, unless the user chose another."""
    slug = re.sub(r"[^a-z0-9]+", "-", (device or "default").lower()).strip("-")
    return f"tvm-coexec-{slug}"


@contextlib.contextmanager
def local_tracker(choice: DeviceChoice | None) -> Iterator[TrackerAddress]:
    """Start a tracker on loopback, and a server that offers a device of this machine under :func:`device_key`.

    Both live in processes of their own, which end with the context, and with this process however it ends.

    Parameters
    ----------
    choice
        The device; without one, the tracker has no servers.

    Raises
    ------
    MeasurementError
        The processes cannot be started, or have ended before the context does.
    DeviceError
        This machine has no such device, or not such cores.
    """
    helper = subprocess.Popen(
        python("tvm_coexec.rpc.local"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C in a terminal is for this process, which then ends the helper
    )
    try:
        yield TrackerAddress(LOOPBACK, _start(helper, choice), lambda: helper.poll() is not None)
    except MeasurementError:
        if helper.poll() is None:
            raise
        raise MeasurementError(
            f"the process that lends this machine's device ended (status {helper.returncode}); repeat the command: what"
            " was measured is kept"
        ) from None
    finally:
        _stop(helper)


def use_tracker(named: str | None, choice: DeviceChoice) -> contextlib.AbstractContextManager[TrackerAddress]:
    """The tracker that the user named, or, if none was named, a local one that offers the device."""
    return local_tracker(choice) if named is None else contextlib.nullcontext(parse_tracker(named))


def _start(helper: subprocess.Popen[str], choice: DeviceChoice | None) -> int:
    """Hand the choice over, and wait for the tracker's port."""
    assert helper.stdin is not None and helper.stdout is not None
    try:
        helper.stdin.write(json.dumps(choice and asdict(choice)) + "\n")
        helper.stdin.flush()
        answer = json.loads(helper.stdout.readline() or "{}")
    except BrokenPipeError:
        answer = {}
    if "refusal" in answer:
        raise DeviceError(answer["refusal"])
    if "port" not in answer:
        raise MeasurementError(
            f"no tracker can be started on {LOOPBACK} ({answer.get('error', 'its process ended')});"
            " run `tvm-coexec doctor`, or name a tracker that runs"
        )
    return int(answer["port"])


def _stop(helper: subprocess.Popen[str]) -> None:
    """Close the helper's standard input, which ends it and all that it started."""
    assert helper.stdin is not None and helper.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        helper.stdin.close()
    try:
        helper.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        _kill_tree(helper)
    helper.stdout.close()


def _kill_tree(helper: subprocess.Popen[str]) -> None:
    from tvm.support.popen_pool import kill_child_processes

    kill_child_processes(helper.pid)
    helper.kill()
    helper.wait()
