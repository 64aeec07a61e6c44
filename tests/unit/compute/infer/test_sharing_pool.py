"""Streams that share sessions: who fails or hangs does not take the others with it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from agent.compute.infer import sharing
from agent.compute.infer.session import Session
from agent.compute.infer.sharing import SessionPool
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


def joined(
    limit: int = 1, members: int = 3, *, replaces: bool = True, hangs_s: float = math.inf
) -> tuple[SessionPool, Opener]:
    opener = Opener()
    pool = SessionPool("model", opener, limit, replaces=replaces, hangs_s=hangs_s)
    assert all(pool.join() for _ in range(members))
    return pool, opener


@contextmanager
def waiting(pool: SessionPool) -> Iterator[Callable[[], Session | Exception]]:
    """Let another stream wait for a turn; gives a function that returns what came of it."""
    results: list[Session | Exception] = []

    def wait() -> None:
        try:
            session = pool.take()
        except Exception as error:
            results.append(error)
        else:
            results.append(session)
            pool.give_back(session)

    def result() -> Session | Exception:
        wait_for(lambda: results)
        return results[0]

    thread = threading.Thread(target=wait)
    thread.start()
    wait_for(lambda: pool._waiting or results)
    yield result
    thread.join(60.0)
    assert not thread.is_alive()


def test_streams_open_no_more_sessions_than_run_side_by_side() -> None:
    pool, opener = joined(2)
    first, second = pool.take(), pool.take()
    with waiting(pool) as result:
        pool.give_back(first)
        assert result() is first
    pool.give_back(second)
    assert opener.is_open == [True, True]


def test_a_stream_that_is_alone_at_a_time_opens_one_session() -> None:
    pool, opener = joined(2)
    for _ in range(3):
        pool.give_back(pool.take())
    assert opener.is_open == [True]


def test_the_sessions_go_with_the_streams() -> None:
    pool, opener = joined(2, members=2)
    session = pool.take()
    with waiting(pool) as result:
        assert result() is opener.opened[1]
    pool.give_back(session)
    pool.leave()
    assert sorted(opener.is_open) == [False, True]
    pool.leave()
    assert opener.is_open == [False, False]
    assert not pool.join()


def test_a_session_that_failed_is_replaced_for_the_others() -> None:
    pool, opener = joined()
    session = pool.take()
    with waiting(pool) as result:
        pool.give_back(session, "it broke")
        assert result() is opener.opened[1]
    assert opener.is_open == [False, True]


def test_one_that_cannot_be_replaced_fails_those_who_wait_and_is_tried_again() -> None:
    pool, opener = joined()
    session = pool.take()
    opener.error = ModelError("no memory")
    with waiting(pool) as result:
        pool.give_back(session, "it broke")
        error = result()
        assert isinstance(error, BackendError)
        assert str(error) == "no memory"
    opener.error = None
    assert pool.take() is opener.opened[1]


def test_with_a_fallback_nobody_waits_for_a_device_that_failed() -> None:
    pool, opener = joined(replaces=False)
    session = pool.take()
    with waiting(pool) as result:
        pool.give_back(session, "it crashed")
        assert isinstance(result(), BackendError)
    with pytest.raises(BackendError, match="it crashed"):
        pool.take()
    assert not pool.join()
    pool.leave()
    assert opener.is_open == [False]


def test_one_that_hangs_is_left_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "_CHECK_S", 0.02)
    pool, opener = joined(hangs_s=0.1)
    session = pool.take()
    with waiting(pool) as result:
        assert result() is opener.opened[1]
    pool.give_back(session)  # at last: one is enough
    assert sorted(opener.is_open) == [False, True]
    assert pool.take() is opener.opened[1]


@pytest.mark.parametrize("members", [2, 4, 7])
def test_members_who_always_want_more_get_equal_shares(members: int) -> None:
    pool, _ = joined(2, members)
    counts, until = [0] * members, time.monotonic() + 0.4

    def run(number: int) -> None:
        while time.monotonic() < until:
            session = pool.take()
            time.sleep(0.002)
            pool.give_back(session)
            counts[number] += 1

    threads = [threading.Thread(target=run, args=(number,)) for number in range(members)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(counts) - min(counts) <= 0.2 * max(counts) + 2


def test_a_model_that_cannot_be_opened_is_nobodys() -> None:
    opener = Opener()
    opener.error = ModelError("broken")
    pool = SessionPool("model", opener)
    with pytest.raises(ModelError, match="broken"):
        pool.join()
    assert not pool.join()
