from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from agent.cli.checks.models import Tried, check_answer, check_self_test, check_xnnpack, recorded, run
from tests.support.boards import pi4

SMALL = recorded()[0]
HIDDEN = ["/sys/devices/system/cpu/possible"]
GOOD = Tried("a 1", nodes=10, delegated=10, ms=1.0)


@pytest.mark.numerics
def test_this_processor_computes_rightly(tmp_path: Path) -> None:
    tried: list[Tried] = []
    found = list(check_self_test(tried, pi4(tmp_path)))
    assert [one.error for one in tried] == [""] * len(recorded())
    assert [one.name for one in found] == ["small-speech 3", "small-speech 12", "nanodet 256", "XNNPACK"]
    assert {one.state for one in found} == {"ok"}


def test_a_wrong_answer_is_found() -> None:
    values = {name: [value + 9 for value in some] for name, some in SMALL.values.items()}
    tried = run(replace(SMALL, values=values))
    assert 7 <= tried.off <= 11
    if tried.delegated > 0:
        assert check_answer(tried).state == "problem"


def test_another_model_than_the_recorded_one_is_told() -> None:
    assert "not the one" in run(replace(SMALL, sha256="0")).error
    assert "no bundled model" in run(replace(SMALL, model="nobody")).error


def test_a_runtime_that_crashes_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    found = check_answer(run(SMALL))
    assert found.state == "problem"
    assert "ended by itself with exit status 1" in found.value
    assert "reinstall" in found.advice


def test_the_runtimes_own_kernels_may_differ_by_more() -> None:
    assert check_answer(replace(GOOD, off=7)).state == "problem"
    assert check_answer(replace(GOOD, off=7, delegated=0)).state == "ok"


@pytest.mark.parametrize(
    ("tried", "hidden", "states"),
    [
        ([GOOD], [], ["ok"]),
        ([replace(GOOD, delegated=0)], HIDDEN, ["problem"]),
        ([replace(GOOD, delegated=0)], [], ["problem"]),
        ([GOOD], HIDDEN, ["warning"]),
        ([Tried("a 1", "crashed")], HIDDEN, ["problem"]),
        ([Tried("a 1", "crashed")], [], []),
        ([replace(GOOD, delegated=0, litert=False)], [], ["ok"]),
    ],
)
def test_xnnpack(tried: list[Tried], hidden: list[str], states: list[str]) -> None:
    found = list(check_xnnpack(tried, hidden))
    assert [one.state for one in found] == states
    assert all(HIDDEN[0] in one.value for one in found if hidden)
    if hidden:
        assert "/sys" in found[0].advice
