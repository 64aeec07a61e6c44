from __future__ import annotations

import re
import tomllib

import pytest

from agent.compute.decode.metadata import guess_input, guess_output
from agent.errors import ModelError, NormalisationError, UndecodableError
from tests.support.decoding import manifest_from, picture, spec


def test_the_output_of_a_known_family() -> None:
    output = guess_output([picture(128)], [spec("r", 1, 896, 16), spec("s", 1, 896, 1)])
    assert (output.decoder, output.score_threshold, output.iou_threshold) == ("blazeface", 0.5, 0.3)
    assert guess_output([picture(64)], [spec("out", 1, 6, 84)]).decoder == "yolo"


def test_what_cannot_be_guessed_says_what_is_missing() -> None:
    with pytest.raises(UndecodableError, match=r"cannot decode outputs out float32\[1,2,3,4,5\]: none .* fits$"):
        guess_output([picture(64)], [spec("out", 1, 2, 3, 4, 5)])
    with pytest.raises(UndecodableError, match=r"other strides needs \[output\] decoder and"):
        guess_output([picture(64)], [spec("scores", 1, 7, 3), spec("reg", 1, 7, 32)])
    with pytest.raises(ModelError, match=r"is not a picture; for sound .* \[audio\] rate_hz"):
        guess_input("classify", spec("waveform", 1, 15600))


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
