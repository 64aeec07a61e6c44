"""A daemon whose camera sees a face come and go, by the bundled detector."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="LiteRT runs the model")

from agent.models.files import ZOO
from tests.support.golden import GOLDEN
from tests.support.mosquitto import Mosquitto
from tests.support.running import Vedette, camera, events


def pictures(folder: Path) -> Path:
    """A face at one place, and then another background without any."""
    face, walkers = cv2.imread(str(GOLDEN / "astronaut.jpg")), cv2.imread(str(ZOO / "walkers.jpg"))
    assert face is not None
    assert walkers is not None
    empty = np.full((240, 320, 3), 90, np.uint8)
    shown = empty.copy()
    shown[24:216, 64:256] = face
    folder.mkdir()
    for number in range(40):
        cv2.imwrite(str(folder / f"{number:03}.png"), shown if number < 25 else empty)
    return folder


def test_a_face_is_announced_with_its_place_and_ends_when_it_is_gone(tmp_path: Path, broker: Mosquitto) -> None:
    messages = broker.subscribe("#")
    source = f"dir:{pictures(tmp_path / 'pictures')}?fps=10"
    stream = camera("face", source, gate={"motion": False})
    with Vedette(tmp_path, broker, front=stream):
        messages.wait(lambda m: [one for one in events(m) if one.kind == "end"])
    first, *_ = found = events(messages)
    assert (first.kind, found[-1].kind) == ("new", "end")
    assert {one.track.label for one in found} == {"face"}
    box = first.track.box
    assert box is not None
    assert box[0] < 0.5 < box[2]
    assert box[1] < 0.45 < box[3]
    assert first.model.name == "face"
