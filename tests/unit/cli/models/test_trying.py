"""`vedette models try`: what a model answers to a picture and to a recording."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result

from agent.cli.main import vedette
from tests.support import picture_models
from tests.support.chains import chained_model, dressed, tint_model
from tests.support.running import ROOT
from tests.support.sound import RATE, quiet, tone_model, verified_model, word
from tests.support.tflite_builder import constant_model

ZOO = ROOT / "agent" / "models" / "zoo"


def run(*args: object) -> Result:
    return CliRunner().invoke(vedette, ["models", "try", *map(str, args)])


def said(done: Result) -> str:
    return f"{done.output}{done.exception or ''}"


def answered(*args: object) -> Any:
    done = run(*args, "--json")
    assert done.exit_code == 0, said(done)
    return json.loads(done.stdout)


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """A classifier of colours, and a picture of each."""
    path = tmp_path / "colours.tflite"
    path.write_bytes(picture_models.classifier())
    for colour in picture_models.COLOURS:
        cv2.imwrite(str(tmp_path / f"{colour}.png"), picture_models.picture(colour))
    return path


@pytest.mark.parametrize("colour", picture_models.COLOURS)
def test_a_picture_is_answered_with_its_class(colours: Path, colour: str) -> None:
    found = answered(colours, colours.with_name(f"{colour}.png"))
    assert found["detections"][0]["label"] == colour
    assert found["size"] == [64, 48]
    assert found["ms"]["infer"] > 0


def test_the_bundled_detector_finds_the_people_in_its_picture(tmp_path: Path) -> None:
    done = run("nanodet", ZOO / "walkers.jpg", "--picture", tmp_path / "drawn.jpg")
    assert done.exit_code == 0, said(done)
    assert done.stdout.count("person") >= 2
    assert "768×576 pixels, nanodet 416" in done.stdout
    drawn, plain = (cv2.imread(str(path)) for path in (tmp_path / "drawn.jpg", ZOO / "walkers.jpg"))
    assert drawn is not None
    assert plain is not None
    assert drawn.shape == plain.shape
    assert 0.0005 < float(np.mean(np.abs(drawn.astype(int) - plain).max(2) > 60)) < 0.2


def test_a_chain_tells_the_attributes_of_each_object(tmp_path: Path) -> None:
    tint_model(tmp_path)
    model = chained_model(tmp_path)
    cv2.imwrite(str(tmp_path / "blue.png"), dressed("blue"))
    assert answered(model, tmp_path / "blue.png")["attributes"][0]["colour"]["value"] == "blue"
    done = run(model, tmp_path / "blue.png", "--picture", tmp_path / "drawn.jpg")
    assert "colour: blue" in done.stdout
    assert (tmp_path / "drawn.jpg").exists()


def test_without_a_result_the_strongest_is_told(colours: Path) -> None:
    grey = colours.with_name("grey.png")
    cv2.imwrite(str(grey), np.full((32, 32, 3), 120, np.uint8))
    done = run(colours, grey, "--threshold", 0.9)
    assert done.exit_code == 0, said(done)
    assert "nothing with a score of 0.9 or more; the strongest is " in done.stdout
    found = answered(colours, grey, "--threshold", 0.9)
    assert (found["detections"], found["strongest"]["score"] < 0.9) == ([], True)


def test_the_first_picture_of_a_source_counts(colours: Path) -> None:
    assert answered("nanodet", "test:?size=320x240")["size"] == [320, 240]
    assert answered("nanodet", ZOO / "walkers.mp4")["detections"][0]["label"] == "person"


def test_a_recording_is_answered_with_what_is_heard_in_it(tmp_path: Path) -> None:
    sounds = np.concatenate((quiet(1.0), word("low"), quiet(1.0), word("high"), quiet(1.0)))
    soundfile.write(tmp_path / "two words.wav", sounds, RATE)
    found = answered(tone_model(tmp_path), tmp_path / "two words.wav")
    assert [one["label"] for one in found["heard"]] == ["low", "high"]
    assert 1.0 <= found["heard"][0]["begin_s"] <= found["heard"][0]["end_s"] <= 2.4
    assert found["seconds"] == pytest.approx(len(sounds) / RATE)


def test_without_a_sound_the_strongest_is_told(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "word.wav", np.concatenate((quiet(1.0), word("low"), quiet(1.0))), RATE)
    model = tone_model(tmp_path)
    best = answered(model, tmp_path / "word.wav")["heard"][0]["score"]
    found = answered(model, tmp_path / "word.wav", "--threshold", 1.0)
    assert (found["heard"], found["strongest"]["label"]) == ([], "low")
    assert found["strongest"]["score"] >= best - 0.01
    done = run(model, tmp_path / "word.wav", "--threshold", 1.0)
    assert "nothing with a score of 1 or more; the strongest is low with " in done.stdout


def test_an_embedding_is_told_as_numbers(tmp_path: Path) -> None:
    path = tmp_path / "vectors.tflite"
    path.write_bytes(constant_model({"vector": np.ones((1, 8), np.float32)}))
    path.with_suffix(".toml").write_text('[output]\ndecoder = "raw"\n')
    cv2.imwrite(str(tmp_path / "red.png"), picture_models.picture("red"))
    assert answered(path, tmp_path / "red.png")["detections"][0]["values"] == [1.0] * 8


def test_what_the_verification_refused_is_told(tmp_path: Path) -> None:
    sounds = np.concatenate((quiet(1.0), word("low"), quiet(1.0), word("high"), quiet(1.0)))
    soundfile.write(tmp_path / "two words.wav", sounds, RATE)
    model = verified_model(tmp_path, -1000.0)
    found = answered(model, tmp_path / "two words.wav")
    assert [one["label"] for one in found["heard"]] == ["high"]
    assert found["refused"] > 0
    assert f"the verification refused {found['refused']} answers" in run(model, tmp_path / "two words.wav").stdout


def test_the_bundled_words_are_heard() -> None:
    done = run("small-speech", ZOO / "spoken.flac")
    assert done.exit_code == 0, said(done)
    assert "three" in done.stdout
    assert "16.0 s of sound, small-speech" in done.stdout
    assert (
        "nothing with a score of 1 or more" in run("small-speech", ZOO / "spoken.flac", "--threshold", 1.0).stdout
    )


@pytest.mark.parametrize(
    ("model", "source", "told"),
    [
        ("nanodet", "missing.jpg", "missing.jpg: there is no such file"),
        ("nanodet", "{folder}", "is a folder: name one picture, or dir:"),
        ("nanodet", "{folder}/text.jpg", "text.jpg: cannot be decoded as a picture"),
        ("nanodet", "{folder}/text.txt", "expected a video file"),
        ("nanodet", str(ZOO / "spoken.flac"), "gives sound, and nanodet takes pictures"),
        ("small-speech", str(ZOO / "walkers.jpg"), "takes sound: give a WAV, FLAC or OGG file"),
        ("small-speech", "mic:default", "takes sound: give a WAV, FLAC or OGG file"),
        ("inspection", str(ZOO / "walkers.jpg"), "it gives features"),
        ("none", str(ZOO / "walkers.jpg"), "none"),
        ("nanodet", "", "found nothing"),
        ("nanodet", "x" * 5000, "there is no such file"),
    ],
)
def test_what_cannot_be_tried_is_told(tmp_path: Path, model: str, source: str, told: str) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "text.txt").write_text("no picture")
    done = run(model, source.format(folder=tmp_path))
    assert done.exit_code == 1
    assert told in said(done)


def test_a_picture_is_written_over_nothing_that_is_there(colours: Path) -> None:
    source = colours.with_name("red.png")
    taken = colours.with_name("drawn.jpg")
    taken.write_bytes(b"mine")
    assert "exists; --force replaces it" in said(run(colours, source, "--picture", taken))
    assert taken.read_bytes() == b"mine"
    assert run(colours, source, "--picture", taken, "--force").exit_code == 0
    assert "would replace the picture that is read" in said(run(colours, taken, "--picture", taken, "--force"))
    assert run(colours, source, "--picture", colours.with_name("drawn.png")).exit_code == 2
    assert "takes sound, of which no picture" in said(
        run("small-speech", ZOO / "spoken.flac", "--picture", colours.with_name("new.jpg"))
    )
