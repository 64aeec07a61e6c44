from __future__ import annotations

import re
import tomllib

import pytest

from agent.compute.decode.guesses import check_picture, guess_input, guess_output, guess_sound
from agent.compute.infer.audio_input import AudioInput, build_frontend
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


@pytest.mark.parametrize(
    ("shape", "frontend", "rate_hz"),
    [
        ((15600,), "raw", 16_000),
        ((1, 16_000, 1), "raw", 16_000),
        ((1, 44_032), "raw", 44_100),
        ((1, 144_000), "raw", 48_000),
        ((1, 49, 10, 1), "mfcc", 16_000),
        ((1, 1960), "micro", 16_000),
        ((1, 49, 40, 1), "micro", 16_000),
        ((1, 30, 1, 40), "logmel", 16_000),
        ((1, 1, 40), "micro", 16_000),
        ((1, 3, 40), "micro", 16_000),
    ],
)
def test_features_of_sound_are_known_by_their_shape(shape: tuple[int, ...], frontend: str, rate_hz: int) -> None:
    tensor = spec("x", *shape)
    sound = guess_sound(tensor)
    assert sound is not None
    assert (sound.audio.frontend, sound.audio.rate_hz) == (frontend, rate_hz)
    if frontend == "micro":
        pytest.importorskip("pymicro_features", reason="the extra [wakeword] is not installed")
    AudioInput(tensor, sound.audio, build_frontend(sound.audio))  # raises if the rows do not fit


@pytest.mark.parametrize(
    "shape", [(1, 28, 28), (1, 128, 9), (1, 40), (1, 640), (1, 16, 96), (1, 96, 96, 1), (1, 224, 224, 3), (1, 3)]
)
def test_other_sequences_and_pictures_are_no_sound(shape: tuple[int, ...]) -> None:
    assert guess_sound(spec("x", *shape)) is None


def test_a_grey_picture_needs_no_axis_for_its_channel() -> None:
    for shape in ((1, 28, 28), (1, 28, 28, 1), (1, 20, 40, 3)):
        check_picture(spec("x", *shape))


@pytest.mark.parametrize("shape", [(1, 128, 9), (1, 128, 3, 1), (1, 640), (1, 16, 96), (2, 28, 28, 3)])
def test_what_is_neither_picture_nor_sound_gets_no_manifest(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="neither a picture") as error:
        check_picture(spec("x", *shape))
    assert "[audio]" not in str(error.value)


@pytest.mark.parametrize("shape", [(1, 98, 13), (1, 101, 64), (1, 98, 40, 1, 1)])
def test_the_manifest_that_an_error_prints_fits_the_model(shape: tuple[int, ...]) -> None:
    tensor = spec("x", *shape)
    with pytest.raises(ModelError, match="neither a picture") as error:
        check_picture(tensor)
    text = str(error.value).partition("\n[audio]\n")[2]
    audio = manifest_from(tomllib.loads(f"[audio]\n{text}"), "m.toml").audio
    assert audio is not None
    AudioInput(tensor, audio, build_frontend(audio))
