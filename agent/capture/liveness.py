"""Tells when a camera on the network counts as lost although its connection is open. Rules only.

A camera is alive as long as packets come, whether they have to be decoded or not, until key frames that were
decoded gave no picture. One key frame may be damaged, and then what follows it gives no picture either. Who
connects between two key frames, or wants pictures of a camera that was only heard, has to wait for the next one;
cameras may have one a minute. Where key frames alone are decoded, it is lost if none comes for twice the longest
time between two so far.
"""

from __future__ import annotations

KEY_FRAME_S = 60.0
"""Longest time for which packets may come before the first key frame, s, unless `stall_s` is longer."""
_TELL_S = 3.0
"""Time after which it is told that a key frame is awaited, s."""
_LATE = 2.0
"""Key frames are missing after so many times the longest distance between two, or `KEY_FRAME_S` where that is
longer: cameras vary it."""
_FAILURES = 2
"""Key frames in a row that gave no picture before a camera can be blind: one may be damaged."""
_LONGEST_BLIND_S = 600.0
WAITS = "waiting for a key frame"
_ALONE = '; its key frames may need others (intra refresh): set capture.decode = "auto"'


class Liveness:
    """Follows the packets and pictures of one opening. Times are of any monotonic clock, s.

    Attributes:
        needs_keys: whether pictures come from key frames alone.
    """

    def __init__(self, stall_s: float, now_s: float, key_frame_s: float = KEY_FRAME_S) -> None:
        """Begin with the opening.

        Args:
            stall_s: longest time without a packet, or a picture where packets do not count, s.
            now_s: the present.
            key_frame_s: see `KEY_FRAME_S`.
        """
        self._stall_s, self._key_frame_s = stall_s, max(stall_s, key_frame_s)
        self._alive_s, self._packet_s = now_s, float("-inf")
        self._began_s: float | None = None
        """When the first packet of video came."""
        self._key_s: float | None = None
        """Time at which the newest key frame came."""
        self._apart_s, self.needs_keys, self._has_begun = 0.0, False, False
        self._keys = self._failed_key = 0
        """Key frames that came, and the number of the newest that gave no picture: it may be decoded twice."""
        self._failed, self._failed_keys, self._failed_s = 0, 0, 0.0

    def begin_again(self, now_s: float) -> None:
        """Wait for the next key frame: nothing was decoded for a while, or nothing will be."""
        self._alive_s, self._began_s, self._key_s, self._has_begun = now_s, None, None, False
        self._forgive()

    def add_packet(self, now_s: float, *, keyframe: bool, counts: bool) -> None:
        """Add a packet of video; `counts`: it is life by itself, else only its picture is."""
        self._began_s = now_s if self._began_s is None else self._began_s
        self._packet_s = now_s
        if keyframe:
            if self._key_s is not None:
                self._apart_s = max(self._apart_s, now_s - self._key_s)
            self._keys, self._key_s = self._keys + 1, now_s
        if counts or (keyframe and not self._has_begun):
            self._alive_s = now_s
        self._has_begun = self._has_begun or keyframe

    def add_step(self, now_s: float, *, gave: bool, keyframe: bool = False) -> None:
        """Add a packet that was decoded.

        Args:
            now_s: the present.
            gave: it gave a picture, perhaps that of another packet.
            keyframe: decoding can begin with it.
        """
        if gave:
            self._forgive()
        elif self._has_begun:
            self._failed_s = self._failed_s if self._failed else now_s
            self._failed += 1
            self._failed_keys += keyframe and self._failed_key != self._keys
            self._failed_key = self._keys if keyframe else self._failed_key

    def add_picture(self, now_s: float) -> None:
        """Add a picture."""
        self._alive_s, self._has_begun = now_s, True
        self._forgive()

    def add_sound(self, now_s: float) -> None:
        """Add sound of a camera that is only heard."""
        self._alive_s = now_s

    def awaits_key_frame(self, now_s: float) -> bool:
        """Return True if packets come, and only a key frame has been missing for a while."""
        return self._unkeyed_s(now_s) >= _TELL_S

    def trouble(self, now_s: float) -> str:
        """Return why the camera counts as lost now; empty: it does not."""
        if (unkeyed_s := self._unkeyed_s(now_s)) > 0.0:
            return f"no key frame for {self._key_frame_s:g} s" if unkeyed_s >= self._key_frame_s else ""
        is_fed, limit_s = now_s - self._packet_s < self._stall_s, _LATE * max(self._key_frame_s, self._apart_s)
        if self.needs_keys and is_fed and self._key_s is not None and now_s - self._key_s >= limit_s:
            return f"no key frame for {limit_s:.0f} s"
        is_silent, blind_s = now_s - self._alive_s >= self._stall_s, self._longest_blind_s()
        if self._failed and now_s - self._failed_s >= blind_s:
            return self._blind(blind_s)
        has_failed = self._failed_keys >= _FAILURES and now_s - self._failed_s >= self._stall_s
        if has_failed or (is_silent and self._failed >= _FAILURES):
            return self._blind(self._stall_s)
        return f"no picture for {self._stall_s:g} s" if is_silent else ""

    def _longest_blind_s(self) -> float:
        """Return how long the next key frame may take after one that is damaged, s."""
        return max(self._key_frame_s, min(_LONGEST_BLIND_S, self._apart_s + self._stall_s))

    def _blind(self, time_s: float) -> str:
        return f"packets come, but none can be decoded for {time_s:g} s" + (_ALONE if self.needs_keys else "")

    def _forgive(self) -> None:
        self._failed = self._failed_keys = self._failed_key = 0

    def _unkeyed_s(self, now_s: float) -> float:
        """Return for how long packets have come without a key frame, s; 0: one came, or no packets come."""
        if self._has_begun or self._began_s is None or now_s - self._packet_s >= self._stall_s:
            return 0.0
        return now_s - self._began_s
