"""Answers of boards, of this version and of others."""

from __future__ import annotations

import base64
from datetime import UTC, datetime

import msgspec
import pytest

from agent.update.fleet.board import parse_state
from agent.update.install.journal import Update, UpdateStatus


def test_what_this_version_tells_is_understood() -> None:
    at_hand = Update(
        state="trial", version="1.2", bundle="12ab", file="/x/bundle.vedette", began_at=datetime.now(UTC)
    )
    standing = UpdateStatus("1.1", "a", "1.0", 4, at_hand, models=3, kind="models")
    told = msgspec.json.encode({"update": standing, "health": None})
    found = parse_state(told.decode())
    assert found is not None
    assert (found.update.version, found.update.counter) == ("1.1", 4)
    assert (found.update.models, found.update.kind) == (3, "models")
    assert found.update.at_hand is not None
    assert (found.update.at_hand.state, found.update.at_hand.finished) == ("trial", False)
    assert found.describe() == "daemon does not run"


def test_keys_of_tomorrow_and_keys_that_are_missing_do_no_harm() -> None:
    health = base64.b64encode(b'{"streams": {"a": {"state": "lost", "x": 1}}}').decode()
    found = parse_state(f'{{"update": {{"colour": 1}}, "health_base64": "{health}"}}')
    assert found is not None
    assert found.describe() == "a lost"
    assert (found.update.models, found.update.kind) == (0, "")


def test_anything_else_is_no_answer() -> None:
    for text in ("", "x", "[]", '{"update": 7}', "[" * 5000, "Debian GNU/Linux"):
        assert parse_state(text) is None


UPDATE = '{"version": "1.1", "counter": 4}'
HOSTILE = (
    b"junk",
    b'{"ready": 7}',
    b'{"streams": {"a": {"state": "running"}',
    b"[" * 5000,
    b"\xff\xfe",
    b'null}, "update": {"version": "9.9"}',
    b'{}, "update": {"version": "9.9"}}{',
    b'"}\n{"update": {"version": "9.9"}}',
)


@pytest.mark.parametrize("health", HOSTILE)
def test_nothing_that_a_daemon_says_changes_what_is_told_of_the_update(health: bytes) -> None:
    text = f'{{"update":{UPDATE},"health_base64":"{base64.b64encode(health).decode()}"}}\n'
    for answer in (text, f'{{"update":{UPDATE}\n,"health_base64":{health.decode("utf-8", "replace")}}}\n'):
        found = parse_state(answer)
        assert found is not None
        assert (found.update.version, found.update.counter) == ("1.1", 4)
        assert found.health is None
    found = parse_state(text)
    assert found is not None
    assert found.describe().startswith("health unknown: ")


def test_health_is_taken_out_of_base64() -> None:
    health = base64.b64encode(b'{"ready": true, "streams": {"a": {"state": "running"}}}').decode()
    found = parse_state(f'{{"update": {UPDATE}, "health_base64": "{health}"}}')
    assert found is not None
    assert found.describe() == "1 of 1 stream running"
    none = parse_state(f'{{"update": {UPDATE}, "health_base64": ""}}')
    assert none is not None
    assert none.describe() == "daemon does not run"


def test_numbers_that_cannot_be_told_on_are_no_answer() -> None:
    assert parse_state('{"update": {"counter": ' + "9" * 30 + "}}") is None
