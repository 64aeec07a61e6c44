"""Reports: they read back, and no name in them escapes from its place."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.errors import ModelError
from agent.optimise.report import (
    METRICS,
    LayerResult,
    OperationTime,
    OptimiseReport,
    StepResult,
    describe_machine,
    markdown,
    read_report,
    to_html,
)

REPORT = OptimiseReport(
    "tune",
    "mobile",
    "0" * 64,
    "1" * 64,
    "some processor, 2 cores",
    "vedette optimise tune mobile.tflite out.tflite",
    "pictures: 200 examples",
    "size<3MB",
    ("size 3.2 MB, 0.2 MB over 3 MB",),
    (
        StepResult("before", "top-1", 0.9, (0.85, 0.94), 4_000_000, 20.0, 60.0, 80.0, 30.0),
        StepResult("quantise", "top-1", 0.895, None, 1_000_000, 8.0, notes=("INT8",)),
        StepResult("prune", "top-1", 0.7, None, 900_000, 8.0, kept=False, notes=("loses 20 pp",)),
    ),
    (LayerResult("stem", "CONV_2D", 8, 432, 0.001), LayerResult("head", "FULLY_CONNECTED", 4, 1000)),
    (OperationTime("CONV_2D", 18.0, 7.0), OperationTime("MEAN", 1.0, 0.5)),
    ("one remark",),
)
HOSTILE = "<script>alert(1)</script>|`x`[a](javascript:b)$\\frac{&\"'\n# c\x1b[31m"


class Tags(HTMLParser):
    """Names of the elements, sources of the pictures, and all text outside of the style."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href") or name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


def tags(text: str) -> Tags:
    found = Tags()
    found.feed(text)
    return found


def test_a_report_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(msgspec.json.encode(msgspec.to_builtins(REPORT)))
    assert read_report(path) == REPORT


def test_the_report_of_an_import_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "net.report.json"
    path.write_bytes(msgspec.json.encode({"step": "import", "module": "net.py:build", "bytes": 12, "mean": None}))
    found = read_report(path)
    (step,) = found.steps
    assert (found.step, found.model, step.size) == ("import", "net.py:build", 12)


def test_the_report_of_a_step_with_other_keys_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    sizes = {"before": 100, "after": 80}
    path.write_bytes(
        msgspec.json.encode({"step": "rewrite", "model": "m", "bytes": sizes, "counts": {"relu": 3}})
    )
    found = read_report(path)
    assert [one.size for one in found.steps] == [100, 80]
    assert "counts.relu: 3" in found.steps[1].notes
    assert "counts" in markdown(found)


def test_the_report_of_a_rewrite_shows_what_rewrite_prints(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    compared = {
        "last_bits": 0.0,
        "relative": 2e-7,
        "before_ms": 4.7,
        "after_ms": 4.1,
        "busy": "beside other work",
    }
    keys = {"step": "rewrite", "model": "m", "rewrites": {"padding": 2}, "comparison": compared}
    path.write_bytes(msgspec.json.encode(keys))
    found = read_report(path)
    assert [one.latency_ms for one in found.steps] == [4.7, 4.1]
    differ = "answers differ by at most 0 last bits of quantised outputs, and 2e-07 of float ones"
    assert found.steps[1].notes == ("padding: 2", differ)
    assert found.remarks == ("beside other work",)


def test_the_report_of_features_names_the_map(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    maps = [{"signature": "s320", "tensor": "relu_7", "shape": [1, 20, 20, 64]}]
    path.write_bytes(msgspec.json.encode({"step": "features", "model": "m", "maps": maps}))
    assert read_report(path).steps[1].notes == ("features: s320, relu_7, [1, 20, 20, 64]",)


def test_remarks_have_a_heading_and_steps_that_did_not_run_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is of the extra [optimise]")
    drawn: list[str] = []

    def draw(_: object, steps: Sequence[StepResult]) -> bytes:
        drawn.extend(one.name for one in steps)
        return b""

    monkeypatch.setattr("agent.optimise.report._draw_steps", draw)
    left_out = StepResult("qat", kept=False, notes=("not needed",))
    assert "Remarks" in tags(to_html(replace(REPORT, steps=(*REPORT.steps, left_out)))).text
    assert drawn == ["before", "quantise", "prune"]


def test_a_step_with_other_keys_keeps_what_its_model_has_learned_from(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    keys = {"step": "rewrite", "model": "m", "sha256_after": "ab", "learned": ["0" * 12]}
    path.write_bytes(msgspec.json.encode(keys))
    found = read_report(path)
    assert (found.sha256_after, found.learned, found.steps[-1].notes) == ("ab", ("0" * 12,), ())


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b"{}",
        b'{"step": "tune", "model": 3}',
        b'{"steps": 3}',
        b'{"step": "a", "model": "m", "bytes": {"before": -1}}',
        b'{"step": "a", "model": "m", "steps": [{"name": "a", "score": 7}]}',
        b'{"step": "a", "model": "m", "steps": [], "layers": [{"name": "a", "values": 1e300}]}',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=re.escape(str(path))):
        read_report(path)


def test_the_html_is_complete_and_loads_nothing() -> None:
    found = tags(to_html(REPORT))
    for text in ("mobile", "89.5", "0.2 MB over", "loses 20 pp", "CONV_2D", "one remark"):
        assert text in found.text
    assert found.names.count("table") == 4
    assert all(link.startswith("data:image/png;base64,") for link in found.links)
    assert len(found.links) == (3 if importlib.util.find_spec("matplotlib") else 0)
    assert "script" not in found.names


def test_the_markdown_has_a_row_for_each_step_and_layer() -> None:
    text = markdown(REPORT)
    assert all(word in text for word in ("| quantise |", "| prune |", "| stem |", "top-1"))
    for table in text.split("\n\n"):
        if table.startswith("|"):
            columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
            assert len(columns) == 1


@pytest.mark.parametrize("metric", METRICS)
def test_what_a_score_without_labels_means_is_told(metric: str) -> None:
    report = OptimiseReport("tune", "net", steps=(StepResult("before", metric, 0.9),))
    assert f"{metric}: {METRICS[metric]}" in markdown(report)
    assert f"{metric}: {METRICS[metric]}" in tags(to_html(report)).text


def named(name: str) -> OptimiseReport:
    steps, layers = (StepResult(name, name, 0.5, notes=(name,)),), (LayerResult(name, name),)
    return OptimiseReport(name, name, examples=name, steps=steps, layers=layers, remarks=(name,))


@given(st.text(max_size=40) | st.just(HOSTILE))
@settings(max_examples=15)
def test_no_name_escapes_from_its_place(name: str) -> None:
    found, expected = tags(to_html(named(name))), tags(to_html(named("a")))
    if name:
        assert found.names == expected.names
    assert found.links == []
    text = markdown(named(name))
    assert not re.search(r"(?<!\\)(<script|`x|\]\(javascript)|\x1b", text)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) >= 3 for line in rows)


def test_a_key_that_is_missing_is_named(tmp_path: Path) -> None:
    for text, key in (
        ('{"step": "a"}', "model"),
        ('{"model": "a"}', "step"),
        ('{"steps": [], "step": ""}', "model"),
    ):
        (tmp_path / "r.json").write_text(text)
        with pytest.raises(ModelError, match=f"{key}. is missing|missing required field `{key}`"):
            read_report(tmp_path / "r.json")


def test_hostile_names_can_be_drawn() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is of the extra [optimise]")
    steps = tuple(StepResult(HOSTILE, HOSTILE, 0.5, size=3, latency_ms=1e12) for _ in range(50))
    layers = tuple(LayerResult(HOSTILE, "", bits, 10**12) for bits in (2, 64))
    operations = (OperationTime(HOSTILE, 1e12), OperationTime("$", 0.0))
    found = tags(to_html(OptimiseReport("a", HOSTILE, steps=steps, layers=layers, operations=operations)))
    assert len(found.links) == 3


def test_the_machine_is_described() -> None:
    assert re.search(r", \d+ cores?, Linux .*, (ai-edge-litert|tflite-runtime) \d", describe_machine())


def test_what_4_bits_in_a_layer_would_do_is_no_loss() -> None:
    assert "| layer | operation | bits | weights | sensitivity |" in markdown(REPORT)
    assert "<th>sensitivity</th>" in to_html(REPORT)
    assert "<th>loss</th>" not in to_html(REPORT)
