"""An errand to a board that answers as it is told to."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.update.fleet import FleetBoard
from agent.update.fleet.board import BoardOutcome, BoardUpdate, BundleInfo, Timeouts
from agent.update.fleet.ssh import Reply, Tell, Transport

OLD = "counter 8 is not above 8"


class Answering(Transport):
    """Takes a bundle and refuses it, as a board does that has had one of its counter."""

    def __init__(self, told: dict[str, Any]) -> None:
        super().__init__(Path("known_hosts"))
        self._told, self.sent = told, False

    async def ask(
        self, board: FleetBoard, command: str, patience_s: float = 60.0, tell: Tell | None = None
    ) -> Reply:
        if command == "update apply":
            assert self.sent
            at_hand = {"state": "refused", "began_at": "2026-01-02T03:04:05Z", "reason": OLD}
            self._told = {**self._told, "at_hand": at_hand}
            return Reply(1, "", f"vedette: refused: {OLD}")
        assert command == "status"
        answer = {"update": self._told, "health_base64": ""}
        return Reply(0, msgspec.json.encode(answer).decode(), "")

    async def send(self, board: FleetBoard, bundle: Path, patience_s: float) -> tuple[Reply, int]:
        self.sent = True
        return Reply(0, "", ""), 100


def go(told: dict[str, Any], kind: str) -> tuple[BoardOutcome, bool]:
    """Update a board to version 1.1 with counter 8; return the outcome, and True if the bundle was sent."""
    transport = Answering({"version": "1.1", "slot": "a", "counter": 8, **told})
    wanted = BundleInfo(Path("x.vedette"), "12ab", 100, "8" if kind == "models" else "1.1", 8, kind)
    errand = BoardUpdate(
        transport, FleetBoard("porch", "porch"), wanted, lambda board, step: None, Timeouts(look_s=0.0)
    )
    return asyncio.run(errand.run()), transport.sent


@pytest.mark.parametrize("kind", ["models", "full"])
def test_what_a_board_has_is_not_sent(kind: str) -> None:
    outcome, sent = go({"models": 8, "kind": kind}, kind)
    assert (outcome.kind, sent) == ("current", False)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        pytest.param("models", {"models": 7, "kind": "models"}, id="models before"),
        pytest.param("models", {"models": 0, "kind": "models"}, id="no models"),
        pytest.param("models", {"models": 8, "kind": "full"}, id="of a version"),
        pytest.param("full", {"models": 8, "kind": "models"}, id="of models"),
        pytest.param("full", {"models": 7, "kind": "full"}, id="the same version before"),
        pytest.param("full", {"version": "1.0", "models": 8, "kind": "full"}, id="another version"),
    ],
)
def test_what_a_board_has_gone_back_from_or_never_had_is_not_current(kind: str, told: dict[str, Any]) -> None:
    outcome, sent = go(told, kind)
    assert (outcome.kind, outcome.reason, sent) == ("refused", OLD, True)
