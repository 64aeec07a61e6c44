"""Charts: what stands in them, and where they are written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.cli import chart
from agent.cli.chart import check, draw_latencies
from agent.compute.infer.benchmark import Measurement, Selection, decide
from agent.errors import VedetteError

pytest.importorskip("matplotlib", reason="the extra [charts] is not installed")

LONG = "external:/opt/vendor/lib/with/a/long/path/libnpu_delegate.so?mode=turbo&weights=$x$"
MEASURED = (
    Measurement("cpu", threads=1, p50_ms=20.0, p95_ms=21.0),
    Measurement("cpu", threads=2, p50_ms=11.0, p95_ms=12.0),
    Measurement(LONG, p50_ms=40.0, p95_ms=60.0),
    Measurement("qnn-htp", refused="cannot be loaded: " + "the device is busy " * 20),
    Measurement("odd\x1b[2J", refused="no"),
)


@pytest.fixture
def verdict() -> Selection:
    return decide(MEASURED, [], "latency")


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Figures as they are saved."""
    kept: list[Any] = []
    save = chart._save

    def keep(figure: Any, path: Path) -> None:
        kept.append(figure)
        save(figure, path)

    monkeypatch.setattr(chart, "_save", keep)
    return kept


def refused(verdict: Selection) -> list[Measurement]:
    return [one for one in verdict.measured if one.refused]


def texts_within(figure: Any) -> list[str]:
    """Every text of a figure that is shown; fails where one runs out of the picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    shown = [one for one in figure.findobj(Text) if one.get_visible() and one.get_text()]
    ticks = {tick.label1 for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for tick in axis.majorTicks}
    for one in (one for one in shown if one not in ticks):  # ticks beyond the ends are not drawn
        box = one.get_window_extent(renderer)
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1
        assert inside, one.get_text()
    return [str(one.get_text()) for one in shown]


def test_the_models_name_and_every_refusal_with_its_reason(
    tmp_path: Path, verdict: Selection, figures: list[Any]
) -> None:
    draw_latencies(verdict, refused(verdict), "nanodet, variant 416", tmp_path / "bench.png")
    (figure,) = figures
    shown = texts_within(figure)
    assert {"nanodet, variant 416", "cpu, 1 thread", "cpu, 2 threads"} <= set(shown)
    (below,) = (text for text in shown if text.startswith("refused"))
    lines = below.splitlines()
    assert lines[1].endswith(": slower than the CPU: 40.00 ms against 11.00")
    assert lines[2].startswith("qnn-htp: cannot be loaded: the device is busy")
    assert lines[2].endswith(" …")
    assert lines[3] == "odd\\x1b[2J: no"


@pytest.mark.parametrize(("name", "begins"), [("a", b"\x89PNG"), ("a.png", b"\x89PNG"), ("a.SVG", b"<?xml")])
def test_it_is_written_where_it_was_asked_for_and_nowhere_else(
    tmp_path: Path, verdict: Selection, name: str, begins: bytes
) -> None:
    check(tmp_path / name)
    draw_latencies(verdict, [], "m", tmp_path / name)
    (file,) = tmp_path.iterdir()
    assert file.name == name
    assert file.read_bytes().startswith(begins)


@pytest.mark.parametrize(
    "make",
    [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/null")],
    ids=["folder", "pipe", "device"],
)
def test_a_folder_a_pipe_or_a_device_is_refused_and_stays(
    tmp_path: Path, verdict: Selection, make: Callable[[Path], object]
) -> None:
    path = tmp_path / "a"
    make(path)
    with pytest.raises(VedetteError, match=f"{path}: "):
        check(path)
    with pytest.raises(VedetteError, match=f"{path}: cannot be written: not a file"):
        draw_latencies(verdict, [], "m", path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_kind_of_picture_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VedetteError, match=r"ends in \.png"):
        check(tmp_path / "a.xyz")
