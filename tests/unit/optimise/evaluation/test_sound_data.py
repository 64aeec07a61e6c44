"""Recordings with words: folders, label tracks, other sound, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from agent.errors import ModelError, SourceError
from agent.optimise.evaluation.sound_data import SpokenWord, read_blocks, read_sounds
from tests.support.sound import RATE, quiet, word

WORDS, IGNORED = ("low", "high"), ("silence",)


def write(path: Path, sound: np.ndarray, rate: int = RATE, **options: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound, rate, **options)


@pytest.fixture
def words(tmp_path: Path) -> Path:
    write(tmp_path / "words/low/1.wav", word("low"))
    write(tmp_path / "words/HIGH/anna/1.flac", word("high"))
    return tmp_path / "words"


def refusal(path: Path, *background: Path) -> str:
    with pytest.raises((ModelError, SourceError)) as caught:
        read_sounds(path, background, WORDS, IGNORED)
    return str(caught.value)


def test_a_folder_is_a_word_whatever_its_case(words: Path) -> None:
    found = read_sounds(words, (), WORDS, IGNORED)
    assert [(one.name, one.said[0].label) for one in found.recordings] == [
        ("HIGH/anna/1.flac", "high"),
        ("low/1.wav", "low"),
    ]
    assert found.recordings[1].said[0].end_s == pytest.approx(0.6)
    assert (found.count, found.hours) == (2, 0.0)
    assert any("--background" in remark for remark in found.remarks)


def test_a_folder_of_a_label_that_is_no_word_is_other_sound(words: Path) -> None:
    write(words / "silence/1.ogg", quiet(1))
    found = read_sounds(words, (), WORDS, IGNORED)
    (other,) = [one for one in found.recordings if not one.said]
    assert (other.name, other.counts_time) == ("silence/1.ogg", True)


def test_a_label_track_tells_the_words_of_a_long_recording(words: Path) -> None:
    write(words / "talk.wav", quiet(9))
    (words / "talk.txt").write_text("5.0\t5.6\thigh\n\\\t100\t200\n1.0\t1.6\tlow\n\n7\t8\tsilence\n")
    found = read_sounds(words, (), WORDS, IGNORED)
    talk = found.recordings[-1]
    assert talk.said == (SpokenWord("low", 1.0, 1.6), SpokenWord("high", 5.0, 5.6))
    assert found.hours == pytest.approx(9 / 3600)


def test_other_sound_is_hours_of_false_alarms(words: Path, tmp_path: Path) -> None:
    write(tmp_path / "noise/rain/1.wav", quiet(3))
    found = read_sounds(words, (tmp_path / "noise",), WORDS, IGNORED)
    (rain,) = [one for one in found.recordings if not one.said]
    assert rain.name == "noise/rain/1.wav"
    assert found.hours == pytest.approx(3 / 3600)
    assert found.remarks == ()
    twice = read_sounds(words, (tmp_path / "noise", words / "../noise"), WORDS, IGNORED)
    assert twice == found
    assert "holds the words" in refusal(words, tmp_path)


def test_a_word_that_nobody_says_is_told(words: Path) -> None:
    (words / "low/1.wav").unlink()
    assert any("not said: low" in one for one in read_sounds(words, (), WORDS, IGNORED).remarks)


def test_recordings_of_any_rate_width_and_number_of_channels_are_heard(tmp_path: Path) -> None:
    tone = word("low").astype(np.float32) / 32768
    write(tmp_path / "low/8bit.wav", tone, subtype="PCM_U8")
    write(tmp_path / "low/stereo.wav", np.repeat(tone, 3)[:, None].repeat(2, axis=1), 48000)
    for one in read_sounds(tmp_path, (), WORDS, IGNORED).recordings:
        heard = np.concatenate(list(read_blocks(one.path, RATE)))
        assert len(heard) == pytest.approx(len(tone), abs=2)
        assert np.corrcoef(heard[1000:9000], word("low")[1000:9000])[0, 1] > 0.95


@pytest.mark.parametrize(
    ("track", "says"),
    [
        (
            "1.0\t1.6\tlow\n8.5\t9.5\tlow\n",
            "talk.txt:2: expected `start end word`, times within the 9.00 s of the sound",
        ),
        ("2.0\t1.0\tlow\n", "talk.txt:1: expected"),
        ("1.0\tsoon\tlow\n", "found 1.0\\tsoon"),
        ("1.0\t1.6\n", "talk.txt:1: expected"),
        ("1.0\t1.6\tbanana\n", "of low, high, silence; found 1.0"),
    ],
)
def test_what_is_wrong_with_a_label_is_told_with_its_line(words: Path, track: str, says: str) -> None:
    write(words / "talk.wav", quiet(9))
    (words / "talk.txt").write_text(track)
    assert says in refusal(words)


def test_what_cannot_be_evaluated_says_why(words: Path, tmp_path: Path) -> None:
    assert "there is no such folder" in refusal(tmp_path / "gone")
    assert "is no folder" in refusal(words / "low/1.wav")
    (tmp_path / "empty").mkdir()
    assert "no recordings" in refusal(tmp_path / "empty")
    assert "no recordings" in refusal(words, tmp_path / "empty")
    write(words / "banana/1.wav", quiet(1))
    assert "lies in no folder of a word that the model knows, low, high, and has no label track" in refusal(words)
    (words / "banana/1.wav").rename(words / "loose.wav")
    assert "loose.wav: lies in no folder" in refusal(words)
    (words / "loose.txt").write_bytes(b"\xff\xfe\x00")
    assert "is not UTF-8" in refusal(words)
    (words / "loose.txt").write_text("")
    (words / "low/2.wav").write_bytes(b"RIFF but no more")
    assert "2.wav" in refusal(words)


def test_a_recording_without_a_word_alone_is_nothing_to_evaluate(tmp_path: Path) -> None:
    write(tmp_path / "silence/1.wav", quiet(1))
    assert "no word is said in it" in refusal(tmp_path)
