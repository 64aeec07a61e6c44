"""FFmpeg's own decoder of a track of video, which gives its memory back while nothing is decoded."""

from __future__ import annotations

from typing import cast

import av
from av.packet import Packet
from av.stream import Stream
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from agent.capture.pictures.loop_filter import FilteredPictures
from agent.capture.source import LARGEST_PIXELS

_REOPENED = ("h264", "hevc")
"""Codecs whose parameters are in the packets, or in `extradata`, so that a decoder can be opened anew at each key
frame. Others need what only the track's own context has been told."""
_SKIPPED: dict[FilteredPictures, str] = {"all": "default", "keyframes": "nokey", "none": "all"}
"""FFmpeg's `skip_loop_filter`, which is read when a decoder is opened."""


class SoftwareDecoder:
    """Decodes the packets of a track in the calling thread. For one thread.

    A decoder of 1080p keeps 9 MB or more for the pictures that others are predicted from. Opening one for a key
    frame takes no longer, within 1 ms, than decoding it with one that is open.

    Where a camera does not say how many pictures are shown later than they come, FFmpeg learns it by losing one.
    A decoder that is opened anew is told what the one before has learned.

    Attributes:
        filtered: pictures that get the loop filter.
    """

    def __init__(self, track: VideoStream) -> None:
        self._track = track
        self._reopens = track.codec_context.name in _REOPENED
        self._context: VideoCodecContext | None = None
        self._parameters: bytes | None = None
        self._held_back = _held_back(track.codec_context)
        self.filtered: FilteredPictures = "all"

    def decode(self, packet: Packet[Stream] | None) -> list[VideoFrame]:
        """Decode a packet; None: give what is held back.

        Raises:
            av.FFmpegError: the packet is damaged or its picture too large, or nothing is held back any more.
        """
        if self._context is None:
            if packet is None:
                return []
            self._context = self._open()
        return self._context.decode(packet)

    def flush(self) -> None:
        """Forget what came before: the next packet is a key frame."""
        if self._reopens and self._parameters != self._track.codec_context.extradata:
            self.release()  # the packet that brought the newest ones was perhaps left out
        elif self._context is not None:
            self._context.flush_buffers()

    def release(self) -> None:
        """Forget what came before, and free the memory of pictures. The next packet is a key frame."""
        if not self._reopens:
            self.flush()
        elif self._context is not None:
            self._held_back = _held_back(self._context)
            self._context = None

    def filter_pictures(self, filtered: FilteredPictures) -> None:
        """Apply the loop filter to these pictures. After a change, the next packet is a key frame."""
        if filtered != self.filtered:
            self.filtered = filtered
            self.release()

    def _open(self) -> VideoCodecContext:
        context = known = self._track.codec_context
        options = {"max_pixels": str(LARGEST_PIXELS)}
        if self._reopens:
            context = cast(VideoCodecContext, av.CodecContext.create(known.name, "r"))
            self._parameters = known.extradata  # the newest ones: `Media` keeps them there
            context.extradata, context.width, context.height = self._parameters, known.width, known.height
            options |= {"skip_loop_filter": _SKIPPED[self.filtered], "has_b_frames": str(self._held_back)}
        context.options = options
        # FFmpeg's own choice of threads, one per core, costs 15 % more processor time and 2.5 MB more per stream
        # of 768×576 H.264, and holds back as many pictures as it has threads.
        context.thread_count, context.thread_type = 1, av.codec.context.ThreadType.NONE
        context.copy_opaque = True  # a packet's times go to its picture
        return context


def _held_back(context: VideoCodecContext) -> int:
    """Return how many pictures a decoder holds back to put them in order; 0 with PyAV 16, which does not tell."""
    return int(getattr(context, "reorder_depth", 0))
