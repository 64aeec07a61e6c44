"""Streams: RTSP and HTTP cameras through FFmpeg."""

from __future__ import annotations

import os
import time

import cv2

from agent.capture.diagnosis import objection, why_unreachable
from agent.capture.opencv import DECODER_THREADS, Capture, open_capture
from agent.capture.uri import Address
from agent.errors import SourceError

_FFMPEG_OPTIONS = "rtsp_transport;tcp|analyzeduration;300000|probesize;100000"
"""TCP: a lost packet would smear the picture until the next key frame. Looking at 0.3 s (µs here) instead of 5 s
of the stream opens a camera in 0.5 s instead of 2. The variable is the process's, so files get the same:
AVI, MP4, MKV and TS open with it."""
_ASK_S = 2.0
"""For a server to say why it gives no stream, at most."""


class Stream(Capture):
    """A stream from another machine."""

    def __init__(self, capture: cv2.VideoCapture, address: Address, stall_s: float) -> None:
        super().__init__(capture, address.shown)
        self._target, self._stall_s, self._grabbed = address.target, stall_s, 0

    def grab(self) -> bool:
        """Wait for the next picture and hold it."""
        began_s = time.monotonic()
        grabbed = self._capture.grab()
        # When its time is up, FFmpeg may first give a picture that it held back: one from before the silence.
        if time.monotonic() - began_s >= self._stall_s:
            raise SourceError(f"{self._shown}: no picture for {self._stall_s:g} s")
        if not grabbed:
            raise SourceError(f"{self._shown}: expected the next picture; {self._why_ended()}")
        self._grabbed += 1
        return True

    def _why_ended(self) -> str:
        # The URL of a snapshot, a common mistake, opens like a stream and ends after its picture.
        why = objection(self._target, min(self._stall_s, _ASK_S)) if self._grabbed == 1 else ""
        return why or "the server stopped sending"


def open_stream(address: Address, stall_s: float) -> Stream:
    """Open an RTSP or HTTP stream.

    Raises:
        SourceError: nobody answers in `stall_s`, or what answers is no video.
    """
    os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", _FFMPEG_OPTIONS)
    limit_ms = max(1, round(stall_s * 1000))
    parameters = [
        *(cv2.CAP_PROP_N_THREADS, DECODER_THREADS),
        *(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, limit_ms),
        *(cv2.CAP_PROP_READ_TIMEOUT_MSEC, limit_ms),
    ]
    capture = open_capture(address.target, cv2.CAP_FFMPEG, parameters)
    if capture is None:
        why = why_unreachable(address.target, min(stall_s, _ASK_S))
        raise SourceError(f"{address.shown}: expected a video stream; {why}")
    return Stream(capture, address, stall_s)
