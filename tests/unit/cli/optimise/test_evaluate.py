"""`vedette optimise evaluate`: classes, anomalies and boxes, compared and reported, and what cannot be."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

pytest.importorskip("ai_edge_litert", reason="models are written with ai-edge-litert")

from agent.cli.main import vedette
from agent.models.library import open_whole_model
from agent.optimise.data import read_examples
from agent.optimise.report import OptimiseReport
from agent.optimise.source import learned_sample
from tests.support import picture_models
from tests.support.parts import learn, part, write_parts
from tests.support.tflite_builder import constant_model

COLOURS = picture_models.COLOURS


def run(*args: object) -> Result:
    return CliRunner().invoke(vedette, ["optimise", "evaluate", *map(str, args)])


def said(done: Result) -> str:
    return f"{done.output}{done.exception or ''}"


def evaluated(*args: object, code: int = 0) -> Any:
    done = run(*args, "--json")
    assert done.exit_code == code, said(done)
    return json.loads(done.stdout)


def refusal(*args: object) -> str:
    done = run(*args)
    assert done.exit_code == 1, said(done)
    return said(done)


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """A classifier of colours, and pictures of which three of twelve lie in a wrong folder."""
    path = tmp_path / "colours.tflite"
    path.write_bytes(picture_models.classifier())
    for number in range(12):
        truth = COLOURS[number % 3] if number < 9 else COLOURS[(number + 1) % 3]
        folder = tmp_path / "data" / truth
        folder.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(-9, 9, (48, 64, 3))
        picture = np.clip(picture_models.picture(COLOURS[number % 3]) + noise, 0, 255).astype(np.uint8)
        assert cv2.imwrite(str(folder / f"{number}.png"), picture)
    return path


@pytest.mark.usefixtures("worker_sessions")
def test_classes_have_shares_and_confusions(colours: Path) -> None:
    found = evaluated(colours, colours.parent / "data")
    assert (found["metric"], found["value"], found["count"]) == ("top-1", 0.75, 12)
    assert [one["recall"] for one in found["classes"]] == [0.75] * 3
    assert [one["precision"] for one in found["classes"]] == [0.75] * 3
    assert {(one["truth"], one["told"], one["count"]) for one in found["confusions"]} == {
        ("green", "red", 1),
        ("blue", "green", 1),
        ("red", "blue", 1),
    }
    assert len(found["wrong"]) == 3
    assert found["interval"][0] < 0.75 < found["interval"][1]


def test_a_class_that_is_to_be_found_has_an_operating_point(colours: Path) -> None:
    found = evaluated(colours, colours.parent / "data", "--positive", "red", "--target-recall", 0.75)
    (positive,) = found["positives"]
    assert (positive["names"], positive["count"]) == (["red"], 4)
    assert positive["at_target"]["recall"] == 0.75
    assert positive["at_target"]["false_alarms"] == 0.125  # a red picture lies among the green ones
    assert 0.5 < positive["auroc"] < 1.0
    done = run(colours, colours.parent / "data", "--positive", "red", "--target-recall", 1.0)
    assert done.exit_code == 1
    assert "red: no threshold finds 100.0% of 4 objects; the most is 75.0%" in said(done), (
        "the daemon tells one class"
    )


def test_the_threshold_that_is_printed_reaches_the_target(colours: Path) -> None:
    data, manifest = colours.parent / "data", colours.with_suffix(".toml")
    output = run(colours, data, "--positive", "red", "--target-recall", 0.5).output
    (row,) = [line for line in output.splitlines() if "target" in line and "red" in line]
    manifest.write_text(f"[output]\nscore_threshold = {row.split()[2]}\n")
    found = evaluated(colours, data, "--positive", "red", "--target-recall", 0.5)["positives"][0]
    assert found["at_manifest"]["recall"] == found["at_target"]["recall"] >= 0.5


def test_another_model_is_given_pictures_as_its_own_manifest_says(colours: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.tflite"
    other.write_bytes(picture_models.classifier("float32", described=False))
    keys = '[input]\norder = "bgr"\nmean = [127.5, 127.5, 127.5]\nstd = [127.5, 127.5, 127.5]\n'
    other.with_suffix(".toml").write_text(
        f'{keys}[output]\ndecoder = "classify"\nlabels = ["red", "green", "blue"]\n'
    )
    data = colours.parent / "data"
    alone = evaluated(other, data)["value"]
    assert alone != 0.75
    assert evaluated(colours, data, "--against", other)["against"]["value"] == alone


def test_what_was_asked_for_twice_counts_once(colours: Path) -> None:
    once = evaluated(colours, colours.parent / "data", "--positive", "red")
    assert (
        evaluated(colours, colours.parent / "data", "--positive", "red", "--positive", "red")["positives"][0][
            "at_manifest"
        ]
        == (once["positives"][0]["at_manifest"])
    )


def test_a_model_that_gives_no_numbers_is_never_right(tmp_path: Path, colours: Path) -> None:
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(constant_model({"scores": np.full((1, 3), np.nan, np.float32)}, (1, 8, 8, 3)))
    pixels = "[input]\nmean = [0.0, 0.0, 0.0]\nstd = [1.0, 1.0, 1.0]\n"
    output = (
        '[output]\ndecoder = "classify"\nlabels = ["red", "green", "blue"]\n[output.options]\nlogits = false\n'
    )
    broken.with_suffix(".toml").write_text(pixels + output)
    found = evaluated(broken, colours.parent / "data")
    assert found["value"] == 0.0
    assert any("gives no numbers" in remark for remark in found["remarks"])


def test_labels_that_differ_by_case_alone_are_classes_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "colours.tflite"
    path.write_bytes(picture_models.classifier(labels=("Red", "red", "blue")))
    for name, colour in (("Red", "red"), ("red", "green"), ("blue", "blue")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(3):
            assert cv2.imwrite(str(tmp_path / "data" / name / f"{number}.png"), picture_models.picture(colour))
    assert evaluated(path, tmp_path / "data")["value"] == 1.0


def test_examples_that_a_model_was_trained_on_are_told(colours: Path) -> None:
    data = colours.parent / "data"
    learned = learned_sample(read_examples(data, open_whole_model(str(colours)), limit=8))
    sha256 = hashlib.sha256(colours.read_bytes()).hexdigest()
    report = OptimiseReport("train", "tiny", sha256_after=sha256, learned=learned)
    colours.with_suffix(".report.json").write_bytes(msgspec.json.encode(report))
    assert (
        "trained on some of these examples, 8 of 8 that were compared" in evaluated(colours, data)["remarks"][-1]
    )


def test_two_models_are_compared_by_the_examples_on_which_they_differ(colours: Path) -> None:
    found = evaluated(colours, colours.parent / "data", "--against", colours)
    assert found["against"]["difference"] == 0.0
    low, high = found["against"]["interval"]
    assert low < 0.0 < high
    assert "not significant" in run(colours, colours.parent / "data", "--against", colours).output


def test_the_worst_errors_are_named(colours: Path) -> None:
    output = run(colours, colours.parent / "data").output
    assert "red/11.png" in output[output.index("worst errors") :]
    assert "top-1 75.0 %" in output


def test_anomalies_are_judged_by_what_is_to_be_found(tmp_path: Path) -> None:
    write_parts(tmp_path / "sound", 45)
    made = tmp_path / "parts.tflite"
    learn(tmp_path / "sound", made)
    data = tmp_path / "data"
    for name, scratched in (("good", False), ("scratched", True)):
        (data / name).mkdir(parents=True)
        for number in range(8):
            assert cv2.imwrite(str(data / name / f"{number}.png"), part(100 + number, scratched=scratched))
    found = evaluated(made, data, "--positive", "scratched", "--target-recall", 0.99)
    assert found["metric"] == "AUROC"
    assert found["value"] > 0.99
    assert found["positives"][0]["at_target"]["missed"] == 0
    assert [one["name"] for one in found["classes"]] == ["good", "scratched"]
    assert "--positive says which of these it is to find: good, scratched" in refusal(made, data)
    assert "no class 'broken'" in refusal(made, data, "--positive", "broken")
    found = evaluated(made, data, "--positive", "scratched", "--limit", 8)
    assert found["count"] == 8


@pytest.fixture
def boxed(boxes: Path) -> Path:
    """The same as `boxes`, where boxes can be scored."""
    pytest.importorskip("pycocotools", reason="boxes need the extra [optimise]")
    return boxes


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    """A detector of colours, and pictures with the box that it finds, and one more that it does not."""
    path = tmp_path / "boxes.tflite"
    path.write_bytes(picture_models.detector())
    path.with_suffix(".toml").write_text('[output]\nlabels = ["red", "green", "blue"]\n')
    for folder in ("images", "labels"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for number in range(9):
        assert cv2.imwrite(
            str(tmp_path / f"data/images/{number}.png"), picture_models.picture(COLOURS[number % 3])
        )
        lines = [f"{number % 3} 0.5 0.5 0.8 0.8", *(["0 0.1 0.1 0.1 0.1"] if number == 0 else [])]
        (tmp_path / f"data/labels/{number}.txt").write_text("\n".join(lines))
    return path


def test_a_missing_package_is_told_before_the_first_picture(boxes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    assert "need pycocotools" in refusal(boxes, boxes.parent / "data")


def test_boxes_have_average_precision_and_operating_points(boxed: Path) -> None:
    found = evaluated(boxed, boxed.parent / "data", "--positive", "red", "--target-recall", 0.7)
    assert found["metric"] == "AP"
    assert 0.5 < found["value"] <= 1.0
    red, green, _ = found["classes"]
    assert (red["name"], red["count"], red["recall"], red["precision"]) == ("red", 4, 0.75, 1.0)
    assert green["ap"] == pytest.approx(1.0)
    (positive,) = found["positives"]
    missed = [one for one in found["wrong"] if one["told"] == "nothing"]
    assert [(one["name"], one["truth"], one["score"]) for one in missed] == [("images/0.png", "red", 0.0)]
    assert positive["at_target"]["missed"] == 1


def test_what_has_no_boxes_is_not_scored_by_them(boxed: Path, colours: Path) -> None:
    assert "gives no boxes" in refusal(colours, boxed.parent / "data")
    for file in (boxed.parent / "data" / "labels").iterdir():
        file.write_text(file.read_text().replace("2 0.5", "1 0.5"))
    assert "blue: none of the examples has one" in refusal(boxed, boxed.parent / "data", "--positive", "blue")


def test_a_target_that_no_threshold_reaches_is_exit_code_1_and_told_how_near(boxed: Path) -> None:
    done = run(boxed, boxed.parent / "data", "--positive", "red", "--target-recall", 0.9)
    assert done.exit_code == 1
    assert "red: no threshold finds 90.0% of 4 objects; the most is 75.0%" in done.output


def test_what_cannot_be_evaluated_says_why(colours: Path, tmp_path: Path) -> None:
    data = colours.parent / "data"
    assert "no class 'pink'; known: blue, green, red" in refusal(colours, data, "--positive", "pink")
    assert "a target needs --positive" in refusal(colours, data, "--target-recall", 0.9)
    assert "no recordings (.wav, .flac, .ogg) in it" in refusal("small-speech", data)
    assert "is not for models of pictures" in refusal(colours, data, "--target-false-alarms", 1)
    (tmp_path / "plate.tflite").write_bytes(constant_model({"text": np.zeros((1, 5, 3), np.float32)}))
    (tmp_path / "plate.toml").write_text('[output]\ndecoder = "ctc"\nlabels = ["0", "1"]\n')
    assert "reads texts" in refusal(tmp_path / "plate.toml", data)
    loose = tmp_path / "loose"
    loose.mkdir()
    for number in range(8):
        assert cv2.imwrite(
            str(loose / f"{number}.png"), picture_models.picture(picture_models.COLOURS[number % 3])
        )
    assert "no labels: give two sub-folders of classes or more" in refusal(colours, loose)
    (data / "red").rename(data / "pink")
    assert "the model has no class 'pink'" in refusal(colours, data)
    assert run(colours, data, "--target-recall", "nan").exit_code == 2
    assert run(colours, data, "--target-recall", "0").exit_code == 2
