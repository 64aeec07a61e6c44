"""A configuration is changed for a new version, and stays its author's."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import UpdateError
from agent.update.bundle import Migration
from agent.update.install.stage import migrate

TEXT = """# Of the porch.
[mqtt]
host = "broker"  # in the cellar

[streams.front]
source = "test:"
rate = 5

[streams.back]
source = "test:"
"""


def test_a_key_is_renamed_and_remarks_stay() -> None:
    after = migrate(TEXT, [Migration("rename", "mqtt.host", to="mqtt.server")])
    assert after.startswith("# Of the porch.\n[mqtt]\n")
    assert tomllib.loads(after)["mqtt"] == {"server": "broker"}
    assert "# in the cellar" in after


def test_a_star_stands_for_every_table_there() -> None:
    rules = [
        Migration("rename", "streams.*.rate", to="streams.*.max_fps"),
        Migration("set", "streams.*.variant", value="a"),
    ]
    streams = tomllib.loads(migrate(TEXT, rules))["streams"]
    assert streams == {
        "front": {"source": "test:", "max_fps": 5, "variant": "a"},
        "back": {"source": "test:", "variant": "a"},
    }


def test_a_key_goes_into_a_table_that_is_not_there_yet() -> None:
    after = migrate(TEXT, [Migration("rename", "mqtt.host", to="link.broker.host")])
    assert tomllib.loads(after)["link"] == {"broker": {"host": "broker"}}


@pytest.mark.parametrize(
    "rule",
    [
        Migration("rename", "mqtt.port", to="mqtt.door"),
        Migration("remove", "mqtt.port"),
        Migration("remove", "nowhere.at.all"),
        Migration("set", "mqtt.host", value="other"),
        Migration("remove", "streams.*.zones"),
    ],
)
def test_what_is_not_there_or_is_set_already_stays_as_it_is(rule: Migration) -> None:
    assert migrate(TEXT, [rule]) == TEXT


def test_a_key_is_removed() -> None:
    assert "rate" not in migrate(TEXT, [Migration("remove", "streams.front.rate")])


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (Migration("rename", "streams.front.rate", to="mqtt.host"), "`mqtt.host` is set already"),
        (Migration("set", "mqtt.host.name", value=1), "`mqtt.host` is not a table"),
    ],
)
def test_what_does_not_fit_is_named(rule: Migration, why: str) -> None:
    with pytest.raises(UpdateError, match=why):
        migrate(TEXT, [rule])


def test_what_is_no_toml_is_refused() -> None:
    with pytest.raises(UpdateError, match="cannot be migrated"):
        migrate("[mqtt", [Migration("remove", "a")])


@given(
    st.dictionaries(st.sampled_from("abc"), st.dictionaries(st.sampled_from("xyz"), st.integers()), max_size=3)
)
def test_a_rename_and_back_gives_the_same(tables: dict[str, dict[str, int]]) -> None:
    text = "".join(f"[{name}]\n" + "".join(f"{k} = {v}\n" for k, v in t.items()) for name, t in tables.items())
    there = migrate(text, [Migration("rename", "*.x", to="*.new")])
    assert tomllib.loads(migrate(there, [Migration("rename", "*.new", to="*.x")])) == tables


def test_an_array_of_tables_has_no_names() -> None:
    text = "[[streams.front.zones]]\nname = 'drive'\n"
    assert migrate(text, [Migration("rename", "streams.*.zones.*.name", to="streams.*.zones.*.title")]) == text
