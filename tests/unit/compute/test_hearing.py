from __future__ import annotations

import logging
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.capture.audio_file import read_whole
from agent.compute import hearing as module
from agent.compute.hearing import AudioPerception
from agent.compute.infer.tensors import NullBackend
from agent.compute.track.keywords import answers_move
from agent.config import CascadeConfig, DecodeConfig, GateConfig, StreamConfig, ZoneConfig
from agent.errors import ConfigError, ModelError
from agent.models.files import ZOO
from agent.models.library import open_model
from agent.types import Samples
from tests.support.doubles import person_model
from tests.support.sound import RATE, cascade_model, chunks, quiet, tone_model, word

pytestmark = pytest.mark.numerics

STORY = np.concatenate((quiet(2), word("low"), quiet(2), word("high"), quiet(2), word("low"), quiet(1)))


def ear(path: Path, constant_s: float = 300.0, **fields: Any) -> AudioPerception:
    config = StreamConfig(source="mic:default", model=str(path), **fields)
    model = open_model(str(path), config.variant)
    return AudioPerception("kitchen", config, model, constant_s=constant_s)


def hear(hearing: AudioPerception, samples: Samples, size: int = 480) -> list[tuple[str, float]]:
    """Words, and when they were told, s."""
    told = []
    for chunk in chunks(samples, size, hearing._next):
        seen = hearing.process(chunk)
        told += [(event.track.label, chunk.captured_ns / 1e9) for event in seen.events]
        assert all((e.kind, e.reason) == ("keyword", "word") for e in seen.events)
    return told


def test_each_word_is_heard_once_while_it_is_said(tmp_path: Path) -> None:
    told = hear(ear(tone_model(tmp_path)), STORY)
    assert [label for label, _ in told] == ["low", "high", "low"]
    for (_, at), began in zip(told, (2.0, 4.6, 7.2), strict=True):
        assert began < at < began + 0.6


@pytest.mark.parametrize("size", [160, 1024, 5000])
def test_words_do_not_depend_on_the_size_of_the_chunks(tmp_path: Path, size: int) -> None:
    assert [label for label, _ in hear(ear(tone_model(tmp_path)), STORY, size)] == ["low", "high", "low"]


def test_a_closed_gate_infers_nothing_and_loses_no_word(tmp_path: Path) -> None:
    path = tone_model(tmp_path)
    counts = {}
    for voice in (True, False):
        hearing, count = ear(path, gate=GateConfig(voice=voice, hold_s=0.3)), 0
        words = []
        for chunk in chunks(STORY):
            seen = hearing.process(chunk)
            count += hearing.inferences if seen.detections is not None else 0
            words += [event.track.label for event in seen.events]
        assert words == ["low", "high", "low"]
        counts[voice] = count
    assert counts[False] >= 80
    assert counts[True] < 0.8 * counts[False], "open at first, and for three words of nine seconds"


def test_every_inference_says_what_it_hears_now(tmp_path: Path) -> None:
    hearing, heard = ear(tone_model(tmp_path), gate=GateConfig(voice=False)), []
    for chunk in chunks(STORY, 1600):  # each completes one inference, but for the first, which lacks a window
        seen = hearing.process(chunk)
        assert (seen.detections is None) == (hearing.inferences == 0)
        heard += seen.detections or []
    assert len(heard) == len(STORY) // 1600 - 1
    labels = [label for label, _ in groupby(one.label for one in heard)]
    assert labels == ["silence", "low", "silence", "high", "silence", "low", "silence"]
    assert all(one.box is None and 1 / 3 < one.score <= 1.0 for one in heard)


def test_several_inferences_on_one_piece_of_sound_give_each_label_once(tmp_path: Path) -> None:
    hearing = ear(tone_model(tmp_path), gate=GateConfig(voice=False))
    (chunk,) = chunks(STORY, STORY.size)
    found = hearing.process(chunk).detections
    assert hearing.inferences > 80
    assert found is not None
    assert {one.label for one in found} == {"low", "high", "silence"}
    assert len(found) == 3
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)


@pytest.mark.parametrize(("label", "first_s", "last_s"), [("three", 1.38, 1.9), ("seven", 12.81, 13.29)])
def test_the_same_word_said_twice_is_told_twice(label: str, first_s: float, last_s: float) -> None:
    pytest.importorskip("soundfile", reason="reads the recording; not there beside tflite-runtime")
    spoken = read_whole(ZOO / "spoken.flac", 8000)[round(first_s * 8000) : round(last_s * 8000)]
    pause = quiet(0.3)[: round(0.3 * 8000)]
    sound = np.concatenate((quiet(1.0), spoken, pause, spoken, quiet(1.0)))
    hearing = AudioPerception("kitchen", StreamConfig("mic:default", "small-speech"), open_model("small-speech"))
    at = [(chunk.captured_ns, hearing.process(chunk).events) for chunk in chunks(sound, 240, rate_hz=8000)]
    told = [event.track.label for _, events in at for event in events]
    assert told == [label, label]


def test_a_word_that_lasts_is_told_once_and_again_after_a_pause(tmp_path: Path) -> None:
    hearing = ear(tone_model(tmp_path, rows=100))
    assert [label for label, _ in hear(hearing, np.concatenate((quiet(2), word("low", 5.0))))] == ["low"]
    assert hear(hearing, quiet(0.3)) == []
    assert [label for label, _ in hear(hearing, np.concatenate((word("low", 1.5), quiet(1.0))))] == ["low"]


def test_lost_sound_is_not_glued_together(tmp_path: Path) -> None:
    hearing = ear(tone_model(tmp_path), gate=GateConfig(voice=False))
    for chunk in chunks(word("low", 0.1)):
        hearing.process(chunk)
    before = hearing._rows._ring.copy()
    for chunk in chunks(quiet(0.1), first=999_999):
        hearing.process(chunk)
    assert not (hearing._rows._ring == before).all()
    assert hearing._next == 999_999 + 1600


def test_a_deeper_variant_is_asked_when_the_first_is_unsure(tmp_path: Path) -> None:
    path = cascade_model(tmp_path)
    hearing = ear(path)
    assert [label for label, _ in hear(hearing, STORY)] == ["low", "high", "low"]
    assert hearing.used["3"] == 0
    assert hearing.used["12"] > 10
    assert hearing.answered_by == ("cpu", "12")
    sure = ear(cascade_model(tmp_path, confidence=0.0))
    assert hear(sure, STORY) == [], "the first exit is unsure of everything"
    assert sure.used["12"] == 0
    assert sure.answered_by == ("cpu", "3")


def test_depths_give_what_a_variant_that_was_asked_for_gives(tmp_path: Path) -> None:
    path = cascade_model(tmp_path, confidence=1.0)
    assert hear(ear(path), STORY) == hear(ear(path, variant="12"), STORY)
    assert hear(ear(path, variant="3"), STORY) == []


def test_the_budget_keeps_it_at_the_first_variant(tmp_path: Path) -> None:
    hearing = ear(cascade_model(tmp_path), cascade=CascadeConfig(budget_ms=1e-6))
    hear(hearing, STORY)
    assert hearing.used["12"] <= 1, "once, to learn how long it takes"


def test_a_hard_input_begins_deeper(tmp_path: Path) -> None:
    hearing = ear(cascade_model(tmp_path, confidence=0.0, complexity=0.0))
    hear(hearing, STORY)
    assert hearing.used["3"] == 0
    assert hearing.used["12"] > 10


def test_an_answer_that_never_moves_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hearing = ear(tone_model(tmp_path, sharpness=0.0), constant_s=1.0, gate=GateConfig(voice=False))
    caplog.set_level(logging.ERROR, module.__name__)
    hear(hearing, STORY)
    assert "file is broken" in hearing.alarm
    assert len(caplog.records) == 1


def test_a_front_end_that_gives_one_value_is_reported(tmp_path: Path) -> None:
    manifest = (ZOO / "small-speech.toml").read_text().replace("mean = -9.0", "mean = 1e6")
    (tmp_path / "wrong.toml").write_text(manifest)
    (tmp_path / "small-speech.tflite").write_bytes((ZOO / "small-speech.tflite").read_bytes())
    hearing = ear(tmp_path / "wrong.toml", constant_s=1.0, gate=GateConfig(voice=False))
    for chunk in chunks(quiet(4.0, 500.0), 240, rate_hz=8000):
        hearing.process(chunk)
    assert "[audio]" in hearing.alarm


def test_a_wake_word_that_is_constant_is_reported() -> None:
    pytest.importorskip("pymicro_wakeword", reason="the extra [wakeword] is not installed")
    config = StreamConfig("mic:default", "wakeword/alexa", gate=GateConfig(voice=False))
    # This backend computes nothing: the score is 0 whatever comes in, as that of a broken model may be.
    null = NullBackend()
    hearing = AudioPerception(
        "kitchen", config, open_model("wakeword/alexa"), lambda model, _, more: null.open(model, more), 0.5
    )
    for chunk in chunks(read_whole(ZOO / "spoken.flac", RATE)[: 4 * RATE]):
        hearing.process(chunk)
    assert "file is broken" in hearing.alarm


@pytest.mark.parametrize("word", ["alexa", "hey_jarvis", "hey_mycroft", "okay_nabu"])
def test_a_healthy_wake_word_that_is_not_said_is_not_reported(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pymicro_wakeword", reason="the extra [wakeword] is not installed")
    tested: list[bool] = []

    def move(*args: Any) -> bool:
        tested.append(answers_move(*args))
        return tested[-1]

    monkeypatch.setattr(module, "answers_move", move)
    config = StreamConfig("mic:default", f"wakeword/{word}", gate=GateConfig(voice=False))
    hearing = AudioPerception("kitchen", config, open_model(f"wakeword/{word}"), constant_s=0.5)
    for chunk in chunks(np.concatenate((quiet(3.0, 300.0), read_whole(ZOO / "spoken.flac", RATE)))):
        hearing.process(chunk)
    assert hearing.alarm == ""
    assert tested == [True], "its score did not change through half a second"


def test_what_is_for_pictures_is_refused(tmp_path: Path) -> None:
    zone = ZoneConfig("z", ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0)))
    with pytest.raises(ConfigError, match=r"zones and gate\.crop are for pictures"):
        ear(tone_model(tmp_path), zones=(zone,))
    with pytest.raises(ModelError, match="takes pictures"):
        ear(person_model(tmp_path))


def test_a_front_end_that_does_not_fit_the_model_is_refused(tmp_path: Path) -> None:
    path = tone_model(tmp_path)
    text = path.read_text()
    for old, new, why in (
        (f"mels = {20}", "mels = 30", "does not hold rows of front end 'logmel'"),
        ('"logmel"', '"logmell"', "did you mean 'logmel'"),
        ("high_hz", "hihg_hz", "did you mean .high_hz."),
        ('"logmel"', '"raw"', r"unknown key `audio\.options\.mels`; no key is known there"),
    ):
        path.write_text(text.replace(old, new))
        with pytest.raises(ModelError, match=why):
            ear(path)


def test_a_word_that_has_been_told_is_no_news_and_asks_no_deeper_variant(tmp_path: Path) -> None:
    hearing = ear(cascade_model(tmp_path, confidence=0.9999, first=3.0), gate=GateConfig(voice=False))
    assert [label for label, _ in hear(hearing, np.concatenate((quiet(2), word("low", 5.0))))] == ["low"]
    before = hearing.used
    assert before["3"] > 20, "it was told and goes on"
    hear(hearing, quiet(2))
    assert hearing.used["3"] <= before["3"] + 6, "it ends"
    assert hearing.used["12"] > before["12"] + 10, "and what comes then is news"


def test_sound_takes_exits_and_no_sizes(tmp_path: Path) -> None:
    path = cascade_model(tmp_path)
    assert hear(ear(path, variant="auto"), STORY) == hear(ear(path), STORY)
    path.write_text(path.read_text().replace('after = "3"\n', ""))
    assert ear(path).used == {"12": 0}
    with pytest.raises(ModelError, match="sizes only: name one of 12, 3"):
        ear(path, variant="auto")


def test_a_variant_that_was_asked_for_keeps_to_no_budget(tmp_path: Path) -> None:
    hearing = ear(cascade_model(tmp_path), variant="12", cascade=CascadeConfig(budget_ms=1e-6))
    assert [label for label, _ in hear(hearing, STORY)] == ["low", "high", "low"]
    assert hearing.used["3"] == 0


@pytest.mark.parametrize(("lead", "trail"), [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0)])
def test_a_word_that_is_all_of_a_recording_is_told(tmp_path: Path, lead: float, trail: float) -> None:
    hearing = ear(tone_model(tmp_path))
    told = hear(hearing, np.concatenate((quiet(lead), word("low", 0.5), quiet(trail))))
    told += [
        (event.track.label, 0.0) for event in hearing.finish(10**9, datetime(2026, 1, 1, tzinfo=UTC), "ended")
    ]
    assert [label for label, _ in told] == ["low"]
    assert hearing.finish(10**9, datetime(2026, 1, 1, tzinfo=UTC), "shutdown") == []


def test_what_was_heard_before_the_gate_closed_is_not_mixed_in(tmp_path: Path) -> None:
    hearing = ear(tone_model(tmp_path), gate=GateConfig(hold_s=0.3, pre_roll_s=0.0))
    hear(hearing, np.concatenate((quiet(2), word("low", 0.4), quiet(3))))
    assert not hearing._listening
    rows = hearing._rows
    hear(hearing, word("high", 0.1))
    newest = rows._ring[rows._at : rows._at + rows.rows]
    again = ear(tone_model(tmp_path), gate=GateConfig(voice=False))
    hear(again, np.concatenate((quiet(2), word("high", 0.1))))
    other = again._rows._ring[again._rows._at : again._rows._at + rows.rows]
    assert np.abs(newest - other).mean() < 2.0


def test_a_muted_microphone_is_no_broken_model(tmp_path: Path) -> None:
    hearing = ear(tone_model(tmp_path), constant_s=1.0, gate=GateConfig(voice=False))
    hear(hearing, np.zeros(5 * 16_000, np.int16))
    assert hearing.alarm == ""


def test_a_threshold_changes_in_mid_stream_and_no_word_is_told_twice(tmp_path: Path) -> None:
    hearing = ear(tone_model(tmp_path))
    first, rest = STORY[: 16000 * 5 // 2], STORY[16000 * 5 // 2 :]
    assert [label for label, _ in hear(hearing, first)] == ["low"], "it is being said"
    hearing.configure(
        StreamConfig("mic:default", str(tone_model(tmp_path)), decode=DecodeConfig(score_threshold=0.3))
    )
    assert [label for label, _ in hear(hearing, rest)] == ["high", "low"]
    hearing.configure(
        StreamConfig("mic:default", str(tone_model(tmp_path)), decode=DecodeConfig(score_threshold=1.0))
    )
    assert hear(hearing, STORY) == []


def test_a_depth_can_be_asked_for_in_mid_stream(tmp_path: Path) -> None:
    hearing = ear(cascade_model(tmp_path), cascade=CascadeConfig(1e6))
    hear(hearing, STORY)
    assert hearing.answered_by[1] == "12"
    for variant in ("3", "12"):
        hearing.configure(StreamConfig("mic:default", str(tmp_path / "depths.toml"), variant=variant))
        hear(hearing, STORY)
        assert hearing.used.keys() <= {"3", "12"}
        assert hearing.answered_by[1] == variant
