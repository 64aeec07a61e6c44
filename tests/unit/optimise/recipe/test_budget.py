"""Budgets: what is read, and how mistakes and missed limits are told."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import ConfigError
from agent.optimise.recipe.budget import Budget, parse_budget


def limits(budget: Budget) -> dict[str, float]:
    return {name: limit for name, limit in msgspec.structs.asdict(budget).items() if isinstance(limit, float)}


amounts = st.none() | st.floats(1e-3, 1e12, allow_nan=False)


@given(amounts, st.none() | st.floats(1e-6, 1.0), amounts)
def test_a_budget_reads_back_what_it_says(size: float | None, loss: float | None, latency: float | None) -> None:
    budget = Budget(size, loss, latency)
    if budget == Budget():
        return
    assert limits(parse_budget(str(budget))) == pytest.approx(limits(budget), rel=1e-6)


@given(
    st.text(max_size=30)
    | st.from_regex(r"[a-z]{4,7} ?<=? ?[0-9.e+-]{0,6}[a-zA-Z]{0,3}(, .{3,9})?", fullmatch=True)
)
def test_any_text_is_a_budget_or_a_clear_error(text: str) -> None:
    try:
        found = limits(parse_budget(text))
    except ConfigError:
        return
    assert found
    assert all(0 < limit < float("inf") for name, limit in found.items() if name != "loss")
    assert 0 <= found.get("loss", 0.0) < float("inf")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("size<=2.3MB", Budget(size=2_300_000.0)),
        ("size<2.8MB, loss<0.5pp, latency<20ms", Budget(2.8e6, 0.005, 20.0)),
        (" size <= 800 kB ", Budget(size=8e5)),
        ("latency<1.5s", Budget(latency_ms=1500.0)),
    ],
)
def test_budgets(text: str, expected: Budget) -> None:
    assert limits(parse_budget(text)) == pytest.approx(limits(expected))


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("", "expected limits"),
        ("size<3", "MB"),
        ("loss<0.5%", "'loss<0.5%': expected one of the units pp"),
        ("speed<3ms", "'speed<3ms' is no limit"),
        ("size<1MB, size<2MB", "'size<2MB': there is a limit of size before it"),
        ("size<0MB", "more than 0"),
        ("size>1MB", "expected limits"),
        ("size<1MB,", "expected limits"),
        ("loss<1pp, size<3,5MB", "'size<3': expected one of the units"),
        ("1%", "'1%' is no limit: expected limits such as"),
    ],
)
def test_a_wrong_budget_says_what_was_expected(text: str, fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        parse_budget(text)


def test_a_missed_budget_says_by_how_much() -> None:
    budget = parse_budget("size<2.8MB, loss<0.5pp, latency<20ms")
    assert budget.missed(size=2.8e6, loss=0.005, latency_ms=20.0) == []
    assert budget.missed(size=3e6, loss=None) == ["size 3 MB, 0.2 MB over 2.8 MB"]
    assert len(budget.missed(size=3e6, loss=0.006, latency_ms=30.0)) == 3
    kilobytes = parse_budget("size<20kB, latency<500us")
    missed = ["size 2800 kB, 2780 kB over 20 kB", "latency 0.6 ms, 0.1 ms over 0.5 ms"]
    assert kilobytes.missed(size=2.8e6, latency_ms=0.6) == missed
    assert Budget().missed(size=1e9, loss=1.0, latency_ms=1e9) == []


def test_2300000_bytes_are_2_3_megabytes() -> None:
    assert parse_budget("size<=2.3MB").missed(size=2_300_000.0) == []


@given(st.data(), st.integers(1, 5000))
def test_a_loss_of_shares_is_compared_as_if_it_were_exact(data: st.DataObject, examples: int) -> None:
    before = data.draw(st.integers(0, examples))
    after = data.draw(st.integers(0, before))
    lost = before - after
    allowed = max(0, lost + data.draw(st.integers(-1, 1)))
    limit, loss = allowed / examples, before / examples - after / examples
    assert Budget(loss=limit).meets("loss", loss) == (lost <= allowed)


def test_no_loss_at_all_can_be_asked_for() -> None:
    none = parse_budget("loss<=0pp")
    assert none.missed(loss=0.0) == none.missed(loss=-0.01) == []
    assert none.missed(loss=0.001) == ["loss 0.1 pp, 0.1 pp over 0 pp"]


def test_hardly_anything_over_a_limit_is_seen() -> None:
    (size,) = parse_budget("size<40.112kB").missed(size=40_114.0)
    assert size == "size 40.114 kB, 0.002 kB over 40.112 kB"
