"""Sources of sound: a microphone or a file, opened by its URI and read block by block.

mic:default?rate=16000&channel=0       the microphone that the system prefers
mic:3                                  by its number
mic:USB PnP Sound                      by its name, or a part of it that only one has
wav:speech.wav?pace=realtime|fast&loop=1&channel=left|right|mix|N     WAV, FLAC or OGG

`rate` is what a microphone is asked for, if not for the rate that is wanted of it. Of several channels the mean
is taken, unless `channel` names one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, cast

import numpy as np

from agent.capture.uri import Address, opener, parse_sound
from agent.messages import Array, Samples


class Block(NamedTuple):
    """What a source gives at once.

    Attributes:
        samples: N int16, one channel; none where nothing came for a moment.
        lost: samples that are missing right before them.
        captured_ns, read_ns: of the last sample, see `AudioChunk`; of a recording 0, since it counts by itself.
    """

    samples: Samples
    lost: int = 0
    captured_ns: int = 0
    read_ns: int = 0


class SoundSource(Protocol):
    """Sound, block by block. Used by one thread at a time.

    Attributes:
        live: it goes on by itself.
        paced: a recording that is to be played at its own pace.
        rate_hz: samples per second of what it gives. May change between two blocks.
        about: rate and channels, for people.
    """

    live: bool
    paced: bool
    rate_hz: int
    about: str

    def read(self) -> Block | None:
        """Wait for the next block, a fraction of a second at most; None at the end of a recording.

        Raises:
            SourceError: it broke.
        """
        ...

    def close(self) -> None:
        """Free the device or file. May be called twice."""
        ...


SoundOpener = Callable[[Address, float, int], SoundSource]


def open_sound(uri: str, rate_hz: int, *, stall_s: float) -> SoundSource:
    """Open the source of sound behind a URI.

    Args:
        uri: see the module.
        rate_hz: that is wanted; it may give another.
        stall_s: a microphone that gives nothing for so long has failed, s.

    Raises:
        SourceError: the URI is wrong or one of pictures, or the source cannot be opened.
    """
    address = parse_sound(uri)
    return cast(SoundOpener, opener(address))(address, stall_s, rate_hz)


def mono(frames: Array, channel: int | None) -> Array:
    """One channel, N, of frames, N×C int16 or float32: the one of that number, or the mean of all, rounded."""
    if frames.shape[1] == 1 or channel is not None:
        picked: Array = np.ascontiguousarray(frames[:, channel or 0])
        return picked
    if frames.dtype != np.int16:
        return cast(Array, frames.mean(axis=1, dtype=frames.dtype))
    count = frames.shape[1]
    return cast(Array, ((frames.sum(axis=1, dtype=np.int32) + count // 2) // count).astype(np.int16))
