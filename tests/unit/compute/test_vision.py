from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from agent.compute.infer.image_input import Placement
from agent.compute.vision import VideoPerception, _placed
from agent.config import CascadeConfig, DecodeConfig, GateConfig, StreamConfig, TrackConfig
from agent.config.features import ServiceConfig, StreamBudget
from agent.errors import ModelError
from agent.features.condition.camera import CameraCondition
from agent.models.library import open_model
from agent.types import WHOLE, Box, Detection, Frame, Image, Keypoint, Luma, Planes
from tests.support.doubles import frames, person_model
from tests.support.picture_cascade import SURE, UNSURE, colour_cascade
from tests.support.sizes import LEFT, RIGHT, Things, sizes_model
from tests.support.sound import cascade_model

ONE: Things = [(0.95, LEFT)]
BOTH: Things = [(0.95, LEFT), (0.9, RIGHT)]


def perception(path: Path, variant: str, *, smaller: bool = False) -> VideoPerception:
    patient = CascadeConfig(budget_ms=1e5)  # a busy machine may take long for an exit
    gate = GateConfig(motion=False)
    service = ServiceConfig(smaller_variants=smaller)
    config = StreamConfig(
        "test:", str(path), variant=variant, gate=gate, threads=1, cascade=patient, service=service
    )
    return VideoPerception("front", config, open_model(config.model, config.variants))


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


def test_a_budget_leaves_pictures_out_and_carries_tracks_on(tmp_path: Path) -> None:
    vision = perception(sizes_model(tmp_path, {"32": ONE}), "")
    vision.set_budget(StreamBudget(stride=3))
    results = [vision.process(frame) for frame in frames(10)]
    # The first three confirm what is new, at once.
    assert [one.detections is not None for one in results] == [True, True, True, *[False, False, True] * 2, False]
    assert [event.kind for one in results for event in one.events] == ["new"]
    (carried,) = results[4].predicted or []
    assert carried.label == "person"
    assert carried.box == pytest.approx(LEFT)
    assert all(one.predicted is None for one in results if one.detections is not None)
    vision.set_budget(StreamBudget())
    assert all(vision.process(frame).detections is not None for frame in frames(3))


def test_what_flickers_does_not_undo_a_budget(tmp_path: Path) -> None:
    vision = perception(sizes_model(tmp_path, {"32": ONE}), "")
    vision.set_budget(StreamBudget(stride=6))
    inferred = 0
    for frame in frames(120):
        vision.tracker.finish(frame.captured_ns, frame.captured_at, "test")  # each find is a new one
        inferred += vision.process(frame).detections is not None
    assert 20 <= inferred <= 20 + 4 + 25


def test_a_picture_that_a_lesson_waits_for_is_never_left_out(tmp_path: Path) -> None:
    vision = perception(sizes_model(tmp_path, {"32": ONE}), "")
    vision.set_budget(StreamBudget(stride=6))
    vision.wants_inference = True
    assert all(vision.process(frame).detections is not None for frame in frames(4))


def test_a_budget_uses_a_smaller_size_that_was_opened_for_it(tmp_path: Path) -> None:
    path = sizes_model(tmp_path, {"32": BOTH, "16": ONE})
    vision = perception(path, "", smaller=True)
    assert [one.name for one in vision.model.manifest.variants] == ["32", "16"]
    assert (boxes(vision), vision.answered_by) == ([LEFT, RIGHT], ("cpu", "32"))
    vision.set_budget(StreamBudget(variant="16"))
    assert (boxes(vision), vision.answered_by) == ([LEFT], ("cpu", "16"))
    vision.configure(replace(vision.config, decode=DecodeConfig(score_threshold=0.99)))
    assert (boxes(vision), vision.answered_by) == ([], ("cpu", "16"))
    vision.set_budget(StreamBudget())
    assert vision.answered_by == ("cpu", "32")


def test_a_lesson_is_given_with_the_configured_size(tmp_path: Path) -> None:
    vision = perception(sizes_model(tmp_path, {"32": BOTH, "16": ONE}), "", smaller=True)
    vision.set_budget(StreamBudget(variant="16"))
    vision.wants_inference = True
    assert (boxes(vision), vision.answered_by) == ([LEFT, RIGHT], ("cpu", "32"))


def test_auto_is_refused_for_sizes_with_their_names(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"sizes.toml: variant = 'auto' .* name one of 32, 16$"):
        perception(sizes_model(tmp_path, {"32": ONE, "16": ONE}), "auto")
    with pytest.raises(ModelError, match="has one variant: leave `variant` out"):
        perception(person_model(tmp_path), "auto")


def classified(vision: VideoPerception, colour: tuple[int, int, int]) -> tuple[object, ...]:
    """Label, score, and the exit that answered, for a picture of one colour."""
    now = time.monotonic_ns()
    picture = np.full((24, 24, 3), colour, np.uint8)
    result = vision.process(Frame(picture, "front", 0, now, datetime.now(UTC), "rgb", now))
    assert result.detections is not None
    assert result.stages.infer > 0
    assert result.stages.prepare > 0
    return result.detections[0].label, result.detections[0].score, vision.answered_by[1]


@pytest.mark.parametrize("variant", ["", "auto"])
def test_of_a_cascade_the_first_exit_that_is_sure_answers(tmp_path: Path, variant: str) -> None:
    vision = perception(colour_cascade(tmp_path), variant)
    assert classified(vision, SURE) == ("red", pytest.approx(0.965, abs=0.01), "early")
    assert classified(vision, UNSURE) == ("red", pytest.approx(0.92, abs=0.01), "deep")
    assert classified(vision, SURE)[2] == "early"


def test_a_named_exit_answers_every_picture(tmp_path: Path) -> None:
    path = colour_cascade(tmp_path)
    for name in ("early", "deep"):
        vision = perception(path, name)
        assert {classified(vision, colour)[2] for colour in (SURE, UNSURE)} == {name}


def test_the_temperature_of_an_exit_divides_its_logits(tmp_path: Path) -> None:
    vision = perception(colour_cascade(tmp_path, temperature=4.0), "")
    assert classified(vision, SURE)[2] == "deep", "at this temperature the first exit is sure of nothing"
    alone = perception(tmp_path / "colours.toml", "early")
    assert classified(alone, SURE)[:2] == ("red", pytest.approx(0.576, abs=0.01))


def test_an_exit_that_would_exceed_the_budget_does_not_run(tmp_path: Path) -> None:
    model = open_model(str(colour_cascade(tmp_path)), "")
    config = StreamConfig("test:", "m", gate=GateConfig(motion=False), cascade=CascadeConfig(budget_ms=1e-6))
    assert classified(VideoPerception("front", config, model), UNSURE)[2] == "early"


def test_labels_that_are_not_wanted_need_no_deeper_exit(tmp_path: Path) -> None:
    model = open_model(str(colour_cascade(tmp_path)), "")
    config = StreamConfig("test:", "m", gate=GateConfig(motion=False), decode=DecodeConfig(labels=("blue",)))
    vision = VideoPerception("front", config, model)
    now = time.monotonic_ns()
    frame = Frame(np.full((24, 24, 3), SURE, np.uint8), "front", 0, now, datetime.now(UTC), "rgb", now)
    assert vision.process(frame).detections == []
    assert vision.answered_by[1] == "early"


def test_exits_of_a_sound_model_are_refused_for_pictures(tmp_path: Path) -> None:
    model = open_model(str(cascade_model(tmp_path)), "auto")
    with pytest.raises(ModelError, match="does not take a picture"):
        VideoPerception("front", StreamConfig("test:", "m", variant="auto"), model)


def test_what_lies_in_the_models_picture_is_placed_in_the_frame() -> None:
    found = Detection(
        "x", 1.0, (0.0, 0.0, 1.0, 0.5), (Keypoint("nose", 0.5, 0.5, 1.0),), ((0.0, 0.0), (1.0, 1.0))
    )
    [placed] = _placed([found], Placement(0.5, 0.5, 0.5, 0.5))
    assert placed.box == (0.5, 0.5, 1.0, 0.75)
    assert (placed.keypoints[0].x, placed.keypoints[0].y) == (0.75, 0.75)
    assert placed.outline == ((0.5, 0.5), (1.0, 1.0))


def test_a_crop_is_all_that_the_model_is_shown_and_boxes_are_of_the_frame(tmp_path: Path) -> None:
    path = sizes_model(tmp_path, {"32": ONE})
    config = StreamConfig("test:", str(path), gate=GateConfig(motion=False), crop=(0.5, 0.5, 1.0, 1.0))
    vision = VideoPerception("front", config, open_model(config.model))
    assert boxes(vision) == [pytest.approx(tuple(0.5 + side / 2 for side in LEFT))]
    assert vision.last_crop == (0.5, 0.5, 1.0, 1.0)


def test_what_moves_outside_a_crop_opens_no_gate(tmp_path: Path) -> None:
    path = sizes_model(tmp_path, {"32": []})
    gate = GateConfig(hold_s=0.0, max_idle_s=1e6)
    config = StreamConfig("test:", str(path), gate=gate, crop=(0.0, 0.0, 0.5, 1.0))
    vision = VideoPerception("front", config, open_model(config.model))
    inferred = []
    for number in range(40):
        picture = np.full((96, 128, 3), 90, np.uint8)
        picture[:, 64:] = 250 if number % 2 else 10
        if number >= 36:
            picture[20:60, 4 * number - 140 : 4 * number - 120] = 250
        at = number * 200_000_000
        result = vision.process(Frame(picture, "front", number, at, datetime.now(UTC), "bgr", at))
        inferred.append(result.detections is not None)
    assert not any(inferred[20:36])
    assert any(inferred[36:])


def test_what_a_changed_setting_lets_through_is_told_although_nothing_moves(tmp_path: Path) -> None:
    config = StreamConfig("test:", str(sizes_model(tmp_path, {"32": ONE})), threads=1)
    held_back = replace(config, track=TrackConfig(only_moving=True, stationary_after_s=1.0))
    vision = VideoPerception("front", held_back, open_model(config.model))
    still = frames(300)
    for frame in still[:200]:
        result = vision.process(frame)
        assert result.events == []
    assert result.detections is None, "the gate is closed: the object is parked"
    vision.configure(replace(held_back, track=replace(held_back.track, only_moving=False)))
    result = vision.process(still[200])
    assert [event.kind for event in result.events] == ["new"]
    assert vision.process(still[201]).detections is None, "one picture is enough"


class Unconverted:
    """A grey picture whose brightness is known, and that counts how often its colours are asked for."""

    def __init__(self, image: Image, *, has_planes: bool) -> None:
        self._image, self._has_planes, self.conversions = image, has_planes, 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self._image.shape

    def image(self) -> Image:
        self.conversions += 1
        return self._image

    def luma(self) -> Luma:
        return Luma(self._image[:, :, 0], full_range=True)

    def planes(self) -> Planes | None:
        height, width = self._image.shape[:2]
        grey = np.full((height // 2, width // 2), 128, np.uint8)
        return Planes(self.luma(), grey, grey, False) if self._has_planes else None


def used(folder: Path, crop: Box, *, has_planes: bool, gated: bool = True) -> list[tuple[bool, bool]]:
    """By picture whether it was inferred, and whether it was converted; nothing moves before the tenth.

    The watch on the camera's condition examines each of them.
    """
    model = person_model(folder, score=0.1)
    gate = GateConfig(motion=gated, hold_s=0.0, max_idle_s=60.0)
    config = StreamConfig("test:", str(model), gate=gate, crop=crop)
    vision = VideoPerception("front", config, open_model(config.model))
    camera = CameraCondition()
    found = []
    for number in range(10):
        image = np.full((120, 160, 3), 90, np.uint8)
        image[50:90, 70 : 70 + 25 * (number == 9)] = 220
        picture = Unconverted(image, has_planes=has_planes)
        at_ns = 10**9 + number * 4 * 10**9
        frame = Frame(picture, "front", number, at_ns, datetime.now(UTC))
        result = vision.process(frame)
        camera.update(at_ns, lambda frame=frame: vision.masked_view(frame))  # type: ignore[misc]
        found.append((result.detections is not None, picture.conversions > 0))
    vision.close()
    return found


CROPS = pytest.mark.parametrize("crop", [WHOLE, (0.25, 0.25, 0.75, 1.0)])


@CROPS
def test_a_picture_for_which_the_gate_stays_closed_is_not_converted(tmp_path: Path, crop: Box) -> None:
    assert used(tmp_path, crop, has_planes=False) == [(True, True), *[(False, False)] * 8, (True, True)]


@CROPS
def test_a_picture_with_planes_is_inferred_without_being_converted(tmp_path: Path, crop: Box) -> None:
    assert used(tmp_path, crop, has_planes=True) == [(True, False), *[(False, False)] * 8, (True, False)]


@CROPS
def test_without_a_gate_no_picture_with_planes_is_converted(tmp_path: Path, crop: Box) -> None:
    assert used(tmp_path, crop, has_planes=True, gated=False) == [(True, False)] * 10
