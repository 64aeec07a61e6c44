"""Reports: they read back, and no name in them escapes from its place."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
        StepResult("before", "top-1", 0.9, (0.85, 0.94), 4_000_000, 20.0, 80.0),
        StepResult("quantise", "top-1", 0.895, None, 1_000_000, 8.0, notes=("INT8",)),
        StepResult("prune", "top-1", 0.7, None, 900_000, 8.0, kept=False, notes=("loses 20 pp",)),
    ),
    (LayerResult("stem", "CONV_2D", 8, 432, 0.001), LayerResult("head", "FULLY_CONNECTED", 4, 1000)),
    (OperationTime("CONV_2D", 18.0, 7.0), OperationTime("MEAN", 1.0, 0.5)),
    ("one remark",),
)
HOSTILE = "<script>alert(1)</script>|`x`[a](javascript:b)$\\frac{&\"'\n# c\x1b[31m"


def test_a_report_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(msgspec.json.encode(msgspec.to_builtins(REPORT)))
    assert read_report(path) == REPORT


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b"{}",
        b'{"step": "tune", "model": 3}',
        b'{"steps": 3}',
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


def named(name: str) -> OptimiseReport:
    steps, layers = (StepResult(name, name, 0.5, notes=(name,)),), (LayerResult(name, name),)
    return OptimiseReport(name, name, examples=name, steps=steps, layers=layers, remarks=(name,))


@given(st.text(max_size=40) | st.just(HOSTILE))
@settings(max_examples=15)
def test_no_name_escapes_from_its_place(name: str) -> None:
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


def test_the_machine_is_described() -> None:
    assert re.search(r", \d+ cores?, Linux .*, (ai-edge-litert|tflite-runtime) \d", describe_machine())


def test_what_4_bits_in_a_layer_would_do_is_no_loss() -> None:
    assert "| layer | operation | bits | weights | sensitivity |" in markdown(REPORT)
