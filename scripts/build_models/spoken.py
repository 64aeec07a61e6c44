"""The demo's recording: digits that people said, and wake words and digits that espeak-ng says, with pauses."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

RATE = 16_000
_PEOPLE = (("three", 3, "jackson"), ("one", 1, "nicolas"), ("four", 4, "theo"), ("one", 1, "george"),
           ("five", 5, "lucas"), ("nine", 9, "yweweler"))  # fmt: skip
_RECORDING = 12
_SAID = (("alexa", "en-us+m7"), ("okay nabu", "en-us+m3"), ("seven", "en-us+f3"), ("two", "en-us+m3"))
_PAUSE_S, _LEAD_IN_S, _NOISE, _LEVEL = 0.9, 1.4, 12.0, 9000.0

Floats = NDArray[np.float32]


def main(data: str, target: str) -> None:
    """Write the recording."""
    digits = np.load(Path(data, "fsdd_train.npz"))
    names = [str(name) for name in digits["names"]]
    parts = [np.zeros(round(_LEAD_IN_S * RATE), np.float32)]
    pause = np.zeros(round(_PAUSE_S * RATE), np.float32)
    for _, digit, speaker in _PEOPLE:
        number = names.index(f"{digit}_{speaker}_{_RECORDING}")
        first, last = digits["offsets"][number : number + 2]
        parts += [level(soxr.resample(digits["pcm"][first:last].astype(np.float32), 8000, RATE)), pause]
    for text, voice in _SAID:
        parts += [level(say(text, voice)), pause]
    noise = np.random.default_rng(20261124).standard_normal(sum(map(len, parts))) * _NOISE
    sound = np.clip(np.concatenate(parts) + noise, -32768, 32767).astype(np.int16)
    soundfile.write(target, sound, RATE, format="FLAC", subtype="PCM_16")
    print(f"{target}: {len(sound) / RATE:.1f} s, {Path(target).stat().st_size} bytes")


def say(text: str, voice: str) -> Floats:
    """Words by espeak-ng."""
    command = ["espeak-ng", "-v", voice, "-s", "175", "--stdout", text]
    wave = subprocess.run(command, capture_output=True, check=True).stdout
    sound, rate = soundfile.read(io.BytesIO(wave), dtype="float32")
    return np.asarray(soxr.resample(sound, rate, RATE), np.float32)


def level(sound: Floats) -> Floats:
    """As loud as the others."""
    return np.asarray(sound * (_LEVEL / max(1e-9, float(np.abs(sound).max()))), np.float32)


if __name__ == "__main__":
    main(*sys.argv[1:])
