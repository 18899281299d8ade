"""Faults during a local tuning: it goes on or ends with its reason, leaves no process, and its profile can be used.

Processes are killed and stopped, strangers connect to their ports and the disk fills up, once or several times in a
tuning. The candidates are innocent: none may be kept as one that fails.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from outcomes import Outcome

from tvm_coexec.errors import FileFormatError
from tvm_coexec.profile import Profile

_MINUTES = 0.2
_ENDS_WITHIN_S = 600.0
_GONE_WITHIN_S = 20.0
_WORDS = [
    b"",
    b"\x71",
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x71\xf2\x0f\x00\xfb\xff\xff\xff",
    b"\x71\xf2\x02\x00\xff\xff\xff\x7f",
]
"""What strangers say: nothing, the start of a handshake, another protocol, impossible lengths."""

Fault = Callable[["Tuning", random.Random], str]


class Tuning:
    """A tuning in a process of its own, and all processes that it has started so far."""

    def __init__(self, folder: Path, minutes: float = _MINUTES, trials: int | None = None) -> None:
        self.profile = folder / "profile"
        self.said: list[str] = []
        device = os.environ.get("CAMPAIGN_DEVICE") or "pocl"
        command = [sys.executable, "-m", "tvm_coexec", "tune", "--out", str(self.profile), "--device", device]
        command += ["--minutes", str(minutes), *(["--trials", str(trials)] if trials else [])]
        self.process = psutil.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self.reader = threading.Thread(target=self._listen, daemon=True)
        self.reader.start()
        self.started: dict[int, psutil.Process] = {}
        self.strangers: list[socket.socket] = []

    def _listen(self) -> None:
        """Keep what is said, which a file could not where the disk is full; progress bars write over their line."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += filter(str.strip, line.rstrip().split("\r"))

    def look(self) -> list[psutil.Process]:
        """The processes that run, the tuner itself first."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in [self.process, *self.process.children(recursive=True)]:
                self.started[process.pid] = process
        return [process for process in self.started.values() if process.is_running()]

    def ports(self) -> list[int]:
        """Where they listen."""
        found = []
        for process in self.look():
            with contextlib.suppress(psutil.Error):
                found += [one.laddr.port for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
        return found

    def close(self) -> list[str]:
        """End everything; the commands of the processes that were left behind."""
        for stranger in self.strangers:
            stranger.close()
        _, left = psutil.wait_procs(self.look(), timeout=_GONE_WITHIN_S)
        commands = []
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                commands.append(" ".join(process.cmdline()[-3:]))
                process.kill()
        return commands


def kill(tuning: Tuning, rng: random.Random) -> str:
    victim = rng.choice(tuning.look())
    victim.kill()
    return f"killed {name_of(tuning, victim)}"


def stop(tuning: Tuning, rng: random.Random) -> str:
    victim, duration_s = rng.choice(tuning.look()), rng.choice([1.0, 5.0, 65.0])
    victim.suspend()
    time.sleep(duration_s)
    with contextlib.suppress(psutil.NoSuchProcess):  # it was ended meanwhile, which is right
        victim.resume()
    return f"stopped {name_of(tuning, victim)} for {duration_s:g} s"


def connect(tuning: Tuning, rng: random.Random) -> str:
    ports = tuning.ports()
    for _ in range(rng.choice([1, 100]) if ports else 0):
        with contextlib.suppress(OSError):
            stranger = socket.create_connection(("127.0.0.1", rng.choice(ports)), timeout=1.0)
            stranger.sendall(rng.choice([*_WORDS, rng.randbytes(rng.randrange(1, 3000))]))
            if rng.random() < 0.5:
                stranger.close()
            else:
                tuning.strangers.append(stranger)
    return f"strangers at the ports {ports}"


def fill_disk(tuning: Tuning, rng: random.Random) -> str:
    """Let the tuner write no file any longer: what it meets is an error of the system, as on a full disk."""
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(tuning.process.pid, resource.RLIMIT_FSIZE, (0, 0))
    return "no room on the disk"


_FAULTS: list[Fault] = [kill, kill, stop, connect, fill_disk]


def name_of(tuning: Tuning, process: psutil.Process) -> str:
    return "the tuner" if process.pid == tuning.process.pid else f"process {list(tuning.started).index(process.pid)}"


def trial(seed: int) -> Outcome:
    """One tuning, with one to three faults at random times."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        tuning = Tuning(Path(folder))
        done = []
        try:
            for _ in range(rng.randint(1, 3)):
                if not waits(tuning, rng.uniform(0.0, 15.0)):
                    break
                with contextlib.suppress(psutil.NoSuchProcess):
                    done.append(rng.choice(_FAULTS)(tuning, rng))
            ended = not waits(tuning, _ENDS_WITHIN_S)
        finally:
            left = tuning.close()
        told = "; ".join(done)
        if not ended:
            return Outcome("hung", f"the tuning does not end ({told})")
        if left:
            return Outcome("wrong", f"left behind: {left} ({told})")
        reason = fault_of(tuning, done)
        return Outcome("wrong", f"{reason} ({told})") if reason else Outcome("right", told)


def waits(tuning: Tuning, duration_s: float) -> bool:
    """Whether a tuning still runs after a time, or has ended before."""
    until = time.monotonic() + duration_s
    while tuning.process.poll() is None and time.monotonic() < until:
        tuning.look()
        time.sleep(0.1)
    return tuning.process.poll() is None


_OF_LLVM = "LLVM ERROR: IO failure on output stream: File too large"
"""The limit that plays a full disk counts for files in memory too, to which LLVM writes, and which no disk reaches."""


def fault_of(tuning: Tuning, done: list[str]) -> str | None:
    """What is wrong with the tuning's end or its profile, if anything is."""
    tuning.reader.join(5.0)
    lines, status = tuning.said, tuning.process.returncode
    if any("Traceback" in line for line in lines):
        return f"a traceback: {lines[-1]}"
    killed = status == -signal.SIGKILL and "killed the tuner" in done
    told = bool(lines) and (lines[-1].startswith("tvm-coexec: error: ") or _OF_LLVM in lines[-1])
    if status and not killed and not (status == 1 and told):
        return f"status {status} and no reason: {lines[-1:]}"
    if status and not any(one.startswith(("killed", "stopped", "no room")) for one in done):
        return f"ended by what must not end it: {lines[-1]}"
    is_begun = (tuning.profile / "profile.json").exists()
    return _fault_of_profile(tuning.profile, bool(status)) if is_begun or not status else None


def _fault_of_profile(path: Path, ended_early: bool) -> str | None:
    try:
        with Profile.open(path) as profile:
            samples, failures = list(profile.samples()), profile.failures()
    except FileFormatError as error:
        return f"the profile cannot be used: {error}"
    if failures:
        return f"{sum(failures.values())} innocent candidates failed: {next(iter(failures))}"
    return None if samples or ended_early else "a tuning without samples went well"
