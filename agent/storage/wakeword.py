"""Wake words of microWakeWord: its JSON manifests, as files or as the package `pymicro-wakeword` brings them.

Only the models are used; they run in our own session. Source of the format: https://github.com/esphome/micro-wake-word-models
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import msgspec
from msgspec import Struct

from agent.errors import NO_JSON, ModelError
from agent.manifest import AudioManifest, Manifest, OutputManifest

SUFFIX = ".json"
PREFIX = "wakeword/"
_PACKAGE = "pymicro_wakeword"


class _Micro(Struct, frozen=True):
    """What the manifest says of how the model runs; what is not used here may stand there."""

    probability_cutoff: float
    sliding_window_size: int
    feature_step_size: int = 10


class _File(Struct, frozen=True):
    """The JSON file, version 2."""

    wake_word: str
    model: str
    micro: _Micro
    type: str = "micro"
    author: str = ""


def packaged() -> tuple[str, ...]:
    """Names of the wake words that the package brings, `wakeword/alexa` and so on; none without it."""
    folder = _folder()
    return tuple(PREFIX + path.stem for path in sorted(folder.glob(f"*{SUFFIX}"))) if folder else ()


def packaged_path(name: str) -> Path:
    """The manifest of a packaged wake word.

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


def read(content: bytes, where: str) -> Manifest:
    """A manifest of ours from one of theirs. The format's models give probabilities.

    Args:
        content: the JSON file.
        where: its path, for messages.

    Raises:
        ModelError: it is none.
    """
    try:
        file = msgspec.json.decode(content, type=_File)
    except NO_JSON as error:
        raise ModelError(f"{where}: not a manifest of microWakeWord: {error}") from error
    if file.type != "micro" or file.micro.feature_step_size != 10:
        raise ModelError(f"{where}: expected type 'micro' and a feature_step_size of 10")
    options = {"mean_of": file.micro.sliding_window_size, "logits": False}
    output = OutputManifest("keyword", (file.wake_word,), file.micro.probability_cutoff, options=options)
    name = file.wake_word.lower().replace(" ", "-")
    return Manifest(name, output, audio=AudioManifest(16_000, "micro"), file=file.model, source=file.author)


def _folder() -> Path | None:
    spec = importlib.util.find_spec(_PACKAGE)  # finds it without importing it
    return Path(spec.origin).parent / "models" if spec and spec.origin else None
