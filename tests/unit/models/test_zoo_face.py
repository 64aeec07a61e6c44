"""The bundled detector of faces on a real face, and where there is none."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from agent.cli.main import vedette
from agent.models.fetch import known_for
from agent.models.library import open_manifest
from tests.support.golden import GOLDEN

pytestmark = pytest.mark.numerics
FACE = GOLDEN / "astronaut.jpg"
PLACES = {"right_eye": (0.43, 0.34), "left_eye": (0.615, 0.345), "mouth": (0.51, 0.53)}
"""Marked by eye, in fractions of the picture."""


def tried(picture: Path, *words: str) -> Any:
    done = CliRunner().invoke(vedette, ["models", "try", "face", str(picture), "--json", *words])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)["detections"]


def test_a_face_is_found_with_its_eyes_and_mouth() -> None:
    (face,) = tried(FACE)
    x0, y0, x1, y1 = face["box"]
    assert (face["label"], face["score"] > 0.7) == ("face", True)
    found = {one["name"]: (one["x"], one["y"]) for one in face["keypoints"]}
    for name, place in PLACES.items():
        assert math.dist(found[name], place) < 0.03
        assert x0 < place[0] < x1
        assert y0 < place[1] < y1


def test_a_mirrored_face_is_found_at_the_mirrored_place(tmp_path: Path) -> None:
    picture = cv2.imread(str(FACE))
    assert picture is not None
    mirrored = tmp_path / "mirrored.png"
    cv2.imwrite(str(mirrored), picture[:, ::-1])
    before, after = (max(tried(one), key=lambda face: face["score"]) for one in (FACE, mirrored))
    wanted = [1 - before["box"][2], before["box"][1], 1 - before["box"][0], before["box"][3]]
    np.testing.assert_allclose(after["box"], wanted, atol=0.04)


def test_what_was_found_is_drawn(tmp_path: Path) -> None:
    drawn = tmp_path / "found.jpg"
    tried(FACE, "--picture", str(drawn))
    before, after = cv2.imread(str(FACE)), cv2.imread(str(drawn))
    assert before is not None
    assert after is not None
    assert np.abs(after.astype(int) - before).max() > 100


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_no_face_is_seen_on_a_wall(tmp_path: Path, grey: int) -> None:
    wall = tmp_path / "wall.png"
    cv2.imwrite(str(wall), np.full((240, 320, 3), grey, np.uint8))
    assert tried(wall) == []


def test_the_manifest_tells_where_it_is_from_and_under_which_licence() -> None:
    manifest = open_manifest("face")
    assert (manifest.licence, manifest.output.decoder) == ("Apache-2.0", "blazeface")
    assert "@mediapipe/face_detection" in manifest.source


def test_it_is_recommended_before_those_that_have_to_be_fetched() -> None:
    assert (known_for("face", "pi4b")[0].name, known_for("face", "pi4b")[0].get) == ("face", ())
