"""The printed recipe has all keys with their defaults."""

from __future__ import annotations

import msgspec
import pytest

from agent.errors import ConfigError
from agent.optimise.recipe import SECTIONS, Recipe, example, parse_recipe


def test_every_example_reads_back_as_the_defaults() -> None:
    assert parse_recipe(example(), "all").recipe == Recipe()
    for step in SECTIONS:
        text = example([step])
        found = parse_recipe(text, step)
        assert found.recipe == Recipe()
        fields = msgspec.structs.asdict(getattr(found.recipe, step))
        assert set(found.file.data[step]) == set(fields), "the example has all keys"
        assert text.count("#") >= len(fields)
    assert "whatever the method" in example(["quantise"])
    with pytest.raises(ConfigError, match="'quantise'"):
        example(["quantize"])
