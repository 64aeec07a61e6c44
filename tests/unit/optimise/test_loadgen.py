"""MLPerf LoadGen on a model in a worker process, which may die under it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent.compute.infer.benchmark import golden_inputs
from agent.compute.infer.session import BackendSpec
from agent.compute.tflite.model import TensorSpec
from agent.errors import VedetteError
from agent.models.library import open_model
from agent.optimise.loadgen import ScenarioResult, check, run_scenarios
from agent.types import Array

CPU = BackendSpec(threads=1)


def test_what_is_missing_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    with pytest.raises(VedetteError, match=r"not installed: pip install '\.\[loadgen\]' in the clone"):
        check()


@pytest.fixture
def loadgen() -> None:
    pytest.importorskip("mlperf_loadgen", reason="the extra [loadgen] is not installed")


class Trap(list[list[Array]]):
    """Inputs: when LoadGen asks for one in a scenario, something happens once."""

    def __init__(self, cases: list[list[Array]], scenario: Path, happens: Callable[[], None]) -> None:
        super().__init__(cases)
        self._scenario, self._happens = scenario, happens
        self.sprung = False

    def __getitem__(self, index: Any) -> Any:
        if not self.sprung and self._scenario.exists():
            self.sprung = True
            self._happens()
        return super().__getitem__(index)


def run(
    logs: Path, seconds: float = 0.3, scenario: str = "", happens: Callable[[], None] = lambda: None
) -> ScenarioResult:
    def inputs(specs: Sequence[TensorSpec]) -> list[list[Array]]:
        cases = golden_inputs(specs)
        return Trap(cases, logs / scenario, happens) if scenario else cases

    return run_scenarios(open_model("small-speech", "3"), CPU, inputs, seconds, logs)


def kill_worker() -> None:
    # Other tests of this process may have left workers: the newest is LoadGen's.
    worker = max(psutil.Process().children(), key=lambda child: child.create_time())
    worker.send_signal(signal.SIGSEGV)


@pytest.mark.usefixtures("loadgen")
def test_latencies_of_single_stream_and_the_throughput_of_offline(tmp_path: Path) -> None:
    outcome = run(tmp_path)
    assert (outcome.name, outcome.threads, outcome.refused) == ("cpu", 1, "")
    assert outcome.version == check()
    single, offline = outcome.scenarios
    assert (single.name, single.result, single.why) == ("SingleStream", "VALID", "")
    assert single.p50_ms is not None
    assert single.p90_ms is not None
    assert single.p99_ms is not None
    assert 0.0 < single.p50_ms <= single.p90_ms <= single.p99_ms < 300.0
    assert single.inferences >= 64
    assert single.inferences / single.per_s == pytest.approx(0.3, rel=0.3)
    assert (offline.name, offline.p50_ms, offline.p99_ms) == ("Offline", None, None)
    assert offline.result == ("INVALID" if offline.too_short else "VALID")
    assert offline.inferences > 0
    assert offline.per_s > 0.0
    assert {one.required_s for one in outcome.scenarios} == {600.0}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Offline", "SingleStream"]


@pytest.mark.usefixtures("loadgen")
def test_too_few_inferences_are_invalid_in_loadgens_words(tmp_path: Path) -> None:
    outcome = run_scenarios(open_model("nanodet", "416"), CPU, golden_inputs, 0.1, tmp_path)
    single = outcome.scenarios[0]
    assert (single.result, single.too_short) == ("INVALID", False)
    assert single.inferences < 64
    assert single.why.endswith("Need to process at least 64 queries for early stopping.")


@pytest.mark.usefixtures("loadgen")
def test_a_model_that_dies_under_it_is_a_reason_and_what_was_measured_stays(tmp_path: Path) -> None:
    outcome = run(tmp_path, scenario="Offline", happens=kill_worker)
    assert "cpu crashed: its process was killed by SIGSEGV" in outcome.refused
    assert [one.name for one in outcome.scenarios] == ["SingleStream"]


@pytest.mark.usefixtures("loadgen")
def test_one_that_dies_at_once_does_not_hold_it_up_and_the_next_is_tested_as_ever(tmp_path: Path) -> None:
    outcome = run(tmp_path / "one", 5.0, "SingleStream", kill_worker)
    assert "killed by SIGSEGV" in outcome.refused
    assert outcome.scenarios == ()
    assert run(tmp_path / "other").scenarios[0].inferences > 0


@pytest.mark.usefixtures("loadgen")
def test_ctrl_c_ends_it_and_leaves_nothing_behind(tmp_path: Path) -> None:
    before, children = signal.getsignal(signal.SIGINT), psutil.Process().children()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "one", 5.0, "SingleStream", lambda: os.kill(os.getpid(), signal.SIGINT))
    assert signal.getsignal(signal.SIGINT) is before
    assert set(psutil.Process().children()) <= set(children)
    assert run(tmp_path / "other").refused == ""


@pytest.mark.usefixtures("loadgen")
def test_an_audit_config_that_happens_to_lie_there_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "audit.config").write_text("*.*.mode = 1\n*.*.min_query_count = 1000000\n")
    monkeypatch.chdir(tmp_path)
    assert run(tmp_path / "logs").scenarios[0].inferences < 1_000_000
    assert "Audit" not in (tmp_path / "logs" / "SingleStream" / "mlperf_log_detail.txt").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audit.config", "logs"]


@pytest.mark.usefixtures("loadgen")
def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        VedetteError, match=r"file/logs/SingleStream: LoadGen's logs cannot be written there: Not a directory"
    ):
        run(tmp_path / "file" / "logs")
