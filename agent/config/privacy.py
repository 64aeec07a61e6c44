"""Privacy of a stream's pictures: masks, and what is hidden wherever a model finds it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from msgspec import Struct

from agent.config.polygon import polygon_problem
from agent.config.source_uri import DEFAULT_PORTS
from agent.config.toml import Keys
from agent.config.values import Name
from agent.errors import ConfigError
from agent.types import Point

if TYPE_CHECKING:
    from agent.config import StreamConfig

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


class UnmaskedTwin(NamedTuple):
    """A stream that shows what another one hides.

    Attributes:
        keys: of the source that shows it.
        text: warning.
    """

    keys: Keys
    text: str


def unmasked_twins(streams: Mapping[str, StreamConfig]) -> Iterator[UnmaskedTwin]:
    """Yield each stream that shows or records the source of a stream which hides more. Masks must be equal."""
    running = {name: stream for name, stream in streams.items() if stream.enabled}
    for name, stream in running.items():
        for other, its in running.items():
            if not stream.hides or other == name:
                continue
            masks, others = ({mask.polygon for mask in one.privacy} for one in (its, stream))
            hides_all = others <= masks and set(stream.blur) <= set(its.blur)
            if not hides_all and _place(its.source) == _place(stream.source):
                text = f"stream {other} shows the source of stream {name}, and hides less of it"
                yield UnmaskedTwin(("streams", other, "source"), text)
            if its.clips is not None and _place(its.clips.record_source) == _place(stream.source):
                text = f"the clips of stream {other} show the source of stream {name}, and hide nothing of it"
                yield UnmaskedTwin(("streams", other, "clips", "record_source"), text)


def _place(uri: str) -> tuple[str, ...]:
    """Return what addresses of one source have in common: a login and the scheme's own port do not count."""
    try:
        parts = urlsplit(uri.strip(), allow_fragments=False)
        port = parts.port or DEFAULT_PORTS.get(parts.scheme, 0)
    except ValueError:  # reported elsewhere
        return (uri,)
    return parts.scheme, parts.hostname or "", str(port), parts.path or "/", parts.query
