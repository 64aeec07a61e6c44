"""Recipes and budgets: what is read, and how mistakes are told."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import ConfigError
from agent.optimise.recipe import EXAMPLES, Budget, Recipe, example, parse_budget, parse_recipe, read_recipe

LAYERS = ["stem/conv", "block1/conv1", "block1/conv2", "head/dense"]


def test_every_example_reads_back_as_the_defaults() -> None:
    assert parse_recipe(example(), "all").recipe == Recipe()
    for step, text in EXAMPLES.items():
        found = parse_recipe(example([step]), step)
        assert found.recipe == Recipe()
        fields = msgspec.structs.asdict(getattr(found.recipe, step))
        assert set(found.file.data[step]) == set(fields), "the example has all keys"
        assert text.count("#") >= len(fields)
    with pytest.raises(ConfigError, match="'quantise'"):
        example(["quantize"])


def test_a_recipe_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('[quantise]\nmethod = "int4"\nbudget = "size<2.8MB"\nlayers = [{match = "*", bits = 8}]\n')
    found = read_recipe(path)
    assert found.recipe.quantise.method == "int4"
    assert found.layer_bits(LAYERS) == dict.fromkeys(LAYERS, 8)
    with pytest.raises(ConfigError, match="recipe"):
        read_recipe(tmp_path / "missing.toml")


@pytest.mark.parametrize(
    ("text", "line", "facts"),
    [
        ('[quantise]\n\nmethod = "int5"', 3, ("quantise.method", "int4")),
        ("[prune]\ntargets = 0.5", 2, ("prune.targets", "'target'")),
        ("[prune]\ntarget = 1.0", 2, ("prune.target", "less than 1")),
        ("[qat]\nsteps = 0", 2, ("qat.steps", "1")),
        ('[quantise]\nbudget = "size<2.8"', 2, ("[quantise] budget", "MB")),
        ('[train]\nepochs = "many"', 2, ("train.epochs", "a number")),
        ("[quantize]", 1, ("quantize", "'quantise'")),
        ("[quantise\n", 1, ("not TOML",)),
        ('[quantise]\nlayers = [{match = "", bits = 8}]', 2, ("quantise.layers", "not empty")),
        ("[data]\nheld_out = 0.0", 2, ("data.held_out",)),
        ("[train]\nepochs = inf", 2, ("train.epochs",)),
        ("[train]\nseed = 99999999999999999999", 2, ("train.seed",)),
        ("[prune]\nanneal_epochs = inf", 2, ("prune.anneal_epochs",)),
        ("[qat]\nlearning_rate = 1e30", 2, ("qat.learning_rate",)),
        ("[search]\nrungs = [inf]", 2, ("search.rungs",)),
        ("[search]\nmean = nan", 2, ("search.mean",)),
        ("[search.parameters]\nwidth = {low = nan, high = 16}", 2, ("width", "finite")),
        ("[search.parameters]\nwidth = {low = 1.0, high = inf}", 2, ("width", "finite")),
        ("[search.parameters]\nwidth = {choices = [1, nan]}", 2, ("width", "finite")),
    ],
)
def test_a_mistake_is_told_with_its_line(text: str, line: int, facts: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as error:
        parse_recipe(text, "r.toml")
    assert str(error.value).startswith(f"r.toml:{line}: ")
    for fact in facts:
        assert fact in str(error.value)


def test_the_last_rule_that_matches_counts() -> None:
    rules = '[quantise]\nlayers = [\n{match = "block1/*", bits = 4},\n{match = "*conv2", bits = 8}]'
    assert parse_recipe(rules, "r").layer_bits(LAYERS) == {"block1/conv1": 4, "block1/conv2": 8}


def test_a_rule_that_matches_nothing_is_an_error_with_near_names() -> None:
    found = parse_recipe('[quantise]\nlayers = [{match = "block1/cnv1", bits = 4}]', "r.toml")
    with pytest.raises(ConfigError, match=r"r\.toml:2: .*'block1/cnv1'.*near: 'block1/conv1'"):
        found.layer_bits(LAYERS)
    with pytest.raises(ConfigError, match="no layer"):
        found.layer_bits([])


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
    assert all(0 < limit < float("inf") for limit in found.values())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
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
        ("loss<0.5%", "pp"),
        ("speed<3ms", "'speed'"),
        ("size<1MB, size<2MB", "twice"),
        ("size<0MB", "more than 0"),
        ("size>1MB", "expected limits"),
        ("size<1MB,", "expected limits"),
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
