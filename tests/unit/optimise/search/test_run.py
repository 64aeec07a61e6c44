"""The processes that work on a search beside the first one."""

from __future__ import annotations

import signal
import time
import weakref
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="a search needs the extra [optimise]")
pytest.importorskip("optuna", reason="a search needs the extra [optimise]")

from agent.optimise.search import run
from agent.optimise.search.run import SearchRequest


def test_a_worker_ends_by_an_interruption_that_python_loses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Worker:
        def __init__(self, *_: Any) -> None:
            pass

        def run(self) -> None:
            thing = set[int]()
            reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGTERM))
            del thing  # Python calls back, and drops what that raises
            time.sleep(10.0)
            raise AssertionError(f"{reference} went on")

    monkeypatch.setattr(run, "_Worker", Worker)
    monkeypatch.setattr(run, "_end_with_parent", lambda: None)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        run._work(SearchRequest(tmp_path / "r.toml", str(tmp_path)))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
