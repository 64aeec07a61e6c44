from __future__ import annotations

import tomllib
from contextlib import closing, nullcontext
from hashlib import sha256
from pathlib import Path

import msgspec
import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result

from agent.cli.main import vedette
from agent.cli.optimise.calibrate import doubts
from agent.errors import ModelError
from agent.models.files import ZOO
from agent.models.library import open_model
from agent.models.writer import files_of
from agent.optimise.calibrate import Calibration, CalibrationResult, ExitCalibrator, Point
from agent.optimise.evaluate import check_accuracy
from agent.optimise.report import OptimiseReport
from agent.optimise.source import learned_before
from tests.support.sound import RATE, cascade_model, quiet, tone_model, word


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Recordings of three labels, at the model's rate and at others."""
    folder = tmp_path / "data"
    random = np.random.default_rng(1)
    for label in ("low", "high", "silence"):
        (folder / label).mkdir(parents=True)
        for number in range(6):
            samples = quiet(0.6) if label == "silence" else word(label, 0.5)
            noisy = samples + random.standard_normal(len(samples)) * 50 * number
            kind = ("wav", "flac", "ogg")[number % 3]
            soundfile.write(folder / label / f"{number}.{kind}", noisy.astype(np.int16), RATE)
    return folder


def call(*args: object) -> Result:
    return CliRunner().invoke(vedette, ["optimise", "calibrate", *map(str, args)])


@pytest.mark.usefixtures("worker_sessions")
def test_what_is_learned_stands_in_the_manifest_and_is_used(tmp_path: Path, data: Path) -> None:
    model = cascade_model(tmp_path, confidence=0.5)
    done = call(model, data, "--json")
    assert done.exit_code == 0, done.output
    lesson = msgspec.json.decode(done.stdout)
    assert lesson["variants"] == ["3", "12"]
    assert lesson["recordings"] == 18
    hits = lesson["learned"]["full"] * lesson["windows"]
    assert lesson["windows"] > 18
    assert hits == pytest.approx(round(hits))
    assert lesson["learned"]["chosen"]["accuracy"] >= lesson["learned"]["full"] - 0.002
    variants = {variant["name"]: variant for variant in tomllib.loads(model.read_text())["variants"]}
    assert variants["3"]["confidence"] == pytest.approx(lesson["learned"]["chosen"]["thresholds"][0], abs=1e-5)
    assert "confidence" not in variants["12"]
    assert open_model(str(model)).manifest.cascade[0].temperature == variants["3"]["temperature"]


def test_a_table_and_another_manifest(tmp_path: Path, data: Path) -> None:
    model, out = cascade_model(tmp_path), tmp_path / "new.toml"
    before = model.read_text()
    done = call(model, data, "--out", out)
    assert done.exit_code == 0, done.output
    assert "windows of 18 recordings: accuracy" in done.stdout
    assert model.read_text() == before
    assert tomllib.loads(out.read_text())["name"] == "tones"
    assert tomllib.loads(out.read_text())["file"] == "depths.tflite"


def test_elsewhere_the_manifest_has_its_files_beside_it(tmp_path: Path, data: Path) -> None:
    model, elsewhere = cascade_model(tmp_path), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "names.txt").write_text("low\nhigh\nsilence\n")
    model.write_text(model.read_text().replace('["low", "high", "silence"]', '"names.txt"'))
    content = (tmp_path / "depths.tflite").read_bytes()
    report = OptimiseReport("train", "", sha256_after=sha256(content).hexdigest(), learned=("0" * 12,))
    (tmp_path / "depths.report.json").write_bytes(msgspec.json.encode(report))
    (tmp_path / "depths.LICENSE").write_text("free\n")
    done = call(model, data, "--out", elsewhere / "x.toml")
    assert done.exit_code == 0, done.output
    files = ["depths.LICENSE", "depths.report.json", "depths.tflite", "names.txt", "x.toml"]
    assert sorted(path.name for path in elsewhere.iterdir()) == files
    assert learned_before(str(elsewhere / "x.toml"), sha256(content).hexdigest()) == {"0" * 12}
    inspected = CliRunner().invoke(vedette, ["models", "inspect", str(elsewhere / "x.toml")])
    assert inspected.exit_code == 0, inspected.output
    (elsewhere / "names.txt").write_text("a\nb\nc\n")
    before = (elsewhere / "x.toml").read_bytes()
    assert "names.txt: differs from" in str(call(model, data, "--out", elsewhere / "x.toml").exception)
    assert (elsewhere / "x.toml").read_bytes() == before


def test_all_files_that_a_manifest_names_go_with_it(tmp_path: Path) -> None:
    verification = {"model": "b", "head": "h.npz"}
    manifest = {"file": "a.tflite", "golden": {"files": ["g.wav"]}, "verification": verification}
    found = files_of(tmp_path / "x.toml", manifest)
    assert [path.name for path in found] == ["a.tflite", "g.wav", "h.npz"]


@pytest.mark.parametrize("text", ['file = "other.tflite"\n', "no TOML", "[mqtt]\n"])
def test_what_is_no_manifest_of_the_model_is_not_replaced(tmp_path: Path, data: Path, text: str) -> None:
    (tmp_path / "other.toml").write_text(text)
    refused = str(call(cascade_model(tmp_path), data, "--out", tmp_path / "other.toml").exception)
    assert "other.toml: is there already, and is no manifest of depths.tflite" in refused
    assert (tmp_path / "other.toml").read_text() == text


def test_a_bundled_model_stays_as_it_is(data: Path) -> None:
    before = (ZOO / "small-speech.toml").read_bytes()
    refused = call("small-speech", data)
    assert refused.exit_code == 2
    assert "small-speech is a bundled model" in refused.output
    assert "--out" in refused.output
    assert (ZOO / "small-speech.toml").read_bytes() == before


@pytest.mark.parametrize("out", ["/dev/full", "other", "depths.tflite"])
def test_only_a_manifest_is_written(tmp_path: Path, data: Path, out: str) -> None:
    refused = call(cascade_model(tmp_path), data, "--out", tmp_path / out)
    assert refused.exit_code == 2
    assert "ends in .toml" in refused.output


def test_recordings_that_teach_nothing_are_refused(tmp_path: Path, data: Path) -> None:
    model = cascade_model(tmp_path)
    before = model.read_text()
    soundfile.write(data / "low" / "short.wav", np.zeros(80, np.int16), RATE)
    refused = str(call(model, data).exception)
    assert refused.startswith(f"{data}/low/short.wav: is shorter than 0.1 s")
    (data / "low" / "short.wav").unlink()
    for one, other in (("low", "away"), ("high", "low"), ("away", "high")):
        (data / one).rename(data / other)
    refused = str(call(model, data).exception)
    assert f"the model is hardly better than a guess: {data}: without early exits it is right" in refused
    assert model.read_text() == before


@pytest.mark.parametrize(
    ("accuracy", "counts", "is_refused"),
    [
        (0.40, (100, 100, 100), False),
        (0.38, (100, 100, 100), True),
        (0.40, (20, 20, 20), True),
        (0.51, (900, 100), False),
        (0.49, (900, 100), True),
        (0.15, (30,) * 10, False),
    ],
)
def test_a_model_is_better_than_a_guess_by_the_number_and_the_classes_of_the_examples(
    accuracy: float, counts: tuple[int, ...], is_refused: bool
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    with pytest.raises(ModelError, match="hardly better") if is_refused else nullcontext():
        check_accuracy(accuracy, labels, "examples", "here", "look")


def test_a_loss_on_other_recordings_is_told(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = cascade_model(tmp_path)
    assert "are lost" not in call(model, data).stderr
    monkeypatch.setattr(CalibrationResult, "lost", 0.05)
    done = call(model, data, "--loss", 2)
    assert done.exit_code == 0
    assert "18 recordings to learn thresholds from" in done.stderr
    assert "--loss allows 2" in done.stderr


def test_folders_are_named_after_labels_in_any_case(tmp_path: Path, data: Path) -> None:
    (data / "low").rename(data / "LOW")
    (data / "high").rename(data / "High")
    assert call(cascade_model(tmp_path), data).exit_code == 0


@pytest.mark.parametrize(("recordings", "count"), [(40, 0), (39, 1)])
def test_few_recordings_are_doubtful(recordings: int, count: int) -> None:
    chosen = Point((0.5, 0.5), 1.0, 0.5, (0.5, 0.3, 0.2))
    learned = Calibration((1.0,) * 3, chosen, (chosen,), 1.0, (1.0,) * 3)
    result = CalibrationResult(("3", "6", "12"), (1.0,) * 3, learned, chosen, 1.0, recordings)
    assert len(list(doubts(result, 0.0, "recordings"))) == count


def test_bad_data_is_refused_and_the_manifest_stays(tmp_path: Path, data: Path) -> None:
    model = cascade_model(tmp_path)
    before = model.read_text()
    strange = (data / "low").rename(data / "strange")
    assert "strange/0.wav: lies in no folder of a word" in str(call(model, data).exception)
    strange.rename(data / "low")
    (data / ".git").mkdir()
    for file in (data / "high").iterdir():
        file.unlink()
    assert "no recordings (.wav, .flac, .ogg) in high" in str(call(model, data).exception)
    (data / "high" / "broken.wav").write_bytes(b"RIFF")
    assert str(call(model, data).exception).startswith(f"{data}/high/broken.wav: expected a sound file")
    assert "no such folder" in str(call(model, tmp_path / "nothing").exception)
    assert f"{model}: is no folder" in str(call(model, model).exception)
    assert call(model, data, "--loss", "-1").exit_code == 2
    assert model.read_text() == before


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("gone.tflite", (), "gone.tflite: no such file"),
        ("gone.toml", ("--out", "new.toml"), "gone.toml: no such file"),
        ("depths.toml", ("--out", "data/new.toml"), "new.toml: lies among the examples in"),
        ("depths.toml", ("--out", "/proc/self/new.toml"), "/proc/self: cannot be used as a folder"),
    ],
)
def test_what_cannot_be_read_or_written_is_told_before_anything_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: tuple[str, ...], why: str
) -> None:
    cascade_model(tmp_path)
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    assert why in str(call(name, "data", *options).exception)


def test_a_model_without_depths_has_nothing_to_learn(tmp_path: Path, data: Path) -> None:
    assert "several depths only" in str(call(tone_model(tmp_path), data).exception)


def test_each_window_holds_the_word(tmp_path: Path) -> None:
    with closing(ExitCalibrator(str(cascade_model(tmp_path)))) as calibrator:
        answers = list(calibrator.predict_windows(word("low", 0.15)))
    whole = [np.argmax(variants[1]) for holds, variants in answers if holds]
    assert 1 <= len(whole) < len(answers)
    assert set(whole) == {0}
