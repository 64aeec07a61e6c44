"""Sessions in processes of their own, with a real delegate that misbehaves."""

from __future__ import annotations

import gc
import os
import resource
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from agent.child import LOG_BYTES
from agent.compute.infer.backends import open_session
from agent.compute.infer.benchmark import golden_inputs
from agent.compute.infer.chain import ModelChain
from agent.compute.infer.session import BackendSpec, SessionOptions
from agent.compute.infer.worker import WorkerSession
from agent.compute.manifest import Model
from agent.errors import BackendError, ModelError
from agent.models.library import open_model, open_whole_model
from tests.support.delegates import COMPILER, NO_COMPILER
from tests.support.liar import lying
from tests.support.publishing import wait_for

pytestmark = pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)
CPU = BackendSpec("cpu-apart", threads=1)


def stub(library: Path, mode: str, after: int = 0) -> BackendSpec:
    return BackendSpec("stub", "delegate", str(library), {"mode": mode, "after": str(after)}, 1)


@pytest.fixture
def session(library: Path, identity: Model) -> Iterator[WorkerSession]:
    session = WorkerSession(identity, stub(library, "fast"), SessionOptions())
    yield session
    session.close()


def test_it_answers_as_the_cpu_does_at_every_variant() -> None:
    model = open_whole_model("small-speech")
    here, there = open_session(model, "cpu", SessionOptions()), WorkerSession(model, CPU, SessionOptions())
    random = np.random.default_rng(1)
    for variant in ("3", "4", "3", "12", "6"):
        for one in (here, there):
            one.select(variant)
        assert (here.inputs, here.outputs, here.variant) == (there.inputs, there.outputs, there.variant)
        given = random.integers(-128, 128, here.inputs[0].shape).astype(np.int8)
        for one in (here, there):
            one.input(0)[...] = given
            one.invoke()
        for index in range(len(here.outputs)):
            assert (here.output(index) == there.output(index)).all()
    here.close()
    there.close()


def test_a_delegate_runs_there_and_tells_what_it_has_taken(session: WorkerSession) -> None:
    assert (session.backend, session.opened.nodes, session.opened.delegated) == ("stub", 4, 4)
    session.input(0)[...] = np.arange(1000)
    session.invoke()
    assert session.output(0).tolist() == [list(range(1000))]
    assert session.usage().cpu_s > 0.0


def test_what_was_answered_is_read_without_the_process() -> None:
    session = WorkerSession(open_whole_model("small-speech"), CPU, SessionOptions())
    session.select("3")
    session.select("12")
    session.select("3")
    session.input(0)[...] = 1
    session.invoke()
    answers = [session.output(index).copy() for index in range(len(session.outputs))]
    os.kill(session.pid, signal.SIGKILL)
    session.select("12")
    session.select("3")
    assert all((session.output(index) == one).all() for index, one in enumerate(answers))
    with pytest.raises(BackendError, match="SIGKILL"):
        session.invoke()
    session.close()


@pytest.mark.parametrize(
    ("mode", "why"),
    [
        ("refuse", "cannot be loaded: the device is busy"),
        ("crash-prepare", "stub crashed: its process was killed by SIGSEGV"),
        ("hang-prepare", "stub hangs: opening the model took longer than 3 s"),
    ],
)
def test_what_cannot_be_opened_says_why(library: Path, identity: Model, mode: str, why: str) -> None:
    with pytest.raises(BackendError, match=why):
        WorkerSession(identity, stub(library, mode), SessionOptions(), patience_s=3.0 if "hang" in mode else 60.0)


@pytest.mark.parametrize(
    ("mode", "why"),
    [
        ("crash", "stub crashed: its process was killed by SIGSEGV"),
        ("illegal", "stub crashed: its process was killed by SIGILL"),
        ("exit", "stub crashed: its process ended by itself with exit status 0"),
        ("hang", r"stub hangs: an inference took longer than 2 s"),
        ("fail", "inference failed: the device has gone$"),
    ],
)
def test_what_fails_in_mid_stream_says_why(library: Path, identity: Model, mode: str, why: str) -> None:
    session = WorkerSession(
        identity, stub(library, mode, after=2), SessionOptions(), deadline_s=2.0 if mode == "hang" else 60.0
    )
    session.invoke()
    session.invoke()
    with pytest.raises(BackendError, match=why):
        session.invoke()
    if mode != "fail":
        with pytest.raises(BackendError):
            session.invoke()
        with pytest.raises(BackendError):
            session.usage()
    session.close()


def test_it_is_timed_there_and_goes_on_as_before() -> None:
    model = open_whole_model("small-speech")
    session = WorkerSession(model, CPU, SessionOptions())
    whole = ModelChain(session, model.manifest)
    cases = golden_inputs(whole.inputs, 1)
    right = whole.run_cases(cases)
    for variant in ("12", "3"):
        session.select(variant)
        for array in (session.input(0), session.output(0)):
            array[...] = 0
    whole.set_input(cases[0])
    turn = session.time_model(0.05)
    session.select("12")
    assert np.array_equal(right[0][0], whole.outputs[0].real(session.output(0)))
    assert len(turn.ms) <= 6
    assert 0.0 < min(turn.ms) <= max(turn.ms)
    assert turn.cpu_ms > 0.0
    assert all(np.array_equal(*both) for both in zip(right[0], whole.run_cases(cases)[0], strict=True))
    session.close()


def test_a_turn_runs_the_selected_variant_on_its_inputs_there() -> None:
    session = WorkerSession(open_whole_model("small-speech"), CPU, SessionOptions())
    for variant in ("12", "3"):
        session.select(variant)
        session.input(0)[...] = 0
        turn = session.time_turn(0.001)
        assert 0.0 < min(turn.ms) <= max(turn.ms)
        assert turn.cpu_ms > 0.0
        session.invoke()
    session.close()


@pytest.mark.parametrize(
    ("mode", "why"),
    [
        ("crash", "stub crashed: its process was killed by SIGSEGV"),
        ("hang", r"stub hangs: timing the model took longer than 2\.1 s"),
        ("fail", "inference failed: the device has gone"),
    ],
)
def test_what_fails_while_it_is_timed_says_why(library: Path, identity: Model, mode: str, why: str) -> None:
    session = WorkerSession(
        identity, stub(library, mode, after=2), SessionOptions(), deadline_s=1.0 if mode == "hang" else 50.0
    )
    with pytest.raises(BackendError, match=why):
        session.time_model(0.1)
    session.close()


@pytest.mark.parametrize("mode", ["noisy", "signals", "flood"])
def test_what_talks_or_catches_signals_does_no_harm(
    library: Path, identity: Model, mode: str, capfd: pytest.CaptureFixture[str]
) -> None:
    session = WorkerSession(identity, stub(library, mode), SessionOptions())
    for number in range(50):
        session.input(0)[...] = number
        session.invoke()
        assert session.output(0)[0, 0] == number
    session.close()
    assert group(session.pid) == []
    assert capfd.readouterr() == ("", "")


def test_what_it_says_late_is_heard_although_it_said_much(library: Path, identity: Model) -> None:
    session = WorkerSession(identity, stub(library, "noisy"), SessionOptions())
    for _ in range(40_000):  # more than a memory of talk holds, twice
        session.invoke()
    assert session._process.last_log_line() in (
        "; last log line: all the time",
        "; last log line: a delegate that talks",
    )
    session.close()


def test_talk_without_end_takes_no_more_memory_than_it_was_given(library: Path, identity: Model) -> None:
    session = WorkerSession(identity, stub(library, "flood"), SessionOptions())
    log = os.fstat(session._process._log)
    assert log.st_size == LOG_BYTES
    assert log.st_blocks * 512 <= LOG_BYTES
    session.close()


def test_what_a_delegate_has_started_ends_with_it(library: Path, identity: Model) -> None:
    session = WorkerSession(identity, stub(library, "fork"), SessionOptions())
    session.invoke()
    assert len(group(session.pid)) == 2
    session.close()
    wait_for(lambda: not group(session.pid))


def test_a_crash_is_a_crash_although_a_child_holds_its_pipes(library: Path, identity: Model) -> None:
    session = WorkerSession(identity, stub(library, "fork-crash"), SessionOptions(), deadline_s=60.0)
    with pytest.raises(BackendError, match="crashed: its process was killed by SIGSEGV"):
        session.invoke()
    wait_for(lambda: not group(session.pid))
    session.close()


def test_memory_that_runs_out_ends_it_before_who_started_it(session: WorkerSession) -> None:
    assert int(Path(f"/proc/{session.pid}/oom_score_adj").read_text()) == 500


def test_modules_in_the_working_folder_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("agent/__init__.py", "resource.py", "numpy.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"open({str(tmp_path / 'was-run')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    WorkerSession(open_model("small-speech"), BackendSpec("apart"), SessionOptions()).close()
    assert not (tmp_path / "was-run").exists()


def test_a_process_that_takes_nothing_is_given_up_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "stopped"
    program.write_text("#!/bin/sh\nkill -STOP $$\n")
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    with pytest.raises(BackendError, match=r"hangs: opening the model took longer than 0\.5 s"):
        WorkerSession(
            open_model("nanodet"), BackendSpec("apart"), SessionOptions(), patience_s=0.5
        )  # more than a pipe holds


@pytest.mark.parametrize(
    "lie",
    [
        "put(b'', 1_500_000_000)",
        "put(b'[' * 100_000)",
        'put(b\'{"type":"Usage","cpu_s":1.0,"rss_mb":1.0}\')',
        "put(opened(size=1 << 40))",
        "put(opened(offset=1 << 62))",
        "put(opened(spec([1 << 31, 1 << 31])))",
        "put(opened(spec([1, 4], 'object')))",
        "put(opened(spec([0, (1 << 63) - 1])))",
        "put(opened(spec([0, 1 << 62, 1 << 62])))",
        "put(opened(spec([0, 1 << 30, 1 << 30, 1 << 30])))",
        "put(opened(spec([0, 10**30])))",
        "put(opened(spec([1, 4], 'int8', 10**30)))",
    ],
)
def test_a_process_that_lies_is_refused_at_once_and_costs_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    lying(tmp_path, monkeypatch, lie)
    gc.collect()  # what tests before this one have left is closed now, or while this one runs
    before = set(Path("/proc/self/fd").iterdir())
    tracemalloc.start()
    with pytest.raises(BackendError, match="apart sent an invalid answer: "):
        WorkerSession(open_model("small-speech"), BackendSpec("apart"), SessionOptions(), patience_s=100.0)
    assert tracemalloc.get_traced_memory()[1] < 3_000_000
    tracemalloc.stop()
    assert set(Path("/proc/self/fd").iterdir()) <= before


def test_a_process_that_cuts_the_tensors_off_does_not_end_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = f"""
put(opened())
try:
    os.ftruncate(tensors, 0)
except PermissionError:
    open({str(tmp_path / "refused")!r}, "w").close()
"""
    lying(tmp_path, monkeypatch, cut)
    session = WorkerSession(open_model("small-speech"), BackendSpec("apart"), SessionOptions())
    wait_for(lambda: (tmp_path / "refused").exists())  # else what follows ends this process with SIGBUS
    session.input(0)[...] = 1.0
    session.invoke()
    assert session.input(0).tolist() == [[1.0] * 4]
    session.close()


def test_times_that_cannot_be_true_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lying(tmp_path, monkeypatch, 'put(opened())\nget()\nput(b\'{"type":"TimingRun","ms":[],"cpu_ms":0.0}\')')
    session = WorkerSession(open_model("small-speech"), BackendSpec("apart"), SessionOptions())
    with pytest.raises(BackendError, match="apart sent an invalid answer: 0 inferences"):
        session.time_model(0.1)
    session.close()


@pytest.mark.parametrize("more", range(4))
def test_without_descriptors_there_is_an_error_and_nothing_is_left_open(
    session: WorkerSession, more: int
) -> None:
    model = open_model("small-speech")
    before = set(Path("/proc/self/fd").iterdir())
    used = {int(path.name) for path in before}
    limit = [number for number in range(len(used) + 4) if number not in used][more]  # so many, and not one above
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        with pytest.raises(BackendError, match="Too many open files"):
            WorkerSession(model, BackendSpec("apart"), SessionOptions())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert set(Path("/proc/self/fd").iterdir()) == before


def group(number: int) -> list[int]:
    """Processes of a process group that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, leader = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(leader) == number and state != "Z":
            found.append(int(path.parent.name))
    return found


def test_a_killed_process_is_told_from_a_hanging_one(session: WorkerSession) -> None:
    os.kill(session.pid, signal.SIGKILL)
    with pytest.raises(BackendError, match="killed by SIGKILL"):
        session.invoke()


def test_a_model_that_is_broken_is_the_models_fault() -> None:
    model = open_model("small-speech")
    with pytest.raises(ModelError) as caught:
        WorkerSession(Model(model.content[:5000], "", model.manifest, "cut.tflite"), CPU, SessionOptions())
    assert not isinstance(caught.value, BackendError)
    assert str(caught.value).startswith("cut.tflite: ")


def test_a_library_that_is_none_is_named(identity: Model) -> None:
    with pytest.raises(BackendError, match=r"/no/such\.so cannot be loaded"):
        WorkerSession(identity, BackendSpec("stub", "delegate", "/no/such.so"), SessionOptions())


def test_it_does_not_outlive_its_parent(tmp_path: Path) -> None:
    code = """
import time
from agent.compute.infer.session import SessionOptions, BackendSpec
from agent.child import LOG_BYTES
from agent.compute.infer.worker import WorkerSession
from agent.models.library import open_model
print(WorkerSession(open_model("small-speech"), BackendSpec("apart"), SessionOptions()).pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    until = time.monotonic() + 60.0
    while Path(f"/proc/{child}/stat").exists() and time.monotonic() < until:
        if Path(f"/proc/{child}/stat").read_text().split()[2] == "Z":
            break
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{child}/stat").exists()
