"""Hearing with a model of many sounds at once: what becomes of a sound that begins, goes on and ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.compute.hearing import AudioPerception
from agent.config import DecodeConfig, GateConfig, StreamConfig, TrackConfig
from agent.errors import ModelError
from agent.models.library import open_model
from agent.types import Samples
from tests.support.sound import chunks
from tests.support.soundscape import ALARM, BIRD, SMOKE, WHISTLE, logmel_model, story, waveform_model

pytestmark = pytest.mark.numerics

Made = Callable[[Path], Path]
Told = list[tuple[str, str, float]]
EVERY_S, WINDOW_S = 0.48, 0.975
both = pytest.mark.parametrize("made", [waveform_model, logmel_model])


def ear(path: Path, **fields: Any) -> AudioPerception:
    config = StreamConfig(source="mic:default", model=str(path), **fields)
    return AudioPerception("yard", config, open_model(str(path)))


def told(hearing: AudioPerception, samples: Samples) -> Told:
    """Kind, label and time of every event but updates, s."""
    events = [
        (event.kind, event.track.label, chunk.captured_ns / 1e9)
        for chunk in chunks(samples, 1600, hearing._next)
        for event in hearing.process(chunk).events
    ]
    return [event for event in events if event[0] != "update"]


def at(events: Told, kind: str, label: str) -> float:
    """When it was told, the only time."""
    (when,) = [when for one, other, when in events if (one, other) == (kind, label)]
    return when


@both
@pytest.mark.parametrize("voice", [True, False])
def test_several_sounds_at_once_begin_and_end_each_at_its_time(tmp_path: Path, made: Made, voice: bool) -> None:
    hearing = ear(made(tmp_path), gate=GateConfig(voice=voice))
    events = told(hearing, story((WHISTLE, 2, 6), (ALARM, 4, 9), seconds=14))
    for label, began, ended in ((WHISTLE, 2, 6), (ALARM, 4, 9), (SMOKE, 4, 9)):
        assert began < at(events, "new", label) < began + 2 * EVERY_S + 0.1
        assert ended + 2.5 < at(events, "end", label) < ended + 2.5 + WINDOW_S + EVERY_S
    assert {label for _, label, _ in events} == {WHISTLE, ALARM, SMOKE}
    assert hearing.tracker.counts() == {WHISTLE: 0, ALARM: 0, SMOKE: 0}


def test_an_alarm_that_goes_on_is_not_over_when_it_has_become_the_background(tmp_path: Path) -> None:
    hearing = ear(waveform_model(tmp_path))
    events = told(hearing, story((ALARM, 2, 60), seconds=70))
    assert 62.0 < at(events, "end", ALARM) < 64.0
    closed = hearing.process(next(chunks(story(seconds=1), 1600, hearing._next)))
    assert closed.detections is None, "and then the gate saves the work again"


@pytest.mark.parametrize("began", [3.0, 3.1, 3.2, 3.3, 3.4])
def test_a_short_sound_is_told_whenever_it_begins(tmp_path: Path, began: float) -> None:
    events = told(ear(waveform_model(tmp_path)), story((BIRD, began, began + 0.6), seconds=8))
    assert [(kind, label) for kind, label, _ in events] == [("new", BIRD), ("end", BIRD)]


def test_a_stream_may_ask_for_more_hits_than_one(tmp_path: Path) -> None:
    asked = ear(waveform_model(tmp_path), track=TrackConfig(min_hits=4, lost_after_s=1.0))
    events = told(asked, story((BIRD, 3, 3.6), (WHISTLE, 3, 7), seconds=10))
    assert {label for _, label, _ in events} == {WHISTLE}
    assert 3 + 3 * EVERY_S < at(events, "new", WHISTLE) < 3 + 5 * EVERY_S
    assert 8 < at(events, "end", WHISTLE) < 8 + 2 * EVERY_S


def test_only_the_labels_asked_for_are_followed_with_commas_in_them(tmp_path: Path) -> None:
    hearing = ear(waveform_model(tmp_path), decode=DecodeConfig(labels=(SMOKE,)))
    events = told(hearing, story((WHISTLE, 2, 6), (ALARM, 3, 5), seconds=9))
    assert {label for _, label, _ in events} == {SMOKE}
    with pytest.raises(ModelError, match="did you mean 'Smoke detector, smoke alarm'"):
        ear(waveform_model(tmp_path), decode=DecodeConfig(labels=("Smoke detector",)))


def test_the_manifest_says_how_many_sounds_there_may_be_at_once(tmp_path: Path) -> None:
    path = waveform_model(tmp_path)
    scene = story((WHISTLE, 2, 6), (ALARM, 2, 6), (BIRD, 2, 6), seconds=7)
    heard = {}
    for top_k in (1, 2, 5):
        path.write_text(path.read_text().replace("top_k = 5", f"top_k = {top_k}"))
        hearing = ear(path)
        seen = [hearing.process(chunk).detections or [] for chunk in chunks(scene, 1600)]
        heard[top_k] = max(map(len, seen))
        assert all(one.score >= 0.3 for found in seen for one in found)
        path.write_text(path.read_text().replace(f"top_k = {top_k}", "top_k = 5"))
    assert heard == {1: 1, 2: 2, 5: 4}
