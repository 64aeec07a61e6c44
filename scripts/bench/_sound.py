"""Sound for the benches: recordings of the data folder, words by espeak-ng, chunks as a listener gives them."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import soundfile
import soxr

from agent.types import AudioChunk, Samples

CHUNK_S = 0.03
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def chunks(samples: Samples, rate_hz: int, first: int = 0) -> Iterator[AudioChunk]:
    """Pieces of 30 ms, as a microphone gives them."""
    size = round(CHUNK_S * rate_hz)
    for at in range(0, len(samples), size):
        part = samples[at : at + size]
        end_s = (first + at + len(part)) / rate_hz
        yield AudioChunk(
            part, rate_hz, "bench", first + at, round(end_s * 1e9), BEGIN + timedelta(seconds=end_s), 0
        )


def decoded(content: bytes, rate_hz: int) -> Samples:
    """A sound file at a rate, one channel."""
    sound, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    return to_int16(soxr.resample(sound.mean(axis=1), rate, rate_hz))


def trimmed(sound: Samples, rate_hz: int) -> Samples:
    """A recording without its quiet ends: what is 32 dB or more below its loudest 10 ms is cut off."""
    step = rate_hz // 100
    blocks = sound[: len(sound) // step * step].reshape(-1, step).astype(np.float64)
    power = np.square(blocks).mean(axis=1)
    (loud,) = np.nonzero(power >= power.max() * 10.0**-3.2)
    return sound[loud[0] * step : (loud[-1] + 1) * step]


def to_int16(sound: np.ndarray) -> Samples:
    """Floats of -1..1 as samples."""
    return np.clip(np.rint(sound * 32767.0), -32768, 32767).astype(np.int16)


def archived(path: Path, rate_hz: int) -> Iterator[tuple[str, Samples]]:
    """Folder and sound of each recording of a tar."""
    with tarfile.open(path) as archive:
        for member in sorted(archive.getmembers(), key=lambda m: m.name):
            if member.isfile() and member.name.endswith((".flac", ".ogg", ".wav")):
                file = archive.extractfile(member)
                assert file is not None
                yield Path(member.name).parent.name, decoded(file.read(), rate_hz)


def spoken(text: str, voice: str, rate_hz: int) -> Samples:
    """Words by espeak-ng."""
    if shutil.which("espeak-ng") is None:
        raise SystemExit("this bench needs espeak-ng: sudo apt-get install espeak-ng")
    command = ["espeak-ng", "-v", voice, "-s", "175", "--stdout", text]
    return decoded(subprocess.run(command, capture_output=True, check=True).stdout, rate_hz)


def quiet(seconds: float, rate_hz: int, level: float = 8.0, seed: int = 1) -> Samples:
    """The noise of a microphone in a quiet room."""
    random = np.random.default_rng(seed)
    return (random.standard_normal(round(seconds * rate_hz)) * level).astype(np.int16)
