from __future__ import annotations

import re
import tomllib

import pytest

from agent.compute.decode.completion import ModelFacts, complete, guess_input
from agent.compute.decode.metadata import Metadata
from agent.compute.manifest import Manifest
from agent.compute.tflite.model import TensorSpec
from agent.errors import ModelError, NormalisationError, UndecodableError
from tests.support.decoding import manifest_from, picture, spec


def guessed(inputs: list[TensorSpec], *outputs: TensorSpec) -> Manifest:
    return complete({}, ModelFacts(Metadata(), tuple(inputs), outputs), "m").manifest


def test_the_output_of_a_known_family() -> None:
    output = guessed([picture(128)], spec("r", 1, 896, 16), spec("s", 1, 896, 1)).output
    assert (output.decoder, output.score_threshold, output.iou_threshold) == ("blazeface", 0.5, 0.3)
    assert guessed([picture(64)], spec("out", 1, 6, 84)).output.decoder == "yolo"


def test_what_cannot_be_guessed_says_what_is_missing() -> None:
    for outputs in ([spec("out", 1, 2, 3, 4, 5)], [spec("scores", 1, 7, 3), spec("reg", 1, 7, 32)]):
        with pytest.raises(UndecodableError, match=r"must have \[output\] decoder and labels"):
            guessed([picture(64)], *outputs)


def test_the_lines_that_an_error_asks_for_are_those_that_a_manifest_takes() -> None:
    with pytest.raises(NormalisationError) as error:
        guess_input("classify", spec("image", 1, 224, 224, 3))
    lines = re.findall(r"(?:mean|std) = \[[^]]*\]", str(error.value))
    stated = manifest_from(tomllib.loads("\n".join(["[input]", *lines])), "m.toml")
    assert (stated.input.mean, stated.input.std) == ((127.5,) * 3, (127.5,) * 3)


@pytest.mark.parametrize(("dtype", "zero"), [("uint8", 0), ("uint8", 128), ("int8", -128), ("int8", 0)])
def test_a_quantised_input_takes_pixels_as_they_are(dtype: str, zero: int) -> None:
    tensor = spec("image", 1, 8, 8, 3, dtype=dtype, scale=1 / 127.5, zero_point=zero)
    found = guess_input("classify", tensor)
    shift = 128 if dtype == "int8" else 0
    for pixel in (0, 100, 255):
        real = (pixel - found.mean[0]) / found.std[0]
        assert real / tensor.scale + zero == pytest.approx(pixel - shift)


def test_other_inputs_follow_the_family() -> None:
    assert guess_input("keypoints", spec("image", 1, 8, 8, 3, dtype="int32")).std == (1.0, 1.0, 1.0)
    assert guess_input("yolo", spec("image", 1, 8, 8, 3)).std == (255.0, 255.0, 255.0)
    assert guess_input("nanodet", spec("image", 1, 8, 8, 3)).order == "bgr"


def test_a_grey_picture_needs_no_axis_for_its_channel() -> None:
    for shape in ((1, 28, 28), (1, 28, 28, 1), (1, 20, 40, 3)):
        assert guessed([spec("x", *shape, dtype="uint8")], spec("probs", 1, 3)).output.decoder == "classify"


@pytest.mark.parametrize(("samples", "rate_hz"), [(15600, 16_000), (44_032, 44_100), (144_000, 48_000)])
def test_a_window_of_samples_is_sound(samples: int, rate_hz: int) -> None:
    audio = guessed([spec("x", 1, samples)], spec("scores", 1, 3)).audio
    assert audio is not None
    assert (audio.frontend, audio.rate_hz) == ("raw", rate_hz)


@pytest.mark.parametrize("shape", [(1, 128, 9), (1, 128, 3, 1), (1, 640), (1, 16, 96), (2, 28, 28, 3)])
def test_what_is_neither_picture_nor_sound_gets_no_manifest(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"neither a picture.* must have \[audio\] rate_hz"):
        guessed([spec("x", *shape)], spec("scores", 1, 3))
