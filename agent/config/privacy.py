"""Privacy of a stream's pictures: masks, and what is hidden wherever a model finds it."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from agent.config.polygon import polygon_problem
from agent.config.values import Name
from agent.errors import ConfigError
from agent.types import Point

FACE, PERSON, FACE_MODEL, OBJECT_MODEL = "face", "person", "face", "nanodet"
"""Labels of faces and people, and the bundled models that find near faces, and all else that can be blurred."""
BLUR_VARIANTS = {FACE_MODEL: "", OBJECT_MODEL: "320"}
"""Sizes of these models: each picture is inferred."""


class PrivacyMask(Struct, frozen=True, forbid_unknown_fields=True):
    """`[[streams.NAME.privacy]]`: a polygon in the picture that nobody is to see: it is black.

    Attributes:
        name: for messages about it.
        polygon: at least three corners, fractions 0..1 of the frame.
    """

    name: Name
    polygon: tuple[Point, ...]


def check_masks(masks: Sequence[PrivacyMask]) -> None:
    """Check the masks of a stream.

    Raises:
        ConfigError: two have one name, or a polygon has fewer than three corners, corners outside the frame, no
            area, or crosses itself. The error names the mask.
    """
    names = set[str]()
    for number, mask in enumerate(masks):
        if mask.name in names:
            text = f"two masks are named {mask.name!r}: give each mask of a stream its own name"
            raise ConfigError(f"privacy: {text}", keys=("privacy", number, "name"))
        names.add(mask.name)
        if problem := polygon_problem(mask.polygon):
            raise ConfigError(f"privacy mask {mask.name!r}: {problem}", keys=("privacy", number, "polygon"))


def blur_models(labels: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the bundled models that find what is to be blurred, with the labels of each.

    The model of faces finds only near ones: of every person that the other one finds, the head is blurred, too.
    """
    if FACE not in labels:
        return {OBJECT_MODEL: tuple(labels)} if labels else {}
    others = (label for label in labels if label not in (FACE, PERSON))
    return {FACE_MODEL: (FACE,), OBJECT_MODEL: (PERSON, *others)}
