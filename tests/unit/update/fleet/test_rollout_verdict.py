"""The result of a rollout in words."""

from __future__ import annotations

import msgspec
import pytest

from agent.update.fleet.board import BoardOutcome
from agent.update.fleet.rollout import Begun, RolloutProgress, size, verdict

BEGUN = Begun("12ab", "<x>.vedette", "1.2", 3, [("porch",), ("roof", "gate")])
ONE = msgspec.structs.replace(BEGUN, batches=[("porch",)])
GOOD = {
    name: BoardOutcome(name, "updated", "", "1.2", 61.0, 900_000, 90_000_000, 4.2) for name in ("porch", "roof")
}


@pytest.mark.parametrize(
    ("standing", "said"),
    [
        (
            RolloutProgress(BEGUN, {**GOOD, "gate": BoardOutcome("gate", "current")}),
            "all 3 boards have it",
        ),
        (RolloutProgress(BEGUN, GOOD, "no network"), "stopped: no network; 1 of 3 boards does not have it"),
        (RolloutProgress(BEGUN, GOOD), "1 of 3 boards does not have it yet"),
        (RolloutProgress(BEGUN, {}), "3 of 3 boards do not have it yet"),
        (RolloutProgress(ONE, {}, "no network"), "stopped: no network; the board does not have it"),
        (RolloutProgress(ONE, {}), "the board does not have it yet"),
        (RolloutProgress(ONE, {"porch": BoardOutcome("porch", "current")}), "the board has it"),
    ],
)
def test_how_it_went_is_said_in_a_sentence(standing: RolloutProgress, said: str) -> None:
    assert verdict(standing) == said


def test_bytes_are_told_for_people() -> None:
    assert [size(count) for count in (0, 12_345, 999_999, 1_234_567)] == ["0 kB", "12 kB", "1000 kB", "1.2 MB"]
