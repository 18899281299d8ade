"""TVM's worker processes, which do what they are sent, started as this package starts Python."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tvm.support.popen_pool import PopenPoolExecutor, PopenWorker

from tvm_coexec.processes import python


class Worker(PopenWorker):
    """A process that does one thing after the other."""

    _proc: subprocess.Popen[bytes] | None

    def _start(self) -> None:
        if self._proc is not None:
            return
        answers, answering = os.pipe()
        asked, asking = os.pipe()
        command = python("tvm.exec.popen_worker", str(asked), str(answering))
        self._proc = subprocess.Popen(command, pass_fds=(asked, answering), stdout=self._stdout, stderr=self._stderr)
        os.close(asked)
        os.close(answering)
        self._reader, self._writer = os.fdopen(answers, "rb"), os.fdopen(asking, "wb")


class WorkerPool(PopenPoolExecutor):
    """Workers that do several things at once."""

    def _worker_run(self, fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        with self._lock:
            self._worker_map.setdefault(threading.get_ident(), Worker(self._initializer, self._initargs))
        return super()._worker_run(fn, args, kwargs)
