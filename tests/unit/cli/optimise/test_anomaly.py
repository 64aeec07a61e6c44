"""`vedette optimise anomaly`: the files that it writes, and what it refuses."""

from __future__ import annotations

import json
import shutil
import tomllib
from functools import partial
from pathlib import Path

import cv2
import pytest
from click.testing import CliRunner, Result

pytest.importorskip("ai_edge_litert", reason="models are written with ai-edge-litert")

from agent.cli.main import vedette
from agent.models.library import open_whole_model
from agent.optimise.evaluate import time_ms
from tests.support.parts import part, write_parts


def run(*args: object) -> Result:
    return CliRunner().invoke(vedette, list(map(str, args)))


@pytest.fixture(autouse=True)
def _short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.optimise.anomaly.file.time_ms", partial(time_ms, rounds=1))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    write_parts(folder / "sound", 18)
    write_parts(folder / "faulty", 8, scratched=True)
    return folder


def refusal(*args: object) -> str:
    """The message of a refused command, which has written nothing."""
    done = run("optimise", "anomaly", *args)
    assert done.exit_code != 0
    assert not Path(str(args[1])).with_suffix(".toml").exists()
    return f"{done.output}{done.exception}"


def test_a_model_is_made_from_sound_parts_and_tells_faulty_ones(parts: Path, tmp_path: Path) -> None:
    out = tmp_path / "made.tflite"
    options = ("--data", parts / "sound", "--faulty", parts / "faulty", "--label", "scratch")
    done = run("optimise", "anomaly", "inspection", out, *options)
    assert done.exit_code == 0, f"{done.output}{done.exception}"
    report = json.loads((tmp_path / "made.report.json").read_text())
    backbone, made = report["steps"]
    assert (made["metric"], made["score"]) == ("AUROC", 1.0)
    assert "12 sound parts in memory, 6 others set the limit" in made["notes"]
    assert "reported: 8 of 8 faulty parts" in made["notes"]
    assert made["size"] == out.stat().st_size > backbone["size"]
    told = " ".join(report["remarks"])
    assert "18 sound parts: with fewer than 30" in told
    assert "cannot tell 5.00% of false alarms from 14.29%" in told
    manifest = tomllib.loads((tmp_path / "made.toml").read_text())
    assert manifest["output"]["decoder"] == "anomaly"
    assert manifest["output"]["labels"] == ["scratch"]
    assert (manifest["licence"], manifest["name"]) == ("Apache-2.0", "made")
    opened = open_whole_model(str(tmp_path / "made.toml")).manifest
    assert opened.output.options["limit"] == manifest["output"]["options"]["limit"] > 0.0
    (tmp_path / "v.toml").write_text(f'[streams.line]\nsource = "test:"\nmodel = "{tmp_path}/made.toml"\n')
    assert run("config", "check", tmp_path / "v.toml").exit_code == 0


def test_without_faulty_parts_nothing_is_claimed(parts: Path, tmp_path: Path) -> None:
    out, sound = tmp_path / "made.tflite", shutil.copytree(parts / "sound", tmp_path / "sound")
    options = ("--data", sound, "--places", "16", "--false-alarms", "20", "--limit", "9", "--json")
    done = run("optimise", "anomaly", "inspection", out, *options)
    assert done.exit_code == 0, f"{done.output}{done.exception}"
    report = json.loads(done.stdout)
    made = report["steps"][1]
    assert made["score"] is None
    assert made["notes"][0] == "6 sound parts in memory, 3 others set the limit"
    assert any("without --faulty nothing tells" in one for one in report["remarks"])
    assert run("optimise", "anomaly", "inspection", out, *options, "--force").exit_code == 0
    again = run("optimise", "anomaly", out, tmp_path / "again.tflite", *options)
    assert "it is a model of anomalies already" in str(again.exception)


def test_files_are_replaced_with_force_only(parts: Path, tmp_path: Path) -> None:
    out = tmp_path / "made.tflite"
    out.write_bytes(b"mine")
    assert "made.tflite: exists; --force replaces it" in refusal("inspection", out, "--data", parts / "sound")
    assert out.read_bytes() == b"mine"


def test_pictures_that_teach_nothing_are_refused(parts: Path, tmp_path: Path) -> None:
    out = tmp_path / "made.tflite"
    assert "holds classes: give the folder of sound parts" in refusal("inspection", out, "--data", parts)
    shutil.copytree(parts / "sound", tmp_path / "few")
    for file in sorted((tmp_path / "few").iterdir())[5:]:
        file.unlink()
    assert "5 examples; expected at least 8" in refusal("inspection", out, "--data", tmp_path / "few")
    same = tmp_path / "same"
    same.mkdir()
    for number in range(9):
        assert cv2.imwrite(str(same / f"{number}.png"), part(1))
    assert "all 9 examples are the same" in refusal("inspection", out, "--data", same)
    for number in range(0, 9, 2):
        assert cv2.imwrite(str(same / f"{number}.png"), part(2))
    told = refusal("inspection", out, "--data", same, "--places", 8192)
    assert "copies of those in memory" in told
    (same / "8.png").write_bytes(b"\x89PNG no more")
    assert "8.png: cannot be decoded" in refusal("inspection", out, "--data", same)
    assert "gone" in refusal("inspection", out, "--data", tmp_path / "gone")


def test_faults_that_cannot_be_seen_are_told(parts: Path, tmp_path: Path) -> None:
    out = tmp_path / "made.tflite"
    write_parts(tmp_path / "alike", 9, first=100)
    done = run(
        "optimise", "anomaly", "inspection", out, "--data", parts / "sound", "--faulty", tmp_path / "alike"
    )
    assert done.exit_code == 0, f"{done.output}{done.exception}"
    assert "hardly sees these faults" in done.stdout


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("nanodet", "nanodet: the model has 3 graphs: a backbone has one"),
        ("small-speech", "small-speech: it takes sound: a backbone takes pictures"),
    ],
)
def test_a_model_that_gives_no_features_is_refused(
    parts: Path, tmp_path: Path, model: str, expected: str
) -> None:
    told = refusal(model, tmp_path / "made.tflite", "--data", parts / "sound")
    assert expected in told
    assert "18 examples" not in told, "before the pictures are read"


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--label", "", "expected a name such as defect"),
        ("--label", "a\nb", "expected a name such as defect"),
        ("--false-alarms", "nan", "is not a number"),
        ("--false-alarms", "60", "0.0<=x<=50.0"),
        ("--places", "3", "16<=x<=8192"),
    ],
)
def test_an_option_out_of_its_range_is_refused(
    parts: Path, tmp_path: Path, option: str, value: str, expected: str
) -> None:
    told = refusal("inspection", tmp_path / "made.tflite", "--data", parts / "sound", option, value)
    assert expected in told


def test_what_a_place_is_worth_does_not_depend_on_the_run(parts: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        done = run("optimise", "anomaly", "inspection", tmp_path / f"{name}.tflite", "--data", parts / "sound")
        assert done.exit_code == 0
    one, two = ((tmp_path / f"{name}.tflite").read_bytes() for name in ("one", "two"))
    assert one == two
