"""The page about a module: complete, closed in itself, and shown by a browser as it was written."""

import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from small_modules import chain_of

from tvm_coexec.cli import main
from tvm_coexec.compiler.packaging import package_plan
from tvm_coexec.compiler.target import target_for
from tvm_coexec.planning.plan import LayerPlan, Plan
from tvm_coexec.report.observation import observe
from tvm_coexec.report.page import write_page
from tvm_coexec.runtime.device import Device
from tvm_coexec.runtime.module import Module

pytestmark = pytest.mark.one_runtime

NAMES = ["first", "<b>bold & 'quoted'", "last"]

VOID = {"meta", "input", "link", "br"}


class Outline(HTMLParser):
    """A page's elements, their ends checked, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def module(device: Device) -> Module:
    graph, choices = chain_of(device, 3, 5, 64)
    nodes = [replace(node, name=name) for node, name in zip(graph.nodes, NAMES, strict=True)]
    planned = tuple(
        LayerPlan(node.name, node.layer, choice.cpu_units, choice.cpu, choice.gpu, 10.0, 20.0, 20.0, "halved")
        for node, choice in zip(nodes, choices, strict=True)
    )
    plan = Plan(device.info.name, device.mechanism, planned, 60.0)
    target = target_for(device.facts())
    return Module(package_plan(replace(graph, nodes=nodes), plan, target, device.facts()), device)


def outline(page: str) -> Outline:
    parsed = Outline()
    parsed.feed(page)
    parsed.close()
    assert not parsed.open
    return parsed


def test_the_page_has_every_layer_and_both_sides(module: Module) -> None:
    observation = observe(module, repeats=2)
    page = outline(write_page(observation, "three layers"))
    assert [attrs["data-layer"] for tag, attrs in page.seen if tag == "tr" and "data-layer" in attrs] == NAMES
    lanes = {attrs["y"] for tag, attrs in page.seen if tag == "rect"}
    assert len(lanes) == 2
    assert "<b>bold & 'quoted'" in page.text
    assert sum(tag == "circle" for tag, _ in page.seen) == 6  # both halves of each, predicted and measured
    assert not any(value and "://" in value for _, attrs in page.seen for value in attrs.values())


def test_measuring_leaves_the_splits_as_they_were(module: Module) -> None:
    before = module.splits
    observation = observe(module, repeats=1)
    assert module.splits == before
    assert set(observation.latencies) == {"co-executed", "CPU alone", "GPU alone"}
    assert all(layer.cpu.measured_us > 0 and layer.gpu.measured_us > 0 for layer in observation.layers)


def test_the_command_writes_the_page(module: Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module.export(tmp_path / "m.coexec")
    out = tmp_path / "page.html"
    name = module.device.info.alias
    assert main(["report", str(tmp_path / "m.coexec"), "--device", name, "--repeats", "1", "--out", str(out)]) == 0
    assert "m.coexec" in outline(out.read_text()).text
    assert main(["report", str(tmp_path / "m.coexec"), "--out", str(tmp_path / "no" / "page.html")]) == 1
    assert "there is no directory" in capsys.readouterr().err


def test_a_browser_shows_it(module: Module, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium")
    page = tmp_path / "page.html"
    check = (
        "<script>addEventListener('load', () => {"
        "document.querySelector('svg.timeline rect').dispatchEvent(new MouseEvent('click', {bubbles: true}));"
        "document.title = [document.querySelectorAll('.chosen').length > 1,"
        "Math.round(document.querySelector('svg.timeline').getBoundingClientRect().height),"
        "document.querySelectorAll('tbody tr[data-layer]').length].join(' ')})</script>"
    )
    page.write_text(write_page(observe(module, repeats=1), "three layers").replace("</body>", f"{check}</body>"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    shown = subprocess.run(
        [browser, *options, f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "<title>true 132 3</title>" in shown.stdout
