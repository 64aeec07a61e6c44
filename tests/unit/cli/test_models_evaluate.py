"""`vedette models evaluate`: classes, anomalies and boxes, compared and reported, and what cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

pytest.importorskip("ai_edge_litert", reason="models are written with ai-edge-litert")

from agent.cli.main import vedette
from tests.support import picture_models
from tests.support.parts import part, write_parts

COLOURS = picture_models.COLOURS


def run(*args: object) -> Result:
    return CliRunner().invoke(vedette, ["models", "evaluate", *map(str, args)])


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


def test_classes_have_shares_and_confusions(colours: Path) -> None:
    found = evaluated(colours, colours.parent / "data")
    assert (found["metric"], found["value"], found["count"]) == ("top-1", 0.75, 12)
    assert found["confusion"] == [[3, 0, 1], [1, 3, 0], [0, 1, 3]]
    assert [one["recall"] for one in found["classes"]] == [0.75] * 3
    assert [one["precision"] for one in found["classes"]] == [0.75] * 3
    assert {(one["truth"], one["told"]) for one in found["wrong"]} == {
        ("green", "red"),
        ("blue", "green"),
        ("red", "blue"),
    }
    assert found["interval"][0] < 0.75 < found["interval"][1]


def test_a_class_that_is_to_be_found_has_an_operating_point(colours: Path) -> None:
    found = evaluated(colours, colours.parent / "data", "--positive", "red", "--target-recall", 0.75)
    (positive,) = found["positives"]
    assert (positive["names"], positive["count"]) == (["red"], 4)
    assert positive["at_target"]["recall"] == 0.75
    assert positive["at_target"]["false_alarms"] == 0.125  # a red picture lies among the green ones
    assert 0.5 < positive["auroc"] < 1.0
    done = run(colours, colours.parent / "data", "--positive", "red", "--target-recall", 1.0)
    assert "operating points" in done.output
    assert "100.0 %" in done.output


def test_two_models_are_compared_by_the_examples_on_which_they_differ(colours: Path) -> None:
    found = evaluated(colours, colours.parent / "data", "--against", colours)
    assert found["against"]["difference"] == 0.0
    low, high = found["against"]["interval"]
    assert low < 0.0 < high
    assert "not significant" in run(colours, colours.parent / "data", "--against", colours).output


def test_a_report_shows_the_worst_errors_and_a_chart_the_confusions(colours: Path) -> None:
    report, chart = colours.with_name("report.html"), colours.with_name("confusions.png")
    done = run(colours, colours.parent / "data", "--report", report, "--picture", chart)
    if "need matplotlib" in said(done):
        pytest.skip("charts need matplotlib")
    assert done.exit_code == 0, said(done)
    text = report.read_text()
    assert text.count("data:image/jpeg") == 3
    assert text.count("data:image/png") == 1
    assert "top-1 75.0 %" in text
    assert cv2.imread(str(chart)) is not None
    assert "exists; --force replaces it" in refusal(colours, colours.parent / "data", "--report", report)
    assert run(colours, colours.parent / "data", "--report", report, "--force").exit_code == 0


def test_anomalies_are_judged_by_what_is_to_be_found(tmp_path: Path) -> None:
    write_parts(tmp_path / "sound", 45)
    made = tmp_path / "parts.tflite"
    options = ["optimise", "anomaly", "inspection", str(made), "--data", str(tmp_path / "sound")]
    done = CliRunner().invoke(vedette, options)
    assert done.exit_code == 0, said(done)
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


@pytest.fixture
def boxed(tmp_path: Path) -> Path:
    """A detector of colours, and pictures with the box that it finds, and one more that it does not."""
    pytest.importorskip("pycocotools", reason="boxes need the extra [optimise]")
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


def test_boxes_have_average_precision_and_sensitivities(boxed: Path) -> None:
    found = evaluated(boxed, boxed.parent / "data", "--positive", "red", "--target-recall", 0.7)
    assert found["metric"] == "AP"
    assert 0.5 < found["value"] <= 1.0
    red, green, _ = found["classes"]
    assert (red["name"], red["count"], red["recall"], red["precision"]) == ("red", 4, 0.75, 1.0)
    assert green["ap"] == pytest.approx(1.0)
    (positive,) = found["positives"]
    assert positive["at_target"]["missed"] == 1
    assert positive["froc"][0]["sensitivity"] == 0.75


def test_a_target_that_no_threshold_reaches_is_exit_code_1_and_told_how_near(boxed: Path) -> None:
    done = run(boxed, boxed.parent / "data", "--positive", "red", "--target-recall", 0.9)
    assert done.exit_code == 1
    assert "red: no threshold finds 90.0% of 4 objects; the most is 75.0%" in done.output


def test_what_cannot_be_evaluated_says_why(colours: Path, tmp_path: Path) -> None:
    data = colours.parent / "data"
    assert "no class 'pink' in the data; it has: red, green, blue" in refusal(colours, data, "--positive", "pink")
    assert "takes sound" in refusal("small-speech", data)
    loose = tmp_path / "loose"
    loose.mkdir()
    for number in range(8):
        assert cv2.imwrite(str(loose / f"{number}.png"), picture_models.picture("red"))
    assert "the examples have no labels" in refusal(colours, loose)
    (data / "red").rename(data / "pink")
    assert "the model has no class 'pink'" in refusal(colours, data)
    assert run(colours, data, "--target-recall", "nan").exit_code == 2
    assert run(colours, data, "--target-recall", "0").exit_code == 2
