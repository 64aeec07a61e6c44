"""Tells when a camera on the network counts as lost although its connection is open. Rules only.

A camera is alive as long as packets come, whether they have to be decoded or not, until key frames that were
decoded gave no picture. One key frame may be damaged, and then what follows it gives no picture either. Who
connects between two key frames, or wants pictures of a camera that was only heard, has to wait for the next one;
cameras may have one a minute. Where key frames alone are decoded, it is lost if none comes for twice the longest
time between two so far. While somebody hears the camera, an outage of its pictures is no reason to cut its sound;
only after minutes it is opened anew, which may bring the pictures back.
"""

from __future__ import annotations

KEY_FRAME_S = 60.0
"""Longest time for which packets may come before the first key frame, s, unless `stall_s` is longer."""
_TELL_S = 3.0
"""Time after which it is told that a key frame is awaited, s."""
_HEARD_S = 300.0
"""Longest time without pictures before a camera that is heard is opened anew, s."""
_LATE = 2.0
"""Key frames are missing after so many times the longest distance between two, or `KEY_FRAME_S` where that is
longer: cameras vary it."""
_DISTANCES, _UNKNOWN_S = 2, 600.0
"""Distances from which on one is known to be usual, for many cameras send a key frame to each new viewer; and the
time after which key frames are missing until then, s."""
_FAILURES = 2
"""Key frames in a row that gave no picture before a camera can be blind: one may be damaged."""
WAITS = "waiting for a key frame"
_MENDS = 'its key frames cannot be decoded alone (intra refresh): set capture.decode = "auto"'


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
        self._alive_s = now_s
        self._began_s: float | None = None
        """When the first packet of video came."""
        self._packet_s = self._sound_s = float("-inf")
        self._key_s: float | None = None
        """Time at which the newest key frame came."""
        self._distances, self._apart_s, self.needs_keys = 0, 0.0, False
        self._has_begun = False
        self._keys = self._failed_key = 0
        """Key frames that came, and the number of the newest that gave no picture: it may be decoded twice."""
        self._failed, self._failed_keys, self._failed_s = 0, 0, 0.0
        self._mends = False

    @property
    def has_begun(self) -> bool:
        """True after the first key frame or picture."""
        return self._has_begun

    def begin_again(self, now_s: float) -> None:
        """Wait for the next key frame: nothing was decoded for a while, or nothing will be."""
        self._alive_s, self._began_s, self._key_s, self._has_begun = now_s, None, None, False
        self._forgive()

    def add_packet(self, now_s: float, *, keyframe: bool, counts: bool) -> None:
        """Add a packet of video; `counts`: it is life by itself, else only its picture is."""
        self._began_s = now_s if self._began_s is None else self._began_s
        self._packet_s = now_s
        if keyframe:
            self._add_key_frame(now_s)
        if keyframe and not self._has_begun:
            self._has_begun, counts = True, True
        if counts:
            self._alive_s = now_s

    def _add_key_frame(self, now_s: float) -> None:
        if self._key_s is not None:
            self._distances += 1
            self._apart_s = max(self._apart_s, now_s - self._key_s)
        self._keys, self._key_s = self._keys + 1, now_s

    def add_step(self, now_s: float, *, gave: bool, keyframe: bool = False, mends: bool = False) -> None:
        """Add a packet that was decoded.

        Args:
            now_s: the present.
            gave: it gave a picture, perhaps that of another packet.
            keyframe: decoding can begin with it.
            mends: the picture is mended bit by bit from this key frame on, but nothing else is decoded.
        """
        if gave:
            self._forgive()
        elif self._has_begun:
            self._failed_s = self._failed_s if self._failed else now_s
            self._failed += 1
            self._failed_keys += keyframe and self._failed_key != self._keys
            self._failed_key = self._keys if keyframe else self._failed_key
            self._mends = mends

    def add_picture(self, now_s: float) -> None:
        """Add a picture."""
        self._alive_s, self._has_begun = now_s, True
        self._forgive()

    def add_sound(self, now_s: float, *, alone: bool) -> None:
        """Add sound that somebody hears; `alone`: nobody wants pictures."""
        self._sound_s = now_s
        if alone:
            self._alive_s = now_s

    def awaits_key_frame(self, now_s: float) -> bool:
        """Return True if packets come, and only a key frame has been missing for a while."""
        return self._unkeyed_s(now_s) >= _TELL_S

    def trouble(self, now_s: float) -> str:
        """Return why the camera counts as lost now; empty: it does not, or only its pictures do."""
        why, since_s = self._missing(now_s)
        keeps = self._is_heard(now_s) and now_s - since_s < max(_HEARD_S, 2.0 * self._key_frame_s)
        return "" if keeps else why

    def why_no_picture(self, now_s: float) -> str:
        """Return why its pictures count as lost, and its sound does not; empty: they do not."""
        return self._missing(now_s)[0] if self._is_heard(now_s) else ""

    def _missing(self, now_s: float) -> tuple[str, float]:
        """Return why its pictures count as lost, empty: they do not; and since when they are missing, s."""
        if (unkeyed_s := self._unkeyed_s(now_s)) > 0.0:
            is_lost = unkeyed_s >= self._key_frame_s
            return f"no key frame for {self._key_frame_s:g} s" if is_lost else "", now_s - unkeyed_s
        limit_s = self._longest_apart_s()
        if self._key_s is not None and now_s - self._key_s >= limit_s and now_s - self._packet_s < self._stall_s:
            return f"no key frame for {limit_s:.0f} s", self._key_s + limit_s
        is_silent, failed_s = now_s - self._alive_s >= self._stall_s, now_s - self._failed_s
        if self._failed and failed_s >= (blind_s := self._longest_blind_s()):
            return self._blind(blind_s), self._failed_s
        has_failed = self._failed_keys >= _FAILURES and failed_s >= self._stall_s
        if has_failed or (is_silent and self._failed >= _FAILURES):
            return self._blind(self._stall_s), self._failed_s
        return f"no picture for {self._stall_s:g} s" if is_silent else "", self._alive_s

    def _longest_apart_s(self) -> float:
        """Return the longest time from one key frame to the next, s; infinite where other pictures count, too."""
        if not self.needs_keys:
            return float("inf")
        usual_s = self._apart_s if self._distances >= _DISTANCES else _UNKNOWN_S / _LATE
        return _LATE * max(self._key_frame_s, usual_s)

    def _longest_blind_s(self) -> float:
        """Return how long the next key frame may take after one that is damaged, s."""
        return max(self._key_frame_s, min(_UNKNOWN_S, self._apart_s + self._stall_s))

    def _is_heard(self, now_s: float) -> bool:
        return now_s - self._sound_s < self._stall_s

    def _blind(self, time_s: float) -> str:
        return _MENDS if self._mends else f"packets come, but none can be decoded for {time_s:g} s"

    def _forgive(self) -> None:
        self._failed = self._failed_keys = self._failed_key = 0
        self._mends = False

    def _unkeyed_s(self, now_s: float) -> float:
        """Return for how long packets have come without a key frame, s; 0: one came, or no packets come."""
        if self._has_begun or self._began_s is None or now_s - self._packet_s >= self._stall_s:
            return 0.0
        return now_s - self._began_s
