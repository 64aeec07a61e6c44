"""The pool of picture memory: in steady state no picture is allocated."""

from __future__ import annotations

from agent.messages import Image

_KEPT = 6
"""One being read, up to four handed over at `pace=fast`, one in use."""


class Pool:
    """Pictures' memory that is free. Its methods are single operations of a list and need no lock."""

    def __init__(self) -> None:
        self._free: list[Image] = []
        self._room = _KEPT

    def take(self) -> Image | None:
        """Memory of some picture before; None when the reader has to allocate."""
        try:
            return self._free.pop()
        except IndexError:
            return None

    def give(self, image: Image) -> None:
        """Nobody looks at this picture any more."""
        if len(self._free) < self._room:
            self._free.append(image)

    def close(self) -> None:
        """Keep nothing any more: pictures that are given from now on are free for others."""
        self._room = 0
        self._free.clear()
