"""`vedette optimise evaluate` for words: figures, charts, the report, a chosen threshold, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result

from agent.cli.main import vedette
from agent.config.load import parse
from tests.support.sound import RATE, quiet, tone_model, word


def run(*args: object) -> Result:
    return CliRunner().invoke(vedette, ["optimise", "evaluate", *map(str, args)])


def said(done: Result) -> str:
    return f"{done.output}{done.exception or ''}"


def evaluated(*args: object) -> Any:
    done = run(*args, "--json")
    assert done.exit_code == 0, said(done)
    return json.loads(done.stdout)


def refusal(*args: object) -> str:
    done = run(*args)
    assert done.exit_code == 1, said(done)
    return said(done)


def write(path: Path, *parts: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.concatenate(parts), RATE)


@pytest.fixture
def tones(tmp_path: Path) -> Path:
    """Ten of each word, of which one `high` is a `low`; noise with one `low` in it."""
    for number in range(10):
        for name in ("low", "high"):
            spoken = "low" if number == 0 else name
            write(tmp_path / f"words/{name}/{number}.wav", quiet(0.2 + number / 50), word(spoken), quiet(0.2))
    write(tmp_path / "noise/1.wav", quiet(4), word("low"), quiet(4))
    return tone_model(tmp_path)


def test_a_table_tells_words_and_false_alarms(tones: Path, tmp_path: Path) -> None:
    done = run(tones, tmp_path / "words", "--background", tmp_path / "noise")
    assert done.exit_code == 0, said(done)
    assert "95.0 %" in done.output
    assert "of 20 words told rightly" in done.output
    row = next(line.split() for line in done.output.splitlines() if line.startswith("high "))
    assert row[1:4] == ["10", "10.0", "%"]


@pytest.mark.usefixtures("worker_sessions")
def test_json_has_every_figure(tones: Path, tmp_path: Path) -> None:
    found = evaluated(tones, tmp_path / "words", "--background", tmp_path / "noise")
    assert (found["value"], found["count"], found["in_use"]["alarms"]) == (0.95, 20, 1)
    assert [(one["truth"], one["told"]) for one in found["confusions"]] == [
        ("high", "low"),
        ("other sound", "low"),
    ]
    assert len(found["curve"]) > 100


def test_the_threshold_that_is_printed_can_be_set(tones: Path, tmp_path: Path) -> None:
    args = (tones, tmp_path / "words", "--background", tmp_path / "noise", "--target-false-alarms", 500)
    output = run(*args).output
    keys = output[output.index("[streams.NAME.decode]") :].replace("NAME", "door")
    config = parse(f'{keys}\n[streams.door]\nsource = "mic:default"\nmodel = "small-speech"\n', "x").config
    threshold = config.streams["door"].decode.score_threshold
    found = evaluated(*args)["at_target"]
    assert threshold == found["threshold"]
    assert found["alarms_per_hour"] <= 500


def test_a_rate_that_no_threshold_reaches_is_exit_code_1(tones: Path, tmp_path: Path) -> None:
    tones.write_text(tones.read_text().replace("logits = true", "logits = false"))  # scores beyond 1 are cut to 1
    done = run(tones, tmp_path / "words", "--background", tmp_path / "noise", "--target-false-alarms", 0)
    assert done.exit_code == 1
    assert "0 false alarms an hour" in done.output


def test_confusions_are_told(tones: Path, tmp_path: Path) -> None:
    done = run(tones, tmp_path / "words", "--background", tmp_path / "noise")
    assert done.exit_code == 0, said(done)
    assert "noise/1.wav" in done.output
    assert "most frequent confusions" in done.output


def test_without_other_sound_there_is_no_rate(tones: Path, tmp_path: Path) -> None:
    assert evaluated(tones, tmp_path / "words")["in_use"]["alarms_per_hour"] is None
    assert "--background" in refusal(tones, tmp_path / "words", "--target-false-alarms", 1)


def test_what_cannot_be_evaluated_says_why(tones: Path, tmp_path: Path) -> None:
    words = tmp_path / "words"
    assert "is not for models of words" in refusal(tones, words, "--positive", "low")
    assert "is not for models of words" in refusal(tones, words, "--limit", 8)
    assert "there is no such folder" in refusal(tones, words, "--background", tmp_path / "gone")
    assert "cannot be compared" in refusal(tones, words, "--against", "small-speech")
    (words / "low").rename(words / "banana")
    assert "banana/0.wav: lies in no folder of a word" in refusal(tones, words)
