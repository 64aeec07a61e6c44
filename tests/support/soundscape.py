"""Sounds that go on, and models that hear several at once, as YAMNet does, with three filters for a net."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import agent.compute.manifest
from agent.types import Samples
from tests.support import tflite_builder as build
from tests.support.sound import RATE, quiet

WINDOW, CLASSES = 15_600, 521
"""Samples that YAMNet takes, 0.975 s, and labels that it has."""
WHISTLE, ALARM = "Whistling", "Alarm"
SMOKE, BIRD = "Smoke detector, smoke alarm", "Bird vocalization, bird call, bird song"
TONES = {WHISTLE: 1000.0, ALARM: 3120.0, SMOKE: 3120.0, BIRD: 6520.0}
"""Frequency of each label, Hz: an alarm is two labels, since a label may be a kind of another."""
LOUD = 0.25
"""Amplitude of a sound, of full scale."""
_FRAME, _FRAMES = 400, WINDOW // 400
_MELS, _ROWS = 40, 96
_LOGMEL = """
[audio.options]
mels = 40
low_hz = 125.0
high_hz = 7500.0
"""


def waveform_model(folder: Path) -> Path:
    """Takes samples as YAMNet does and gives a score per label, by how much of the window its tone fills.

    Gives the path of its manifest, which is that of YAMNet.
    """
    tones = list(dict.fromkeys(TONES.values()))
    phase = 2 * np.pi * np.outer(tones, np.arange(_FRAME)) / RATE
    waves = np.concatenate((np.cos(phase), np.sin(phase))) * (2 / _FRAME / LOUD)
    wide = len(waves)
    fill = np.zeros((CLASSES, _FRAMES, 2, len(tones)))
    for number, label in enumerate(labels()):
        if label in TONES:
            fill[number, :, :, tones.index(TONES[label])] = 1 / _FRAMES
    tensors = [
        build.T("waveform", (1, WINDOW)),
        build.T("frames/shape", (2,), "int32", np.array([_FRAMES, _FRAME], np.int32)),
        build.T("frames", (_FRAMES, _FRAME)),
        build.T("waves", (wide, _FRAME), "float32", waves.astype(np.float32)),
        build.T("amplitudes", (_FRAMES, wide)),
        build.T("energies", (_FRAMES, wide)),
        build.T("row/shape", (2,), "int32", np.array([1, _FRAMES * wide], np.int32)),
        build.T("row", (1, _FRAMES * wide)),
        *_head(fill.reshape(CLASSES, -1) * 20, -6.0),
    ]
    operations = [
        build.Op("RESHAPE", (0, 1), (2,)),
        build.Op("FULLY_CONNECTED", (2, 3, -1), (4,)),
        build.Op("MUL", (4, 4), (5,)),
        build.Op("RESHAPE", (5, 6), (7,)),
        build.Op("FULLY_CONNECTED", (7, 8, 9), (10,)),
        build.Op("LOGISTIC", (10,), (11,)),
    ]
    return _written(folder, build.write(tensors, operations, (0,), (11,)), yamnet())


def logmel_model(folder: Path) -> Path:
    """Write a model on log-mel rows that scores the level in the bands around each tone."""
    hz = np.array([_centre(band) for band in range(_MELS)])
    fill = np.zeros((CLASSES, _ROWS, _MELS))
    for number, label in enumerate(labels()):
        if label in TONES:
            fill[number, :, np.argmin(np.abs(hz - TONES[label]))] = 1 / _ROWS
    tensors = [build.T("rows", (1, _ROWS, _MELS)), *_head(fill.reshape(CLASSES, -1), 6.0)]
    operations = [build.Op("FULLY_CONNECTED", (0, 1, 2), (3,)), build.Op("LOGISTIC", (3,), (4,))]
    manifest = yamnet().replace('"raw"', '"logmel"') + _LOGMEL
    return _written(folder, build.write(tensors, operations, (0,), (4,)), manifest)


def yamnet() -> str:
    """The manifest that is documented for YAMNet."""
    documented = (agent.compute.manifest.__doc__ or "").splitlines()
    return "\n".join(line.strip() for line in documented if line.startswith("    "))


def labels() -> list[str]:
    """As many as AudioSet has; the heard ones stand at YAMNet's places."""
    places = {35: WHISTLE, 107: BIRD, 382: ALARM, 393: SMOKE}
    return [places.get(number, f"Other sound {number}") for number in range(CLASSES)]


def story(*sounds: tuple[str, float, float], seconds: float) -> Samples:
    """Sounds (label, from, to) in the quiet of a microphone, s."""
    scene = quiet(seconds).astype(np.float64)
    for label, began, ended in sounds:
        first, last = round(began * RATE), round(ended * RATE)
        scene[first:last] += LOUD * 32768 * np.sin(2 * np.pi * TONES[label] * np.arange(last - first) / RATE)
    return scene.astype(np.int16)


def _centre(band: int) -> float:
    low, high = (2595 * np.log10(1 + hz / 700) for hz in (125.0, 7500.0))
    return float(700 * (10 ** ((low + (high - low) * (band + 1) / (_MELS + 1)) / 2595) - 1))


def _head(weights: np.ndarray, bias: float) -> list[build.T]:
    values = np.where(weights.any(axis=1), bias, -8.0).astype(np.float32)
    return [
        build.T("weights", weights.shape, "float32", weights.astype(np.float32)),
        build.T("bias", (CLASSES,), "float32", values),
        build.T("logits", (1, CLASSES)),
        build.T("scores", (1, CLASSES)),
    ]


def _written(folder: Path, content: bytes, manifest: str) -> Path:
    (folder / "yamnet.tflite").write_bytes(content)
    (folder / "yamnet_label_list.txt").write_text("\n".join(labels()))
    path = folder / "yamnet.toml"
    path.write_text(manifest)
    return path
