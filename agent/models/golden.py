"""Golden inputs, by which a device is compared with the CPU, from the files that a manifest names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from agent.compute.infer.benchmark import Inputs, golden_inputs
from agent.compute.manifest import AudioManifest, Model
from agent.compute.tflite.model import TensorSpec
from agent.errors import ModelError, SourceError
from agent.models.files import golden_paths
from agent.models.library import prefixed_errors
from agent.types import Array

_Case = Callable[[Path, TensorSpec], Array]


def golden(model: Model) -> Inputs:
    """Return a function that makes the inputs on which a device must answer as the CPU does.

    The inputs are the manifest's golden files as the model takes them; without such files, shapes with noise.

    Raises:
        ModelError: a golden file is not beside the manifest. From the function: a file cannot be used, or the
            inputs are too large.
    """
    files = golden_paths(model.path, model.manifest)

    def cases(specs: Sequence[TensorSpec]) -> list[list[Array]]:
        with prefixed_errors(model.path):
            if not files:
                return golden_inputs(specs)
            case = _picture(model) if model.manifest.audio is None else _sound(model.manifest.audio)
            return [[case(file, specs[0]), *golden_inputs(specs[1:], 1)[0]] for file in files]

    return cases


def _picture(model: Model) -> _Case:
    from agent.capture.local import read_picture
    from agent.compute.infer.image_input import ImageInput

    def case(file: Path, spec: TensorSpec) -> Array:
        try:
            image = read_picture(file)
        except SourceError as error:
            raise ModelError(f"golden file {error}") from None
        if image is None:
            raise ModelError(f"golden file {file}: expected a picture that can be decoded")
        tensor = np.empty(spec.shape, spec.dtype)
        ImageInput(spec, model.manifest.input).fill(tensor, image, "bgr")
        return tensor

    return case


def _sound(audio: AudioManifest) -> _Case:
    from agent.capture.audio_file import read_whole
    from agent.compute.infer.audio_input import AudioInput, build_frontend

    def case(file: Path, spec: TensorSpec) -> Array:
        try:
            samples = read_whole(file, audio.rate_hz)
        except SourceError as error:
            raise ModelError(f"golden file {error}") from None
        frontend = build_frontend(audio)
        rows = AudioInput(spec, audio, frontend)
        tensor = np.empty(spec.shape, spec.dtype)
        rows.fill(tensor)
        for _ in rows.feed(frontend(samples)):
            rows.fill(tensor)  # the newest complete window
        return tensor

    return case
