"""How times and amounts are written, wherever a verb shows them."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent.board.proc import Clock
from agent.cli.checks.board import check_clock
from agent.cli.clips import clips
from agent.cli.events import events
from agent.cli.watch import follow
from agent.comms import messages
from agent.comms.consumer import ReceivedMessage
from agent.comms.topics import Topics
from agent.config import StorageConfig
from agent.storage.spool.spool import Spool
from agent.text import TIME_WIDTH, local_time, plural
from agent.types import ClipReason
from agent.update.install.journal import Update, history_line
from tests.unit.cli.test_clips import clip
from tests.unit.cli.test_events import CLIP

AT = datetime(2026, 11, 27, 9, 2, 3, 456789, UTC)
SHOWN = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+01:00"


@pytest.fixture(autouse=True)
def _an_hour_east_of_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "CET-1")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_a_time_is_local_with_its_date_and_offset() -> None:
    assert local_time(AT) == "2026-11-27 10:02:03+01:00"
    assert len(local_time(AT)) == TIME_WIDTH


@pytest.mark.parametrize("at", [datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, tzinfo=UTC)])
def test_a_time_without_a_local_one_is_shown_as_it_is(at: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = set()
    for zone in ("UTC-14", "UTC+14"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        shown.add(local_time(at))
    assert at.isoformat(" ", "seconds") in shown


@pytest.mark.parametrize(("count", "text"), [(0, "0 entities"), (1, "1 entity"), (2, "2 entities")])
def test_one_is_no_plural(count: int, text: str) -> None:
    assert plural(count, "entity", "entities") == text
    assert plural(count, "day") == f"{count} day{'' if count == 1 else 's'}"


def test_floats_have_three_digits() -> None:
    assert [plural(count, "epoch") for count in (1.0, 0.5, 12.25, 1500.0)] == [
        "1 epoch",
        "0.5 epochs",
        "12.2 epochs",
        "1500 epochs",
    ]


def test_every_verb_shows_times_in_the_same_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spool = Spool(tmp_path, StorageConfig())
    spool.put(Topics("vedette", "porch").clips("front"), messages.encode(CLIP))
    spool.close()
    clip(tmp_path, "2026-11-25T10-15-03Z-person-1", ClipReason("front", "appeared", "1", "person"))
    _, tail = CliRunner().invoke(events, ["tail", "--folder", str(tmp_path)]).output.splitlines()
    listed = CliRunner().invoke(clips, ["list", "--folder", str(tmp_path)]).output.splitlines()[2]
    follow([ReceivedMessage("vedette/porch/status", "porch", "", "status", b"online", 0, False)], "title")
    (watched,) = [line for line in capsys.readouterr().out.splitlines() if "porch online" in line]
    history = history_line(Update(state="committed", file="x.vedette", began_at=AT))
    (clock,) = check_clock(Clock(True, True), AT.timestamp(), 0.0)
    for shown in (tail, listed, watched, history, clock.value):
        assert re.match(SHOWN, shown), shown
    assert listed.startswith("2026-11-25 11:15:03+01:00 ")
    assert history.startswith("2026-11-27 10:02:03+01:00 ")
