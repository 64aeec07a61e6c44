from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

from agent.cli.main import vedette
from agent.models.library import open_model
from tests.support.golden import GOLDEN
from tests.support.house import person_model
from tests.support.sizes import LEFT, RIGHT, Things, sizes_model

SURE: Things = [(0.95, LEFT)]
BOTH: Things = [(0.95, LEFT), (0.9, RIGHT)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Pictures in a folder and in one inside it."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for number in range(8):
        name = folder / ("more" if number % 2 else "") / f"{number}.jpg"
        cv2.imwrite(str(name), np.full((48, 64, 3), 30 * number, np.uint8))
    (folder / "notes.txt").write_text("none of them")
    return folder


def call(*args: object) -> Result:
    return CliRunner().invoke(vedette, ["models", "calibrate", *map(str, args)])


def variants(manifest: Path) -> dict[str, dict[str, object]]:
    return {variant["name"]: variant for variant in tomllib.loads(manifest.read_text())["variants"]}


def test_a_size_that_agrees_is_taken_and_one_that_does_not_is_not(tmp_path: Path, data: Path) -> None:
    model = sizes_model(tmp_path, {"32": BOTH, "24": BOTH, "16": SURE}, confidence=None)
    done = call(model, data, "--json")
    assert done.exit_code == 0, done.output
    lesson = msgspec.json.decode(done.stdout)
    small, middle = lesson["sizes"]
    assert lesson["pictures"] == 8
    assert (small["variant"], small["alone"], small["learned"]["used"][0]) == ("16", pytest.approx(2 / 3), 0.0)
    assert (middle["variant"], middle["alone"], middle["learned"]["used"][0]) == ("24", 1.0, 1.0)
    assert small["learned"]["cost"] == middle["learned"]["cost"] * 2, "both look, or one"
    assert small["checked"]["accuracy"] == middle["checked"]["accuracy"] == 1.0
    assert variants(model)["16"]["confidence"] > middle["learned"]["thresholds"][0]
    assert "confidence" not in variants(model)["32"]
    assert [variant.name for variant in open_model(str(model), "auto").manifest.variants] == ["32", "24", "16"]


def test_what_may_be_lost_decides(tmp_path: Path, data: Path) -> None:
    model = sizes_model(tmp_path, {"32": BOTH, "16": SURE})
    for loss, taken in ((30, 0.0), (40, 1.0)):
        done = call(model, data, "--json", "--loss", loss)
        assert msgspec.json.decode(done.stdout)["sizes"][0]["learned"]["used"][0] == taken


def test_the_bundled_detector_learns_from_real_pictures(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "golden")
    out = tmp_path / "new.toml"
    done = call("nanodet", tmp_path / "golden", "--out", out, "--loss", 5)
    assert done.exit_code == 0, done.output
    assert "3 pictures" in done.stdout
    found = variants(out)
    assert found["416"]["multiply_adds"] == 2_090_083_840
    assert all(0.0 <= float(str(found[name]["confidence"])) <= 1.0 for name in ("320", "256"))


def test_what_cannot_be_learned_from_is_refused(tmp_path: Path, data: Path) -> None:
    model = sizes_model(tmp_path, {"32": SURE, "16": SURE}, confidence=None)
    before = model.read_text()
    assert "nothing: no such folder" in str(call(model, tmp_path / "nothing").exception)
    (tmp_path / "one" / ".git").mkdir(parents=True)
    for name in ("0.jpg", ".git/1.jpg"):
        (tmp_path / "one" / name).write_bytes((data / "0.jpg").read_bytes())
    refused = str(call(model, tmp_path / "one").exception)
    assert "one: too few pictures (.bmp, .jpeg, .jpg, .png) to learn from: 1; expected at least 2" in refused
    assert "several sizes only" in str(call(person_model(tmp_path), data).exception)
    assert "a chart is drawn of depths" in call(model, data, "--picture", tmp_path / "curve.png").output
    assert call(model, data, "--loss", "101").exit_code == 2
    (data / "broken.png").write_bytes(b"\x89PNG")
    assert "broken.png: is no picture that can be decoded" in str(call(model, data).exception)
    assert model.read_text() == before
