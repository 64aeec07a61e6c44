"""Decides which pictures are decoded without the loop filter of H.264 and H.265.

The filter smooths the edges of blocks (ITU-T H.264, 8.7; ITU-T H.265, 8.7), and takes a fifth to a quarter of the
time of decoding H.264. Without it, a picture that is predicted from others drifts from what the encoder meant, up
to the next key frame. A model that is shown a large picture in small finds the same objects in it; people would
see blocks after some seconds. So it is left out only of large pictures that are looked at as a whole, and where
key frames come often; where they come less often, of every second group, as FFmpeg's decoder takes the setting
only when it is opened. Each key frame gets it, unless the motion gate alone looks at it.

In an open group, pictures that follow a key frame are shown before it and need those before it. A decoder that is
opened anew, with another filter, would lose them: there all pictures get it. So do those of cameras that send no
such key frames, but refresh their pictures bit by bit.
"""

from __future__ import annotations

from typing import Literal

FilteredPictures = Literal["all", "keyframes", "none"]
"""Pictures that get the loop filter."""

_TALL = 720
"""Least height, px: smaller pictures are hardly scaled down for a model."""
_SHORT, _LONGEST = 60, 120
"""Most pictures from one key frame to the next where no group gets it, and where every second one does. At 1080p
and 1.4 Mbit/s, the thirtieth picture has lost 0.9 dB of 35, the sixtieth 1.9, the 120th 3.1. Of photographs that
a camera pans over, NanoDet loses 0.01 of its AP at 2 Mbit/s, and 0.02 of that of small objects in the pictures 60
to 120 at 1.5; nothing where the camera stands still."""
_SETTLED = 4
"""Groups of pictures that must have been short before it is expected that they stay so."""


class LoopFilterRule:
    """Counts the pictures of a camera from key frame to key frame. For one thread."""

    def __init__(self) -> None:
        self._count = self._short = self._fair = 0
        self._follows_key = self._is_open = self._turn = False
        self._key_pts: int | None = None

    def add(self, *, keyframe: bool, pts: int | None = None) -> None:
        """Count a packet of video, decoded or not.

        Args:
            keyframe: whether decoding can begin with it, and nothing after it needs what was before.
            pts: its presentation time; None: unknown.
        """
        if keyframe:
            self._key_pts = pts
        elif pts is not None and self._key_pts is not None and pts < self._key_pts:
            self._is_open = True
        if keyframe:
            self._short += self._follows_key and self._count <= _SHORT
            self._fair += self._follows_key and self._count <= _LONGEST
            self._count, self._follows_key, self._turn = 0, True, not self._turn
        self._count += 1
        self._short = 0 if self._count > _SHORT else self._short
        self._fair = 0 if self._count > _LONGEST else self._fair

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
        has_turn = self._short >= _SETTLED or (self._turn and self._fair >= _SETTLED)
        return "keyframes" if has_turn and not self._is_open else "all"
