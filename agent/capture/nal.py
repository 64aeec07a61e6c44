"""Units of H.264 and H.265 with start codes: what a picture is, and which parameters of a track count.

Cameras send parameters with each key frame, or once, when they change them; perhaps some pictures before the
key frame. What clips say of a track, and each decoder that is opened, needs the newest ones. A lost datagram may
damage them, though: where the first of a slice is lost, FFmpeg appends the rest of it to the unit before, mostly
a PPS.
"""

from __future__ import annotations

from typing import cast

import av
from av.packet import Packet
from av.stream import Stream
from av.video.codeccontext import VideoCodecContext

_PARAMETERS = {"h264": (7, 8), "hevc": (32, 33, 34)}
"""Types of units with parameters: SPS and PPS of H.264, and VPS, SPS and PPS of H.265: table 7-1 of each."""
_SPS = {"h264": 7, "hevc": 33}
_SLICES = {"h264": (0, 0x1F, range(1, 6)), "hevc": (1, 0x3F, range(32))}
"""Where a unit of H.264 and H.265 has its type in its first byte: shift and mask; and the types of slices."""
_START_CODE = b"\0\0\1"
_LONGEST = 1024
"""Bytes that a parameter set hardly exceeds, even with tables of scaling: longer ones are damaged."""
_HEAD, _KEY_HEAD = 512, 4096
"""Bytes of a packet, and of a key frame, within which its first slice begins."""


def is_disposable(codec: str, packet: Packet[Stream]) -> bool:
    """Return True if no other picture is predicted from a packet of H.264 or H.265 with start codes.

    Sources: ITU-T H.264, 7.4.1 (nal_ref_idc); ITU-T H.265, table 7-1 (sub-layer non-reference pictures).
    """
    if (unit := _first_slice(codec, packet, _HEAD)) is None:
        return False
    if codec == "h264":
        return unit >> 5 & 3 == 0
    kind = unit >> 1 & 0x3F
    return kind < 16 and kind % 2 == 0


def is_refresh(codec: str, packet: Packet[Stream]) -> bool:
    """Return True if no picture after a key frame of H.264 or H.265 is predicted from one before it.

    FFmpeg takes points for key frames, too, from which on a picture is mended bit by bit. Sources: ITU-T H.264,
    7.4.1.2.4 (IDR pictures); ITU-T H.265, table 7-1 (pictures of random access).
    """
    if (unit := _first_slice(codec, packet, _KEY_HEAD)) is None:
        return False
    return unit & 0x1F == 5 if codec == "h264" else 16 <= unit >> 1 & 0x3F <= 21


def may_hold_parameters(codec: str, packet: Packet[Stream]) -> bool:
    """Return True for a key frame, and for another picture of H.264 or H.265 that begins with parameters."""
    return packet.is_keyframe or bool(leading_parameters(codec, bytes(memoryview(packet)[:_HEAD])))


def _first_slice(codec: str, packet: Packet[Stream], longest: int) -> int | None:
    """Return the first byte of the first slice; None: there is none in the first bytes of the packet."""
    if codec not in _SLICES:
        return None
    head = bytes(memoryview(packet)[:longest])
    at = _first_slice_at(codec, head)
    return None if at is None else head[at]


def _first_slice_at(codec: str, data: bytes) -> int | None:
    """Return where the first slice begins, after its start code; None: there is none."""
    shift, mask, kinds = _SLICES[codec]
    at = data.find(_START_CODE)
    while 0 <= at < len(data) - 3:
        if (data[at + 3] >> shift & mask) in kinds:
            return at + 3
        at = data.find(_START_CODE, at + 3)
    return None


def leading_parameters(codec: str, picture: bytes) -> bytes:
    """Return the parameter sets before the first slice of a picture, with start codes; empty: there are none."""
    return b"".join(b"\0\0\0\1" + unit for unit in _parameter_units(codec, picture))


def _parameter_units(codec: str, picture: bytes) -> list[bytes]:
    shift, mask, slices = _SLICES[codec]
    units = []
    at = picture.find(_START_CODE)
    while 0 <= at < len(picture) - 3 and (kind := picture[at + 3] >> shift & mask) not in slices:
        end = picture.find(_START_CODE, at + 3)
        if kind in _PARAMETERS[codec]:
            units.append(picture[at + 3 : end if end >= 0 else None].rstrip(b"\0"))
        at = end
    return units


def with_parameters(codec: str, key_frame: bytes, parameters: bytes) -> bytes:
    """Return a key frame with these parameters instead of its own, both with start codes."""
    at = _first_slice_at(codec, key_frame)
    return parameters if at is None else parameters + b"\0" + _START_CODE + key_frame[at:]


class TrackParameters:
    """Knows the newest parameters of a track. For one thread.

    Those of a key frame count at once if it can be decoded with them. Others, as those of other pictures, count
    if they come again, or if the next key frame comes without any and cannot be decoded with those known before.

    Attributes:
        codec: h264 or hevc.
        newest: those that count, with start codes, as a decoder takes them; empty: none are known.
        are_sure: False while nothing but those of a damaged key frame is known.
    """

    def __init__(self, codec: str, extradata: bytes) -> None:
        """Begin with what FFmpeg knows, which may be of a damaged first key frame."""
        self.codec, self.newest, self.are_sure = codec, leading_parameters(codec, extradata), True
        self._has_counted = False
        self._last = self._doubtful = b""

    def add(self, key_frame: bytes) -> None:
        """Add a key frame."""
        found, doubtful = self._found(key_frame), self._doubtful
        self._doubtful = b""
        if found is None:
            self.are_sure = self._has_counted
        elif not found:
            if (doubtful or not self.are_sure) and is_whole(self.codec, key_frame, self.newest):
                self.are_sure = self._has_counted = True
            elif doubtful:
                self._take(doubtful)
        elif self._has_counted and found in self.newest:
            self._last = found
        elif found == self._last or is_whole(self.codec, key_frame, self._completed(found)):
            self._take(found)
        else:
            self._doubtful, self._last, self.are_sure = found, found, self._has_counted

    def add_other(self, picture: bytes) -> None:
        """Add a picture that is no key frame: parameters in it may be those of later ones."""
        if not (found := self._found(picture)) or found in self.newest:
            return
        if found == self._last:
            self._take(found)
        else:
            self._doubtful = self._last = found

    def _found(self, picture: bytes) -> bytes | None:
        """Return the parameters of a picture, empty if it has none; None: they are damaged for certain."""
        is_long = any(len(unit) > _LONGEST for unit in _parameter_units(self.codec, picture))
        return None if is_long else leading_parameters(self.codec, picture)

    def _completed(self, found: bytes) -> bytes:
        """Return new parameters, after those known if they are of pictures only."""
        shift, mask, _ = _SLICES[self.codec]
        kinds = {unit[0] >> shift & mask for unit in _parameter_units(self.codec, found)}
        return found if _SPS[self.codec] in kinds else self.newest + found

    def _take(self, found: bytes) -> None:
        self.newest, self._last = self._completed(found), found
        self.are_sure, self._has_counted = True, True


def is_whole(codec: str, key_frame: bytes, parameters: bytes) -> bool:
    """Return True if a key frame with start codes can be decoded without error, from the top on.

    Its own parameters go before the given ones. FFmpeg tells no error where the first slice is missing. A slice
    begins with the number of its first block (H.264, 7.3.3), or whether it is the first (H.265, 7.3.6.1): of the
    first, both begin with a 1.
    """
    at = _first_slice_at(codec, key_frame)
    if at is None or key_frame[at + (1 if codec == "h264" else 2) :][:1] < b"\x80":
        return False
    context = cast(VideoCodecContext, av.CodecContext.create(codec, "r"))
    context.options, context.thread_count = {"err_detect": "explode"}, 1
    try:
        return bool(context.decode(Packet(parameters + key_frame)) + context.decode(None))
    except (av.FFmpegError, ValueError):
        return False
