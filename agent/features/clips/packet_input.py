"""Packets of a camera as those of a clip: what browsers play is copied, other sound is encoded."""

from __future__ import annotations

import logging
import time
from collections import deque

from agent.compute.av_encoding import SoundTranscoder
from agent.errors import BackendError
from agent.storage.clips.mp4 import SOUND_CODECS, VIDEO_CODECS
from agent.storage.clips.packets import PacketRing
from agent.types import MediaPacket, MediaTrack

log = logging.getLogger(__name__)
_TOLD_MOST, _TOLD_IN_S = 6, 3600.0
"""Most changes of the camera's codec or size that are told in so long a time, s."""
_SOUND_NS = 250_000_000
"""Sound that is encoded at a time, ns: what is done packet by packet finds the processor's caches cold."""


class PacketInput:
    """Puts the packets of a camera into a ring, with sound that browsers play. For the thread that reads it.

    Attributes:
        copies: True if the newest video can be copied.
        waits: True if it can be copied once the camera has sent its parameters.
        trouble: why the newest video is not recorded; empty: it is, or its pictures are encoded.
    """

    def __init__(self, stream: str, ring: PacketRing, *, is_only: bool) -> None:
        """Prepare; `is_only`: nothing is recorded where packets cannot be copied."""
        self._stream, self._ring, self._is_only = stream, ring, is_only
        self._video: MediaTrack | None = None
        self._sound: MediaTrack | None = None
        self._transcoder: SoundTranscoder | None = None
        self._gathered: list[MediaPacket] = []
        self._about: tuple[str, int, int] | None = None
        self._told_s: deque[float] = deque(maxlen=_TOLD_MOST)
        self.copies = self.waits = self._copies_sound = False
        self.trouble = ""

    def add(self, packet: MediaPacket) -> int:
        """Add a packet; return the bytes that were put into the ring."""
        track = packet.track
        if track.kind == "video":
            if track is not self._video:
                self._begin_video(track)
            if packet.keyframe:  # a group of pictures has the sound that came with it
                self._encode_sound()
            if self.copies:
                self._ring.add(packet)
            return len(packet.data) if self.copies else 0
        if not self.copies:
            return 0
        if track is not self._sound:
            self._begin_sound(packet)
        if self._copies_sound:
            self._ring.add(packet)
        elif self._transcoder is not None:
            self._gathered.append(packet)
            if packet.captured_ns - self._gathered[0].captured_ns >= _SOUND_NS:
                self._encode_sound()
        return len(packet.data)

    def _encode_sound(self) -> None:
        gathered, self._gathered = self._gathered, []
        for packet in gathered:
            assert self._transcoder is not None
            for made in self._transcoder.transcode(packet):
                self._ring.add(made)

    def _begin_video(self, track: MediaTrack) -> None:
        self._video, known = track, bool(track.header) and track.width > 0
        self.copies = known and track.codec in VIDEO_CODECS
        self.waits = not known and track.codec in VIDEO_CODECS
        if self.waits:
            return
        before, self.trouble = self.trouble, ""
        if not self.copies and self._is_only:
            self.trouble = f"record_source gives {track.codec}, which clips cannot hold: set it to H.264 or H.265"
        about = track.codec, track.width, track.height
        if self.trouble and self.trouble != before:
            log.error("stream %s: clips: nothing is recorded: %s", self._stream, self.trouble)
        elif about != self._about and not self.trouble:
            self._tell(track)
        self._about = about

    def _tell(self, track: MediaTrack) -> None:
        """Tell what becomes of the newest video; of one that changes again and again only a few times an hour."""
        told_s, now_s = self._told_s, time.monotonic()
        if len(told_s) == _TOLD_MOST and now_s - told_s[0] < _TOLD_IN_S:
            return
        told_s.append(now_s)
        what = "is copied" if self.copies else "is not played by browsers: pictures are encoded as H.264"
        if len(told_s) == _TOLD_MOST and now_s - told_s[0] < _TOLD_IN_S:
            what = f"{what}; it changes often, which is not told for a while"
        log.info("stream %s: clips: %s of %dx%d %s", self._stream, track.codec, track.width, track.height, what)

    def _begin_sound(self, packet: MediaPacket) -> None:
        track = self._sound = packet.track
        self._transcoder, self._gathered = None, []
        self._copies_sound = bool(track.header) and track.codec in SOUND_CODECS and not _has_adts(packet)
        if not self._copies_sound:
            try:
                self._transcoder = SoundTranscoder(track)
            except BackendError as error:
                log.warning("stream %s: clips have no sound: %s", self._stream, error)


def _has_adts(packet: MediaPacket) -> bool:
    """Return True if each packet of AAC has a header, as in MPEG-TS (ISO/IEC 14496-3): MP4 holds none."""
    return packet.track.codec == "aac" and packet.data[:1] == b"\xff" and packet.data[1:2] >= b"\xf0"
