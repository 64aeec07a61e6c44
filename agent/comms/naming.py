"""Names for Home Assistant: ids that never change and never collide, and names as a person would give them."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping

_OTHER = re.compile(r"[^a-z0-9-]+")
_TOPIC = re.compile(r"[^A-Za-z0-9_-]")


def slug(text: str) -> str:
    """A part of an id: lower case, digits, `-` and `_`; two texts never have the same one.

    A text that had to be changed gets some digits of its hash: `traffic light` → `traffic_light_34d739`.
    """
    plain = unicodedata.normalize("NFKD", text.lower()).encode("ascii", "ignore").decode()
    made = _OTHER.sub("_", plain).strip("_")[:40]
    if made and made == text and not _looks_hashed(text):
        return made
    return f"{made}_{_digits(text)}".strip("_")


def node(device: str) -> str:
    """The device in the topic of its discovery, which Home Assistant wants in ASCII: as it is where it can be."""
    return device if not _TOPIC.search(device) else f"{_TOPIC.sub('-', device)}-{_digits(device)}"


def spoken(*parts: str) -> str:
    """A name of several parts: `front_door`, `Bark` → `Front door bark`."""
    words = " ".join(_in_a_sentence(part) for part in parts if part.strip())
    return words[:1].upper() + words[1:]


def distinct(names: Mapping[str, str]) -> dict[str, str]:
    """Names by id, with what tells them apart behind those that sound alike: `Back yard state (back_yard)`.

    Args:
        names: by id. An id of a stream begins with its name and a dot; one without a dot, of the device itself,
            keeps its name.
    """
    told = dict(names)
    for more in (lambda one: one.partition(".")[0], str):
        count = Counter(name.casefold() for name in told.values())
        alike = [one for one, name in told.items() if "." in one and count[name.casefold()] > 1]
        told |= {one: f"{names[one]} ({more(one)})" for one in alike}
    return told


def _in_a_sentence(part: str) -> str:
    words = " ".join(re.sub(r"[_-]+", " ", part).split())
    is_acronym = words[1:2].isupper()
    return words if is_acronym else words[:1].lower() + words[1:]


def _looks_hashed(text: str) -> bool:
    """Whether it ends like one that was changed: then it is changed too, or the two could be the same."""
    return bool(re.search(r"(^|_)[0-9a-f]{6}$", text))


def _digits(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:6]
