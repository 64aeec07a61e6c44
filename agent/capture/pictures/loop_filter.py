"""Decides which pictures are decoded without the loop filter of H.264 and H.265.

The filter smooths the edges of blocks (ITU-T H.264, 8.7; ITU-T H.265, 8.7), and takes a fifth to a quarter of the
time of decoding H.264. Without it, a picture that is predicted from others drifts from what the encoder meant, up
to the next key frame. A model that is shown a large picture in small finds the same objects in it; people would
see blocks after some seconds. So it is left out only of large pictures that are looked at as a whole, and where
key frames come often. Each key frame gets it, unless the motion gate alone looks at it.

In an open group, pictures that follow a key frame are shown before it and need those before it. A decoder that is
opened anew, with another filter, would lose them: there all pictures get it.
"""

from __future__ import annotations

from typing import Literal

FilteredPictures = Literal["all", "keyframes", "none"]
"""Pictures that get the loop filter."""

_TALL = 720
"""Least height, px: smaller pictures are hardly scaled down for a model."""
_LONGEST = 60
"""Most pictures from one key frame to the next. At 1080p and 1.4 Mbit/s, the thirtieth has lost 0.9 dB of 35, the
sixtieth 1.9, the 120th 3.1. By then, NanoDet has lost 0.02 of its AP of small objects at 1.5 Mbit/s, though
nothing of larger ones."""
_SETTLED = 4
"""Groups of pictures that must have been short before it is expected that they stay so."""


class LoopFilterRule:
    """Counts the pictures of a camera from key frame to key frame. For one thread."""

    def __init__(self) -> None:
        self._count = self._short = 0
        self._follows_key = self._is_open = False
        self._key_pts: int | None = None

    def add(self, *, keyframe: bool, pts: int | None = None) -> None:
        """Count a packet of video, decoded or not; `pts`: its presentation time; None: unknown."""
        if keyframe:
            self._key_pts = pts
        elif pts is not None and self._key_pts is not None and pts < self._key_pts:
            self._is_open = True
        if keyframe:
            self._short += self._follows_key and self._count <= _LONGEST
            self._count, self._follows_key = 0, True
        self._count += 1
        if self._count > _LONGEST:
            self._short = 0

    def filtered(self, height: int, *, alone: bool = False) -> FilteredPictures:
        """Return which pictures get the filter from a key frame on.

        Args:
            height: of the pictures, px; 0: unknown.
            alone: nothing but this key frame is decoded, for the motion gate.
        """
        if height < _TALL:
            return "all"
        if alone:
            return "none"
        return "keyframes" if self._short >= _SETTLED and not self._is_open else "all"
