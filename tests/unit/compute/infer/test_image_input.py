from __future__ import annotations

from typing import Any, Literal

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.compute.infer.image_input import ImageInput, Placement, Shrink
from agent.compute.manifest import InputManifest
from agent.compute.tflite.model import TensorSpec
from agent.errors import ModelError
from agent.types import Box, ChannelOrder

pytestmark = pytest.mark.numerics

PICTURE = np.random.default_rng(0).integers(0, 256, (72, 96, 3), dtype=np.uint8)
CENTRED = {"mean": (127.5,) * 3, "std": (127.5,) * 3}


def filled(spec: TensorSpec, crop: Box = (0, 0, 1, 1), **manifest: Any) -> tuple[np.ndarray, Placement]:
    tensor = np.zeros(spec.shape, spec.dtype)
    placement = ImageInput(spec, InputManifest(**manifest)).fill(tensor, PICTURE, "bgr", crop)
    return tensor, placement


@pytest.mark.parametrize("order", ["bgr", "rgb"])
@pytest.mark.parametrize(
    ("dtype", "scale", "zero", "manifest"),
    [
        ("uint8", 1.0, 0, {}),
        ("uint8", 1 / 127.5, 127, CENTRED),
        ("int8", 1 / 127.5, 0, CENTRED),
        ("int8", 1.0, -128, {}),
        ("float32", 0.0, 0, CENTRED),
        ("float32", 0.0, 0, {"mean": (10.0, 20.0, 30.0), "std": (1.0, 2.0, 4.0)}),
    ],
)
def test_every_kind_of_tensor_gets_the_normalised_picture(
    order: ChannelOrder, dtype: str, scale: float, zero: int, manifest: dict[str, Any]
) -> None:
    spec = TensorSpec("image", (1, 30, 40, 3), dtype, scale, zero)
    tensor, placement = filled(spec, order=order, **manifest)
    resized = cv2.resize(PICTURE, (40, 30))
    expected = resized if order == "bgr" else resized[:, :, ::-1]
    known = InputManifest(**manifest)
    normalised = (expected.astype(np.float64) - known.mean) / known.std
    limit = 1e-5 if dtype == "float32" else scale * 1.01
    assert np.abs(spec.real(tensor)[0] - normalised).max() <= limit
    assert placement.whole


def test_a_tensor_that_takes_no_pixels_gets_no_picture() -> None:
    with pytest.raises(ModelError, match="takes values that are no pixels"):
        filled(TensorSpec("x", (1, 24, 32, 3), "float32"), pixels=False)


def test_a_square_without_channels_is_grey() -> None:
    plain, _ = filled(TensorSpec("x", (1, 24, 24), "int8", 1 / 255, -128), std=(255.0,) * 3)
    grey, _ = filled(TensorSpec("x", (1, 24, 24, 1), "int8", 1 / 255, -128), std=(255.0,) * 3)
    assert np.array_equal(plain, grey[..., 0])
    assert np.ptp(plain) > 20


def test_a_grey_tensor_gets_the_luminance() -> None:
    tensor, _ = filled(TensorSpec("image", (1, 72, 96, 1), "uint8", 1.0, 0))
    assert np.array_equal(tensor[0, :, :, 0], cv2.cvtColor(PICTURE, cv2.COLOR_BGR2GRAY))


def test_a_letterbox_keeps_the_aspect_and_maps_back() -> None:
    spec = TensorSpec("image", (1, 96, 96, 3), "uint8", 1.0, 0)
    tensor, placement = filled(spec, resize="letterbox", order="bgr")
    assert (tensor[0, :12] == 114).all()
    assert (tensor[0, 84:] == 114).all()
    assert np.array_equal(tensor[0, 12:84], PICTURE)
    assert placement.to_frame((0.0, 12 / 96, 1.0, 84 / 96)) == pytest.approx((0, 0, 1, 1))


def test_a_crop_is_what_the_model_sees() -> None:
    spec = TensorSpec("image", (1, 36, 48, 3), "uint8", 1.0, 0)
    tensor, placement = filled(spec, crop=(0.5, 0.5, 1.0, 1.0), order="bgr")
    assert np.array_equal(tensor[0], PICTURE[36:, 48:])
    assert placement.to_frame((0, 0, 1, 1)) == (0.5, 0.5, 1, 1)
    assert not placement.whole


@given(st.tuples(*[st.floats(0, 1)] * 4), st.tuples(*[st.floats(-1, 2)] * 4))
def test_a_box_stays_inside_the_frame(crop: Box, box: Box) -> None:
    x0, x1 = sorted((crop[0], crop[2]))
    y0, y1 = sorted((crop[1], crop[3]))
    spec = TensorSpec("image", (1, 8, 8, 3), "uint8", 1.0, 0)
    _, placement = filled(spec, crop=(x0, y0, x1, y1), order="bgr")
    assert all(0 <= edge <= 1 for edge in placement.to_frame(box))


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_the_scratch_picture_carries_nothing_over(resize: Literal["stretch", "letterbox"]) -> None:
    spec = TensorSpec("image", (1, 24, 24, 3), "int8", 1.0, -128)
    manifest = InputManifest(resize=resize)
    used, fresh = ImageInput(spec, manifest), ImageInput(spec, manifest)
    first, second = np.zeros(spec.shape, np.int8), np.zeros(spec.shape, np.int8)
    used.fill(first, np.ascontiguousarray(PICTURE.transpose(1, 0, 2)), "bgr")
    used.fill(first, PICTURE, "bgr")
    fresh.fill(second, PICTURE, "bgr")
    assert np.array_equal(first, second)


@pytest.mark.parametrize(
    ("shape", "dtype", "manifest", "expected"),
    [
        ((1, 40), "uint8", {}, "does not take a picture"),
        ((1, 8, 8, 4), "uint8", {}, "does not take a picture"),
        ((2, 8, 8, 3), "uint8", {}, "does not take a picture"),
        ((1, 8, 8, 3), "int32", {}, "expected uint8, int8 or float32"),
        ((1, 8, 8, 3), "uint8", {"std": (0.0, 1.0, 1.0)}, "`std` must be positive"),
        ((1, 8, 8, 3), "uint8", {"mean": (1e6,) * 3}, "map every pixel to 0"),
    ],
)
def test_a_tensor_that_takes_no_picture_is_refused(
    shape: tuple[int, ...], dtype: str, manifest: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ModelError, match=expected):
        ImageInput(TensorSpec("image", shape, dtype, 1.0), InputManifest(**manifest))


def shrunk(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    target = np.zeros((height, width, 3), np.uint8)
    Shrink()(picture, target)
    return target


@pytest.mark.parametrize(("width", "height"), [(96, 96), (120, 120), (100, 300), (213, 30)])
def test_structure_finer_than_the_model_sees_becomes_its_mean(width: int, height: int) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (1080, 1920, 1), dtype=np.uint8)
    found = shrunk(np.repeat(noise, 3, axis=2), width, height).astype(float)
    expected = cv2.resize(noise, (width, height), interpolation=cv2.INTER_AREA).astype(float)
    linear = cv2.resize(noise, (width, height)).astype(float)
    assert np.abs(found[:, :, 0] - expected).mean() < 0.65 * np.abs(linear - expected).mean()
    assert found.std() < 0.7 * linear.std()


@pytest.mark.parametrize(("width", "height"), [(96, 96), (77, 130), (160, 45), (500, 15)])
def test_shrinking_moves_nothing(width: int, height: int) -> None:
    rows, columns = np.mgrid[0:480, 0:640]
    slope = np.stack((rows * 255 / 480, columns * 255 / 640, columns * 0), axis=2).astype(np.uint8)
    expected = cv2.resize(slope, (width, height), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(shrunk(slope, width, height) - expected).max() <= 2


def test_a_shrink_below_three_is_linear_and_keeps_no_memory() -> None:
    target, shrink = np.zeros((25, 33, 3), np.uint8), Shrink()
    shrink(PICTURE, target)
    assert np.array_equal(target, cv2.resize(PICTURE, (33, 25)))
    assert (shrink._memory.size, shrink._halves) == (0, {})


def test_a_side_that_shrinks_to_a_third_is_linear_where_the_other_shrinks_little() -> None:
    frame = np.random.default_rng(1).integers(0, 256, (720, 1280, 3), dtype=np.uint8)
    assert np.array_equal(shrunk(frame, 416, 416), cv2.resize(frame, (416, 416)))


def test_a_large_frame_is_averaged_straight_into_the_tensor() -> None:
    spec = TensorSpec("image", (1, 18, 24, 3), "uint8", 1.0, 0)
    tensor, _ = filled(spec, order="bgr")
    expected = cv2.resize(PICTURE, (24, 18), interpolation=cv2.INTER_AREA)
    linear = cv2.resize(PICTURE, (24, 18))
    assert np.abs(tensor[0].astype(float) - expected).max() <= 2
    assert np.abs(linear.astype(float) - expected).max() > 50
