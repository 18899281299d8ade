"""A profile: what was learned of one device, kept in a directory.

``profile.json`` names the device, the tuned families and the predictors' error; ``samples.sqlite`` holds every
repetition of every measurement, of layers and of whole networks, readable with plain SQL; ``cpu.ubj`` and ``gpu.ubj``
are the predictors.
"""

from __future__ import annotations

import errno
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tvm_coexec.errors import FileFormatError
from tvm_coexec.files import is_vacant, whole_folder, write_json
from tvm_coexec.layers import GENERATOR_VERSION

from .description import DESCRIPTION, FORMAT, read_description
from .records import Candidate, Point, Sample, VariantSets
from .schema import VERSION
from .store import Run, SampleStore, now
from .trial_runs import TrialRun

DATABASE = "samples.sqlite"


class Profile:
    """One device's profile; make one with :meth:`create` or :meth:`open`."""

    def __init__(
        self, path: Path, description: dict[str, Any], store: SampleStore, at_hand: Mapping[str, Any] | None
    ) -> None:
        self.path = path
        self._at_hand = at_hand
        self._description = description
        self._store = store

    @staticmethod
    def check_place(path: str | os.PathLike[str]) -> None:
        """Refuse a place where a profile can be neither made nor added to; what takes long need not begin then.

        Raises
        ------
        FileFormatError, OSError
            There is a file, no folder can be made there, or the one that is there cannot be written to.
        """
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise FileFormatError(f"{path} is a file, and a profile a folder; choose another place")
        for place in (path, path / DESCRIPTION, path / DATABASE):
            if place.exists() and not os.access(place, os.W_OK):
                raise OSError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(place))
        if not path.exists():
            nearest = next(folder for folder in path.absolute().parents if folder.exists())
            try:
                with tempfile.TemporaryDirectory(prefix=".", dir=nearest):
                    pass
            except OSError as error:
                raise OSError(error.errno, error.strerror, os.fspath(path)) from None

    @classmethod
    def check_vacant(cls, path: str | os.PathLike[str]) -> None:
        """Refuse a place where no new profile can be made; a :class:`FileFormatError` where there is something."""
        cls.check_place(path)
        if not is_vacant(Path(path)):
            raise FileFormatError(f"{path} exists already; open it to go on with its tuning, or choose another place")

    @classmethod
    def create(cls, path: str | os.PathLike[str], facts: Mapping[str, Any]) -> Profile:
        """Make an empty profile, whole or not at all.

        Parameters
        ----------
        path
            A directory that does not exist yet, or is empty.
        facts
            What the device says of itself; ``name``, ``mechanism`` and ``driver_version`` at least.

        Raises
        ------
        FileFormatError
            There is something at ``path`` already.
        """
        cls.check_vacant(path)
        with whole_folder(path) as folder:
            SampleStore.create(folder / DATABASE)
            description = {"format": FORMAT, "version": VERSION, "created": now(), "device": dict(facts)}
            write_json(folder / DESCRIPTION, {**description, "families": [], "report": None, "planning": None})
        return cls.open(path, facts)

    @classmethod
    def open(cls, path: str | os.PathLike[str], facts: Mapping[str, Any] | None = None) -> Profile:
        """Open a profile to read it, and with a device's facts to add to it.

        Parameters
        ----------
        facts
            What the device at hand says of itself. Its name, CPU, mechanism and number of cores must be the profile's.
            Another driver version is warned of: what was measured of the other is kept, but counts no more.

        Raises
        ------
        FileFormatError
            The directory is no profile, is damaged or of another version, or belongs to another device.
        """
        path = Path(path)
        description = read_description(path)
        if facts is not None:
            check_same_device(path, description["device"], facts)
        store = SampleStore(path / DATABASE)
        if facts is not None:
            last = store.start_run(facts)
            if last is not None:
                _warn_of_driver(path, last, facts, "what was measured of the other driver counts no more")
        return cls(path, description, store, facts)

    def __enter__(self) -> Profile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the database; everything added is stored already."""
        self._store.close()

    def check_device(self, facts: Mapping[str, Any]) -> None:
        """Refuse a device that is another, or has other cores or another mechanism, than the one that was measured.

        To a profile that is added to belongs the driver of the device that it was opened for, too. Of one that is read
        it is warned where the driver, or the kernels, are others than were measured.
        """
        check_same_device(self.path, self.facts, facts)
        if self._at_hand is not None:
            _check_driver(self.path, self._at_hand, facts)
            return
        for last in self.runs()[-1:]:
            _warn_of_driver(self.path, last.facts, facts, "its predictions may not hold; tune again")
            if last.generator != GENERATOR_VERSION:
                warnings.warn(
                    f"the profile {self.path} was measured with kernels of version {last.generator}, this release makes"
                    f" {GENERATOR_VERSION}; its predictions may not hold; tune again",
                    stacklevel=3,
                )

    @property
    def facts(self) -> dict[str, Any]:
        """The device, as it was when the profile was made."""
        return dict(self._description["device"])

    @property
    def created(self) -> str:
        """When the profile was made: ISO 8601, UTC."""
        return str(self._description["created"])

    @property
    def families(self) -> tuple[str, ...]:
        """Operator families whose tuning is done."""
        return tuple(self._description["families"])

    @property
    def report(self) -> dict[str, Any] | None:
        """The predictors' error on samples held out of training."""
        return self._description["report"]

    @property
    def planning(self) -> Any:
        """What planning keeps of the device besides the predictors."""
        return self._description["planning"]

    def describe(
        self, *, families: Iterable[str] | None = None, report: Mapping[str, Any] | None = None, planning: Any = None
    ) -> None:
        """Store what tuning concluded; what is left out stays as it is."""
        given = {"families": None if families is None else list(families), "report": report, "planning": planning}
        new = {name: value for name, value in given.items() if value is not None}
        self._description = {
            **read_description(self.path),
            **new,
        }  # of which another process may have written the rest
        write_json(self.path / DESCRIPTION, self._description)

    def predictor_path(self, side: str) -> Path:
        """Where the predictor of ``cpu`` or ``gpu`` is kept, whether it is there yet or not."""
        return self.path / f"{side}.ubj"

    def add_samples(self, samples: Iterable[Sample], device: str = "") -> None:
        """Store samples at once, all or none: when this returns, they survive whatever befalls the process.

        Parameters
        ----------
        device
            Names the one that measured them, where several of a kind do: each has runs of its own, since each is now
            and then as slow as no other.
        """
        self._store.add_samples(samples, device)

    def samples(self, *, are_current: bool = True) -> Iterator[Sample]:
        """Every sample of this device, driver and version of the kernels, or what can be read of others, in order."""
        return self._store.samples(are_current=are_current)

    def runs(self) -> list[Run]:
        """The circumstances of all samples, the first run first."""
        return self._store.runs()

    def measured_variants(self) -> VariantSets:
        """The variants of each layer and side that were measured."""
        return self._store.measured_variants()

    def failed_variants(self) -> VariantSets:
        """The variants of each layer and side that could not be measured, and should not be used."""
        return self._store.failed_variants()

    def has(self, candidate: Candidate, point: Point) -> bool:
        """Whether a point was measured, each side that has work in it with its variant of the candidate."""
        return self._store.has(candidate, point)

    def add_failure(self, candidate: Candidate, message: str) -> None:
        """Store at once that a candidate cannot be measured, so that nobody tries it again for a week."""
        self._store.add_failure(candidate, message)

    def failure(self, candidate: Candidate) -> str | None:
        """Why a candidate could not be measured lately; None if it did not fail."""
        return self._store.failure(candidate)

    def failures(self) -> dict[str, int]:
        """The reasons for which candidates could not be measured, and how many there are of each."""
        return self._store.failures()

    def add_trial_runs(self, trial_runs: Iterable[TrialRun]) -> None:
        """Store runs of a network; the last of them is by the best plan so far."""
        self._store.add_trial_runs(trial_runs)

    def trial_runs(self) -> dict[str, list[TrialRun]]:
        """The current trial runs of each network, by its fingerprint, in the order in which they were added."""
        return self._store.trial_runs()


def check_same_device(path: Path, own: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Refuse facts of a device whose measurements do not belong into a profile; its driver may be another."""
    if own.get("name") != facts["name"]:
        raise FileFormatError(
            f"the profile {path} belongs to {own.get('name')!r}, the device is {facts['name']!r};"
            " choose that device, or tune into another directory"
        )
    if own.get("cpu_model") != facts.get("cpu_model"):
        raise FileFormatError(
            f"the profile {path} belongs to a device with the CPU {own.get('cpu_model')!r}, this one's is "
            f"{facts.get('cpu_model')!r}; choose that device, or tune into another directory"
        )
    if own.get("mechanism") != facts["mechanism"]:
        raise FileFormatError(
            f"the profile {path} was measured with the mechanism {own.get('mechanism')!r}, the device is open with "
            f"{facts['mechanism']!r}; open it with the profile's, or tune into another directory"
        )
    for side in ("cpu", "gpu"):
        counts = [len(some.get(f"{side}_cores") or ()) for some in (own, facts)]
        if counts[0] != counts[1]:
            raise FileFormatError(
                f"the profile {path} was measured with {counts[0]} {side.upper()} cores, not {counts[1]};"
                f" set --{side}-cores, or tune into another directory"
            )


def _check_driver(path: Path, at_hand: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    before, now_there = at_hand.get("driver_version"), facts.get("driver_version")
    if before != now_there:
        raise FileFormatError(
            f"the profile {path} is measured with driver {before!r}, this device has {now_there!r}; leave it out, or"
            " tune again"
        )


def _warn_of_driver(path: Path, last: Mapping[str, Any], facts: Mapping[str, Any], so: str) -> None:
    before, at_hand = last.get("driver_version"), facts.get("driver_version")
    if before != at_hand:
        warnings.warn(
            f"the profile {path} was measured with driver {before!r}, the device now has {at_hand!r}; {so}",
            stacklevel=4,
        )
