"""The schemas of configuration and manifest describe every key, as the structs' docstrings do."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner
from msgspec import Struct

from agent.cli.config import config_schema, described, manifest_schema, structs_by_name
from agent.cli.main import vedette
from agent.compute.decode import DECODERS
from agent.compute.infer.audio_input import BUILDERS
from agent.compute.manifest import FEATURES

SCHEMAS = {"config": config_schema(), "models": manifest_schema()}


@pytest.mark.parametrize("verb", SCHEMAS)
def test_every_table_and_every_key_has_a_description(verb: str) -> None:
    tables = json.loads(CliRunner().invoke(vedette, [verb, "schema"]).output)["$defs"]
    assert len(tables) > 10
    about = {name: table.get("description", "") for name, table in tables.items()}
    keys = {f"{name}.{key}": one for name, table in tables.items() for key, one in table["properties"].items()}
    about |= {name: one.get("description", "") for name, one in keys.items()}
    assert [name for name, text in about.items() if not text or "Attributes:" in text] == []


@pytest.mark.parametrize("name", sorted({name for one in SCHEMAS.values() for name in one["$defs"]}))
def test_no_docstring_describes_a_key_that_does_not_exist(name: str) -> None:
    struct = structs_by_name()[name]
    assert set(described(struct)[1]) == set(struct.__struct_fields__)


def test_the_manifest_schema_has_the_options_of_every_decoder_and_front_end() -> None:
    tables: dict[str, Any] = SCHEMAS["models"]["$defs"]
    assert tables["OutputManifest"]["properties"]["decoder"]["enum"] == ["", *DECODERS, FEATURES]
    assert tables["AudioManifest"]["properties"]["frontend"]["enum"] == list(BUILDERS)
    rules = [*tables["OutputManifest"]["allOf"], *tables["AudioManifest"]["allOf"]]
    for rule in rules:
        assert rule["then"]["properties"]["options"]["$ref"].removeprefix("#/$defs/") in tables


class _Box(Struct):
    """A box.

    With two paragraphs.

    Attributes:
        wide, high: its size, m: without
            the lid.
        name: of it.
    """

    wide: float
    high: float
    name: str


class _Tank(_Box):
    """A box with water.

    Attributes:
        damp: share of water.
    """

    damp: float


def test_entries_may_be_shared_and_go_on_in_the_next_line() -> None:
    size = "its size, m: without the lid."
    assert described(_Box) == (
        "A box. With two paragraphs.",
        {"wide": size, "high": size, "name": "of it."},
    )


def test_inherited_keys_are_described() -> None:
    assert set(described(_Tank)[1]) == {"wide", "high", "name", "damp"}
