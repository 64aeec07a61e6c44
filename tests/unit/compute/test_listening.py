"""Utterances of a stream, with the bundled embedding and the bundled recording."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from agent.capture.audio_file import read_whole
from agent.compute.infer.litert import load_runtime
from agent.compute.listening import HeardUtterance, UtterancePerception
from agent.config import DecodeConfig, GateConfig, StreamConfig, ZoneConfig
from agent.errors import ConfigError, ModelError
from agent.models.files import ZOO
from agent.models.library import open_model
from agent.types import AudioChunk, Samples
from tests.support.sound import tone_model

pytest.importorskip("soxr", reason="makes recordings; not there beside tflite-runtime")

from tests.unit.compute.spoken_words import RATE, quiet, said

if load_runtime()[0] != "litert":
    pytest.skip("the bundled models are opened by LiteRT here", allow_module_level=True)

BEGAN = datetime(2026, 5, 1, tzinfo=UTC)


def ear(model: str = "speech-embedding", **fields: object) -> UtterancePerception:
    config = StreamConfig("mic:default", model, threads=1, **fields)  # type: ignore[arg-type]
    return UtterancePerception("kitchen", config, open_model(model))


@pytest.fixture
def hearing() -> Iterator[UtterancePerception]:
    opened = ear()
    yield opened
    opened.close()


def chunks(samples: Samples, size: int = 1600, first: int = 0) -> Iterator[AudioChunk]:
    for at in range(0, len(samples), size):
        part = samples[at : at + size]
        end_s = (first + at + len(part)) / RATE
        yield AudioChunk(part, RATE, "kitchen", first + at, round(end_s * 1e9), BEGAN + timedelta(seconds=end_s))


def heard(hearing: UtterancePerception, samples: Samples, **how: int) -> list[HeardUtterance]:
    found = []
    for chunk in chunks(samples, **how):
        result = hearing.process(chunk)
        assert result.events == []
        assert (result.detections is not None) is (hearing.inferences > 0)
        found += hearing.utterances
    return found


def test_each_word_of_a_recording_is_an_utterance_with_its_time(hearing: UtterancePerception) -> None:
    found = heard(hearing, read_whole(ZOO / "spoken.flac", RATE))
    assert len(found) == 10
    ended = [one.ended_ns / 1e9 for one in found]
    assert ended == pytest.approx([1.9, 3.15, 4.38, 5.65, 6.94, 8.32, 9.76, 11.65, 13.31, 14.8], abs=0.06)
    assert all(0.15 <= (one.ended - one.began).total_seconds() <= 1.0 for one in found)
    assert [(one.ended - BEGAN).total_seconds() for one in found] == pytest.approx(ended)
    assert {one.embedding.shape for one in found} == {(96,)}


def test_the_model_rests_while_nobody_speaks(hearing: UtterancePerception) -> None:
    inferred = 0
    for chunk in chunks(quiet(6.0)):
        hearing.process(chunk)
        inferred += hearing.inferences
    assert inferred == 1, "once when the gate opens for the first time, to find a broken model"


def test_one_word_is_near_itself_and_far_from_another(hearing: UtterancePerception) -> None:
    sound = np.concatenate([quiet(1.5), said("alexa", 1), said("alexa", 2), said("seven", 3)])
    first, again, other = (one.embedding for one in heard(hearing, sound))
    assert np.linalg.norm(first - again) < 0.5 * np.linalg.norm(first - other)


def test_a_recording_that_ends_within_a_word_gives_it_too(hearing: UtterancePerception) -> None:
    sound = np.concatenate([quiet(1.5), said("alexa", 1, pause_s=0.05)])
    assert heard(hearing, sound) == []
    assert hearing.finish(0, BEGAN, "stall") == []
    assert hearing.utterances == []
    hearing.reset()
    hearing._next = 0
    assert heard(hearing, sound) == []
    hearing.finish(round(len(sound) / RATE * 1e9), BEGAN, "ended")
    assert len(hearing.utterances) == 1


def test_what_lies_on_both_sides_of_a_gap_is_no_word(hearing: UtterancePerception) -> None:
    word = said("okay nabu", 1)
    sound = np.concatenate([quiet(1.5), word[:4000]])
    assert heard(hearing, sound) == []
    assert len(heard(hearing, np.concatenate([quiet(2.5), said("seven", 1)]), first=len(sound) + 8000)) == 1


def test_a_gate_that_is_always_open_hears_the_same(hearing: UtterancePerception) -> None:
    always = ear(gate=GateConfig(voice=False))
    sound = np.concatenate([quiet(1.5), said("seven", 4), quiet(1.0)])
    assert len(heard(always, sound)) == len(heard(hearing, sound)) == 1


def test_a_threshold_is_applied_while_it_runs(hearing: UtterancePerception) -> None:
    assert hearing.least == 0.5
    asked = StreamConfig("mic:default", "speech-embedding", decode=DecodeConfig(score_threshold=0.7))
    hearing.configure(asked)
    assert hearing.least == 0.7


def test_settings_of_other_models_are_refused(tmp_path: object) -> None:
    square = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0))
    for fields, why in (
        ({"decode": DecodeConfig(labels=("stop",))}, "has no labels"),
        ({"zones": (ZoneConfig("door", square),)}, "for pictures"),
        ({"gate": GateConfig(crop=True)}, "for pictures"),
    ):
        with pytest.raises(ConfigError, match=why):
            ear(**fields)
    with pytest.raises(ModelError, match="takes pictures"):
        ear("nanodet")


def test_a_model_without_an_embedding_is_refused(tmp_path: object) -> None:
    with pytest.raises(ModelError, match="expected an output 'features'"):
        ear(str(tone_model(tmp_path)))  # type: ignore[arg-type]
