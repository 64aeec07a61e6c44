"""What boards answer, of this version and of others."""

from __future__ import annotations

import msgspec

from agent.fleet.boardstate import parse_state
from agent.update.journal import Update, now
from agent.update.standing import Standing


def test_what_this_version_tells_is_understood() -> None:
    at_hand = Update(state="trial", version="1.2", bundle="12ab", file="/x/bundle.vedette", began_at=now())
    told = msgspec.json.encode({"update": Standing("1.1", "a", "1.0", 4, at_hand), "health": None})
    found = parse_state(told.decode())
    assert found is not None
    assert (found.update.version, found.update.counter) == ("1.1", 4)
    assert found.update.at_hand is not None
    assert (found.update.at_hand.state, found.update.at_hand.over) == ("trial", False)
    assert found.told() == "daemon does not run"


def test_keys_of_tomorrow_and_keys_that_are_missing_do_no_harm() -> None:
    found = parse_state('{"update": {"colour": 1}, "health": {"streams": {"a": {"state": "lost", "x": 1}}}}')
    assert found is not None
    assert found.told() == "a lost"


def test_anything_else_is_no_answer() -> None:
    for text in ("", "x", "[]", '{"update": 7}', "[" * 5000, "Debian GNU/Linux"):
        assert parse_state(text) is None
