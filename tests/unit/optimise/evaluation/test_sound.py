"""Evaluation of a model of words: on tones, of which every event is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from agent.compute.hearing import AudioPerception
from agent.config import StreamConfig
from agent.errors import ModelError
from agent.models.library import open_model
from agent.optimise.evaluation.listening import LEAD_S, THRESHOLDS, open_listener
from agent.optimise.evaluation.operating import Confusion
from agent.optimise.evaluation.sound import (
    evaluate_sounds,
    missed_alarm_target,
)
from agent.optimise.evaluation.sound_data import SoundExamples, read_sounds
from tests.support.sound import RATE, cascade_model, chunks, quiet, tone_model, verified_model, word

WORDS, IGNORED = ("low", "high"), ("silence",)
TALK = np.concatenate((quiet(2), word("low"), quiet(2), word("high"), quiet(2), word("low"), quiet(1)))


def write(path: Path, sound: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound, RATE)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two of each word, of which one `high` is a `low`; noise with one `low` in it, and a talk with labels."""
    for number, (folder, name) in enumerate([("low", "low")] * 2 + [("high", "high"), ("high", "low")]):
        write(
            tmp_path / f"words/{folder}/{number}.wav",
            np.concatenate((quiet(0.3 + number / 50), word(name), quiet(0.3))),
        )
    write(tmp_path / "words/talk.wav", TALK)
    (tmp_path / "words/talk.txt").write_text("2.0\t2.6\tlow\n4.6\t5.2\thigh\n7.2\t7.8\tlow\n")
    write(tmp_path / "noise/street/1.wav", np.concatenate((quiet(4), word("low"), quiet(4))))
    write(tmp_path / "noise/room/1.wav", quiet(9))
    return tmp_path


def examples(data: Path) -> SoundExamples:
    return read_sounds(data / "words", (data / "noise",), WORDS, IGNORED)


def test_events_are_those_of_a_stream(tmp_path: Path) -> None:
    """The same sound, with its silence before and after, through the daemon's own class."""
    write(tmp_path / "words/low/1.wav", TALK)
    path = str(tone_model(tmp_path))
    with open_listener(open_model(path)) as listener:
        (one,) = read_sounds(tmp_path / "words", (), WORDS, IGNORED).recordings
        heard = listener.hear(one)
        assert (listener.words, listener.ignored, listener.threshold) == (WORDS, IGNORED, 0.6)
    stream = AudioPerception("kitchen", StreamConfig("mic:default", path), open_model(path))
    told = []
    for chunk in chunks(np.concatenate((quiet(LEAD_S, 8.0), TALK, quiet(1.0, 8.0)))):
        told += [(event.track.label, chunk.captured_ns / 1e9 - LEAD_S) for event in stream.process(chunk).events]
    assert [event.label for event in heard.events] == [label for label, _ in told] == ["low", "high", "low"]
    assert [event.at_s for event in heard.events] == pytest.approx([at for _, at in told], abs=0.05)


def test_words_confusions_and_false_alarms_are_counted(tmp_path: Path, data: Path) -> None:
    found = evaluate_sounds(open_model(str(tone_model(tmp_path))), examples(data))
    assert found.count == 7
    assert found.value == pytest.approx(6 / 7)
    assert found.interval[0] < found.value < found.interval[1]
    assert found.confusions == (Confusion("high", "low", 1), Confusion("other sound", "low", 1))
    low, high = found.words["low"], found.words["high"]
    assert (low.said, low.missed, low.alarms) == (4, 0, 1)
    assert (high.said, high.missed, high.alarms) == (3, 1, 0)
    assert low.alarms_per_hour == pytest.approx(1 / found.hours)
    assert found.hours == pytest.approx((8.6 + 9.0 + len(TALK) / RATE) / 3600)
    assert found.in_use.missed == 1
    wrong = {(one.name, one.truth, one.told) for one in found.wrong}
    assert wrong == {("noise/street/1.wav", "other sound", "low"), ("high/3.wav", "high", "low")}


def test_the_curve_at_the_threshold_in_use_is_what_was_heard(tmp_path: Path, data: Path) -> None:
    found = evaluate_sounds(open_model(str(tone_model(tmp_path))), examples(data))
    (point,) = [one for one in found.curve if one.threshold == found.in_use.threshold]
    assert point == found.in_use
    assert [one.threshold for one in found.curve] == list(THRESHOLDS)
    missed = [one.missed for one in found.curve]
    assert missed[-1] >= missed[60] >= 1


def test_words_that_the_verification_refuses_are_missed_at_every_threshold(tmp_path: Path, data: Path) -> None:
    found = evaluate_sounds(open_model(str(verified_model(tmp_path, -1000.0))), examples(data))
    assert [(one.missed, one.alarms) for one in found.words.values()] == [(4, 0), (1, 0)]
    assert min(one.missed for one in found.curve) >= 5
    (point,) = [one for one in found.curve if one.threshold == found.in_use.threshold]
    assert point == found.in_use


def test_a_threshold_is_chosen_for_a_rate_of_false_alarms(tmp_path: Path, data: Path) -> None:
    model = open_model(str(tone_model(tmp_path)))
    per_hour = 1 / examples(data).hours
    told: list[str] = []
    many = evaluate_sounds(model, examples(data), target=per_hour * 1.01, progress=told.append)
    assert len({line.partition(":")[0] for line in told}) == 2
    assert many.at_target is not None
    assert many.at_target.alarms_per_hour is not None
    assert many.at_target.alarms_per_hour <= per_hour * 1.01
    assert any("cannot show" in remark for remark in many.remarks)
    none = evaluate_sounds(model, examples(data), target=0.0)
    if none.at_target is None:
        assert "0 false alarms an hour" in missed_alarm_target(none, 0.0)
    else:
        assert none.at_target.alarms == 0


def test_a_rate_needs_other_sound(tmp_path: Path, data: Path) -> None:
    (data / "words/talk.txt").unlink()
    (data / "words/talk.wav").unlink()
    alone = read_sounds(data / "words", (), WORDS, IGNORED)
    with pytest.raises(ModelError, match="--background"):
        evaluate_sounds(open_model(str(tone_model(tmp_path))), alone, target=1.0)


def test_a_word_that_is_told_as_another_is_a_confusion(tmp_path: Path, data: Path) -> None:
    write(data / "words/low/0.wav", np.concatenate((quiet(0.3), word("high"), quiet(0.3))))
    found = evaluate_sounds(open_model(str(tone_model(tmp_path))), examples(data))
    assert Confusion("low", "high", 1) in found.confusions


def test_two_models_are_compared_word_by_word(tmp_path: Path, data: Path) -> None:
    model = open_model(str(tone_model(tmp_path)))
    told: list[str] = []
    found = evaluate_sounds(model, examples(data), other=model, progress=told.append)
    assert told[-1].startswith(model.path)
    assert found.against is not None
    assert found.against.difference == 0.0
    with pytest.raises(ModelError, match="cannot be compared"):
        evaluate_sounds(model, examples(data), other=open_model("small-speech"))


def test_the_answers_of_each_exit_are_told(tmp_path: Path) -> None:
    model = open_model(str(cascade_model(tmp_path)))
    write(tmp_path / "words/low/1.wav", np.concatenate((quiet(0.3), word("low"), quiet(0.3))))
    heard = read_sounds(tmp_path / "words", (), WORDS, IGNORED)
    told = evaluate_sounds(model, heard).remarks[-1]
    assert told.startswith("windows of sound answered by exit 3: ")
    assert sum(float(part.split(": ")[1].rstrip("%")) for part in told.split(", ")) == pytest.approx(100, abs=0.1)
    assert "answered by" not in " ".join(evaluate_sounds(model, heard, "12").remarks)


def test_a_model_that_tells_no_words_is_refused() -> None:
    with pytest.raises(ModelError), open_listener(open_model("speech-embedding")):
        pass
