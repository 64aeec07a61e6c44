"""Recordings: what is read of them, what is refused, and that a replay tells what the daemon would have told."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

from agent.errors import ConfigError
from agent.features.fusion.expression import EvidenceSource, Rule
from agent.features.fusion.rules import Fusion, FusionTimes
from agent.optimise.late_fusion import (
    Span,
    read_recording,
    read_truth,
    replay,
    score_events,
    to_moment,
    to_ns,
    within,
)
from tests.unit.optimise.staged_fusion import START, event, moment, text, write

SOURCES = {"front": EvidenceSource("pictures", ("person",)), "gate": EvidenceSource("text")}
RULE = Rule('person and "help"', SOURCES)
SECOND = 1_000_000_000


def fused(path: Path, rule: str = 'person and "help"', window: float = 2.0) -> list[Span]:
    condition = Rule(rule, SOURCES)
    made = Fusion("call", condition, FusionTimes.of_seconds(window, 0.5, 1, 5), run="r")
    told = [one for _, one in replay(read_recording(path, condition.terms), made) if one is not None]
    assert [one.kind for one in told].count("new") == [one.kind for one in told].count("end")
    return [(to_ns(one.track.first_seen), to_ns(one.track.last_seen)) for one in told if one.kind == "end"]


def test_a_replay_finds_every_situation_and_nothing_else_that_is_clear(tmp_path: Path) -> None:
    recording, truth = write(tmp_path, 30)
    events, situations = fused(recording), read_truth(truth)
    score = score_events(events, situations, 2 * SECOND)
    assert (score.situations, score.found, score.recall) == (10, 10, 1.0)
    assert 0.5 < score.precision < 1.0, "a word and a shadow count as well for a rule"


def test_lines_of_watch_export_texts_and_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "day.jsonl"
    exported = json.loads(event("front", "new", "person", 1, 1.0, 0.5, 0.9))["payload"]
    others = ['{"topic": "vedette/porch/status", "retained": true, "payload": "online"}', "", '{"a": 1}']
    path.write_text("\n".join([*others, json.dumps({"topic": "t", **exported}), text("help", 2.0)]))
    found = read_recording(path, RULE.terms)
    assert [(one.evidence.source, one.evidence.label) for one in found if one.evidence] == [
        ("front", "person"),
        ("gate", "help"),
    ]
    assert found[0].at_ns - found[0].evidence.from_ns == SECOND // 2 if found[0].evidence else False


def test_a_recording_begins_and_ends_with_what_others_published(tmp_path: Path) -> None:
    path = tmp_path / "day.jsonl"
    others = [
        event("yard", "new", "dog", number, float(at), float(at), 0.9) for number, at in enumerate((0, 3, 9))
    ]
    path.write_text("\n".join([*others, text("help", 2.0)]))
    found = read_recording(path, RULE.terms)
    assert [one.at_ns - found[0].at_ns for one in found] == [0, 2 * SECOND, 9 * SECOND]
    begin = found[0].at_ns
    truth = [
        (begin - 5, begin - 1),
        (begin - 5, begin),
        (begin + 9 * SECOND, begin + 99 * SECOND),
        (begin + 10 * SECOND,) * 2,
    ]
    assert within(truth, found) == truth[1:3]


def test_a_source_that_the_recording_shows_as_lost_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "day.jsonl"

    def health(at: float, state: str) -> str:
        return json.dumps({"payload": {"at": moment(at), "streams": {"front": {"state": state}}}})

    path.write_text("\n".join([health(0, "running"), health(10, "lost"), text("help", 5), text("help", 30)]))
    assert len(fused(path, '"help" and not person')) == 1


@pytest.mark.parametrize(
    ("content", "line", "what"),
    [
        ("[1]\n", 1, "JSON object"),
        ('{"a": 1}\n{"a"\n', 2, "JSON object"),
        ('{"a": 1}\n', 0, "holds nothing"),
        (text("nobody calls", 1.0), 0, "holds nothing"),
        ('{"text": "help", "source": "gate", "at": "2026-01-01T00:00:00"}', 0, "offset from UTC"),
    ],
)
def test_a_recording_that_cannot_be_used_is_refused_with_its_line(
    tmp_path: Path, content: str, line: int, what: str
) -> None:
    path = tmp_path / "day.jsonl"
    path.write_text(content)
    with pytest.raises(ConfigError, match=what) as error:
        read_recording(path, RULE.terms)
    assert not line or str(error.value).startswith(f"{path}:{line}: ")


@pytest.mark.parametrize(
    ("content", "line"),
    [("", 0), ("from,to\n", 0), ("2026-01-01T00:00:00Z\n", 1), ("2026-01-01T00:00:01Z,2026-01-01T00:00:00Z", 1),
     ("2026-01-01T00:00:00,2026-01-01T00:00:01", 1), ("from,to\n2026,x", 2)],
)  # fmt: skip
def test_a_truth_that_cannot_be_used_is_refused_with_its_line(tmp_path: Path, content: str, line: int) -> None:
    path = tmp_path / "truth.csv"
    path.write_text(content)
    with pytest.raises(ConfigError) as error:
        read_truth(path)
    assert str(path) in str(error.value)
    assert not line or f"{path}:{line}: " in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_truth(tmp_path / "none.csv")


def test_events_and_situations_fit_where_they_overlap() -> None:
    events = [(0, 10), (20, 30), (40, 50)]
    score = score_events(events, [(5, 6), (34, 36), (60, 70)], 4)
    assert (score.right, score.found) == (2, 2), "an event in the window behind a situation fits too"
    assert score.precision == pytest.approx(2 / 3)
    assert score.f1 == pytest.approx(2 / 3)
    assert score_events([], [(0, 1)], 0).f1 == 0.0


def test_times_survive_as_nanoseconds() -> None:
    assert to_moment(to_ns(START)) == START
    assert to_ns(datetime.fromisoformat("1970-01-01T00:00:01.000001+00:00")) == SECOND + 1000
