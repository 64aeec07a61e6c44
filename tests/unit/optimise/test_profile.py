"""Profiles of the bundled models, and of processes that end as they should not."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest

from agent.compute.infer.litert import load_runtime
from agent.compute.tflite.model import multiply_adds
from agent.compute.tflite.read import read_modelfile
from agent.errors import BackendError, ModelError
from agent.models.library import open_model, open_whole_model
from agent.optimise.profile import ProfilerEvent, profile, rows_of, worst_of
from agent.optimise.profile_worker import Profiler, indices, mean_steps, turns
from tests.support.delegates import identity_model
from tests.support.tflite_builder import Op, T, add_model, write

litert = pytest.mark.skipif(load_runtime()[0] != "litert", reason="tflite-runtime has no profiler")


def chain() -> bytes:
    """A graph of three: ADD, MUL, ADD."""
    tensors = [T(name, (1, 4)) for name in ("a", "b", "c", "d")]
    return write(tensors, [Op("ADD", (0, 0), (1,)), Op("MUL", (1, 1), (2,)), Op("ADD", (2, 2), (3,))], (0,), (3,))


def test_steps_become_rows_with_those_that_are_not_delegated() -> None:
    graph = read_modelfile(chain()).graph()
    steps = [
        ProfilerEvent("Add (ND)", -1, 1.0),
        ProfilerEvent("Clamp (NC)", -1, 0.5),
        ProfilerEvent("MUL", 1, 2.0),
        ProfilerEvent("TfLiteXNNPackDelegate", 7, 9.0),
        ProfilerEvent("Add (ND)", -1, 0.5),
        ProfilerEvent("A kernel of tomorrow", -1, 1.0),
    ]
    rows = rows_of(steps, graph)
    assert [(row.name, row.kernel, row.node, row.ms) for row in rows] == [
        ("ADD", "Add (ND) + Clamp (NC)", 0, 1.5),
        ("MUL", "", 1, 2.0),
        ("ADD", "Add (ND)", 2, 0.5),
        ("", "A kernel of tomorrow", -1, 1.0),
    ]
    assert sum(row.share for row in rows) == pytest.approx(1.0)
    assert [row.tensor for row in rows] == ["b", "c", "d", ""]
    worst = worst_of(rows, graph)
    assert [row.ms for row in worst] == [2.0, 1.5, 1.0]
    assert worst[0].advice.startswith("not delegated")
    assert all(row.advice for row in worst)


def test_nothing_measured_is_no_error() -> None:
    graph = read_modelfile(chain()).graph()
    assert rows_of([], graph) == ()
    assert rows_of([ProfilerEvent("MUL", 1, 0.0)], graph)[0].share == 0.0


def test_the_slower_half_and_other_steps_are_left_out() -> None:
    def run(ms: float, name: str = "ADD") -> list[ProfilerEvent]:
        return [ProfilerEvent(name, 0, ms)]

    assert mean_steps([run(1.0), run(9.0), run(2.0), run(90.0)]) == (ProfilerEvent("ADD", 0, 1.5),)
    assert mean_steps([run(1.0), run(2.0, "MUL"), run(9.0)]) == (ProfilerEvent("ADD", 0, 1.0),)
    assert mean_steps([run(3.0)]) == (ProfilerEvent("ADD", 0, 3.0),)


def test_a_step_that_was_held_up_once_counts_as_in_the_other_runs() -> None:
    times = [(1.0, 3.0), (1.0, 3.0), (5.0, 3.0), (1.0, 30.0), (1.0, 30.0), (1.0, 30.0)]
    runs = [[ProfilerEvent("ADD", 0, first), ProfilerEvent("MUL", 1, second)] for first, second in times]
    assert mean_steps(runs) == (ProfilerEvent("ADD", 0, 1.0), ProfilerEvent("MUL", 1, 3.0))
    grains = [[ProfilerEvent("ADD", 0, ms)] for ms in (0.0, 0.0, 0.001, 0.001, 0.002, 0.002)]
    assert mean_steps(grains)[0].ms == pytest.approx(0.001 / 3)


@pytest.mark.parametrize(("runs", "wanted"), [(1, [1]), (4, [1, 1, 1, 1]), (12, [3, 3, 2, 2, 2])])
def test_the_profiler_is_on_and_off_by_turns(runs: int, wanted: list[int]) -> None:
    assert turns(runs) == wanted


def test_a_signature_is_found_by_its_name_and_the_first_graph_without_one() -> None:
    speech = read_modelfile(open_whole_model("small-speech").content)
    assert [indices(speech, name) for name in ("exit3", "exit12", "")] == [(0, 0), (3, 3), (0, 0)]
    assert indices(read_modelfile(add_model()), "") == (0, 0)
    with pytest.raises(ModelError, match="no signature 'nobody'"):
        indices(speech, "nobody")


@litert
@pytest.mark.parametrize(
    ("name", "variant", "kernels", "native"),
    [
        ("nanodet", "256", {"Convolution (NHWC, QC8) IGEMM", "LeakyReLU (NC)"}, {"QUANTIZE", "SOFTMAX"}),
        ("small-speech", "12", {"Convolution (NHWC, QC8) DWConv", "Add (ND) + Clamp (NC)"}, set()),
    ],
)
def test_the_operations_explain_the_time_of_a_bundled_model(
    name: str, variant: str, kernels: set[str], native: set[str]
) -> None:
    model = open_model(name, variant)
    several = [profile(model, variant, runs=20, threads=1) for _ in range(3)]
    # Where other processes take the core away, one of the two times may be several times too long.
    found = min(several, key=lambda one: abs(math.log(one.total_ms / one.p50_ms)))
    assert 0.2 < found.total_ms / found.p50_ms < 5.0
    assert kernels <= {row.kernel for row in found.rows}
    assert {row.name for row in found.rows if not row.kernel} == native
    assert sum(row.share for row in found.rows) == pytest.approx(1.0)
    signature = model.manifest.variant(variant).signature
    whole = multiply_adds(read_modelfile(model.content), signature)
    assert sum(row.multiply_adds for row in found.rows) == whole
    assert [row.ms for row in found.worst] == sorted((row.ms for row in found.rows), reverse=True)[:3]
    assert found.threads == 1
    assert found.runtime.startswith("ai-edge-litert")


@litert
def test_a_model_without_signatures_in_float(tmp_path: Path) -> None:
    found = profile(open_model(str(identity_model(tmp_path, steps=5, size=200_000))), runs=5)
    assert {(row.name, row.kernel) for row in found.rows} == {("MUL", "Multiply (ND)")}
    assert len(found.rows) == 5


def program(tmp_path: Path, text: str) -> str:
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


_READ = "head -c 100000 </proc/self/fd/$4 >/dev/null; "
"""The rest of what it is given the pipe holds."""


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("echo INFO: well >&2; echo no luck >&2; kill -SEGV $$", "killed by SIGSEGV; last log line: no luck"),
        ("exit 3", "ended by itself with exit status 3"),
        ("exec sleep 20", "hangs: profiling took longer than 0.5 s"),
        (_READ + r"printf '\7\0\0\0rubbish' >/proc/self/fd/$5; exec sleep 20", "invalid reply"),
    ],
)
def test_a_process_that_crashes_or_hangs_is_an_error_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, wanted: str
) -> None:
    monkeypatch.setattr("sys.executable", program(tmp_path, text))
    with pytest.raises(BackendError, match=wanted) as caught:
        profile(open_model("small-speech", "3"), "3", patience_s=0.5)
    assert str(caught.value).startswith("small-speech: ")


def test_without_litert_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(BackendError, match="tflite-runtime has no profiler: pip install ai-edge-litert"):
        Profiler(b"", 0, 0, 1)


@litert
def test_what_the_runtime_refuses_is_told() -> None:
    model = open_model("small-speech", "3")
    with pytest.raises(ModelError, match="no variant '99'"):
        profile(model, "99")
    with pytest.raises(BackendError, match="LiteRtCreateModelFromBuffer failed"):
        Profiler(b"rubbish" * 100, 0, 0, 1)
