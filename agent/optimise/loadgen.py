"""MLPerf LoadGen's scenarios on one way to run a model: SingleStream for latency, Offline for throughput.

LoadGen (https://github.com/mlcommons/inference/tree/master/loadgen) says which input is to be run when, takes the
time, and judges whether there was enough of it. The model runs in a process of its own: a crash is a reason. It
comes with the extra `[loadgen]`.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from msgspec import Struct

from agent.compute.infer.chain import ModelChain
from agent.compute.infer.choice import Inputs
from agent.compute.infer.session import BackendSpec, SessionOptions
from agent.compute.infer.worker.session import PATIENCE_S, WorkerSession
from agent.compute.manifest import Model
from agent.errors import BackendError, ModelError, VedetteError, reason_of
from agent.types import Array

# What MLPerf LoadGen has written of a scenario: its detailed log has a line of JSON for each thing it knows.

DETAIL = "mlperf_log_detail.txt"
_LINE = ":::MLLOG "


class Scenario(Struct, frozen=True):
    """What LoadGen found.

    Attributes:
        name: `SingleStream`: one inference after the other, each on its own; `Offline`: many at once.
        result: LoadGen's own word, `VALID` or `INVALID`, for the seconds that were asked for.
        why: it is not valid, in LoadGen's words. too_short: it did not take the seconds that were asked for.
        inferences: number of them.
        per_s: inferences per second.
        p50_ms, p90_ms, p99_ms: latency; None: Offline has none.
        required_s: what MLPerf asks for, s.
    """

    name: str
    result: str
    why: str
    too_short: bool
    inferences: int
    per_s: float
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    required_s: float


def read_log(folder: Path, scenario: str, required_s: float) -> Scenario:
    """What LoadGen found.

    Args:
        folder: with its log files.
        scenario: its name.
        required_s: see `Scenario`.

    Raises:
        VedetteError: there is no result.
    """
    try:
        lines = (folder / DETAIL).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    entries = (json.loads(line.removeprefix(_LINE)) for line in lines if line.startswith(_LINE))
    told = {entry["key"]: entry["value"] for entry in entries}
    if "result_validity" not in told:
        raise VedetteError(f"{folder}: LoadGen has written no result there: is the disk full?")
    offline = scenario == "Offline"
    why = [told.get("result_invalid_reason", "")]
    why += [] if told["early_stopping_met"] else [told["early_stopping_result"]]
    p50, p90, p99 = (
        None if offline else told[f"result_{rank}.00_percentile_latency_ns"] / 1e6 for rank in (50, 90, 99)
    )
    return Scenario(
        scenario,
        told["result_validity"],
        " ".join(" ".join(why).replace("*", "").split()),
        not told["result_min_duration_met"],
        told["effective_samples_per_query"] if offline else told["result_query_count"],
        told["result_samples_per_second"] if offline else told["result_qps_with_loadgen_overhead"],
        p50,
        p90,
        p99,
        required_s,
    )


_PACKAGE = "mlcommons-loadgen"
_WARM_S, _WARM = 0.2, 3
_FASTER = 1.2
"""Offline runs a number that is told before: where that was too few, so many times the speed that was seen."""
_QUERIES = 1_000_000
"""LoadGen holds all of them in memory, 320 bytes each, and of SingleStream twice as many as there is time for."""
_HANGS_S, _HANGS = 2.0, 50.0
"""An inference that takes longer than this, and than so many times the first ones, hangs."""


class ScenarioResult(Struct, frozen=True):
    """One way to run a model, tested.

    Attributes:
        name: of the way. threads: of the CPU; 0 where that says nothing.
        version: of LoadGen.
        seconds: that each scenario was to take at least.
        refused: why there are not all scenarios: the way crashed, hung or failed.
        scenarios: one after the other.
    """

    name: str
    threads: int
    version: str
    seconds: float
    refused: str = ""
    scenarios: tuple[Scenario, ...] = ()


def check(logs: Path | None = None) -> str:
    """The version of LoadGen.

    Args:
        logs: folder that is to be written to.

    Raises:
        VedetteError: it is not installed, or the folder cannot be written to.
    """
    if logs is not None:
        _make(logs)
    try:
        importlib.import_module("mlperf_loadgen")
        return importlib.metadata.version(_PACKAGE)
    except ModuleNotFoundError:
        what = "MLPerf LoadGen is not installed: pip install '.[loadgen]' in the clone"
        compiler = (
            "" if platform.machine() == "x86_64" else "; it is built here: sudo apt-get install g++ python3-dev"
        )
        raise VedetteError(what + compiler) from None
    except ImportError as error:
        raise VedetteError(f"MLPerf LoadGen cannot be loaded: {error}") from error


def run_scenarios(
    model: Model,
    plan: BackendSpec,
    inputs: Inputs,
    seconds: float,
    logs: Path,
    *,
    patience_s: float = PATIENCE_S,
) -> ScenarioResult:
    """Test a way to run a model in both scenarios.

    Args:
        model: to run.
        plan: how.
        inputs: that it is run on, in LoadGen's order.
        seconds: that each scenario takes at least, s.
        logs: folder for LoadGen's log files; each scenario has one of its own in it.
        patience_s: for opening the model and for its first inference, s.

    Raises:
        VedetteError: LoadGen is not installed, or cannot write there. KeyboardInterrupt: after LoadGen has ended.
    """
    version, done = check(), list[Scenario]()
    options, reason = SessionOptions(threads=plan.threads), ""
    try:
        # Nobody knows yet what is long for this model on this board.
        opened = WorkerSession(model, plan, options, deadline_s=patience_s, patience_s=patience_s)
        with closing(opened) as session:
            whole = ModelChain(session, model.manifest)
            run = _Run(session, whole, inputs(whole.inputs))
            quickest_s = run.warm_up()
            session.deadline_s = max(_HANGS_S, quickest_s * _HANGS)
            for scenario in _scenarios(run, seconds, quickest_s, logs):
                done.append(scenario)
    except (BackendError, ModelError) as error:
        reason = str(error)
    return ScenarioResult(plan.backend, plan.threads, version, seconds, reason, tuple(done))


def _scenarios(run: _Run, seconds: float, quickest_s: float, logs: Path) -> Iterator[Scenario]:
    least_s = 2.0 * seconds / _QUERIES
    yield (single := run.test("SingleStream", seconds, max(quickest_s, least_s), logs))
    assert single.p50_ms is not None
    expected_s = max(single.p50_ms / 1e3, least_s)
    offline = run.test("Offline", seconds, expected_s, logs)
    if offline.too_short and expected_s > least_s:
        expected_s = max(1.0 / (_FASTER * offline.per_s), least_s)
        offline = run.test("Offline", seconds, expected_s, logs)
    yield offline


class _Run:
    """LoadGen's system under test. What goes wrong in a callback is kept: LoadGen lets no exception through."""

    def __init__(self, session: WorkerSession, whole: ModelChain, cases: Sequence[list[Array]]) -> None:
        self._loadgen = importlib.import_module("mlperf_loadgen")
        self._session, self._whole, self._cases = session, whole, cases
        self._failed: BaseException | None = None

    def warm_up(self) -> float:
        """Run it for a moment; gives the shortest time of an inference, s."""
        times: list[float] = []
        until = time.perf_counter() + _WARM_S
        while len(times) <= _WARM or time.perf_counter() < until:
            began = time.perf_counter()
            self._infer(self._cases[0])
            times.append(time.perf_counter() - began)
        return min(times[1:])

    def test(self, scenario: str, seconds: float, expected_s: float, logs: Path) -> Scenario:
        """Have LoadGen test it.

        Args:
            scenario: its name.
            seconds: at least, s.
            expected_s: time of an inference, s.
            logs: see `run_scenarios`.

        Raises:
            BackendError: an inference failed. VedetteError, KeyboardInterrupt: see `run_scenarios`.
        """
        loadgen, folder = self._loadgen, logs / scenario
        settings, required_s = self._settings(scenario, seconds, expected_s)
        system = loadgen.ConstructSUT(self._issue, _nothing)
        library = loadgen.ConstructQSL(len(self._cases), len(self._cases), _nothing, _nothing)
        try:
            with _interrupt_later(self):
                # An audit.config in the current folder is not for us: no name is none.
                loadgen.StartTestWithLogSettings(system, library, settings, self._logging(folder), "")
        finally:
            loadgen.DestroyQSL(library)
            loadgen.DestroySUT(system)
        if self._failed is not None:
            raise self._failed
        return read_log(folder, scenario, required_s)

    def stop(self, reason: BaseException) -> None:
        """Run nothing more: LoadGen ends as soon as it has been answered."""
        self._failed = self._failed or reason

    def _issue(self, samples: list[Any]) -> None:
        for sample in samples:
            if self._failed is None:
                try:
                    self._infer(self._cases[sample.index])
                except BaseException as error:
                    self.stop(error)
            self._loadgen.QuerySamplesComplete([self._loadgen.QuerySampleResponse(sample.id, 0, 0)])

    def _infer(self, case: list[Array]) -> None:
        """To the process and back: once on the CPU, and for each variant on anything else, as in the daemon."""
        self._whole.set_input(case)
        if self._session.backend == BackendSpec().backend:
            self._session.invoke_chain()
        else:
            self._whole.invoke()

    def _settings(self, scenario: str, seconds: float, expected_s: float) -> tuple[Any, float]:
        """LoadGen's settings, and for how many seconds MLPerf has it run."""
        settings = self._loadgen.TestSettings()
        settings.FromConfig("", "vedette", scenario, 0)  # 0: MLPerf's own, which LoadGen has within
        required_s = settings.min_duration_ms / 1e3
        settings.scenario = getattr(self._loadgen.TestScenario, scenario)
        settings.mode = self._loadgen.TestMode.PerformanceOnly
        settings.min_duration_ms = round(seconds * 1e3)
        settings.min_query_count = 1  # a slow model is not to take longer for it
        settings.single_stream_expected_latency_ns = expected_s * 1e9
        settings.offline_expected_qps = 1.0 / expected_s
        return settings, required_s

    def _logging(self, folder: Path) -> Any:
        _make(folder)
        (folder / DETAIL).unlink(missing_ok=True)  # one of before is not to be taken for this one's
        settings = self._loadgen.LogSettings()
        settings.log_output.outdir = str(folder)
        settings.enable_trace = False
        return settings


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise VedetteError(f"{folder}: LoadGen's logs cannot be written there: {reason_of(error)}") from error


@contextmanager
def _interrupt_later(run: _Run) -> Iterator[None]:
    """Ctrl-C ends the run instead of raising inside of LoadGen, which no exception may cross."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: run.stop(KeyboardInterrupt()))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _nothing(*_: object) -> None:
    """The inputs are in memory all the time, and none waits."""
