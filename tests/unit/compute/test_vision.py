from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from agent.compute.infer.image_input import Placement
from agent.compute.vision import VideoPerception, _placed
from agent.config import GateConfig, StreamConfig
from agent.errors import ModelError
from agent.models.library import open_model
from agent.types import Detection, Frame, Keypoint
from tests.support.doubles import person_model
from tests.support.sizes import LEFT, RIGHT, Things, sizes_model
from tests.support.sound import cascade_model

ONE: Things = [(0.95, LEFT)]
BOTH: Things = [(0.95, LEFT), (0.9, RIGHT)]


def perception(path: Path, variant: str) -> VideoPerception:
    config = StreamConfig("test:", str(path), variant=variant, gate=GateConfig(motion=False), threads=1)
    return VideoPerception("front", config, open_model(config.model, config.variant))


def boxes(vision: VideoPerception) -> list[object]:
    now = time.monotonic_ns()
    picture = np.full((48, 64, 3), 128, np.uint8)
    result = vision.process(Frame(picture, "front", 0, now, datetime.now(UTC), "bgr", now))
    assert result.detections is not None
    return [detection.box for detection in result.detections]


def test_the_largest_size_answers_unless_another_is_named(tmp_path: Path) -> None:
    path = sizes_model(tmp_path, {"32": BOTH, "16": ONE})
    for variant, name, expected in (("", "32", [LEFT, RIGHT]), ("16", "16", [LEFT])):
        vision = perception(path, variant)
        assert [one.name for one in vision.model.manifest.variants] == [name], "no other size is loaded"
        assert boxes(vision) == expected
        assert vision.answered_by == ("cpu", name)


def test_auto_is_refused_for_sizes_with_their_names(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"sizes: variant = 'auto' .* name one of 32, 16$"):
        perception(sizes_model(tmp_path, {"32": ONE, "16": ONE}), "auto")
    with pytest.raises(ModelError, match="has one variant: leave `variant` out"):
        perception(person_model(tmp_path), "auto")


@pytest.mark.parametrize("variant", ["auto", "", "12"])
def test_exits_are_refused_for_pictures(tmp_path: Path, variant: str) -> None:
    model = open_model(str(cascade_model(tmp_path)), variant)
    with pytest.raises(ModelError, match="variant '12' continues another one's hidden state"):
        VideoPerception("front", StreamConfig("test:", "m", variant=variant), model)


def test_what_lies_in_the_models_picture_is_placed_in_the_frame() -> None:
    found = Detection(
        "x", 1.0, (0.0, 0.0, 1.0, 0.5), (Keypoint("nose", 0.5, 0.5, 1.0),), ((0.0, 0.0), (1.0, 1.0))
    )
    [placed] = _placed([found], Placement(0.5, 0.5, 0.5, 0.5))
    assert placed.box == (0.5, 0.5, 1.0, 0.75)
    assert (placed.keypoints[0].x, placed.keypoints[0].y) == (0.75, 0.75)
    assert placed.outline == ((0.5, 0.5), (1.0, 1.0))
