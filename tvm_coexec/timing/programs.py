"""What is asked of a module that is open, and of its programs, to time and to check it: here, or on a phone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tvm_coexec.module.manifest import Manifest


@dataclass(frozen=True)
class Span:
    """What one side did in a run: ``step`` counts from 1, and is 0 for the inputs; times from the run's start."""

    side: str
    action: str
    step: int
    awaited: int
    start_us: float
    end_us: float


class AnyProgram(Protocol):
    """What measuring asks of a program, wherever it runs."""

    timeline_is_faithful: bool

    def run(self) -> None: ...
    def run_for(self, warm_ns: int) -> None: ...
    def run_warm(self, warmup: int) -> None: ...
    def run_often(self, count: int) -> list[list[Span]]: ...
    def spans(self) -> Iterator[Span]: ...


class AnyLoaded(Protocol):
    """What measuring asks of a module, wherever it has been opened."""

    manifest: Manifest

    def view(self, name: str) -> np.ndarray: ...
    def publish(self, names: Sequence[str]) -> None: ...
    def chain(
        self, step: int, cpu_units: int, gpu_units: int, count: int = 1, *, timeline: bool = False
    ) -> AnyProgram: ...
