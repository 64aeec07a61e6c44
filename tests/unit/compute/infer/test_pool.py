"""Streams that share sessions: who fails or hangs does not take the others with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from agent.compute.infer import pool as pooling
from agent.compute.infer.pool import PoolRules, SessionPool, Ticket
from agent.compute.infer.session import Session
from agent.compute.tflite.model import TensorSpec
from agent.errors import BackendError, ModelError
from agent.types import Array
from tests.support.publishing import wait_for


class Opened:
    """A session without a model."""

    backend, degraded, variant = "cpu", "", "only"
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()

    def __init__(self) -> None:
        self.closed = False

    def select(self, variant: str) -> None:
        self.variant = variant

    def input(self, index: int) -> Array:
        raise IndexError

    def invoke(self) -> None:
        pass

    def output(self, index: int) -> Array:
        raise IndexError

    def close(self) -> None:
        self.closed = True


class Opener:
    """Opens sessions, or fails with an error while there is one."""

    def __init__(self) -> None:
        self.opened: list[Opened] = []
        self.error: Exception | None = None

    def __call__(self) -> Session:
        if self.error is not None:
            raise self.error
        self.opened.append(Opened())
        return self.opened[-1]

    @property
    def is_open(self) -> list[bool]:
        return [not one.closed for one in self.opened]


def joined(rules: PoolRules, members: int = 3) -> tuple[SessionPool, Opener]:
    opener = Opener()
    pool = SessionPool("model", opener, rules)
    assert all(pool.join() for _ in range(members))
    return pool, opener


@contextmanager
def waiting(pool: SessionPool) -> Iterator[Callable[[], Session | Exception]]:
    """Let another stream wait for a turn; gives a function that returns what came of it."""
    results: list[Session | Exception] = []

    def wait() -> None:
        ticket = Ticket()
        try:
            session = pool.take(ticket)
        except Exception as error:
            results.append(error)
        else:
            results.append(session)
            pool.give_back(ticket, session)

    def result() -> Session | Exception:
        wait_for(lambda: results)
        return results[0]

    thread = threading.Thread(target=wait)
    thread.start()
    wait_for(lambda: pool._turns.is_awaited or results)
    yield result
    thread.join(60.0)
    assert not thread.is_alive()


def test_all_streams_have_one_session_until_they_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, opener = joined(PoolRules(limit=2))
    holder = Ticket()
    session = pool.take(holder)
    with waiting(pool) as result:
        assert len(opener.opened) == 1
        pool.give_back(holder, session)
        assert result() is session
    monkeypatch.setattr(pooling, "_WINDOW_S", 0.0)
    session = pool.take(holder)
    with waiting(pool) as result:
        time.sleep(0.2)  # a wait that is long by itself opens none: the next one to wait sees that
        with waiting(pool) as other:
            assert {id(result()), id(other())} == {id(opener.opened[1])}
    pool.give_back(holder, session)
    assert opener.is_open == [True, True]


def test_the_sessions_go_with_the_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooling, "_WINDOW_S", 0.0)
    monkeypatch.setattr(pooling, "_WAITING", -1.0)
    pool, opener = joined(PoolRules(limit=2), members=2)
    holder = Ticket()
    session = pool.take(holder)
    with waiting(pool) as result:
        assert result() is opener.opened[1]
    pool.give_back(holder, session)
    pool.leave()
    assert sorted(opener.is_open) == [False, True]
    pool.leave()
    assert opener.is_open == [False, False]
    assert not pool.join()


def test_a_session_that_failed_is_replaced_for_the_others() -> None:
    pool, opener = joined(PoolRules())
    holder = Ticket()
    session = pool.take(holder)
    with waiting(pool) as result:
        pool.give_back(holder, session, "it broke")
        assert result() is opener.opened[1]
    assert opener.is_open == [False, True]


def test_one_that_cannot_be_replaced_fails_those_who_wait_and_is_tried_again() -> None:
    pool, opener = joined(PoolRules())
    holder = Ticket()
    session = pool.take(holder)
    opener.error = ModelError("no memory")
    with waiting(pool) as result:
        pool.give_back(holder, session, "it broke")
        error = result()
        assert isinstance(error, BackendError)
        assert str(error) == "no memory"
    opener.error = None
    assert pool.take(holder) is opener.opened[1]


def test_with_a_fallback_nobody_waits_for_a_device_that_failed() -> None:
    pool, opener = joined(PoolRules(reopens=False))
    holder = Ticket()
    session = pool.take(holder)
    with waiting(pool) as result:
        pool.give_back(holder, session, "it crashed")
        assert isinstance(result(), BackendError)
    with pytest.raises(BackendError, match="it crashed"):
        pool.take(holder)
    assert not pool.join()
    pool.leave()
    assert opener.is_open == [False]


def test_one_that_hangs_is_left_and_comes_back() -> None:
    pool, opener = joined(PoolRules(hangs_s=0.1, check_s=0.02))
    hanging = Ticket()
    session = pool.take(hanging)
    with waiting(pool) as result:
        assert result() is opener.opened[1]
    pool.give_back(hanging, session)  # at last: one is enough
    assert sorted(opener.is_open) == [False, True]
    assert pool.take(hanging) is opener.opened[1]


def test_after_many_that_hang_those_who_wait_are_told() -> None:
    pool, opener = joined(PoolRules(hangs_s=0.05, check_s=0.01), members=5)
    hanging = [Ticket() for _ in range(pooling._LOST_MAX + 1)]
    sessions = [pool.take(one) for one in hanging]
    assert len(opener.opened) == pooling._LOST_MAX + 1
    with waiting(pool) as result:
        error = result()
        assert isinstance(error, BackendError)
        assert "3 inferences on cpu hang" in str(error)
    for ticket, session in zip(hanging, sessions, strict=True):
        pool.give_back(ticket, session)
    assert opener.is_open.count(True) == 1


def test_a_model_that_cannot_be_opened_is_nobodys() -> None:
    opener = Opener()
    opener.error = ModelError("broken")
    pool = SessionPool("model", opener, PoolRules())
    with pytest.raises(ModelError, match="broken"):
        pool.join()
    assert not pool.join()
