"""The table of hardware decoders, and what a trial of one has found. It loads no library."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

SOFTWARE = "software"
"""Name of FFmpeg's own decoders."""


class DecoderKind(Struct, frozen=True):
    """A hardware decoder.

    Attributes:
        name: as `capture.decoder` has it.
        codecs: that it is for, by FFmpeg's names.
        nodes: pattern of its nodes in /dev.
        device: FFmpeg's type of device; empty: it is a decoder of FFmpeg with this name.
    """

    name: str
    codecs: tuple[str, ...]
    nodes: str
    device: str = ""


DECODERS = {
    one.name: one
    for one in (
        DecoderKind("h264_v4l2m2m", ("h264",), "video*"),
        DecoderKind("hevc_v4l2m2m", ("hevc",), "video*"),
        DecoderKind("drm", ("h264", "hevc"), "dri/*", "drm"),
    )
}


class DecoderTrial(Struct, frozen=True):
    """Result of the trial of one decoder.

    Attributes:
        name: of `DECODERS`, or `SOFTWARE`.
        codec: FFmpeg's name.
        pictures: that it gave.
        ms, cpu_ms: per picture, decoded and converted as for a stream: time, and processor time.
        difference: largest mean difference of a picture to the software decoder's, of 255; None: not compared.
        refused: why it is not used; empty: it may be.
    """

    name: str
    codec: str
    pictures: int = 0
    ms: float = 0.0
    cpu_ms: float = 0.0
    difference: float | None = None
    refused: str = ""


def candidates(codec: str) -> list[str]:
    """Return the names of the hardware decoders for a codec."""
    return [one.name for one in DECODERS.values() if codec in one.codecs]


_WORTH = 0.8
"""Share of the software decoder's processor time from which on a hardware decoder is worth it."""
_SLOWEST_MS = 33.0
"""Time per picture, ms, that a decoder may take, or the software decoder's if that is longer."""


def best_decoder(trials: Sequence[DecoderTrial]) -> str:
    """Return the decoder that takes least processor time; empty: the software decoder."""
    software = next((one for one in trials if one.name == SOFTWARE and not one.refused), None)
    if software is None:
        return ""
    slowest_ms, most_ms = max(_SLOWEST_MS, software.ms), _WORTH * software.cpu_ms
    fit = [one for one in trials if one.name != SOFTWARE and not one.refused]
    fit = [one for one in fit if one.ms <= slowest_ms and one.cpu_ms <= most_ms]
    return min(fit, key=lambda one: one.cpu_ms).name if fit else ""
