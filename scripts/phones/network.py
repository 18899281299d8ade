"""Phones and their tracker each get a namespace and an address of their own, on a bridge of this machine.

Whatever runs in a namespace is ended with it, so that the kernel alone knows what runs: no file can be out of date.
"""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .commands import run

_BRIDGE = "cophones"
_SUBNET = "10.77.0"
_BITS = 24
"""The subnet has 254 addresses."""


@dataclass(frozen=True)
class Host:
    """A machine in the phones' network."""

    name: str
    number: int

    @property
    def address(self) -> str:
        return f"{_SUBNET}.{self.number}"

    @property
    def _cable(self) -> str:
        return f"{self.name}-eth"

    def is_up(self) -> bool:
        return self.name in _namespaces()

    def up(self) -> None:
        """Make its namespace, with a cable to the bridge."""
        _bridge_up()
        _ip("netns", "add", self.name)
        _ip("link", "add", self._cable, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        _ip("link", "set", self._cable, "master", _BRIDGE, "up")
        _ip("-n", self.name, "addr", "add", f"{self.address}/{_BITS}", "dev", "eth0")
        for device in ("eth0", "lo"):
            _ip("-n", self.name, "link", "set", device, "up")

    def down(self) -> None:
        """End all that runs there."""
        for process in self.processes():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        _unplug(self._cable)  # at once, where the end of a namespace may take a while
        _ip("netns", "del", self.name)

    def processes(self) -> list[int]:
        return sorted(int(process) for process in _ip("netns", "pids", self.name).split())

    def first_process(self) -> int:
        """The first one that sees the phone's root file system."""
        return next(process for process in self.processes() if str(Path(f"/proc/{process}/root").readlink()) != "/")

    def inside(self) -> list[str]:
        """Stands before a command that runs there."""
        return ["ip", "netns", "exec", self.name]


TRACKER = Host("cotracker", 2)


def phone(number: int) -> Host:
    """Give the phone of a number, from 1 on."""
    return Host(f"cophone{number}", 10 + number)


def running_phones() -> list[Host]:
    """The phones that have been started."""
    numbers = [name.removeprefix("cophone") for name in _namespaces() if name.startswith("cophone")]
    return [phone(int(number)) for number in sorted(numbers, key=int)]


def bridge_down() -> None:
    """Take away what is left when the last host is down."""
    _unplug(_BRIDGE)


def _bridge_up() -> None:
    if _BRIDGE not in _links():
        _ip("link", "add", _BRIDGE, "type", "bridge")
        _ip("addr", "add", f"{_SUBNET}.1/{_BITS}", "dev", _BRIDGE)
        _ip("link", "set", _BRIDGE, "up")


def _unplug(link: str) -> None:
    if link in _links():
        _ip("link", "del", link)


def _links() -> set[str]:
    return {link["ifname"] for link in json.loads(_ip("-j", "link") or "[]")}


def _namespaces() -> set[str]:
    return {entry["name"] for entry in json.loads(_ip("-j", "netns", "list") or "[]")}


def _ip(*arguments: str) -> str:
    return run(["ip", *arguments], "set up the phones' network")
