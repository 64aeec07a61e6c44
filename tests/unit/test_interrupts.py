"""A Ctrl-C that Python loses is repeated, whichever signal ends the process."""

from __future__ import annotations

import signal
import time
import weakref
from collections.abc import Iterator

import pytest

from agent.interrupts import repeated_interrupts


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def lose(number: signal.Signals) -> None:
    """Receive a signal where Python drops what it raises, and go on for a while."""
    thing = set[int]()
    reference = weakref.ref(thing, lambda _: signal.raise_signal(number))
    del thing
    time.sleep(10.0)
    raise AssertionError(f"{reference} went on")


def test_a_lost_sigint_is_repeated() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), repeated_interrupts():
        lose(signal.SIGINT)


def test_a_lost_sigterm_is_repeated_in_the_background_too() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), repeated_interrupts():
        lose(signal.SIGTERM)
