"""What every comparison shares: its result as JSON, Markdown and PNG in one folder, and the statistics in them."""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from datetime import datetime, timezone
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from tvm_coexec.cli import one_line
from tvm_coexec.cli.ending import ended_by_signals
from tvm_coexec.cli.streams import usable_streams
from tvm_coexec.errors import CoexecError
from tvm_coexec.files import whole_file
from tvm_coexec.layers import AnyLayer, Conv2d, Linear
from tvm_coexec.planning.plan import synchronised_by

_DRAFT_S = 20.0
"""After this time what was measured is written although there is more to come."""

Item = TypeVar("Item")
Measured = TypeVar("Measured")


def median_us(samples: Sequence[float]) -> float:
    return float(np.median(samples))


def geometric_mean(values: Iterable[float]) -> float:
    return math.exp(float(np.mean([math.log(value) for value in values])))


def describe(layer: AnyLayer) -> str:
    """Describe a layer in a table's cell."""
    if isinstance(layer, Linear):
        sizes = f"{layer.m}×{layer.k}×{layer.n}"
    elif isinstance(layer, Conv2d):
        sizes = f"{layer.h}×{layer.w}×{layer.in_channels}→{layer.out_channels} {layer.kernel[0]}×{layer.kernel[1]}"
        sizes += f"/{layer.stride[0]}" * (layer.stride != (1, 1)) + f" in {layer.groups} groups" * (layer.groups > 1)
    else:
        sizes = f"{getattr(layer, 'kind', layer.op)} {'×'.join(map(str, layer.output_size))}"
    if layer.axis == "lines":
        sizes += " by lines"
    return " ".join([sizes, *(step for step in layer.epilogue if step != "bias")])


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Floats are shown with one digit, as suits microseconds; format other numbers before."""
    cells = [[f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    lines = [header, ["---"] * len(header), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


class BrokenOffError(Exception):
    """Measuring an item was broken off by its cause, and what was measured until then is as good as the rest."""

    def __init__(self, measured: Any) -> None:
        super().__init__("measuring was broken off")
        self.measured = measured


class Report:
    """A folder with ``result.json``, ``result.md`` and ``result.png``."""

    def __init__(self, folder: str, title: str, facts: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.title = title
        self.label = str(facts["label"])
        self.fields: dict[str, Any] = {
            "device": self.label,
            "mechanism": facts["mechanism"],
            "facts": dict(facts),
            "measured": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }

    def collect(
        self,
        items: Sequence[Item],
        measure: Callable[[Item], Measured],
        write_up: Callable[[Sequence[Measured], Report], None],
        unit: str = "layer",
    ) -> list[Measured]:
        """Measure one item after the other, and write; whatever breaks measuring off, what there is until then is kept.

        What is measured for long is written in between, too, for the case that the process is killed.
        """
        measured: list[Measured] = []
        title, written_s = self.title, time.monotonic()
        try:
            for item in tqdm(items, desc="comparing", unit=unit):
                measured.append(measure(item))
                if len(measured) < len(items) and time.monotonic() - written_s > _DRAFT_S:
                    self.title = f"{title} ({len(measured)} of {len(items)} so far)"
                    with redirect_stdout(StringIO()):
                        write_up(measured, self)
                    written_s = time.monotonic()
        except BaseException as error:
            cause = error.__cause__ if isinstance(error, BrokenOffError) else None
            if isinstance(error, BrokenOffError):
                measured.append(error.measured)
            if measured:
                self.title = f"{title} (broken off: {len(measured)} of {len(items)})"
                write_up(measured, self)
            if cause is None:
                raise
            raise cause from None
        self.title = title
        write_up(measured, self)
        return measured

    def write(self, result: Mapping[str, Any], text: str, draw: Callable[[Any], None]) -> None:
        """Write all three files.

        Parameters
        ----------
        text
            Markdown; the title, the device and the mechanism go before it.
        draw
            Draws on a matplotlib axes.
        """
        json_text = json.dumps({"title": self.title, **self.fields, **result}, indent=1)
        self._write("result.json", json_text + "\n")
        mechanism = synchronised_by(self.fields["mechanism"])
        head = f"# {self.title}\n\nDevice: {self.label}. Synchronised by {mechanism}.\n\n"
        self._write("result.md", head + text)
        self._draw(draw)
        print(f"{head}{text}\nwritten to {self.folder}/result.json, result.md and result.png")

    def _write(self, name: str, text: str) -> None:
        with whole_file(self.folder / name) as file:
            file.write(text.encode())

    def _draw(self, draw: Callable[[Any], None]) -> None:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot as plt

        figure, axes = plt.subplots(figsize=(11, 5.5), layout="constrained")
        draw(axes)
        axes.set_title(f"{self.title}\n{self.label}", fontsize=10)
        with whole_file(self.folder / "result.png") as file:
            figure.savefig(file, format="png", dpi=110)
        plt.close(figure)


def bars(axes: Any, names: Sequence[str], series: Mapping[str, Sequence[float]], unit: str) -> None:
    """Draw grouped bars, one group a name."""
    width = 0.8 / len(series)
    indices = np.arange(len(names))
    for number, (label, values) in enumerate(series.items()):
        axes.bar(indices + (number - (len(series) - 1) / 2) * width, values, width, label=label)
    axes.set_xticks(indices, names, rotation=60 if len(names) > 6 else 20, ha="right", fontsize=7)
    axes.set_ylabel(unit)
    axes.legend(fontsize=8)
    axes.grid(axis="y", alpha=0.3)


def run_main(main: Callable[[], None]) -> None:
    """Run a script as the command line runs a command: what a user can repair, and what a signal ends, is one line."""
    with usable_streams():
        _run_main(main, Path(sys.argv[0]).name)


def _run_main(main: Callable[[], None], name: str) -> None:
    try:
        with ended_by_signals():
            main()
    except (CoexecError, OSError, MemoryError) as error:
        print(f"{name}: error: {one_line(error)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
