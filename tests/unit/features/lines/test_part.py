from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agent.comms.messages import ModelId
from agent.comms.reporter import Reporter
from agent.comms.topics import Topics
from agent.config import PublishConfig
from agent.config.places import LineConfig
from agent.errors import CommandError
from agent.features.lines import part as lines
from agent.features.lines.part import LineCounters
from agent.types import Crossing, Event, Track
from tests.support.doubles import Kept
from tests.support.publishing import wait_for

AT = datetime(2026, 1, 1, tzinfo=UTC)
GATE, ROAD = (LineConfig(name, ((0.0, 0.5), (1.0, 0.5))) for name in ("gate", "road"))
TOPIC = "vedette/porch/front/line/"


def reporter(kept: Kept, publish: PublishConfig | None = None) -> Reporter:
    return Reporter(
        Topics("vedette", "porch"), "front", publish or PublishConfig(), ModelId("m", "0"), kept, kept
    )


def crossed(line: str = "gate", direction: Any = "in", label: str = "person") -> Event:
    known = Crossing("other", "out"), Crossing(line, direction)
    return Event("update", Track("t", label, 0.8, 0.8, 3, AT, AT, crossed=known), "line")


def told(kept: Kept, line: str = "gate") -> Any:
    return json.loads(kept.retained[TOPIC + line])


def counts(kept: Kept, line: str = "gate") -> tuple[int, int]:
    return told(kept, line)["in"], told(kept, line)["out"]


@pytest.fixture
def kept() -> Kept:
    return Kept()


def test_a_line_begins_with_zero_and_counts_in_and_out_by_label(kept: Kept, tmp_path: Path) -> None:
    counters = LineCounters("front", (GATE, ROAD), tmp_path, reporter(kept))
    assert counts(kept) == counts(kept, "road") == (0, 0)
    counters.add([crossed(), crossed(direction="out", label="car"), crossed()])
    assert counts(kept) == (2, 1)
    assert counts(kept, "road") == (0, 0)
    assert told(kept)["labels"] == {"person": {"in": 2, "out": 0}, "car": {"in": 0, "out": 1}}


def test_other_events_of_a_track_that_has_crossed_count_nothing(kept: Kept, tmp_path: Path) -> None:
    counters = LineCounters("front", (GATE,), tmp_path, reporter(kept))
    counters.add([Event("update", crossed().track, "moved"), Event("end", crossed().track, "lost")])
    assert counts(kept) == (0, 0)


def test_counts_survive_a_restart(tmp_path: Path) -> None:
    first, again = Kept(), Kept()
    counters = LineCounters("front", (GATE,), tmp_path / "lines", reporter(first))
    counters.add([crossed(), crossed(direction="out")])
    counters.close()
    LineCounters("front", (GATE, ROAD), tmp_path / "lines", reporter(again))
    assert told(again) == told(first)
    assert counts(again, "road") == (0, 0)


def test_counts_are_written_now_and_then(kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counters, file = LineCounters("front", (GATE,), tmp_path, reporter(kept)), tmp_path / "front.json"
    counters.add([crossed()])
    counters.store()
    assert not file.exists()
    monkeypatch.setattr(lines, "_WRITE_S", 0.0)
    counters.store()
    wait_for(file.is_file)
    assert json.loads(file.read_bytes())["gate"]["labels"] == {"person": {"in": 1, "out": 0}}


def test_a_damaged_file_is_set_aside_and_the_counts_begin_anew(
    kept: Kept, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "front.json").write_bytes(b'{"gate": 7')
    LineCounters("front", (GATE,), tmp_path, reporter(kept))
    assert counts(kept) == (0, 0)
    assert "stream front: the counts of lines begin anew" in caplog.text
    assert (tmp_path / "front.json.damaged").exists()


def test_a_disk_that_refuses_is_told_once_and_counting_goes_on(
    kept: Kept, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "lines").write_bytes(b"no folder")
    counters = LineCounters("front", (GATE,), tmp_path / "lines", reporter(kept))
    caplog.clear()
    for _ in range(2):
        counters.add([crossed()])
        counters.close()
    assert counts(kept) == (2, 0)
    assert [one.levelno for one in caplog.records] == [logging.WARNING]


def test_a_reset_begins_one_line_or_all_anew(kept: Kept, tmp_path: Path) -> None:
    counters = LineCounters("front", (GATE, ROAD), tmp_path, reporter(kept))
    counters.add([crossed(), crossed("road")])
    since = told(kept)["since"]
    counters.reset("gate")
    assert (counts(kept), counts(kept, "road")) == ((0, 0), (1, 0))
    assert told(kept)["since"] > since
    counters.reset("")
    assert counts(kept, "road") == (0, 0)
    assert json.loads((tmp_path / "front.json").read_bytes())["road"]["labels"] == {}


def test_a_reset_of_a_line_that_there_is_not_is_refused(kept: Kept, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="stream front has no line 'gat'; it has: gate"):
        LineCounters("front", (GATE,), tmp_path, reporter(kept)).reset("gat")


def test_a_line_that_is_gone_leaves_nothing_behind(tmp_path: Path) -> None:
    first, again = Kept(), Kept()
    counters = LineCounters("front", (GATE, ROAD), tmp_path / "lines", reporter(first))
    counters.add([crossed()])
    counters.set_lines((ROAD,))
    assert first.retained[TOPIC + "gate"] == b""
    counters.close()
    without = LineCounters("front", (), tmp_path / "lines", reporter(again))
    assert without is not None
    without.close()
    assert again.retained == {TOPIC + "road": b""}
    assert not (tmp_path / "lines" / "front.json").exists()


def test_many_labels_are_counted_together(kept: Kept, tmp_path: Path) -> None:
    counters = LineCounters("front", (GATE,), tmp_path, reporter(kept))
    counters.add([crossed(label=f"label {number}") for number in range(100)])
    assert counts(kept) == (100, 0)
    assert len(told(kept)["labels"]) == 65
    assert told(kept)["labels"]["other"] == {"in": 36, "out": 0}


def test_without_counts_nothing_is_published(kept: Kept, tmp_path: Path) -> None:
    LineCounters("front", (GATE,), tmp_path, reporter(kept, PublishConfig(counts=False))).add([crossed()])
    assert kept.retained == {}


@pytest.mark.parametrize(
    "content",
    [
        '{"gate":{"since":"2026-01-01T00:00:00Z","labels":{"person":{"in":-1,"out":0}}}}',
        '{"gate":{"since":"2026-01-01T00:00:00Z","labels":{"person":{"in":1e300,"out":0}}}}',
        '{"gate":{"since":"2026-01-01T00:00:00Z","labels":{"person":{"in":99999999999999999999999,"out":0}}}}',
        '{"gate":{"since":"2026-01-01T00:00:00","labels":{}}}',
    ],
)
def test_counts_that_cannot_be_are_set_aside(kept: Kept, tmp_path: Path, content: str) -> None:
    (tmp_path / "front.json").write_text(content)
    LineCounters("front", (GATE,), tmp_path, reporter(kept))
    assert counts(kept) == (0, 0)
    assert (tmp_path / "front.json.damaged").read_text() == content


def test_a_folder_in_the_place_of_the_counts_is_moved_each_time_and_named_once(
    kept: Kept, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        (tmp_path / "front.json" / "inside").mkdir(parents=True)
        LineCounters("front", (GATE,), tmp_path, reporter(kept))
        assert not (tmp_path / "lines" / "front.json").exists()
    for message in caplog.messages:
        assert message.count(f"{tmp_path / 'front.json'}:") == 1
