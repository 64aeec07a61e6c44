"""MLPerf LoadGen's scenarios on one backend: SingleStream for latency, Offline for throughput.

LoadGen (https://github.com/mlcommons/inference/tree/master/loadgen) decides which input runs when, takes the
time, and judges whether the run was long enough. The model runs in a process of its own, since it may crash.
Installed by the extra `[loadgen]`.
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

from agent.compute.infer.benchmark import Inputs
from agent.compute.infer.chain import ModelChain
from agent.compute.infer.session import BackendSpec, SessionOptions
from agent.compute.infer.worker import PATIENCE_S, WorkerSession
from agent.compute.manifest import Model
from agent.errors import BackendError, ModelError, VedetteError, reason_of
from agent.types import Array

DETAIL = "mlperf_log_detail.txt"
_LINE = ":::MLLOG "
"""Prefix of a line of JSON in the detailed log."""


class Scenario(Struct, frozen=True):
    """Result of one scenario.

    Attributes:
        name: `SingleStream`: one inference after the other; `Offline`: many at once.
        result: LoadGen's verdict, `VALID` or `INVALID`, for the requested duration.
        why: the result is invalid, in LoadGen's words.
        too_short: the run was shorter than requested.
        inferences: number of inferences.
        per_s: inferences per second.
        p50_ms, p90_ms, p99_ms: latency, ms; None for Offline.
        required_s: duration that MLPerf requires, s.
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


def _read_log(folder: Path, scenario: str, required_s: float) -> Scenario:
    """Read the result of a scenario from LoadGen's log."""
    values = _log_values(folder)
    offline = scenario == "Offline"
    why = [values.get("result_invalid_reason", "")]
    why += [] if values["early_stopping_met"] else [values["early_stopping_result"]]
    p50, p90, p99 = (
        None if offline else values[f"result_{rank}.00_percentile_latency_ns"] / 1e6 for rank in (50, 90, 99)
    )
    return Scenario(
        scenario,
        values["result_validity"],
        " ".join(" ".join(why).replace("*", "").split()),
        not values["result_min_duration_met"],
        values["effective_samples_per_query"] if offline else values["result_query_count"],
        values["result_samples_per_second"] if offline else values["result_qps_with_loadgen_overhead"],
        p50,
        p90,
        p99,
        required_s,
    )


def _log_values(folder: Path) -> dict[str, Any]:
    try:
        lines = (folder / DETAIL).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    entries = (json.loads(line.removeprefix(_LINE)) for line in lines if line.startswith(_LINE))
    values = {entry["key"]: entry["value"] for entry in entries}
    if "result_validity" not in values:
        raise VedetteError(f"{folder}: LoadGen has written no result there: is the disk full?")
    return values


_PACKAGE = "mlcommons-loadgen"
_WARM_S, _WARM = 0.2, 3
_FASTER = (1.2, 1.5, 2.0)
"""Offline runs a fixed number of inferences; if that was too short, retry with the measured rate times this. On a
machine that does other work meanwhile the rate may double."""
_QUERIES = 1_000_000
"""Most queries: LoadGen holds them in memory, 320 bytes each, and twice as many as needed in SingleStream."""
_HANGS_S, _HANGS = 2.0, 50.0
"""An inference hangs if it takes longer than this, s, and longer than this factor times the quickest."""


class ScenarioResult(Struct, frozen=True):
    """Results of one backend.

    Attributes:
        name: of the backend.
        threads: of the CPU; 0 for other backends.
        version: of LoadGen.
        seconds: requested duration of each scenario, s.
        refused: why scenarios are missing: the backend crashed, hung or failed; empty: none is.
        scenarios: in the order in which they ran.
    """

    name: str
    threads: int
    version: str
    seconds: float
    refused: str = ""
    scenarios: tuple[Scenario, ...] = ()


def check(logs: Path | None = None) -> str:
    """Return the version of LoadGen.

    Args:
        logs: folder for log files; None: do not check it.

    Raises:
        VedetteError: LoadGen is not installed, or the folder cannot be written to.
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
    """Run both scenarios on one backend.

    Args:
        model: to run.
        plan: backend to run it on.
        inputs: of the model; LoadGen chooses among them.
        seconds: least duration of each scenario, s.
        logs: folder for LoadGen's log files, with a subfolder for each scenario.
        patience_s: longest time to open the model, and of its first inference, s.

    Raises:
        VedetteError: LoadGen is not installed, or cannot write there. KeyboardInterrupt: after LoadGen has ended.
    """
    version, done = check(), list[Scenario]()
    options, reason = SessionOptions(threads=plan.threads), ""
    try:
        # The usual time of this model on this board is still unknown.
        opened = WorkerSession(model, plan, options, deadline_s=patience_s, patience_s=patience_s)
        with closing(opened) as session:
            whole = ModelChain(session, model.manifest)
            run = _Run(whole, inputs(whole.inputs))
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
    for factor in _FASTER:
        if not offline.too_short or expected_s <= least_s:
            break
        expected_s = max(1.0 / (factor * offline.per_s), least_s)
        offline = run.test("Offline", seconds, expected_s, logs)
    yield offline


class _Run:
    """LoadGen's system under test. Keeps exceptions of callbacks, since LoadGen lets none through."""

    def __init__(self, whole: ModelChain, cases: Sequence[list[Array]]) -> None:
        self._loadgen = importlib.import_module("mlperf_loadgen")
        self._whole, self._cases = whole, cases
        self._failed: BaseException | None = None

    def warm_up(self) -> float:
        """Run for a moment; return the shortest time of an inference, s."""
        times: list[float] = []
        until = time.perf_counter() + _WARM_S
        while len(times) <= _WARM or time.perf_counter() < until:
            began = time.perf_counter()
            self._infer(self._cases[0])
            times.append(time.perf_counter() - began)
        return min(times[1:])

    def test(self, scenario: str, seconds: float, expected_s: float, logs: Path) -> Scenario:
        """Run one scenario.

        Raises:
            BackendError: an inference failed. VedetteError, KeyboardInterrupt: see `run_scenarios`.
        """
        loadgen, folder = self._loadgen, logs / scenario
        settings, required_s = self._settings(scenario, seconds, expected_s)
        system = loadgen.ConstructSUT(self._issue, _do_nothing)
        library = loadgen.ConstructQSL(len(self._cases), len(self._cases), _do_nothing, _do_nothing)
        try:
            with _interrupt_later(self):
                # An empty name: no audit.config of the working directory is read.
                loadgen.StartTestWithLogSettings(system, library, settings, self._logging(folder), "")
        finally:
            loadgen.DestroyQSL(library)
            loadgen.DestroySUT(system)
        if self._failed is not None:
            raise self._failed
        return _read_log(folder, scenario, required_s)

    def stop(self, reason: BaseException) -> None:
        """Run no more inferences: LoadGen ends once the issued queries are completed."""
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
        """Run one inference: one exchange with the process per variant."""
        self._whole.set_input(case)
        self._whole.invoke()

    def _settings(self, scenario: str, seconds: float, expected_s: float) -> tuple[Any, float]:
        """Return LoadGen's settings, and the duration that MLPerf requires, s."""
        settings = self._loadgen.TestSettings()
        settings.FromConfig("", "vedette", scenario, 0)  # 0: the settings of MLPerf, which are built in
        required_s = settings.min_duration_ms / 1e3
        settings.scenario = getattr(self._loadgen.TestScenario, scenario)
        settings.mode = self._loadgen.TestMode.PerformanceOnly
        settings.min_duration_ms = round(seconds * 1e3)
        settings.min_query_count = 1  # a slow model must not take longer because of it
        settings.single_stream_expected_latency_ns = expected_s * 1e9
        settings.offline_expected_qps = 1.0 / expected_s
        return settings, required_s

    def _logging(self, folder: Path) -> Any:
        _make(folder)
        (folder / DETAIL).unlink(missing_ok=True)  # an earlier log must not be taken for this one's
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
    """Make Ctrl-C end the run instead of raising inside LoadGen, which no exception may cross."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: run.stop(KeyboardInterrupt()))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _do_nothing(*_: object) -> None:
    """Callback to load, unload or flush inputs, which are in memory already."""
