"""The page about a rollout."""

from __future__ import annotations

from datetime import UTC, datetime
from html.parser import HTMLParser

import msgspec
import pytest

from agent.update.fleet.board import BoardOutcome
from agent.update.fleet.report import render, size, verdict
from agent.update.fleet.rollout import Begun, RolloutProgress

BEGUN = Begun(datetime(2026, 11, 25, tzinfo=UTC), "12ab", "<x>.vedette", "1.2", 3, [("porch",), ("roof", "gate")])
ONE = msgspec.structs.replace(BEGUN, batches=[("porch",)])
GOOD = {
    name: BoardOutcome(name, "updated", "", "1.2", 61.0, 900_000, 90_000_000, 4.2) for name in ("porch", "roof")
}


class Texts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.links: list[str] = []

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]


def read(page: str) -> Texts:
    parser = Texts()
    parser.feed(page)
    return parser


def test_it_tells_of_every_board_and_needs_nothing_else() -> None:
    bad = BoardOutcome("gate", "rolled_back", "<script>alert(1)</script>", "1.1")
    found = read(render(RolloutProgress(BEGUN, {**GOOD, "gate": bad}, "1 of 2 boards failed (gate), 20% may")))
    for text in (
        "porch",
        "roof",
        "gate",
        "updated",
        "rolled back",
        "Canary",
        "Batch 1",
        "4.2 s",
        "900 kB",
        "1.0%",
    ):
        assert text in found.texts, text
    assert "<script>alert(1)</script>" in found.texts  # as text
    assert found.links == []


def test_boards_that_had_no_turn_are_waiting() -> None:
    found = read(render(RolloutProgress(BEGUN, GOOD)))
    assert "waiting" in found.texts
    assert "2 updated, 1 waiting" in found.texts


@pytest.mark.parametrize(
    ("standing", "said"),
    [
        (
            RolloutProgress(BEGUN, {**GOOD, "gate": BoardOutcome("gate", "current")}, "", True),
            "all 3 boards have it",
        ),
        (RolloutProgress(BEGUN, GOOD, "no network"), "stopped: no network; 1 of 3 boards does not have it"),
        (RolloutProgress(BEGUN, GOOD, "", True), "1 of 3 boards does not have it yet"),
        (RolloutProgress(BEGUN, {}), "running or interrupted: 3 of 3 boards do not have it yet"),
        (RolloutProgress(ONE, {}, "no network"), "stopped: no network; the board does not have it"),
        (RolloutProgress(ONE, {}, "", True), "the board does not have it yet"),
        (RolloutProgress(ONE, {"porch": BoardOutcome("porch", "current")}), "the board has it"),
    ],
)
def test_how_it_went_is_said_in_a_sentence(standing: RolloutProgress, said: str) -> None:
    assert verdict(standing) == said


def test_bytes_are_told_for_people() -> None:
    assert [size(count) for count in (0, 12_345, 999_999, 1_234_567)] == ["0 kB", "12 kB", "1000 kB", "1.2 MB"]
