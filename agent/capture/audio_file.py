"""Sound files as audio sources, and a resampler. soxr is imported only if rates differ."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import quote

import numpy as np
from msgspec.structs import replace

from agent.capture.source import status
from agent.config.source_uri import SourceUri, parse_sound
from agent.errors import SourceError
from agent.text import plural
from agent.types import Array, Samples


class Block(NamedTuple):
    """One block of audio from a source.

    Attributes:
        samples: N int16, one channel; empty if nothing came for a moment.
        lost: samples missing right before these.
        captured_ns, read_ns: of the last sample, see `AudioChunk`; 0 for a recording, whose time is counted.
    """

    samples: Samples
    lost: int = 0
    captured_ns: int = 0
    read_ns: int = 0


def mono(frames: Array, channel: int | None) -> Array:
    """Return one channel [N] of frames [N, C], int16 or float32: the given one, or the rounded mean of all."""
    if frames.shape[1] == 1 or channel is not None:
        picked: Array = np.ascontiguousarray(frames[:, channel or 0])
        return picked
    if frames.dtype != np.int16:
        return cast(Array, frames.mean(axis=1, dtype=frames.dtype))
    count = frames.shape[1]
    return cast(Array, ((frames.sum(axis=1, dtype=np.int32) + count // 2) // count).astype(np.int16))


_SCALE = 32768.0


class Resampler:
    """Resamples a stream of audio; the result does not depend on how the input is cut into blocks."""

    def __init__(self, from_hz: int, to_hz: int) -> None:
        """Prepare the resampler.

        Args:
            from_hz: rate of the input, samples per second.
            to_hz: rate of the output, samples per second.

        Raises:
            SourceError: soxr is missing.
        """
        self._from_hz, self._to_hz = from_hz, to_hz
        self._came = self._went = 0
        self._soxr: Any = None if from_hz == to_hz else _soxr().ResampleStream(from_hz, to_hz, 1, "float32")

    @property
    def behind_s(self) -> float:
        """Length of input that has not come out yet, s: the filter looks ahead."""
        return max(0.0, self._came / self._from_hz - self._went / self._to_hz)

    def change(self, samples: Samples) -> Samples:
        """Resample N int16 samples. The first few calls return less than the ratio says."""
        self._came += len(samples)
        changed = samples if self._soxr is None else self._changed(samples, last=False)
        self._went += len(changed)
        return changed

    def rest(self) -> Samples:
        """Return what the filter still holds back, at the end."""
        none = np.empty(0, np.int16)
        rest = none if self._soxr is None else self._changed(none, last=True)
        self._went += len(rest)
        return rest

    def _changed(self, samples: Samples, *, last: bool) -> Samples:
        # As float: with int16 soxr adds dither, and silence would not stay silent.
        changed = self._soxr.resample_chunk(samples.astype(np.float32), last=last)
        return to_int16(changed, 1.0)


def to_int16(samples: Any, scale: float = _SCALE) -> Samples:
    """Convert float32 samples to int16: round, clip, and replace NaN by 0. Unscaled samples are ±1.0."""
    scaled = np.nan_to_num(np.rint(samples * np.float32(scale)), nan=0.0)
    return cast(Samples, np.clip(scaled, -32768, 32767).astype(np.int16))


def _soxr() -> Any:
    try:
        return importlib.import_module("soxr")
    except ImportError as error:
        raise SourceError(f"expected soxr, to change a rate; it cannot be imported ({error})") from None


_LIVE_BLOCK_S, _FAST_BLOCK_S = 0.03, 0.1
_LEAST_HZ, _MOST_HZ, _MOST_CHANNELS = 4000, 384_000, 64
"""Plausible rates, Hz, and channels: a header outside these is damaged, and resampling it would cost much."""


class AudioFile:
    """An open sound file."""

    live = False

    def __init__(self, file: Any, address: SourceUri) -> None:
        self._file, self._shown = file, address.masked
        self._channel, self._loop = address.options.channel, address.options.loop
        self.paced = address.options.pace == "realtime"
        self.rate_hz, self._seen = int(file.samplerate), 0
        self._block = max(1, round(self.rate_hz * (_LIVE_BLOCK_S if self.paced else _FAST_BLOCK_S)))
        self.description = f"{self.rate_hz} Hz, {plural(file.channels, 'channel')}, {file.format} {file.subtype}"

    @property
    def seconds(self) -> float:
        """Length of the file, s, as its header says."""
        return float(self._file.frames / self.rate_hz)

    def read(self) -> Block | None:
        frames = self._frames()
        if not len(frames):
            if self._seen < self._file.frames:
                expected = f"expected {self._file.frames:,} samples, as the file says"
                raise SourceError(f"{self._shown}: {expected}; found {self._seen:,}: cut off")
            if not self._loop:
                return None
            self._file.seek(0)
            self._seen, frames = 0, self._frames()
        self._seen += len(frames)
        return Block(to_int16(mono(frames, self._channel)))

    def close(self) -> None:
        self._file.close()

    def _frames(self) -> Any:
        try:
            return self._file.read(self._block, dtype="float32", always_2d=True)
        except RuntimeError as error:  # soundfile raises RuntimeErrors
            raise SourceError(f"{self._shown}: expected more sound; the file is damaged: {error}") from None


def read_whole(path: Path, rate_hz: int) -> Samples:
    """Read a whole sound file as int16 [n], one channel, resampled if needed."""
    address = replace(parse_sound(f"wav:{quote(str(path))}?pace=fast"), masked=str(path))
    recording = open_recording(address, 1.0, rate_hz)
    resampler, parts = Resampler(recording.rate_hz, rate_hz), []
    try:
        while (block := recording.read()) is not None:
            parts.append(resampler.change(block.samples))
    finally:
        recording.close()
    return np.concatenate((*parts, resampler.rest()))


def open_recording(address: SourceUri, stall_s: float, rate_hz: int) -> AudioFile:
    """Open a sound file.

    Raises:
        SourceError: it is missing, cannot be read, is no sound file, is empty or truncated, lacks the channel, or
            has an implausible rate or number of channels.
    """
    path, shown = Path(address.target), address.masked
    if status(address) is None:
        raise SourceError(f"{shown}: expected a sound file; there is no {path.absolute()}")
    if not path.is_file():
        raise SourceError(f"{shown}: expected a sound file; found a folder or device")
    if not os.access(path, os.R_OK):
        raise SourceError(f"{shown}: this user may not read it; check its owner and mode")
    try:
        file = _library(shown).SoundFile(path)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "error_string", "") or str(error)
        raise SourceError(f"{shown}: expected a sound file; it cannot be read: {reason.rstrip('.')}") from None
    if wrong := _fault(file, address.options.channel):
        file.close()
        raise SourceError(f"{shown}: {wrong}")
    return AudioFile(file, address)


def _fault(file: Any, channel: int | None) -> str:
    """Return what is wrong with the header of a sound file; empty: nothing."""
    rate_hz, channels = file.samplerate, file.channels
    if not file.frames:
        return "expected sound; the file has no samples: cut off?"
    if not _LEAST_HZ <= rate_hz <= _MOST_HZ:
        return f"expected {_LEAST_HZ} to {_MOST_HZ} Hz; its header says {rate_hz} Hz: record it anew"
    if channels > _MOST_CHANNELS:
        return f"expected at most {_MOST_CHANNELS} channels; its header says {channels}"
    if channel is not None and channel >= channels:
        return f"expected a channel {channel}; found {plural(channels, 'channel')}, which count from 0"
    return ""


def _library(shown: str) -> Any:
    try:
        return importlib.import_module("soundfile")
    except (ImportError, OSError) as error:
        raise SourceError(
            f"{shown}: expected the library that reads sound files; it cannot be loaded ({error}):"
            " sudo apt install libsndfile1"
        ) from None
