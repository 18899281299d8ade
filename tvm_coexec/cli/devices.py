"""List the OpenCL devices of this machine, or those that a tracker has.

For each device: its type, its compute units, its kinds of shared virtual memory (SVM), whether it has command
buffers and shares the CPU's memory, and the mechanism by which it would synchronise with the CPU: flags in SVM, or
blocking OpenCL commands, which wait for events. A CPU device can play the GPU; the compute units are then the cores
that it would get.

With --tracker: key and address of each device, whether it is free, and of those that are free the CPU's cores by kind
and frequency, the OpenCL device, its driver, and the rest as above.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_coexec.errors import InputError
from tvm_coexec.files import write_json

from .options import add_core_options, add_device_option, check_out

if TYPE_CHECKING:
    from tvm_coexec.opencl.choice import DeviceChoice
    from tvm_coexec.opencl.discovery import DeviceInfo
    from tvm_coexec.rpc.fleet import FleetDevice

EXAMPLES = """\
examples:
  tvm-coexec devices
  tvm-coexec devices --json
  tvm-coexec devices --device pocl --facts board.json
  tvm-coexec devices --tracker 192.168.0.2:9190
  tvm-coexec devices --tracker 192.168.0.2:9190 --key my-phone --facts phone.json

The device marked by * is used when no --device is given. --device takes any part of a name, platform or
alias (the word before the colon) that fits one device only, such as `--device pocl`.
"""

_FLEET_HEADINGS = ("KEY", "ADDRESS", "STATE", "CORES", "OPENCL DEVICE", "DRIVER", "SVM", "SYNC")
_HEADINGS = ("", "DEVICE", "TYPE", "UNITS", "SVM", "COMMAND BUFFERS", "SHARED MEMORY", "SYNC")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", dest="as_json", action="store_true", help="print everything known, as JSON")
    parser.add_argument(
        "--facts",
        type=Path,
        metavar="FILE",
        help="write what must be known of a device to build for it on another machine; see `tvm-coexec build --target`",
    )
    parser.add_argument("--tracker", metavar="HOST:PORT", help="list the devices of an RPC tracker")
    parser.add_argument("--key", help="that of the tracker's device of which --facts are written")
    add_device_option(parser)
    add_core_options(parser)


def run(
    *,
    as_json: bool,
    facts: Path | None,
    tracker: str | None,
    key: str | None,
    device: str | None,
    cpu_cores: tuple[int, ...] | None,
    gpu_cores: tuple[int, ...] | None,
) -> int:
    from tvm_coexec.opencl.choice import DeviceChoice

    if tracker is not None:
        choice = DeviceChoice(device, cpu_cores, gpu_cores)
        if facts is not None:
            return _write_far_facts(facts, tracker, key, choice)
        return _list_fleet(tracker, choice, as_json=as_json)
    if facts is not None:
        return _write_facts(facts, device, cpu_cores, gpu_cores)
    if key is not None:
        raise InputError("--key names a device at a tracker; name that too, with --tracker")
    if device or cpu_cores or gpu_cores:
        raise InputError("--device and cores choose of which device --facts are written; name its file, too")
    from tvm_coexec.opencl.discovery import find_device, list_devices

    default = find_device()  # an error with the remedy where there is no device
    devices = list_devices()
    if as_json:
        print(json.dumps({"default": default.name, "devices": [device.to_json() for device in devices]}, indent=2))
        return 0
    print(_table([_HEADINGS, *(_row(device, default) for device in devices)]))
    print()
    for info in devices:
        print(f"{info.name}: sync {info.mechanism}: {info.mechanism_reason}; driver {info.driver_version}")
    return 0


def _list_fleet(tracker: str, choice: DeviceChoice, *, as_json: bool) -> int:
    from tvm_coexec.rpc.fleet import fleet
    from tvm_coexec.rpc.tracker import check_beside_tracker, parse_tracker

    check_beside_tracker(choice)
    found = fleet(parse_tracker(tracker))
    if as_json:
        print(json.dumps([asdict(one) for one in found], indent=2))
        return 0
    if not found:
        print(f"no device is registered at the tracker {tracker}")
        return 0
    print(_table([_FLEET_HEADINGS, *map(_fleet_row, found)]))
    for one in found:
        if one.problem:
            print(f"{one.key} at {one.address}: {one.problem}")
    return 0


def _fleet_row(one: FleetDevice) -> tuple[str, ...]:
    from tvm_coexec.machine.clusters import Cluster

    state = "free" if one.is_free else "busy"
    if one.facts is None:
        return (one.key, one.address, state, *["?"] * 5)
    clusters = " + ".join(str(Cluster(**fields)) for fields in one.facts.get("clusters", ()))
    svm, driver = " ".join(one.facts["svm"]) or "none", one.facts["driver_version"]
    return (one.key, one.address, state, clusters or "?", one.facts["name"], driver, svm, one.facts["mechanism"])


def _write_facts(
    path: Path, name: str | None, cpu_cores: tuple[int, ...] | None, gpu_cores: tuple[int, ...] | None
) -> int:
    from tvm_coexec.runtime.device import open_device

    check_out(path, "--facts")
    device = open_device(name, cpu_cores=cpu_cores, gpu_cores=gpu_cores)
    write_json(path, device.facts())
    print(f"the facts of {device.label}: {path}")
    return 0


def _write_far_facts(path: Path, tracker: str, key: str | None, choice: DeviceChoice) -> int:
    from tvm_coexec.tuning.session import open_session

    check_out(path, "--facts")
    with open_session(choice, tracker, key) as session:
        facts = session.facts()
    write_json(path, facts)
    print(f"the facts of {facts['label']}: {path}")
    return 0


def _row(device: DeviceInfo, default: DeviceInfo) -> tuple[str, ...]:
    return (
        "*" if device == default else "",
        device.name,
        device.device_type,
        str(device.compute_units),
        " ".join(device.svm) or "none",
        _yes_no(device.command_buffers),
        _yes_no(device.unified_memory),
        device.mechanism,
    )


def _yes_no(value: bool) -> str:
    return "yes" if value else "no"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
