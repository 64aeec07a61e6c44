"""A device that fails in mid-stream, with the CPU standing by."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

from agent.compute.infer.backends import open_session
from agent.compute.infer.failover import FailoverSession
from agent.compute.infer.session import BackendSpec, Session, SessionOptions
from agent.compute.infer.worker import WorkerSession
from agent.compute.manifest import Model
from agent.models.library import open_whole_model
from tests.support.delegates import COMPILER, NO_COMPILER
from tests.support.liar import lying
from tests.support.publishing import wait_for

pytestmark = pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)


def session(
    library: Path,
    model: Model,
    mode: str,
    after: int = 4,
    *,
    deadline_s: float = 60.0,
    retry_s: float = 0.1,
    check_s: float = 30.0,
) -> FailoverSession:
    plan = BackendSpec("stub", "delegate", str(library), {"mode": mode, "after": str(after)}, 1)
    return FailoverSession(model, plan, SessionOptions(), deadline_s=deadline_s, retry_s=retry_s, check_s=check_s)


def answers(session: FailoverSession, number: int) -> None:
    session.input(0)[...] = number
    session.invoke()
    assert session.output(0)[0, 0] == number


def until(session: FailoverSession, backend: str) -> int:
    """Inferences until that answers."""
    deadline = time.monotonic() + 60.0
    for number in range(1_000_000):
        answers(session, number)
        if session.backend == backend:
            return number
        assert time.monotonic() < deadline, session.degraded
        time.sleep(0.01)
    raise AssertionError


@pytest.mark.parametrize(
    ("mode", "why"),
    [
        ("crash", "killed by SIGSEGV"),
        ("exit", "exit status 0"),
        ("hang", "took longer than 2 s"),
        ("fail", "the device has gone"),
    ],
)
def test_the_same_input_is_answered_and_the_device_comes_back(
    library: Path, identity: Model, mode: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    deadline_s = 2.0 if mode == "hang" else 60.0
    # Three of its right answers are the test of it.
    both = session(library, identity, mode, after=5, deadline_s=deadline_s)
    for number in range(2):
        answers(both, number)
        assert (both.backend, both.degraded) == ("stub", "")
    answers(both, 7)
    assert both.backend == "cpu"
    assert why in both.degraded
    assert until(both, "stub") > 0
    assert both.degraded == ""
    assert "the CPU answers until it comes back" in caplog.text
    assert "stub is in use again" in caplog.text
    both.close()


def test_answers_that_turn_wrong_are_found_by_checking(library: Path, identity: Model) -> None:
    both = session(library, identity, "wrong", check_s=0.0)
    random = np.random.default_rng(1)
    for _ in range(8):
        given = random.random((1, 1000), np.float32)
        both.input(0)[...] = given
        both.invoke()
        assert (both.output(0) == given).all()
    assert both.backend == "cpu"
    assert "answers wrongly" in both.degraded
    both.close()


def test_a_device_that_cannot_be_opened_is_tried_again(library: Path, identity: Model) -> None:
    both = session(library, identity, "refuse", 0)
    for number in range(3):
        answers(both, number)
    assert both.backend == "cpu"
    assert "the device is busy" in both.degraded
    both.close()


def test_a_device_that_is_wrong_from_the_first_is_not_used(library: Path, identity: Model) -> None:
    both = session(library, identity, "wrong", 0)
    answers(both, 1)
    assert (both.backend, "answers wrongly" in both.degraded) == ("cpu", True)
    both.close()


def test_what_is_closed_is_gone_without_a_collection(library: Path, identity: Model) -> None:
    both = session(library, identity, "fast")
    left = weakref.ref(both)
    both.close()
    gc.disable()
    try:
        del both
        wait_for(lambda: left() is None)
    finally:
        gc.enable()


def test_every_variant_is_answered_by_whoever_is_there() -> None:
    model = open_whole_model("small-speech")
    cpu = open_session(model, "cpu", SessionOptions())
    both = FailoverSession(model, BackendSpec("apart"), SessionOptions(), retry_s=0.1)
    random = np.random.default_rng(2)
    deadline = time.monotonic() + 60.0
    for turn, variant in enumerate(itertools.cycle(("3", "4", "6", "12", "3", "4"))):
        if turn >= 36 and both.backend == "apart":
            break
        assert time.monotonic() < deadline, both.degraded
        if turn == 9:
            assert isinstance(both._device, WorkerSession)
            os.kill(both._device.pid, signal.SIGKILL)
        cpu.select(variant)
        both.select(variant)
        assert (both.variant, both.inputs, both.outputs) == (cpu.variant, cpu.inputs, cpu.outputs)
        given = random.integers(-128, 128, cpu.inputs[0].shape).astype(np.int8)
        for one in (cpu, both):
            one.input(0)[...] = given
            one.invoke()
        for index in range(len(cpu.outputs)):
            assert (both.output(index) == cpu.output(index)).all()
        time.sleep(0.05)
    both.close()
    cpu.close()


def test_a_depth_goes_on_from_what_the_device_has_answered_before_it_died() -> None:
    model = open_whole_model("small-speech")
    cpu = open_session(model, "cpu", SessionOptions())
    both = FailoverSession(model, BackendSpec("apart"), SessionOptions(), retry_s=60.0)
    given = np.random.default_rng(3).integers(-128, 128, _first_shape(cpu)).astype(np.int8)
    for one in (cpu, both):
        one.select("4")
        one.select("3")
        one.input(0)[...] = given
        one.invoke()
        if one is both:
            assert isinstance(both._device, WorkerSession)
            os.kill(both._device.pid, signal.SIGKILL)
        place = [spec.name for spec in one.outputs].index("hidden")
        one.select("4")
        one.select("3")
        hidden = one.output(place).copy()
        one.select("4")
        one.input(0)[...] = hidden
        one.invoke()
    assert both.backend == "cpu"
    for index in range(len(cpu.outputs)):
        assert (both.output(index) == cpu.output(index)).all()
    both.close()
    cpu.close()


def _first_shape(session: Session) -> tuple[int, ...]:
    session.select("3")
    return session.inputs[0].shape


def test_a_device_that_tells_of_other_tensors_is_refused(
    tmp_path: Path, identity: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lying(tmp_path, monkeypatch, "put(opened())")
    both = FailoverSession(identity, BackendSpec("stub"), SessionOptions(), retry_s=60.0)
    answers(both, 1)
    assert both.degraded == "stub has other tensors than the CPU: x float32[1,4]"
    assert "defect" not in caplog.text
    both.close()
