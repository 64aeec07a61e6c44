"""The backend of a model is measured once, stored, and applied while a stream runs: with a real delegate."""

from __future__ import annotations

import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.board.identity import read_board
from agent.compute.infer import benchmark
from agent.compute.infer.backends import open_session
from agent.compute.infer.benchmark import Measurement
from agent.compute.infer.failover import FailoverSession
from agent.compute.infer.litert import CpuSession
from agent.compute.infer.session import Session, SessionOptions
from agent.compute.infer.sharing import SharedSession, SwappableSession
from agent.compute.manifest import Model
from agent.config import SelectionConfig
from agent.daemon import measurements
from agent.daemon.autoselect import AutoBackend
from agent.daemon.measurements import StoredMeasurement, StoredMeasurements
from agent.errors import BackendError
from agent.models.library import open_model
from agent.storage.state import MeasurementFiles
from tests.support.delegates import COMPILER, NO_COMPILER, compiled, identity_model
from tests.support.publishing import wait_for

pytestmark = pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)

LATE = 1e6


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("delegate"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """One that takes longer than a worker process waits for its turn on a busy machine."""
    return open_model(str(identity_model(tmp_path_factory.mktemp("model"), steps=2400)))


def selection(library: Path, mode: str = "fast", after_s: float = 0.0) -> SelectionConfig:
    name = f"external:{library}?mode={mode}"
    return SelectionConfig(candidates=(name,), threads_max=1, after_s=after_s)


def opened(chooser: AutoBackend, model: Model, threads: int = 0) -> SwappableSession:
    session = chooser.open(model, "auto", SessionOptions(threads=threads))
    assert isinstance(session, SwappableSession)
    return session


def answers(session: Session, number: int) -> None:
    session.input(0)[...] = number
    session.invoke()
    assert np.all(session.output(0) == number)


def files(folder: Path) -> list[Path]:
    return sorted((folder / "verdicts").glob("*.json"))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, library: Path, model: Model) -> Path:
    """A state folder with the model's survey in it, as of a machine that had nothing else to do."""
    folder = tmp_path_factory.mktemp("state")
    surveys = StoredMeasurements(MeasurementFiles(folder), selection(library))
    surveys.measure_and_store(model, surveys.delegates(), lambda _: None)
    (file,) = files(folder)
    kept = msgspec.json.decode(file.read_bytes(), type=StoredMeasurement)
    cpu, device = kept.measured
    fast = replace(device, p50_ms=cpu.p50_ms / 4.0, p95_ms=cpu.p95_ms / 4.0, cpu_ms=cpu.cpu_ms / 4.0)
    file.write_bytes(msgspec.json.encode(replace(kept, measured=(cpu, fast))))
    return folder


@pytest.fixture
def state(tmp_path: Path, measured: Path) -> Path:
    """A copy of it."""
    (tmp_path / "verdicts").mkdir()
    for file in files(measured):
        (tmp_path / "verdicts" / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.fixture
def no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(measurements, "survey", refuse)


def test_a_stream_starts_on_the_cpu_and_goes_over_when_it_is_known_what_is_best(
    tmp_path: Path, library: Path, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    chooser = AutoBackend(selection(library, after_s=0.3), tmp_path)
    session = opened(chooser, model)
    assert session.backend == "cpu"
    answers(session, 1)
    wait_for(lambda: session.plan.kind == "delegate", 60.0)
    answers(session, 2)
    assert session.backend == f"external:{library}?mode=fast"
    assert session.degraded == ""
    assert f"{model.path}: now runs on external:{library}?mode=fast" in caplog.text
    assert "cpu with 1 thread: " in caplog.text
    (file,) = files(tmp_path)
    kept = msgspec.json.decode(file.read_bytes(), type=StoredMeasurement)
    assert [one.name for one in kept.measured] == ["cpu", f"external:{library}?mode=fast"]
    assert 0.0 <= kept.busy <= 1.0
    session.close()
    chooser.close()


@pytest.mark.usefixtures("no_measuring")
def test_what_was_measured_before_is_used_at_once(state: Path, library: Path, model: Model) -> None:
    chooser = AutoBackend(selection(library, after_s=LATE), state)
    session = opened(chooser, model)
    wait_for(lambda: session.plan.kind == "delegate", 60.0)
    answers(session, 3)
    session.close()
    chooser.close()


@pytest.mark.usefixtures("no_measuring")
def test_streams_that_share_go_over_to_one_device_together(state: Path, library: Path, model: Model) -> None:
    chooser = AutoBackend(selection(library, after_s=LATE), state)
    sessions = [opened(chooser, model) for _ in range(3)]
    wait_for(lambda: all(one.plan.kind == "delegate" for one in sessions), 60.0)
    for number, session in enumerate(sessions):
        answers(session, number)
    inner = [cast("FailoverSession", one._session) for one in sessions]
    for part in ("_device", "_cpu"):
        pools = {cast("SharedSession", getattr(one, part))._pool for one in inner}
        assert [(pool.members, pool._count) for pool in pools] == [(3, 1)]
    for session in sessions:
        session.close()
    chooser.close()


@pytest.mark.usefixtures("no_measuring")
def test_the_choice_changes_with_the_configuration(state: Path, library: Path, model: Model) -> None:
    (file,) = files(state)
    kept = msgspec.json.decode(file.read_bytes(), type=StoredMeasurement)
    cpu, device = kept.measured
    costly = replace(device, cpu_ms=10.0 * cpu.cpu_ms)
    file.write_bytes(msgspec.json.encode(replace(kept, measured=(cpu, costly))))
    by_energy = msgspec.structs.replace(selection(library, after_s=LATE), by="energy")
    chooser = AutoBackend(by_energy, state)
    session = opened(chooser, model)
    assert isinstance(session._session, SharedSession)
    assert session.plan.threads == 1
    chooser.configure(selection(library, after_s=LATE))
    wait_for(lambda: session.plan.kind == "delegate", 60.0)
    answers(session, 4)
    chooser.configure(by_energy)
    wait_for(lambda: session.plan.kind == "cpu")
    answers(session, 5)
    assert session.backend == "cpu"
    session.close()
    chooser.close()


@pytest.mark.usefixtures("no_measuring")
def test_what_two_streams_open_at_the_same_moment_is_not_forgotten(
    state: Path, library: Path, model: Model
) -> None:
    """The first to look through what is open is held up until the other has opened its own, or cannot."""
    chooser = AutoBackend(selection(library, after_s=LATE), state)
    second, held = threading.Event(), threading.Event()

    class Slow:
        def session(self) -> None:
            if not held.is_set():
                held.set()
                second.wait(0.3)

        def shares(self, *_: object) -> bool:
            return False

    chooser._open.append(cast("Any", Slow()))
    sessions: list[SwappableSession] = []
    thread = threading.Thread(target=lambda: sessions.append(opened(chooser, model)))
    thread.start()
    assert held.wait(60.0)
    sessions.append(opened(chooser, model))
    second.set()
    thread.join(60.0)
    assert {id(one.session()) for one in chooser._open} == set(map(id, sessions))
    for session in sessions:
        session.close()
    chooser.close()


def altered(content: bytes, **fields: object) -> bytes:
    """A verdict whose first candidate, the CPU, is said to be so."""
    made = msgspec.json.decode(content)
    made["measured"][0].update(fields)
    return msgspec.json.encode(made)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"\0" * len(content),
        lambda content: content[: len(content) // 2],
        lambda content: b"{}",
        lambda content: content.replace(b'"p50_ms":', b'"p50_ms":"fast", "x":'),
        lambda content: b"\xff" + content,
        lambda content: b"[" * 100_000,
        lambda content: content.replace(b'"name":"cpu"', b'"name":"cp\xff"'),
        lambda content: b'{"x":' + b"[" * 400_000 + b"]" * 400_000 + b"}",
        lambda content: b'{"x":' + b'{"y":' * 100_000 + b"0" + b"}" * 100_001,
        lambda content: altered(content, threads=10**9),
        lambda content: altered(content, threads=-3),
        lambda content: altered(content, threads=2),
        lambda content: altered(content, p50_ms=-5e300),
        lambda content: altered(content, p50_ms=0.0),
        lambda content: altered(content, p50_ms=1e300),
        lambda content: altered(content, refused="no"),
        lambda content: altered(content, name="gpu"),
        lambda content: msgspec.json.encode(msgspec.json.decode(content) | {"busy": 1e308}),
        lambda content: msgspec.json.encode(msgspec.json.decode(content) | {"measured": []}),
        lambda content: re.sub(rb'"at":"[^"]*"', b'"at":"0000-00-00T99:00:00Z"', content),
        lambda content: content.replace(b'"cpu"', b'"c\xf0u"'),  # one bit of a card
    ],
)
def test_a_damaged_or_impossible_verdict_is_told_and_measured_anew(
    state: Path, library: Path, model: Model, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    (file,) = files(state)
    assert callable(damage)
    file.write_bytes(damage(file.read_bytes()))
    surveys = StoredMeasurements(MeasurementFiles(state), selection(library))
    assert surveys.load_valid(model, surveys.delegates()) is None
    assert f"{file}: damaged: " in caplog.text
    assert "measuring again" in caplog.text


@given(data=st.data())
def test_no_byte_of_a_verdict_keeps_the_daemon_from_starting(
    measured: Path, library: Path, model: Model, data: st.DataObject
) -> None:
    (file,) = files(measured)
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "verdicts").mkdir()
        (Path(folder) / "verdicts" / file.name).write_bytes(content)
        surveys = StoredMeasurements(MeasurementFiles(Path(folder)), selection(library))
        found = surveys.delegates()
        if (made := surveys.load_valid(model, found)) is not None:
            assert surveys.select(made, found).cpu.threads == 1


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_a_daemon_starts_with_a_pipe_a_folder_or_a_device_in_place_of_a_verdict(
    state: Path, library: Path, model: Model, make: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    (file,) = files(state)
    file.unlink()
    make(file)
    chooser = AutoBackend(selection(library, after_s=LATE), state)
    session = opened(chooser, model)
    answers(session, 9)
    assert f"{file}: is a " in caplog.text
    session.close()
    chooser.close()


def test_one_that_another_version_wrote_is_none(
    state: Path, library: Path, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    (file,) = files(state)
    kept = msgspec.json.decode(file.read_bytes(), type=StoredMeasurement)
    surveys = StoredMeasurements(MeasurementFiles(state), selection(library))
    assert surveys.load_valid(model, surveys.delegates()) == kept
    file.write_bytes(msgspec.json.encode(replace(kept, version=0, measured=())))
    assert surveys.load_valid(model, surveys.delegates()) is None
    assert caplog.text == ""


def test_a_device_that_answered_with_no_numbers_is_remembered(
    tmp_path: Path, library: Path, model: Model
) -> None:
    surveys = StoredMeasurements(MeasurementFiles(tmp_path), selection(library, "nan"))
    found = surveys.delegates()
    made = surveys.measure_and_store(model, found, lambda _: None)
    assert made.measured[1].error is None
    assert made.measured[1].refused == "answers wrongly: not all numbers are finite"
    assert surveys.load_valid(model, found) == made


def test_a_change_of_the_board_is_told(
    state: Path, library: Path, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (file,) = files(state)
    kept = msgspec.json.decode(file.read_bytes(), type=StoredMeasurement)
    older = replace(kept, circumstances=replace(kept.circumstances, kernel="5.10.0", cores=99))
    file.write_bytes(msgspec.json.encode(older))
    surveys = StoredMeasurements(MeasurementFiles(state), selection(library))
    assert surveys.load_valid(model, surveys.delegates()) is None
    assert "kernel, cores changed since it was measured" in caplog.text


def test_what_cannot_be_kept_is_used_all_the_same(
    tmp_path: Path, library: Path, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "verdicts").write_text("in the way")
    chooser = AutoBackend(selection(library), tmp_path)
    session = opened(chooser, model)
    wait_for(lambda: session.plan.kind == "delegate", 60.0)
    assert "measuring again after the next start" in caplog.text
    session.close()
    chooser.close()


def test_a_device_that_crashes_is_not_taken(
    tmp_path: Path, library: Path, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    chooser = AutoBackend(selection(library, "crash"), tmp_path)
    session = opened(chooser, model)
    wait_for(lambda: "now runs on the CPU with 1 thread" in caplog.text)
    assert "killed by SIGSEGV" in caplog.text
    answers(session, 6)
    assert session.backend == "cpu"
    session.close()
    chooser.close()


@pytest.mark.usefixtures("no_measuring")
def test_threads_that_were_asked_for_are_given(state: Path, library: Path, model: Model) -> None:
    (file,) = files(state)
    kept = msgspec.json.decode(file.read_bytes(), type=StoredMeasurement)
    cpu, device = kept.measured
    slow = replace(device, refused="slower")
    file.write_bytes(msgspec.json.encode(replace(kept, measured=(cpu, slow))))
    chooser = AutoBackend(selection(library, after_s=LATE), state)
    session = opened(chooser, model, threads=3)
    assert session.plan.threads == 3
    session.close()
    chooser.close()


@pytest.mark.usefixtures("no_measuring")
def test_threads_that_were_asked_for_are_given_even_where_they_were_refused(
    state: Path, library: Path, model: Model
) -> None:
    (file,) = files(state)
    kept = msgspec.json.decode(file.read_bytes(), type=StoredMeasurement)
    cpu, device = kept.measured
    two = Measurement("cpu", cpu.title, 2, refused="killed by SIGSEGV")
    wider = replace(kept.circumstances, threads_max=2)
    slow = replace(device, p50_ms=10.0 * cpu.p50_ms)
    file.write_bytes(msgspec.json.encode(replace(kept, circumstances=wider, measured=(cpu, two, slow))))
    chooser = AutoBackend(replace(selection(library, after_s=LATE), threads_max=2), state)
    for threads, given_ in ((2, 2), (0, 1)):
        session = opened(chooser, model, threads)
        assert session.plan.threads == given_
        answers(session, 5)
        session.close()
    chooser.close()


def test_an_explicit_backend_is_as_it_was_asked_for(tmp_path: Path, library: Path, model: Model) -> None:
    chooser = AutoBackend(selection(library, after_s=LATE), tmp_path)
    cpu = chooser.open(model, "cpu", SessionOptions())
    assert isinstance(cpu, SharedSession)
    device = chooser.open(model, f"external:{library}?mode=fast,cpu", SessionOptions())
    assert isinstance(device, FailoverSession)
    answers(device, 7)
    with pytest.raises(BackendError, match="no backend"):
        chooser.open(model, "gpv", SessionOptions())
    for session in (cpu, device):
        session.close()
    assert chooser._thread is None


def test_nothing_is_measured_for_a_session_that_is_gone(tmp_path: Path, library: Path, model: Model) -> None:
    chooser = AutoBackend(selection(library, after_s=0.2), tmp_path)
    session = opened(chooser, model)
    session.close()
    del session
    time.sleep(0.6)
    assert files(tmp_path) == []
    chooser.close()


def test_measuring_ends_with_the_daemon(
    tmp_path: Path, library: Path, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    chooser = AutoBackend(replace(selection(library), threads_max=2), tmp_path)
    session = opened(chooser, model)
    wait_for(lambda: "measuring" in caplog.text)
    chooser.close()
    thread = chooser._thread
    assert isinstance(thread, threading.Thread)
    thread.join(60.0)
    assert not thread.is_alive()
    assert files(tmp_path) == []
    answers(session, 8)
    session.close()


def test_a_model_that_cannot_be_measured_stays_on_the_cpu(
    tmp_path: Path, library: Path, model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    def fail(*_: object, **__: object) -> None:
        asked.append(1)
        raise BackendError("no memory")

    monkeypatch.setattr(measurements, "survey", fail)
    chooser = AutoBackend(selection(library), tmp_path)
    one, other = opened(chooser, model), opened(chooser, model)
    wait_for(lambda: "stays on the CPU: no memory" in caplog.text)
    chooser.configure(selection(library))
    time.sleep(0.3)
    assert len(asked) == 1
    one.close()
    other.close()
    chooser.close()


def test_without_a_chooser_auto_is_the_cpu(model: Model) -> None:
    session = open_session(model, "auto", SessionOptions())
    assert isinstance(session, CpuSession)
    session.close()


def test_streams_of_one_model_get_the_threads_that_suit_all_of_them(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the measurement finds is replaced, since it depends on the machine; all else is real."""
    alone = tuple(Measurement("cpu", threads=count, p50_ms=10.0 / count, cpu_ms=10.0) for count in (1, 2))
    monkeypatch.setattr(measurements, "survey", lambda *_, **__: alone)
    monkeypatch.setattr(measurements, "read_board", lambda: replace(read_board(), cores=2))
    chooser = AutoBackend(SelectionConfig(candidates=(), threads_max=2, after_s=0.0), tmp_path)
    first = opened(chooser, model)
    wait_for(lambda: first.plan.threads == 2)
    second = opened(chooser, model)
    wait_for(lambda: first.plan.threads == second.plan.threads == 1)
    for session in (first, second):
        answers(session, 7)
    third = opened(chooser, model)
    assert third.plan.threads == 1
    for session in (first, second, third):
        session.close()
    chooser.close()


def test_streams_that_run_as_measured_already_do_not_open_their_model_again(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.daemon.autoselect.default_threads", lambda _: 1)
    monkeypatch.setattr(
        benchmark, "survey", lambda *_, **__: (Measurement("cpu", threads=1, p50_ms=10.0, cpu_ms=10.0),)
    )
    monkeypatch.setattr(measurements, "read_board", lambda: replace(read_board(), cores=2))
    chooser = AutoBackend(SelectionConfig(candidates=(), threads_max=2, after_s=0.0), tmp_path)
    sessions = [opened(chooser, model) for _ in range(2)]
    wait_for(lambda: chooser._may_be_measured and not chooser._waiting)
    chooser._queued.put(None)
    wait_for(chooser._queued.empty)  # whatever was queued before has been done
    shared = [session._session for session in sessions]
    assert [one._pool.members for one in shared if isinstance(one, SharedSession)] == [2, 2]
    for session in sessions:
        session.close()
    chooser.close()
