"""States of an update: which follow which, and what becomes of one that is cut off."""

from __future__ import annotations

import pytest

from agent.errors import UpdateError
from agent.update.install.journal import BEFORE_SWITCH, FINAL, STATES, State, check_step


def may(before: State, after: State) -> bool:
    try:
        check_step(before, after)
    except UpdateError:
        return False
    return True


def test_nothing_follows_an_end() -> None:
    assert not [(end, after) for end in FINAL for after in STATES if may(end, after)]


def test_every_state_leads_to_an_end() -> None:
    leads: set[State] = set(FINAL)
    for _ in STATES:
        leads |= {one for one in STATES if any(may(one, after) for after in leads)}
    assert leads == set(STATES)


def test_what_is_refused_has_changed_nothing_that_runs() -> None:
    assert {one for one in STATES if may(one, "refused")} == BEFORE_SWITCH


def test_a_step_that_no_update_takes_is_named() -> None:
    with pytest.raises(UpdateError, match="verified cannot become trial"):
        check_step("verified", "trial")
