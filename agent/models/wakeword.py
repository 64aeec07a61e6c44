"""Manifests of microWakeWord: JSON files, of which `wakeword/NAME` is one of the package `pymicro-wakeword`.

Source of the format: https://github.com/esphome/micro-wake-word-models; of version 1, whose step is 20 ms,
esphome/esphome, `micro_wake_word/__init__.py`.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from msgspec import Struct

from agent.compute.manifest import AudioManifest, Manifest, OutputManifest
from agent.errors import NO_JSON, ModelError
from agent.models import PREFIX, SUFFIX
from agent.structs import from_json

_PACKAGE = "pymicro_wakeword"


class _Micro(Struct, frozen=True):
    """How the model runs; other keys are ignored. Version 1 names the window's size otherwise."""

    probability_cutoff: float
    sliding_window_size: int = 0
    sliding_window_average_size: int = 0
    feature_step_size: int = 10


class _File(Struct, frozen=True):
    """A JSON manifest of microWakeWord, version 1 or 2."""

    wake_word: str
    model: str
    micro: _Micro
    type: str = "micro"
    version: int = 2
    author: str = ""


def packaged() -> tuple[str, ...]:
    """Return the names of the packaged wake words, such as `wakeword/alexa`; none without the package."""
    folder = _folder()
    return tuple(PREFIX + path.stem for path in sorted(folder.glob(f"*{SUFFIX}"))) if folder else ()


def packaged_path(name: str) -> Path:
    """Return the path of a packaged wake word's manifest.

    Raises:
        ModelError: the package is not installed, or has no such word.
    """
    folder = _folder()
    if folder is None:
        raise ModelError(f"{name}: wake words come with pip install '.[wakeword]' in the clone")
    path = folder / f"{name.removeprefix(PREFIX)}{SUFFIX}"
    if name not in packaged():
        raise ModelError(f"no wake word {name!r}; there are: {', '.join(packaged())}")
    return path


def read_wakeword(content: bytes, where: str) -> Manifest:
    """Convert a manifest of microWakeWord, whose models give probabilities."""
    try:
        file = from_json(content, _File)
    except NO_JSON as error:
        raise ModelError(f"{where}: not a manifest of microWakeWord: {error}") from error
    hop_ms = 20 if file.version == 1 else file.micro.feature_step_size
    answers = file.micro.sliding_window_size or file.micro.sliding_window_average_size
    if file.type != "micro" or hop_ms not in (10, 20) or answers < 1:
        raise ModelError(
            f"{where}: expected type 'micro', a feature_step_size of 10 or 20, and a sliding_window_size"
        )
    output = OutputManifest(
        "keyword", (file.wake_word,), file.micro.probability_cutoff, options={"mean_of": answers, "logits": False}
    )
    name = file.wake_word.lower().replace(" ", "-")
    audio = AudioManifest(16_000, "micro", options={"hop_ms": hop_ms})
    return Manifest(name, output, audio=audio, file=file.model.removeprefix("./"), source=file.author)


def _folder() -> Path | None:
    spec = importlib.util.find_spec(_PACKAGE)  # finds it without importing it
    return Path(spec.origin).parent / "models" if spec and spec.origin else None
