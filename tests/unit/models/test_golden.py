"""Golden inputs: as the model takes them, from files beside it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import soundfile
from msgspec.structs import replace

from agent.compute.infer.audio_input import AudioInput, build_frontend
from agent.compute.infer.backends import open_session
from agent.compute.infer.benchmark import golden_inputs
from agent.compute.infer.session import SessionOptions
from agent.compute.manifest import GoldenManifest, Model
from agent.compute.tflite.model import TensorSpec
from agent.errors import ModelError
from agent.models.files import ZOO
from agent.models.golden import golden
from agent.models.library import open_model


def specs(model: Model) -> tuple[TensorSpec, ...]:
    session = open_session(model, "cpu", SessionOptions())
    found = session.inputs
    session.close()
    return found


@pytest.mark.parametrize("variant", ["416", "256"])
def test_the_bundled_detector_has_a_picture(variant: str) -> None:
    model = open_model("nanodet", variant)
    ((array,),) = golden(model)(specs(model))
    picture = cv2.imread(str(ZOO / "nanodet-golden.jpg"))
    assert picture is not None
    size = int(variant)
    assert array.shape == (1, size, size, 3)
    assert array.dtype == np.uint8
    assert np.array_equal(array[0], cv2.resize(picture, (size, size)))


def test_without_files_it_is_shapes() -> None:
    specs = (TensorSpec("a", (1, 4, 5), "int8"),)
    for case, made_up in zip(golden(open_model("small-speech", "3"))(specs), golden_inputs(specs), strict=True):
        assert np.array_equal(case, made_up)


def speech(folder: Path, *files: str) -> Model:
    """The bundled model of words as a file of one's own, with golden files."""
    content = (ZOO / "small-speech.toml").read_text()
    (folder / "small-speech.tflite").write_bytes((ZOO / "small-speech.tflite").read_bytes())
    path = folder / "small-speech.toml"
    path.write_text(f"{content}\n[golden]\nfiles = {list(files)}\n")
    return open_model(str(path), "3")


def test_a_recording_is_heard_as_the_model_hears_it(tmp_path: Path) -> None:
    samples = (np.sin(np.arange(24000) / 5.0) * 8000).astype(np.int16)
    soundfile.write(tmp_path / "tone.wav", samples, 8000)
    model = speech(tmp_path, "tone.wav")
    spec = specs(model)
    ((array,),) = golden(model)(spec)
    audio = model.manifest.audio
    assert audio is not None
    frontend = build_frontend(audio)
    rows = AudioInput(spec[0], audio, frontend)
    heard = frontend(samples)
    expected = np.empty_like(array)
    for left in rows.feed(heard):
        rows.fill(expected)
        assert left < len(heard)
    assert np.array_equal(array, expected)
    assert len(np.unique(array)) > 3


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "noise.wav").write_bytes(b"no sound")
    model = speech(tmp_path, "noise.wav")
    with pytest.raises(ModelError, match=r"golden file .*noise\.wav"):
        golden(model)(specs(model))
    with pytest.raises(ModelError, match=r"golden\.files"):
        golden(speech(tmp_path, "../outside.wav"))
    picture = replace(open_model("nanodet", "256"), path=str(tmp_path / "small-speech.toml"))
    bad = replace(picture, manifest=replace(picture.manifest, golden=GoldenManifest(("noise.wav",))))
    with pytest.raises(ModelError, match=r"noise\.wav: expected a picture"):
        golden(bad)(specs(picture))
