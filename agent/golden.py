"""Golden inputs of a model: its manifest's pictures and recordings, prepared as the model takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from agent.compute.infer.measure import Inputs, golden_inputs
from agent.compute.tensors import TensorSpec
from agent.errors import ModelError, SourceError
from agent.library import named
from agent.manifest import AudioManifest, Model
from agent.messages import Array
from agent.storage.models import golden_paths

_Case = Callable[[Path, TensorSpec], Array]


def golden(model: Model) -> Inputs:
    """What a device has to answer as the CPU does.

    Shapes with noise over them where there are no golden files.

    Raises:
        ModelError: a golden file is not beside the manifest; when it is called, one cannot be used, or the
            inputs are too large.
    """
    files = golden_paths(model.path, model.manifest)

    def cases(specs: Sequence[TensorSpec]) -> list[list[Array]]:
        with named(model.path):
            if not files:
                return golden_inputs(specs)
            case = _picture(model) if model.manifest.audio is None else _sound(model.manifest.audio)
            return [[case(file, specs[0]), *golden_inputs(specs[1:], 1)[0]] for file in files]

    return cases


def _picture(model: Model) -> _Case:
    from agent.capture.pictures import read_picture
    from agent.compute.infer.image import ImageInput

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
    from agent.capture.recording import read_whole
    from agent.compute.infer.audio.frontend import build_frontend
    from agent.compute.infer.audio.rows import RowInput

    def case(file: Path, spec: TensorSpec) -> Array:
        try:
            samples = read_whole(file, audio.rate_hz)
        except SourceError as error:
            raise ModelError(f"golden file {error}") from None
        frontend = build_frontend(audio)
        rows = RowInput(spec, audio, frontend)
        tensor = np.empty(spec.shape, spec.dtype)
        rows.fill(tensor)
        for _ in rows.feed(frontend(samples)):
            rows.fill(tensor)  # the newest window that is whole
        return tensor

    return case
