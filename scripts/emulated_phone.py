"""Start phones that do not exist: arm64 systems under emulation, each with an address, OpenCL and TVM's own RPC server.

    python scripts/emulated_phone.py start --count 2 --like cortex-a76
    tvm-coexec devices --tracker 10.77.0.2:9190
    python scripts/emulated_phone.py shell 1 clinfo
    python scripts/emulated_phone.py stop

Nothing of this project is installed in them. They show what goes over the network, which instructions exist and how
cores are told apart; the times of an emulator mean nothing. A phone shows eight cores, but its threads can be pinned
only to as many as this machine has. What they are started from is made once, in a minute, and kept in the user's cache.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from phones.commands import check_parts
from phones.kinds import KINDS
from phones.network import TRACKER, Host, bridge_down, phone, running_phones
from phones.parts import make
from phones.roots import home

from tvm_coexec.errors import CoexecError, InputError, MeasurementError
from tvm_coexec.rpc.lease import TrackerAddress, TrackerConnection
from tvm_coexec.rpc.tracker import parse_tracker

_BOOT = Path(__file__).parent / "phones" / "boot.sh"
_TRACKER_PORT = 9190
_START_TIMEOUT_S = 300.0
_POLL_S = 0.5
"""TVM's own port. Four phones at once were ready in 38 s on two quiet cores."""


def start(count: int, kind: str, key: str, tracker: TrackerAddress | None, shared: Path | None) -> None:
    """Start phones, and wait until the tracker knows them."""
    make()
    address = tracker or _start_tracker()
    before = _servers(address, key)
    free = (one for one in map(phone, range(1, 200)) if not one.is_up())
    phones = [next(free) for _ in range(count)]
    for one in phones:
        one.up()
        server = ["--host=0.0.0.0", f"--tracker={address}", f"--key={key}", f"--custom-addr={one.address}"]
        apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child", str(_BOOT)]
        inside = ["/usr/bin/python3", "-m", "tvm.exec.rpc_server", *server]
        _start(one, [*apart, str(home()), kind, str(shared or ""), *inside])
        print(f"phone {one.name.removeprefix('cophone')}: {kind} at {one.address}, key {key}", flush=True)
    _wait_until_registered(address, key, before + count, phones)
    print(f"registered at the tracker {address}")


def stop() -> None:
    """End all phones and their tracker."""
    for one in running_phones():
        one.down()
    if TRACKER.is_up():
        TRACKER.down()
    bridge_down()


def shell(number: int, command: Sequence[str]) -> int:
    """Run a command in a phone."""
    if not phone(number).is_up():
        raise InputError(
            f"phone {number} does not run; running: {', '.join(p.name for p in running_phones()) or 'none'}"
        )
    first = phone(number).first_process()
    environment = dict(entry.split("=", 1) for entry in Path(f"/proc/{first}/environ").read_text().split("\0") if entry)
    enter = ["nsenter", f"--target={first}", "--mount", "--pid", "--net", "--root", "--wd=/"]
    return subprocess.run([*enter, *(command or ["/bin/bash"])], env=environment, check=False).returncode


def _start_tracker() -> TrackerAddress:
    """Start TVM's tracker, at an address of its own."""
    address = TrackerAddress(TRACKER.address, _TRACKER_PORT)
    if TRACKER.is_up() and not TRACKER.processes():  # it was killed
        TRACKER.down()
    if not TRACKER.is_up():
        TRACKER.up()
        _start(
            TRACKER,
            [sys.executable, "-m", "tvm.exec.rpc_tracker", f"--host={address.host}", f"--port={address.port}"],
        )
    return address


def _start(host: Host, command: Sequence[str]) -> None:
    """Start a command that goes on when this one ends."""
    with _log(host).open("w") as log:
        subprocess.Popen(
            [*host.inside(), *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )


def _log(host: Host) -> Path:
    return home() / f"{host.name}.log"


def _servers(address: TrackerAddress, key: str) -> int:
    """How many servers a tracker knows that may still be starting."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            with TrackerConnection(address, 5.0) as connection:
                return connection.servers(key)
        except MeasurementError:
            if time.monotonic() > deadline or (TRACKER.is_up() and not TRACKER.processes()):
                raise
            time.sleep(_POLL_S)


def _wait_until_registered(address: TrackerAddress, key: str, expected: int, phones: Sequence[Host]) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while _servers(address, key) < expected:
        ended = next((one for one in phones if not one.processes()), None)
        if ended or time.monotonic() > deadline:
            one = ended or phones[0]
            said = ["", *_log(one).read_text().strip().splitlines()][-1]
            raise MeasurementError(
                f"{one.name} {'ended' if ended else f'is not registered within {_START_TIMEOUT_S:g} s'} ({said}); see "
                f"{_log(one)}, and end the others with: python scripts/emulated_phone.py stop"
            )
        time.sleep(_POLL_S)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python scripts/emulated_phone.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("make", help="make what phones are started from, if it is not there")
    starting = commands.add_parser("start", help="start phones, and a tracker unless one is named")
    starting.add_argument("--count", type=int, default=1, metavar="N")
    starting.add_argument("--like", choices=sorted(KINDS), default="cortex-a76", help="its big cores (%(default)s)")
    starting.add_argument("--key", help="its key at the tracker (default: the name of its big cores)")
    starting.add_argument("--tracker", type=parse_tracker, metavar="HOST:PORT", help="one that phones can reach")
    starting.add_argument("--share", type=Path, metavar="DIR", help="a folder of this machine, /shared in the phone")
    commands.add_parser("stop", help="end all phones and their tracker")
    entering = commands.add_parser("shell", help="run a command in a phone")
    entering.add_argument("number", type=int)
    entering.add_argument("inside", nargs=argparse.REMAINDER, metavar="COMMAND")
    options = parser.parse_args()
    try:
        check_parts()
        if options.command == "make":
            make()
        elif options.command == "start":
            start(options.count, options.like, options.key or options.like, options.tracker, options.share)
        elif options.command == "stop":
            stop()
        else:
            return shell(options.number, options.inside)
    except (CoexecError, OSError) as error:
        print(f"emulated_phone: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
