"""Sessions that streams share: each gets the answer to its own input, on the CPU and on a device."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from agent.compute.infer import sharing
from agent.compute.infer.failover import FailoverSession
from agent.compute.infer.litert import CpuSession
from agent.compute.infer.session import BackendSpec, Session, SessionOptions
from agent.compute.infer.sharing import SessionPools, SharedSession, is_shareable
from agent.compute.infer.vetting import VETTING
from agent.compute.infer.worker import WorkerSession
from agent.compute.manifest import Model
from agent.errors import BackendError, ModelError
from agent.models.library import open_model
from tests.support import tflite_builder as build
from tests.support.delegates import COMPILER, NO_COMPILER
from tests.support.hanging import Inferences
from tests.support.publishing import wait_for

needs_compiler = pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)
OPTIONS = SessionOptions(threads=1)


@contextmanager
def opened(
    pools: SessionPools, model: Model, count: int, options: SessionOptions = OPTIONS
) -> Iterator[list[Session]]:
    with ExitStack() as stack:
        yield [stack.enter_context(closing(pools.open_cpu(model, options, VETTING))) for _ in range(count)]


def answers(session: Session, number: float) -> None:
    session.input(0)[...] = number
    session.invoke()
    assert np.all(session.output(0) == number)


def plan(library: Path, mode: str, after: int = 0) -> BackendSpec:
    return BackendSpec("stub", "delegate", str(library), {"mode": mode, "after": str(after)}, 1)


def test_streams_at_once_get_their_own_answers_and_no_session_runs_twice_at_once(
    identity: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, used, real = set[int](), set[int](), CpuSession.invoke

    def invoke(session: CpuSession) -> None:
        assert id(session) not in running
        running.add(id(session))
        used.add(id(session))
        real(session)
        running.discard(id(session))

    monkeypatch.setattr(CpuSession, "invoke", invoke)
    errors: list[BaseException] = []

    def run(session: Session, number: int) -> None:
        try:
            for step in range(100):
                answers(session, number + 10 * step)
        except BaseException as error:
            errors.append(error)

    with opened(SessionPools(cores=2), identity, 4) as sessions:
        threads = [threading.Thread(target=run, args=(one, number)) for number, one in enumerate(sessions)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60.0)
        assert not errors
        assert 1 <= len(used) <= 2


def test_a_stream_that_fails_takes_no_other_with_it(identity: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    real = CpuSession.invoke
    with opened(SessionPools(cores=1), identity, 2) as (first, second):
        monkeypatch.setattr(CpuSession, "invoke", lambda _: (_ for _ in ()).throw(BackendError("it broke")))
        with pytest.raises(BackendError, match="it broke"):
            answers(first, 1)
        monkeypatch.setattr(CpuSession, "invoke", real)
        answers(second, 2)
        answers(first, 1)


def test_a_stream_that_hangs_takes_no_other_with_it(
    identity: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("agent.compute.infer.sharing._HANGS_S", 0.2)
    monkeypatch.setattr(sharing, "_CHECK_S", 0.05)
    inferences = Inferences(monkeypatch)
    with opened(SessionPools(cores=1), identity, 2) as (first, second):
        hanging = threading.Thread(target=answers, args=(first, 1))
        inferences._answers.clear()
        hanging.start()
        wait_for(lambda: inferences.hanging == 1)
        other = threading.Thread(target=answers, args=(second, 2))
        other.start()
        wait_for(lambda: inferences.hanging == 2)  # on another session
        inferences.answer()
        hanging.join(60.0)
        other.join(60.0)
        assert not hanging.is_alive()
        assert not other.is_alive()
        answers(first, 3)
    assert "takes longer than" in caplog.text


def test_only_what_is_the_same_is_shared(identity: Model) -> None:
    pools, other = SessionPools(), replace(identity, sha256="another")
    two = SessionOptions(threads=2)
    with (
        opened(pools, identity, 2) as same,
        opened(pools, identity, 1, two) as threads,
        opened(pools, other, 1) as models,
    ):
        sessions = [*same, *threads, *models]
        assert [one._pool.members for one in sessions if isinstance(one, SharedSession)] == [2, 2, 1, 1]


def test_streams_of_different_priorities_do_not_wait_for_each_other(identity: Model) -> None:
    pools, other = SessionPools(), SessionOptions(threads=1, priority=20)
    with opened(pools, identity, 2) as important, opened(pools, identity, 1, other) as less:
        sessions = [*important, *less]
        assert [one._pool.members for one in sessions if isinstance(one, SharedSession)] == [2, 2, 1]


def test_a_variant_is_each_streams_own() -> None:
    model = open_model("small-speech", "auto")
    assert len(model.manifest.variants) > 1
    flat = replace(
        model.manifest, audio=None, variants=tuple(replace(v, after="") for v in model.manifest.variants)
    )
    with opened(SessionPools(), replace(model, manifest=flat), 2) as (first, second):
        names = [variant.name for variant in flat.variants]
        first.select(names[0])
        second.select(names[-1])
        first.input(0)[...] = 3
        first.invoke()
        second.input(0)[...] = 5
        second.invoke()
        assert (first.variant, second.variant) == (names[0], names[-1])
        before = first.output(0).copy()
        first.invoke()  # its input is still there
        assert np.array_equal(first.output(0), before)
        with pytest.raises(ModelError, match="no variant"):
            first.select("none")
        first.invoke()


@pytest.mark.parametrize("name", ["small-speech", "speech-embedding"])
def test_sound_and_exits_are_not_shared(name: str) -> None:
    with opened(SessionPools(), open_model(name), 2) as sessions:
        assert all(isinstance(one, CpuSession) for one in sessions)


def test_a_model_that_keeps_a_state_or_gives_strings_is_not_shared(identity: Model) -> None:
    weights = build.T("weights", (4, 4), data=np.ones((4, 4), np.float32))
    for operation, dtype in (("SVDF", "float32"), ("ADD", "string")):
        tensors = [build.T("in", (1, 4)), weights, build.T("out", (1, 4), dtype)]
        content = build.write(tensors, [build.Op(operation, (0, 1), (2,))], (0,), (2,))
        assert not is_shareable(replace(identity, content=content))
    assert is_shareable(identity)
    assert not is_shareable(replace(identity, content=b"no model"))


@needs_compiler
def test_streams_share_the_process_of_a_device(library: Path, identity: Model) -> None:
    pools = SessionPools()
    with ExitStack() as stack:
        opens = partial(pools.open_worker, identity, plan(library, "fast"), OPTIONS)
        sessions = [stack.enter_context(closing(opens())) for _ in range(3)]
        for number, session in enumerate(sessions):
            answers(session, number)
        (process,) = {one._pool for one in sessions if isinstance(one, SharedSession)}
        assert process.members == 3
        assert process._count == 1


@needs_compiler
def test_a_process_that_was_killed_is_replaced_for_the_others(library: Path, identity: Model) -> None:
    pools = SessionPools()
    with ExitStack() as stack:
        opens = partial(pools.open_worker, identity, plan(library, "fast"), OPTIONS)
        first, second = (stack.enter_context(closing(opens())) for _ in range(2))
        answers(first, 1)
        assert isinstance(first, SharedSession)
        worker = first._pool._free[0]
        assert isinstance(worker, WorkerSession)
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(BackendError):
            answers(first, 2)
        answers(second, 3)
        answers(first, 4)


@needs_compiler
def test_when_a_shared_device_fails_every_stream_has_its_answer_and_all_come_back(
    library: Path, identity: Model
) -> None:
    pools = SessionPools()
    with ExitStack() as stack:
        opens = partial(FailoverSession, identity, plan(library, "fast"), OPTIONS, retry_s=0.1, pools=pools)
        streams = [stack.enter_context(closing(opens())) for _ in range(3)]
        for number, session in enumerate(streams):
            answers(session, number)
        assert [one.backend for one in streams] == ["stub"] * 3
        devices = [one._device for one in streams]
        (pool,) = {one._pool for one in devices if isinstance(one, SharedSession)}
        worker = pool._free[0]
        assert isinstance(worker, WorkerSession)
        os.kill(worker.pid, signal.SIGKILL)
        for number, session in enumerate(streams):
            answers(session, 10 + number)
        assert [one.backend for one in streams] == ["cpu"] * 3

        def is_back() -> bool:
            for number, session in enumerate(streams):
                answers(session, 20 + number)
            return all(one.backend == "stub" for one in streams)

        wait_for(is_back)
        again = {one._device._pool for one in streams if isinstance(one._device, SharedSession)}
        assert len(again) == 1
