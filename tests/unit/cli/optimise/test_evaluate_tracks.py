"""`vedette optimise evaluate` for clips: a detector with the tracker, the tracker alone, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

pytest.importorskip("motmetrics", reason="clips need the extra [optimise]")

from agent.cli.main import vedette
from tests.support.doubles import person_model

FRAMES = 20
BOX = (50, 25, 50, 50)
"""In pixels of 200×100, where the model finds a person in every picture."""


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


def sequence(folder: Path, people: int = 1) -> Path:
    (folder / "img1").mkdir(parents=True)
    keys = f"frameRate=10\nseqLength={FRAMES}\nimWidth=200\nimHeight=100\n"
    (folder / "seqinfo.ini").write_text(f"[Sequence]\n{keys}")
    x, y, width, height = BOX
    rows = [
        f"{frame},{number + 1},{x + 100 * number},{y},{width},{height},1"
        for frame in range(1, FRAMES + 1)
        for number in range(people)
    ]
    (folder / "gt.txt").write_text("\n".join(rows))
    (folder / "det.txt").write_text("\n".join(rows))
    for frame in range(1, FRAMES + 1):
        assert cv2.imwrite(str(folder / f"img1/{frame:06}.png"), np.full((100, 200, 3), frame, np.uint8))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return person_model(tmp_path)


def test_a_detector_and_the_tracker_are_evaluated(model: Path, tmp_path: Path) -> None:
    sequence(tmp_path / "clips/one")
    sequence(tmp_path / "clips/two", people=2)
    found = evaluated(model, tmp_path / "clips")
    one, two = found["sequences"].values()
    assert (one["FN"], one["MOTA"]) == (2, 0.9)
    assert (two["boxes"], two["FN"], two["ML"], two["FP"]) == (40, 22, 1, 0)
    assert found["overall"]["MOTA"] == pytest.approx(1 - 24 / 60)
    done = run(model, tmp_path / "clips")
    assert "MOTA 60.0 %" in done.output
    assert "of person" in done.output


def test_published_detections_stand_in_for_a_model(tmp_path: Path) -> None:
    found = evaluated("det.txt", sequence(tmp_path / "one", people=2))
    assert (found["model"], found["overall"]["FN"]) == ("det.txt", 4)
    assert "of published detections" in run("det.txt", tmp_path / "one").output


def test_pictures_may_be_left_out(model: Path, tmp_path: Path) -> None:
    clip = sequence(tmp_path / "one", people=2)
    assert evaluated(model, clip, "--every", 2)["overall"]["frames"] == FRAMES / 2


def test_what_cannot_be_evaluated_says_why(model: Path, tmp_path: Path) -> None:
    clip = sequence(tmp_path / "one")
    assert "does not know the class 'unicorn'" in refusal(model, clip, "--positive", "unicorn")
    assert "--positive: is not for clips" in refusal("det.txt", clip, "--positive", "person")
    assert "is not for clips" in refusal(model, clip, "--limit", 8)
    assert "is not for clips" in refusal(model, clip, "--against", "det.txt")
    assert "--background: is not for clips" in refusal(model, clip, "--background", tmp_path)
    assert "takes sound" in refusal("small-speech", clip)
    assert "no seqinfo.ini" in refusal("det.txt", tmp_path / "one" / "img1")
    (clip / "gt.txt").write_text("1,1,50,25,50\n")
    assert "gt.txt:1: expected `frame,id" in refusal(model, clip)
