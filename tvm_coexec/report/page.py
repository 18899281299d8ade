"""The report as one HTML page that needs nothing else: no network, no other file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from tvm_coexec.errors import readable
from tvm_coexec.planning.plan import synchronised_by
from tvm_coexec.runtime.module import Event
from tvm_coexec.version import __version__

from .observation import COMPUTES, Half, LayerObservation, Observation

_LANES = {"gpu": 14, "cpu": 62}
"""Where a side's lane begins in the timeline; both in pixels."""
_LANE_HEIGHT = 40
_LONGEST_NAME = 200
_TICKS = 8
_SCATTER = 320
"""What looks right on a screen: pixels of a side's lane and of the square of predictions, letters of a name, and marks
of time.
"""
_MIB = 2**20


def write_page(observation: Observation, title: str) -> str:
    """Write the page's HTML."""
    sections = [
        _head(observation, title),
        _timeline(observation),
        _table(observation),
        _predictions(observation),
        _memory(observation),
        _synchronisations(observation),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{_text(title)}</title>\n'
        f"<style>\n{_asset('page.css')}</style></head>\n<body>\n{''.join(sections)}"
        f"<script>\n{_asset('page.js')}</script></body></html>\n"
    )


def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _text(name: str) -> str:
    return escape(readable(name, _LONGEST_NAME))


def _head(observation: Observation, title: str) -> str:
    plan = observation.plan
    cards = [
        _card(f"{name}, median", _duration(latency.median_us), _spread(latency.latency_us))
        for name, latency in observation.latencies.items()
    ]
    alone = [latency.median_us for name, latency in observation.latencies.items() if name != "co-executed"]
    if alone:
        times = min(alone) / observation.latencies["co-executed"].median_us
        cards.insert(1, _card("over the faster side", f"{times:.2f}×", "of what this module has kernels for"))
    if plan.total_us:
        cards.append(_card("the plan expects", _duration(plan.total_us), ""))
    return (
        f"<h1>{_text(title)}</h1>\n<p class='soft'>{_text(observation.label)} · synchronised by "
        f"{_text(synchronised_by(observation.mechanism))} · {len(observation.layers)} layers · "
        f"tvm-coexec {__version__}</p>\n"
        f"<div class='cards'>{''.join(cards)}</div>\n"
    )


def _card(what: str, figure: str, note: str) -> str:
    return f"<div class='card'><span class='soft'>{what}</span><b>{figure}</b><span class='soft'>{note}</span></div>\n"


def _duration(time_us: float) -> str:
    return f"{time_us / 1e3:.2f} ms" if time_us >= 1e3 else f"{time_us:.1f} µs"


def _spread(times_us: Sequence[float]) -> str:
    ordered = sorted(times_us)
    low, high = (ordered[int(share * (len(ordered) - 1))] for share in (0.1, 0.9))
    return f"10 %: {_duration(low)}, 90 %: {_duration(high)}, {len(ordered)} runs"


def _timeline(observation: Observation) -> str:
    end_us = max((event.end_us for event in observation.events), default=1.0)
    bars = "".join(_event(event, end_us) for event in observation.events)
    waits = ", ".join(f"{side.upper()} {_duration(observation.waited_us(side))}" for side in ("cpu", "gpu"))
    return (
        "<h2>One run</h2>\n<p class='key'>"
        "<span><i class='fill-gpu'></i>GPU computes</span><span><i class='fill-cpu'></i>CPU computes</span>"
        "<span><i class='fill-wait'></i>waits for the other side</span><span><i class='fill-other'></i>other</span>"
        "<label>zoom <input type='range' id='zoom' min='1' max='40' value='1' step='0.5'></label></p>\n"
        f"<div class='scroll'><svg class='timeline' role='img' aria-label='Timeline of both sides'>{_ticks(end_us)}"
        f"{bars}</svg></div>\n<p class='soft'>Waited in this run: {waits}. It is the median of some runs in which"
        " every command is timed, which may take longer than others; click a bar to find its layer below.</p>\n"
    )


def _ticks(end_us: float) -> str:
    step = _round_step(end_us / _TICKS)
    lines = []
    for number in range(int(end_us / step) + 1):
        x = f"{100 * number * step / end_us:.3f}%"
        lines.append(
            f"<line class='grid' x1='{x}' x2='{x}' y1='0' y2='110'/>"
            f"<text x='{x}' y='126'>{_tick(number * step, step)}</text>"
        )
    return "".join(lines)


def _tick(time_us: float, step_us: float) -> str:
    return f"{time_us / 1e3:g} ms" if step_us >= 1e3 else f"{time_us:g} µs"


def _round_step(least: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is not below ``least``."""
    power = 10.0 ** math.floor(math.log10(max(least, 1e-9)))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)


def _event(event: Event, end_us: float) -> str:
    kind = event.side if event.kind in COMPUTES else "wait" if "wait" in event.kind else "other"
    took_us = event.end_us - event.start_us
    left, width = 100 * event.start_us / end_us, 100 * took_us / end_us
    title = (
        f"{event.side.upper()} {event.kind} {readable(event.step)}: {took_us:.1f} µs from {event.start_us:.1f} µs on"
    )
    return (
        f"<rect class='{kind}' data-layer='{_text(event.step)}' x='{left:.4f}%' width='{width:.4f}%' "
        f"y='{_LANES[event.side]}' height='{_LANE_HEIGHT}'><title>{escape(title)}</title></rect>"
    )


def _table(observation: Observation) -> str:
    rows = "".join(_row(layer) for layer in observation.layers)
    names = (
        "layer",
        "operator",
        "divided",
        "CPU units",
        "GPU units",
        "CPU µs",
        "predicted",
        "GPU µs",
        "predicted",
        "why",
    )
    numbers = {"CPU units", "GPU units", "CPU µs", "GPU µs", "predicted"}
    head = "".join(f"<th{' class=number' * (name in numbers)}>{name}</th>" for name in names)
    return (
        f"<h2>Layers</h2>\n<div class='tall'><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>\n"
    )


def _row(layer: LayerObservation) -> str:
    share = 100 * layer.gpu.units / (layer.cpu.units + layer.gpu.units)
    bar = (
        f"<div class='bar' title='{share:.0f} % of the {_text(layer.axis)} on the GPU'>"
        f"<i class='fill-gpu' style='width:{share:.1f}%'></i>"
        f"<i class='fill-cpu' style='width:{100 - share:.1f}%'></i></div>"
    )
    numbers = [str(layer.cpu.units), str(layer.gpu.units), *_times(layer.cpu), *_times(layer.gpu)]
    cells = "".join(f"<td class='number'>{number}</td>" for number in numbers)
    return (
        f"<tr data-layer='{_text(layer.name)}'><td class='name'>{_text(layer.name)}</td>"
        f"<td>{_text(layer.operator)}</td><td>{bar}</td>{cells}<td>{_text(layer.reason)}</td></tr>\n"
    )


def _times(half: Half) -> tuple[str, str]:
    if not half.units:
        return "", ""
    return f"{half.measured_us:.1f}", f"{half.predicted_us:.1f}" if half.predicted_us else "–"


def _predictions(observation: Observation) -> str:
    """Draw every half's measured time over the predicted one, on logarithmic axes; nothing where no plan predicts."""
    halves = [(side, layer, getattr(layer, side)) for layer in observation.layers for side in ("cpu", "gpu")]
    known = [(side, layer, half) for side, layer, half in halves if half.predicted_us > 0 and half.measured_us > 0]
    if not known:
        return ""
    times_us = [time_us for *_, half in known for time_us in (half.predicted_us, half.measured_us)]
    low, high = math.log10(min(times_us)) - 0.1, math.log10(max(times_us)) + 0.1

    def position(time_us: float) -> float:
        return _SCATTER * (math.log10(time_us) - low) / (high - low)

    points = "".join(
        f"<circle class='{side}' r='4' fill-opacity='.75' cx='{40 + position(half.predicted_us):.1f}' "
        f"cy='{_SCATTER + 10 - position(half.measured_us):.1f}' data-layer='{_text(layer.name)}'>"
        f"<title>{_text(layer.name)}, {side.upper()}: predicted {half.predicted_us:.1f} µs, measured "
        f"{half.measured_us:.1f} µs</title></circle>"
        for side, layer, half in known
    )
    off = sorted(abs(half.measured_us / half.predicted_us - 1) for *_, half in known)
    return (
        "<h2>Predicted and measured halves</h2>\n<div class='columns'>"
        f"<svg class='scatter' viewBox='0 0 {_SCATTER + 60} {_SCATTER + 50}' role='img' "
        f"aria-label='Measured over predicted times'>{_scatter_axes(low, high)}{points}</svg>"
        f"<p>Half of the {len(known)} halves are within {100 * off[len(off) // 2]:.0f} % of what the plan expected,"
        f" nine of ten within {100 * off[int(0.9 * (len(off) - 1))]:.0f} %. Both axes are in microseconds.</p></div>\n"
    )


def _scatter_axes(low: float, high: float) -> str:
    parts = [f"<line class='grid' x1='40' y1='{_SCATTER + 10}' x2='{_SCATTER + 40}' y2='10'/>"]
    for power in range(math.ceil(low), math.floor(high) + 1):
        at = _SCATTER * (power - low) / (high - low)
        x, y = 40 + at, _SCATTER + 10 - at
        parts.append(
            f"<line class='grid' x1='{x:.1f}' x2='{x:.1f}' y1='10' y2='{_SCATTER + 10}'/>"
            f"<line class='grid' x1='40' x2='{_SCATTER + 40}' y1='{y:.1f}' y2='{y:.1f}'/>"
            f"<text x='{x:.1f}' y='{_SCATTER + 26}' text-anchor='middle'>{10.0**power:g}</text>"
            f"<text x='34' y='{y + 4:.1f}' text-anchor='end'>{10.0**power:g}</text>"
        )
    parts.append(f"<text x='{40 + _SCATTER / 2}' y='{_SCATTER + 44}' text-anchor='middle'>predicted</text>")
    middle = _SCATTER / 2
    parts.append(f"<text x='12' y='{middle}' text-anchor='middle' transform='rotate(-90 12 {middle})'>measured</text>")
    return "".join(parts)


def _memory(observation: Observation) -> str:
    use = observation.memory
    rows = [
        ("weights, packed", use.weight_bytes, "held once, for both sides"),
        ("activations", use.activation_bytes, f"no plan needs less than {use.activation_bound_bytes / _MIB:.1f} MiB"),
        ("scratch", use.scratch_bytes, "of kernels that pass something on to the next, and of the CPU's threads"),
    ]
    body = "".join(
        f"<tr><td>{name}</td><td class='number'>{size / _MIB:.1f}</td><td>{note}</td></tr>" for name, size, note in rows
    )
    return f"<h2>Memory, MiB</h2>\n<table><tbody>{body}</tbody></table>\n"


def _synchronisations(observation: Observation) -> str:
    syncs = observation.plan.syncs
    rows: Iterable[str] = (
        f"<tr><td class='name'>{'the end' if sync.layer is None else _text(sync.layer)}</td>"
        f"<td>{sync.side.upper()}</td><td class='name'>{_text(sync.awaits)}</td><td>{_text(sync.why)}</td></tr>"
        for sync in syncs
    )
    return (
        "<h2>Synchronisations</h2>\n<details>"
        f"<summary>{len(syncs)} points at which one side may wait for the other</summary>"
        "<table><thead><tr><th>before</th><th>who waits</th><th>for</th><th>why</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></details>\n"
    )
