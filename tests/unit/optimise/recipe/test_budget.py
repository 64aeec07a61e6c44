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


amounts = st.none() | st.floats(1e-6, 1e12, allow_nan=False)


@given(amounts, st.none() | st.floats(1e-6, 1.0), amounts)
def test_a_budget_reads_back_what_it_says(size: float | None, loss: float | None, latency: float | None) -> None:
    budget = Budget(size, loss, latency)
    if budget == Budget():
        return
    assert limits(parse_budget(str(budget))) == pytest.approx(limits(budget), rel=1e-9)


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
        ("loss<0.5%", "'loss<0.5%': expected the unit pp, percentage points"),
        ("speed<3ms", "'speed'"),
        ("size<1MB, size<2MB", "'size<2MB': there is a limit of size before it"),
        ("size<0MB", "more than 0"),
        ("size<=0MB", "more than 0"),
        ("loss<0pp", "more than 0"),
        ("size>1MB", "expected limits"),
        ("size<1MB,", "'size<1MB,': nothing stands before or after a comma: expected limits"),
        (",loss<1pp", "',loss<1pp': nothing stands before or after a comma"),
        ("loss<1pp, size<3,5MB", "'size<3,5MB': commas separate limits: expected a point"),
        ("size<1,000kB", "'size<1,000kB': commas separate limits"),
        ("1%", "'1%' is no limit, which is a name, < or <=, a number and a unit: expected limits such as"),
    ],
)
def test_a_wrong_budget_says_what_was_expected(text: str, fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        parse_budget(text)


def test_a_missed_budget_says_by_how_much() -> None:
    budget = parse_budget("size<2.8MB, loss<0.5pp, latency<20ms")
    assert budget.missed(size=2.7e6, loss=0.004, latency_ms=19.0) == []
    assert budget.missed(size=3e6, loss=None) == ["size 3 MB, 0.2 MB over 2.8 MB"]
    assert len(budget.missed(size=3e6, loss=0.005, latency_ms=30.0)) == 3
    kilobytes = parse_budget("size<20kB, latency<500us")
    assert str(kilobytes) == "size<20kB, latency<500us"
    missed = ["size 2800 kB, 2780 kB over 20 kB", "latency 600 us, 100 us over 500 us"]
    assert kilobytes.missed(size=2.8e6, latency_ms=0.6) == missed
    assert Budget().missed(size=1e9, loss=1.0, latency_ms=1e9) == []


@pytest.mark.parametrize("name", ["size", "loss", "latency"])
def test_a_limit_itself_is_met_where_the_budget_says_so(name: str) -> None:
    unit = {"size": "kB", "loss": "pp", "latency": "ms"}[name]
    value = {"size": {"size": 30_000.0}, "loss": {"loss": 0.3}, "latency": {"latency_ms": 30.0}}[name]
    assert parse_budget(f"{name}<=30{unit}").missed(**value) == []
    assert parse_budget(f"{name}<30{unit}").missed(**value) == [f"{name} 30 {unit}, not below 30 {unit}"]
    assert str(parse_budget(f"{name}<=30{unit}")) == f"{name}<=30{unit}"


def test_2300000_bytes_are_2_3_megabytes() -> None:
    assert parse_budget("size<=2.3MB").missed(size=2_300_000.0) == []


@given(st.data(), st.integers(1, 5000))
def test_a_loss_of_shares_is_compared_as_if_it_were_exact(data: st.DataObject, examples: int) -> None:
    before = data.draw(st.integers(0, examples))
    after = data.draw(st.integers(0, before))
    lost = before - after
    allowed = max(0, lost + data.draw(st.integers(-1, 1)))
    limit, loss = allowed / examples, before / examples - after / examples
    assert Budget(loss=limit, reachable=("loss",)).meets("loss", loss) == (lost <= allowed)
    assert Budget(loss=limit).meets("loss", loss) == (lost < allowed)


def test_two_points_of_a_hundred_examples_are_two_points() -> None:
    assert parse_budget("loss<=2pp").missed(loss=0.52 - 0.50) == []
    assert parse_budget("loss<1pp").missed(loss=0.35 - 0.34) == ["loss 1 pp, not below 1 pp"]
    assert parse_budget("loss<2pp").missed(loss=0.52 - 0.50) == ["loss 2 pp, not below 2 pp"]


def test_no_loss_at_all_can_be_asked_for() -> None:
    none = parse_budget("loss<=0pp")
    assert none.missed(loss=0.0) == none.missed(loss=-0.01) == []
    assert none.missed(loss=0.001) == ["loss 0.1 pp, 0.1 pp over 0 pp"]
    assert str(none) == "loss<=0pp"


@given(st.integers(1, 10**9), st.integers(0, 10**6))
def test_a_size_that_is_over_its_limit_is_told_with_figures_that_show_it(limit: int, over: int) -> None:
    for unit in ("B", "kB", "MB", "KiB"):
        factor = {"B": 1, "kB": 1000, "MB": 10**6, "KiB": 1024}[unit]
        (told,) = Budget(size=float(limit), size_unit=unit).missed(size=float(limit + over))
        value, allowed = told.split(",")[0].split()[1], told.split()[-2]
        assert float(allowed) * factor == pytest.approx(limit, rel=1e-12)
        assert abs(float(value) * factor - (limit + over)) <= max(0.1 * over, 1e-9 * limit, 0.0)


def test_hardly_anything_over_a_limit_is_seen() -> None:
    (size,) = parse_budget("size<40.112kB").missed(size=40_114.0)
    assert size == "size 40.114 kB, 0.002 kB over 40.112 kB"
    (loss,) = parse_budget("loss<0.5pp").missed(loss=0.00500001)
    assert loss == "loss 0.500001 pp, 1e-06 pp over 0.5 pp"


def test_no_loss_at_all_is_below_the_least_limit() -> None:
    assert parse_budget("loss<1e-8pp").missed(loss=0.0) == []
