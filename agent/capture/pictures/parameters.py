"""Parameters of a track of H.264 or H.265 with start codes: which of those that come with pictures count.

Cameras send them with each key frame, or once, when they change them; perhaps some pictures before the key frame.
What clips say of a track, and each decoder that is opened, needs the newest ones. A lost datagram may damage
them, though: where the first of a slice is lost, FFmpeg appends the rest of it to the unit before, mostly a PPS.
"""

from __future__ import annotations

from typing import cast

import av
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext

ParameterSets = dict[tuple[int, int], bytes]
"""Units with parameters, without start codes, by type and number."""
PARAMETERS = {"h264": (7, 8), "hevc": (33, 34)}
"""Types of the units with the parameters of a sequence (SPS) and of pictures (PPS), of codecs that may hold them
in key frames: ITU-T H.264, table 7-1; ITU-T H.265, table 7-1."""
_VPS = 32
"""Type of the unit of H.265 that an SPS refers to."""
SLICES = {"h264": (0, 0x1F, range(1, 6)), "hevc": (1, 0x3F, range(32))}
"""Where a unit of H.264 and H.265 has its type in its first byte: shift and mask; and the types of slices."""
_START_CODE = b"\0\0\1"
_LONGEST = 1024
"""Bytes that a parameter set hardly exceeds, even with tables of scaling: longer ones are damaged."""


class TrackParameters:
    """Knows the newest parameters of a track. For one thread.

    Those of a key frame that can be decoded count at once. Where those known before give the same picture, as if
    a damaged SPS names another level, they count after the next key frame, unless that brings the known ones.
    Others, as those of other pictures, count if they come again, or if the next key frame comes without any and
    cannot be decoded with those known before.

    Attributes:
        codec: h264 or hevc.
        newest: those that count; empty: none are known.
        are_sure: False while nothing but those of a damaged key frame is known.
    """

    def __init__(self, codec: str, extradata: bytes) -> None:
        """Begin with what FFmpeg knows, which may be of a damaged first key frame."""
        self.codec, self.newest, self.are_sure = codec, parameter_sets(codec, extradata), True
        self._has_counted = False
        self._last: ParameterSets = {}
        self._doubtful: ParameterSets = {}
        self._fits = False
        """True if the key frame of the doubtful ones is decoded with them as with those known before."""

    @property
    def extradata(self) -> bytes:
        """Newest parameters with start codes, as a decoder takes them."""
        return _joined(self.newest)

    def add(self, key_frame: bytes) -> None:
        """Add a key frame."""
        found = parameter_sets(self.codec, key_frame)
        self._settle(found, key_frame)
        if not found:
            return
        new = dict(found.items() - self.newest.items()) if self._has_counted else found
        plausible = {key: content for key, content in new.items() if len(content) <= _LONGEST}
        if new == plausible and self._counts(new, found, key_frame):
            self._take(found)
        else:
            self._doubtful, self.are_sure = plausible, self._has_counted
        self._last |= found

    def add_other(self, picture: bytes) -> None:
        """Add a picture that is no key frame: parameters in it may be those of later ones."""
        found = parameter_sets(self.codec, picture)
        new = {key: content for key, content in found.items() - self.newest.items() if len(content) <= _LONGEST}
        if new and new.items() <= self._last.items():
            self._take(new)
        else:
            self._doubtful |= new
        self._last |= found

    def _settle(self, found: ParameterSets, key_frame: bytes) -> None:
        """Decide on the parameters of the key frame before: this one may be the first that comes without any."""
        doubtful, self._doubtful = self._doubtful, {}
        fits, self._fits = self._fits, False
        if doubtful.keys() & found.keys() or (self.are_sure and not doubtful):
            return
        if not fits and is_whole(self.codec, key_frame, self.extradata):
            self._take({})
        elif doubtful:
            self._take(doubtful)

    def _counts(self, new: ParameterSets, found: ParameterSets, key_frame: bytes) -> bool:
        """Return True if new parameters come again, or with a key frame that can be decoded and needs them."""
        if new.items() <= self._last.items():
            return bool(new)
        has_all = {kind for kind, _ in found} >= set(PARAMETERS[self.codec])
        others = {} if has_all else {key: self.newest[key] for key in self.newest.keys() - found.keys()}
        picture = _decoded(self.codec, key_frame, _joined(others))
        if not picture or not self._has_counted:
            return bool(picture)
        known = with_parameters(self.codec, key_frame, self.extradata)
        self._fits = picture == _decoded(self.codec, known, b"")
        return not self._fits

    def _take(self, found: ParameterSets) -> None:
        """Use these parameters from now on. The PPS that were known are of another SPS if one changes."""
        sps, pps = PARAMETERS[self.codec]
        kept = self.newest
        changes = any(key[0] == sps and kept.get(key, content) != content for key, content in found.items())
        if changes and any(kind == pps for kind, _ in found):
            kept = {key: content for key, content in kept.items() if key[0] != pps}
        self.newest, self.are_sure, self._has_counted = kept | found, True, True


def parameter_sets(codec: str, key_frame: bytes) -> ParameterSets:
    """Return the parameter sets in a key frame with start codes, by type and number.

    What comes after the first slice is not read.
    """
    shift, mask, slices = SLICES[codec]
    found: ParameterSets = {}
    at = key_frame.find(_START_CODE)
    while 0 <= at < len(key_frame) - 3 and (kind := key_frame[at + 3] >> shift & mask) not in slices:
        end = key_frame.find(_START_CODE, at + 3)
        if kind in PARAMETERS[codec] or (codec == "hevc" and kind == _VPS):
            content = key_frame[at + 3 : end if end >= 0 else None].rstrip(b"\0")
            found[kind, _number(codec, kind, content)] = content
        at = end
    return found


def _number(codec: str, kind: int, content: bytes) -> int:
    """Return the number of a parameter set (H.264, 7.3.2.1 and 7.3.2.2; H.265, 7.3.2.1 to 7.3.2.3).

    Three bytes are before that of an SPS of H.264; and profile, tier and level of all layers, of H.265 (7.3.3).
    """
    sps, pps = PARAMETERS[codec]
    if codec == "h264":
        return _leading_number(content[1 if kind == pps else 4 :])
    if kind != sps:
        return content[2] >> 4 if kind == _VPS and len(content) > 2 else _leading_number(content[2:])
    data = content[2:_LONGEST].replace(b"\0\0\3", b"\0\0")
    layers = data[0] >> 1 & 7 if data else 0
    # Two flags of each layer: it has a profile of 11 bytes, a level of 1.
    flags = int.from_bytes(data[13:15]) if layers else 0
    lengths = (11 * (flags >> 15 - 2 * one & 1) + (flags >> 14 - 2 * one & 1) for one in range(layers))
    return _leading_number(data[(15 if layers else 13) + sum(lengths) :])


def _joined(sets: ParameterSets) -> bytes:
    return b"".join(b"\0\0\0\1" + sets[key] for key in sorted(sets))


def _leading_number(data: bytes) -> int:
    """Return the Exp-Golomb number with which bits begin (H.264, 9.1)."""
    bits = "".join(f"{byte:08b}" for byte in data[:4])
    zeros = len(bits) - len(bits.lstrip("0"))
    return int(bits[zeros : 2 * zeros + 1] or "1", 2) - 1


def first_slice_at(codec: str, data: bytes) -> int | None:
    """Return where the first slice begins, after its start code; None: there is none."""
    shift, mask, kinds = SLICES[codec]
    at = data.find(_START_CODE)
    while 0 <= at < len(data) - 3:
        if (data[at + 3] >> shift & mask) in kinds:
            return at + 3
        at = data.find(_START_CODE, at + 3)
    return None


def with_parameters(codec: str, key_frame: bytes, extradata: bytes) -> bytes:
    """Return a key frame with these parameters instead of its own, both with start codes."""
    at = first_slice_at(codec, key_frame)
    return extradata if at is None else extradata + b"\0" + _START_CODE + key_frame[at:]


def is_whole(codec: str, key_frame: bytes, extradata: bytes) -> bool:
    """Return True if a key frame with start codes can be decoded without error, from the top on.

    Its own parameters go before those of `extradata`. FFmpeg tells no error where the first slice is missing.
    A slice begins with the number of its first block (H.264, 7.3.3), or whether it is the first (H.265, 7.3.6.1):
    of the first, both begin with a 1.
    """
    return bool(_decoded(codec, key_frame, extradata))


def _decoded(codec: str, key_frame: bytes, extradata: bytes) -> tuple[object, ...]:
    """Return size and pixels of the picture of a key frame; nothing: it is not whole, see `is_whole`."""
    at = first_slice_at(codec, key_frame)
    if at is None or key_frame[at + (1 if codec == "h264" else 2) :][:1] < b"\x80":
        return ()
    context = cast(VideoCodecContext, av.CodecContext.create(codec, "r"))
    context.options, context.thread_count = {"err_detect": "explode"}, 1
    try:
        frames = context.decode(Packet(extradata + key_frame)) + context.decode(None)
    except (av.FFmpegError, ValueError):
        return ()
    return tuple((one.width, one.height, one.format.name, *map(bytes, one.planes)) for one in frames)
