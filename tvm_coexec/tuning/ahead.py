"""Modules for measuring, compiled ahead on cores that nothing is measured on: the device then waits for no compiler."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any

from tvm_coexec.compiler.probes import single_layer
from tvm_coexec.compiler.target import Target
from tvm_coexec.machine.cores import usable_cores
from tvm_coexec.profile.records import Candidate

_MOST_PROCESSES = 8
"""Each holds TVM's compiler, some hundred MB; so many keep any device busy."""

_MODULE_S = 60.0
"""What a module may take to compile; where it takes longer, whoever wants to measure it compiles it."""

_COMPILES_PER_PROCESS = 3
"""Modules that wait for each process: enough for none to be idle while a long one is measured."""


def spare_cores(facts: Mapping[str, Any], *, is_local: bool) -> tuple[int, ...]:
    """This machine's cores that compile while a device is measured: of a local device those of neither side, but one.

    That one is for the process that measures. All cores of the host of another machine's device are free.
    """
    if not is_local:
        return usable_cores()
    return tuple(core for core in usable_cores() if core not in {*facts["cpu_cores"], *facts["gpu_cores"]})[1:]


class ModulesAhead:
    """Compiles modules of candidates in processes of its own, as a context manager; without cores when asked for.

    Parameters
    ----------
    target, facts
        What the modules are compiled for.
    cores
        A process runs on each, up to a few.
    """

    def __init__(self, target: Target, facts: Mapping[str, Any], cores: Sequence[int] = ()) -> None:
        self._target, self._facts, self._cores = target, facts, cores[:_MOST_PROCESSES]
        self._pool: Any = None
        self._begun: dict[Candidate, Future[bytes]] = {}

    @property
    def most_waiting(self) -> int:
        """How many candidates to begin with before the first one is measured."""
        return _COMPILES_PER_PROCESS * len(self._cores)

    def __enter__(self) -> ModulesAhead:
        if self._cores:
            from tvm_coexec.rpc.workers import WorkerPool

            self._pool = WorkerPool(
                len(self._cores), _MODULE_S, initializer=os.sched_setaffinity, initargs=(0, self._cores)
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for future in self._begun.values():
            future.cancel()
        if self._pool is not None:
            self._pool.shutdown()

    def begin(self, candidates: Iterable[Candidate]) -> None:
        """Compile the candidates' modules meanwhile."""
        if self._pool is not None:
            for candidate in candidates:
                if candidate not in self._begun:
                    self._begun[candidate] = self._pool.submit(module_of, candidate, self._target, self._facts)

    def take(self, candidate: Candidate) -> bytes:
        """A module file of the candidate alone; a :class:`KernelError` where it does not compile."""
        future = self._begun.pop(candidate, None)
        if future is not None:
            try:
                return future.result()
            except (ChildProcessError, TimeoutError):  # the process was ended, or has too much to do
                pass
        return module_of(candidate, self._target, self._facts)


def module_of(candidate: Candidate, target: Target, facts: Mapping[str, Any]) -> bytes:
    """Compile a module file of the candidate alone, here and now."""
    return single_layer(candidate.layer, candidate.cpu, candidate.gpu, target, facts).to_bytes()
