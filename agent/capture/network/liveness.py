"""Tells when a camera on the network counts as lost although its connection is open. Rules only.

A camera of which not all is decoded is alive as long as packets come, until key frames that were decoded gave no
picture. Who connects between two key frames has to wait for the next one; cameras may have one a minute.
"""

from __future__ import annotations

KEY_FRAME_S = 60.0
"""Longest time for which packets may come before the first key frame, s, unless `stall_s` is longer."""
_TELL_S = 3.0
"""Time after which it is told that a key frame is awaited, s."""
_FAILURES = 2
"""Packets that gave no picture before a camera can be blind: one may be damaged."""
WAITS = "waiting for a key frame"


class Liveness:
    """Follows the packets and pictures of one opening. Times are of any monotonic clock, s."""

    def __init__(self, stall_s: float, now_s: float, key_frame_s: float = KEY_FRAME_S) -> None:
        """Begin with the opening.

        Args:
            stall_s: longest time without a picture, or a packet where these count, s.
            now_s: the present.
            key_frame_s: see `KEY_FRAME_S`.
        """
        self._stall_s, self._key_frame_s = stall_s, max(stall_s, key_frame_s)
        self._alive_s = now_s
        self._began_s: float | None = None
        """When the first packet of video came."""
        self._packet_s = float("-inf")
        self._has_begun = False
        """True after the first key frame or picture."""
        self._failed, self._failed_s = 0, 0.0

    def add_packet(self, now_s: float, *, keyframe: bool, counts: bool) -> None:
        """Add a packet of video; `counts`: it may be left encoded, so that no picture is expected of it."""
        self._began_s = now_s if self._began_s is None else self._began_s
        self._packet_s = now_s
        if keyframe and not self._has_begun:
            self._has_begun, self._failed, counts = True, 0, True
        if counts:
            self._alive_s = now_s

    def add_step(self, now_s: float, *, gave: bool) -> None:
        """Add a packet that was decoded; `gave`: it gave a picture, perhaps that of another packet."""
        if gave:
            self._failed = 0
        else:
            self._failed_s = self._failed_s if self._failed else now_s
            self._failed += 1

    def add_picture(self, now_s: float) -> None:
        """Add a picture, or another sign of life."""
        self._alive_s, self._has_begun, self._failed = now_s, True, 0

    def awaits_key_frame(self, now_s: float) -> bool:
        """Return True if packets come, and only a key frame has been missing for a while."""
        return self._unkeyed_s(now_s) >= _TELL_S

    def trouble(self, now_s: float) -> str:
        """Return why the camera counts as lost now; empty: it does not."""
        if (unkeyed_s := self._unkeyed_s(now_s)) > 0.0:
            return f"no key frame for {self._key_frame_s:g} s" if unkeyed_s >= self._key_frame_s else ""
        is_silent, has_failed = now_s - self._alive_s >= self._stall_s, self._failed >= _FAILURES
        if has_failed and (is_silent or now_s - self._failed_s >= self._stall_s):
            return f"packets come, but none can be decoded for {self._stall_s:g} s"
        return f"no picture for {self._stall_s:g} s" if is_silent else ""

    def _unkeyed_s(self, now_s: float) -> float:
        """Return for how long packets have come without a key frame, s; 0: one came, or no packets come."""
        if self._has_begun or self._began_s is None or now_s - self._packet_s >= self._stall_s:
            return 0.0
        return now_s - self._began_s
