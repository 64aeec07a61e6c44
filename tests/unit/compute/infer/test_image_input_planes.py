from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.compute.infer.image_input import ImageInput, Placement, PlaneShrink
from agent.compute.manifest import InputManifest
from agent.compute.tflite.model import TensorSpec
from agent.types import WHOLE, Box, Image, Planes

if TYPE_CHECKING:
    from agent.capture.video import DecodedImage

pytestmark = pytest.mark.numerics


def in_planes(image: Image, form: str = "yuv420p") -> Any:
    """A frame as a decoder gives it."""
    av = pytest.importorskip("av", reason="frames of a decoder need PyAV")
    return av.VideoFrame.from_ndarray(image, format="bgr24").reformat(format=form)


def picture(frame: Any) -> DecodedImage:
    from agent.capture.video import DecodedImage, PictureConverter

    return DecodedImage(frame, PictureConverter("yard"))


def decoded(width: int, height: int, *, colour_space: int = 2, colour_range: int = 1) -> DecodedImage:
    """A smooth picture, as a decoder gives it."""
    small = np.random.default_rng(3).integers(40, 210, (4, 5, 3), np.uint8)
    bgr: Image = np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)
    frame = in_planes(bgr)
    frame.colorspace, frame.color_range = colour_space, colour_range
    return picture(frame)


def planes(picture: DecodedImage) -> Planes:
    found = picture.planes()
    assert found is not None
    return found


def filled(picture: Image | Planes, spec: TensorSpec, crop: Box, **manifest: Any) -> tuple[Image, Placement]:
    tensor = np.zeros(spec.shape, spec.dtype)
    placement = ImageInput(spec, InputManifest(**manifest)).fill(tensor, picture, "bgr", crop)
    return tensor, placement


def check_alike(picture: DecodedImage, spec: TensorSpec, crop: Box = WHOLE, **manifest: Any) -> None:
    """Compare the input of planes with that of the converted picture, which FFmpeg rounds down."""
    ours, place = filled(planes(picture), spec, crop, **manifest)
    known, known_place = filled(picture.image(), spec, crop, **manifest)
    assert np.abs(ours.astype(np.float64) - known).mean() < 4.0
    pixel = 1.0 / min(picture.shape[:2])
    sides = ((place.x, known_place.x), (place.y, known_place.y))
    assert all(abs(one - other) <= 2.01 * pixel for one, other in sides)


@given(st.integers(90, 400), st.integers(90, 400), st.sampled_from(["stretch", "letterbox"]))
def test_planes_of_any_size_become_the_same_input_as_the_converted_picture(
    width: int, height: int, resize: str
) -> None:
    check_alike(decoded(width, height), TensorSpec("image", (1, 40, 48, 3), "uint8", 1.0, 0), resize=resize)


@given(st.tuples(*[st.floats(0.0, 0.45)] * 2), st.tuples(*[st.floats(0.55, 1.0)] * 2))
def test_a_part_of_planes_becomes_the_same_input_as_that_of_the_picture(
    start: tuple[float, float], end: tuple[float, float]
) -> None:
    check_alike(decoded(321, 243), TensorSpec("image", (1, 40, 48, 3), "uint8", 1.0, 0), (*start, *end))


@pytest.mark.parametrize("order", ["bgr", "rgb"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", [("uint8", 1.0, 0), ("int8", 1.0, -128), ("float32", 0.0, 0)])
def test_every_kind_of_tensor_takes_planes(order: str, channels: int, kind: tuple[str, float, int]) -> None:
    check_alike(decoded(320, 240), TensorSpec("image", (1, 48, 64, channels), *kind), order=order)


@pytest.mark.parametrize("colour_space", [1, 2, 5, 6], ids=["BT.709", "unnamed", "BT.601", "SMPTE 170M"])
@pytest.mark.parametrize("colour_range", [1, 2], ids=["limited", "full"])
def test_colours_are_those_of_the_stream(colour_space: int, colour_range: int) -> None:
    picture = decoded(96, 64, colour_space=colour_space, colour_range=colour_range)
    ours = np.zeros((64, 96, 3), np.uint8)
    PlaneShrink()(planes(picture), ours, "bgr")
    assert np.abs(ours.astype(np.float64) - picture.image()).mean((0, 1)).max() < 4.0


@pytest.mark.parametrize("colour_space", [4, 7, 9])
def test_a_rare_colour_space_has_no_planes(colour_space: int) -> None:
    assert decoded(96, 64, colour_space=colour_space).planes() is None


@pytest.mark.parametrize("form", ["yuv422p", "yuv444p", "nv12", "yuv420p10le", "gray"])
def test_other_formats_have_no_planes(form: str) -> None:
    frame = in_planes(decoded(96, 64).image(), form)
    assert picture(frame).planes() is None


def test_fine_structure_is_averaged_and_not_skipped() -> None:
    stripes = np.zeros((480, 1280), np.uint8)
    stripes[:, ::2] = 255
    frame = in_planes(np.dstack([stripes] * 3))
    small = np.zeros((100, 100, 3), np.uint8)
    PlaneShrink()(planes(picture(frame)), small, "bgr")
    assert np.abs(small.astype(np.float64) - 127.5).max() < 12.0


def test_parts_of_other_sizes_in_between_change_nothing() -> None:
    one, kept = PlaneShrink(), np.zeros((40, 48, 3), np.uint8)
    for width, height in ((960, 540), (321, 243), (90, 700), (960, 540)):
        fresh = np.zeros_like(kept)
        one(planes(decoded(width, height)), kept, "bgr")
        PlaneShrink()(planes(decoded(width, height)), fresh, "bgr")
        assert np.array_equal(kept, fresh)


def test_a_picture_of_1080p_is_halved_in_the_memory_in_which_it_is_merged() -> None:
    picture, target = planes(decoded(1920, 1080)), np.zeros((416, 416, 3), np.uint8)
    shrink = PlaneShrink()
    tracemalloc.start()
    try:
        shrink(picture, target, "bgr")
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 2.1 * target.nbytes
