from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from agent.compute.cascade.policy import SizeCascade
from agent.compute.cascade.resolution import _placed
from agent.compute.infer.image_input import Placement
from agent.compute.vision import VideoPerception
from agent.config.stream import CascadeConfig, DecodeConfig, GateConfig, StreamConfig
from agent.errors import ModelError
from agent.models.library import open_model
from agent.types import Detection, Frame, Keypoint, StreamResult
from tests.support.house import person_model
from tests.support.sizes import LEFT, RIGHT, Things, sizes_model
from tests.support.sound import cascade_model

SURE: Things = [(0.95, LEFT)]
UNSURE: Things = [(0.95, LEFT), (0.35, RIGHT)]
BOTH: Things = [(0.95, LEFT), (0.9, RIGHT)]


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes take the time that they would in life: these models take none."""
    real = SizeCascade.record_latency
    monkeypatch.setattr(
        SizeCascade, "record_latency", lambda self, index, ns: real(self, index, 1000 * (index + 1))
    )


pytestmark = pytest.mark.usefixtures("steady")


def eye(path: Path, **fields: object) -> VideoPerception:
    fields = {"variant": "auto", "gate": GateConfig(motion=False), "threads": 1, **fields}
    config = StreamConfig(source="test:", model=str(path), **fields)  # type: ignore[arg-type]
    return VideoPerception("front", config, open_model(config.model, config.variant))


def look(vision: VideoPerception, times: int = 1, shape: tuple[int, int] = (48, 64)) -> StreamResult:
    """The last of so many looks at a grey picture."""
    picture = np.full((*shape, 3), 128, np.uint8)
    for _ in range(times):
        now = time.monotonic_ns()
        seen = vision.process(Frame(picture, "front", 0, now, datetime.now(UTC), "bgr", now))
    return seen


def boxes(seen: StreamResult) -> list[object]:
    assert seen.detections is not None
    return [detection.box for detection in seen.detections]


def test_the_smallest_size_that_is_sure_answers(tmp_path: Path) -> None:
    vision = eye(sizes_model(tmp_path, {"32": SURE, "24": SURE, "16": SURE}))
    assert vision.answered_by == ("cpu", "32")
    assert boxes(look(vision, 20)) == [LEFT]
    assert vision.answered_by == ("cpu", "16")
    assert vision.used == {"16": 20, "24": 0, "32": 0}, "how long each takes is known from the start"


def test_the_largest_answers_where_a_smaller_one_is_not_sure(tmp_path: Path) -> None:
    vision = eye(sizes_model(tmp_path, {"32": BOTH, "16": UNSURE}))
    for _ in range(40):
        assert boxes(look(vision)) == [LEFT, RIGHT]
        assert vision.answered_by == ("cpu", "32")
    assert vision.used == {"16": 0, "32": 40}


def test_what_is_below_the_threshold_is_seen_by_nobody_else(tmp_path: Path) -> None:
    vision = eye(sizes_model(tmp_path, {"32": SURE, "16": UNSURE}, confidence=0.0))
    assert boxes(look(vision, 5)) == [LEFT]
    assert vision.answered_by == ("cpu", "16")


def test_the_threshold_of_the_stream_is_what_an_answer_must_be_sure_of(tmp_path: Path) -> None:
    path = sizes_model(tmp_path, {"32": BOTH, "16": UNSURE})
    vision = eye(path, decode=DecodeConfig(score_threshold=0.1))
    assert boxes(look(vision, 5)) == [LEFT, RIGHT], "0.35 is hardly above: p = 0.64"
    assert vision.answered_by == ("cpu", "32")
    assert boxes(look(eye(path, decode=DecodeConfig(score_threshold=0.9)), 5)) == [LEFT, RIGHT]


def test_a_size_that_is_blind_is_found_out(tmp_path: Path) -> None:
    vision = eye(sizes_model(tmp_path, {"32": BOTH, "16": []}))
    look(vision, 20)
    assert vision.answered_by == ("cpu", "16"), "sure that there is nothing"
    look(vision, 20)
    for _ in range(200):
        assert boxes(look(vision)) == [LEFT, RIGHT]


def test_times_are_those_of_every_size_that_looked(tmp_path: Path) -> None:
    vision = eye(sizes_model(tmp_path, {"32": BOTH, "16": UNSURE}, resize="letterbox"))
    look(vision)
    began = time.monotonic_ns()
    stages = look(vision).stages
    assert vision.used == {"16": 0, "32": 2}
    assert 0 < stages.prepare + stages.infer + stages.decode < time.monotonic_ns() - began
    assert min(stages.prepare, stages.infer, stages.decode) > 0


def test_each_size_has_a_placement_of_its_own(tmp_path: Path) -> None:
    path = sizes_model(tmp_path, {"32": SURE, "20": SURE}, resize="letterbox")
    wide = (50, 100)
    expected = {variant: boxes(look(eye(path, variant=variant), shape=wide)) for variant in ("32", "20")}
    for variant, extra in (("20", ""), ("32", "complexity = 0.5\n")):
        folder = tmp_path / variant
        folder.mkdir()
        vision = eye(sizes_model(folder, {"32": SURE, "20": SURE}, resize="letterbox", extra=extra))
        assert boxes(look(vision, shape=wide)) == expected[variant]
        assert vision.answered_by == ("cpu", variant)


def test_the_budget_is_for_all_sizes_together(tmp_path: Path) -> None:
    path = sizes_model(tmp_path, {"32": BOTH, "24": UNSURE, "16": UNSURE})
    vision = eye(path, cascade=CascadeConfig(budget_ms=1e-6))
    look(vision, 10)
    assert vision.answered_by == ("cpu", "16")
    assert vision.used["16"] >= 7, "each other at most once, to learn how long it takes"


def test_a_hard_picture_begins_larger(tmp_path: Path) -> None:
    path = sizes_model(tmp_path, {"32": SURE, "16": SURE}, extra="complexity = 0.5\n")
    vision = eye(path)
    look(vision, 10)
    assert vision.used == {"16": 0, "32": 10}, "with the gate off nothing is known, and that is hard"


def test_without_auto_the_largest_answers_alone(tmp_path: Path) -> None:
    path = sizes_model(tmp_path, {"32": BOTH, "16": SURE})
    vision = eye(path, variant="")
    assert [variant.name for variant in vision.model.manifest.variants] == ["32"]
    assert boxes(look(vision, 10)) == [LEFT, RIGHT]
    assert (vision.answered_by, vision.used) == (("cpu", "32"), {})
    assert boxes(look(eye(path, variant="16"), 10)) == [LEFT]


def test_auto_without_a_cascade_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"sizes: variant = 'auto' .* `vedette models calibrate`, or name one of 32, 16"
    ):
        eye(sizes_model(tmp_path, {"32": SURE, "16": SURE}, confidence=None))
    with pytest.raises(ModelError, match="name one of full"):
        eye(person_model(tmp_path))


def test_pictures_do_not_climb_depths(tmp_path: Path) -> None:
    model = open_model(str(cascade_model(tmp_path)), "auto")
    with pytest.raises(ModelError, match="pictures climb sizes, and variant '12' goes on from another"):
        VideoPerception("front", StreamConfig("test:", "m", variant="auto"), model)


def test_what_lies_in_the_models_picture_is_placed_in_the_frame() -> None:
    found = Detection(
        "x", 1.0, (0.0, 0.0, 1.0, 0.5), (Keypoint("nose", 0.5, 0.5, 1.0),), ((0.0, 0.0), (1.0, 1.0))
    )
    [placed] = _placed([found], Placement(0.5, 0.5, 0.5, 0.5))
    assert placed.box == (0.5, 0.5, 1.0, 0.75)
    assert (placed.keypoints[0].x, placed.keypoints[0].y) == (0.75, 0.75)
    assert placed.outline == ((0.5, 0.5), (1.0, 1.0))
