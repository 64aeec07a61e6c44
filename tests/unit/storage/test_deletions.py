from __future__ import annotations

import math
import time

import pytest

from agent.storage import deletions as module
from agent.storage.deletions import LINGER_S, Deletions


def test_deletions_wait_for_company_from_the_first_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    waiting = Deletions()
    assert waiting.due_at == math.inf
    waiting.add(7)
    now[0] += 1.0
    waiting.add(8)
    assert waiting.due_at == 100.0 + LINGER_S
    assert (len(waiting), 7 in waiting, 9 in waiting, waiting.all()) == (2, True, False, {7, 8})
    waiting.done({7, 8, 9})
    assert waiting.due_at == math.inf
    waiting.add(9)
    assert waiting.due_at == 101.0 + LINGER_S


def test_many_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MANY", 3)
    waiting = Deletions()
    for seq in (1, 2, 3):
        assert waiting.due_at > 0.0
        waiting.add(seq)
    assert waiting.due_at == -math.inf
