"""Tell how pictures of other sizes are brought to a model's input, for the remarks on examples."""

from __future__ import annotations

from collections.abc import Iterator

from agent.text import plural

Size = tuple[int, int]
"""Height and width, pixels."""
_EVEN = 1.1
"""Ratio of the scales of height and width above which a picture is told as stretched."""


def resized(found: Size, wanted: Size, *, letterbox: bool = False) -> tuple[str, ...]:
    """Return what is done to a picture: `enlarged` or `reduced`, by its area, and `stretched`; empty: nothing.

    Args:
        found: size of the picture.
        wanted: that of the input.
        letterbox: the picture keeps its proportions.
    """
    down, right = wanted[0] / found[0], wanted[1] / found[1]
    if letterbox:
        down = right = min(down, right)
    verbs = ("enlarged",) if down * right > 1 else ("reduced",) if down * right < 1 else ()
    return (*verbs, "stretched") if max(down, right) > _EVEN * min(down, right) else verbs


def upright(stored: Size, preview: Size) -> Size:
    """Return the size of a picture as it is shown: its EXIF data may turn it by a quarter.

    Args:
        stored: in the file's header.
        preview: of the decoded picture, which is turned; it may be smaller.
    """
    is_turned = (stored[0] - stored[1]) * (preview[0] - preview[1]) < 0
    return stored[::-1] if is_turned else stored


class SizeRemarks:
    """Counts pictures of files that are enlarged or stretched, and remarks on them."""

    def __init__(self, wanted: Size, *, letterbox: bool) -> None:
        self._wanted, self._letterbox = wanted, letterbox
        self._names: dict[str, list[str]] = {"enlarged": [], "stretched": []}

    def add(self, name: str, size: Size) -> None:
        """Count a picture.

        Args:
            name: that can be printed.
            size: of the picture.
        """
        for verb in resized(size, self._wanted, letterbox=self._letterbox):
            if verb in self._names:
                self._names[verb].append(f"{name} of {size[0]}×{size[1]}")

    def lines(self, count: int) -> Iterator[str]:
        """Yield a line for each thing that is done to some.

        Args:
            count: of all pictures.
        """
        wanted = f"{self._wanted[0]}×{self._wanted[1]}"
        told = {"enlarged": f"are smaller than {wanted}", "stretched": f"have other proportions than {wanted}"}
        for verb, names in self._names.items():
            if names:
                what = f"{len(names)} of {plural(count, 'picture')} {told[verb]}"
                yield f"{what}, such as {names[0]}: they are {verb}"
