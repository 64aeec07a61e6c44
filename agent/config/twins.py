"""Streams that show what another stream hides, since both show one source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from agent.config import StreamConfig
from agent.config.source_uri import DEFAULT_PORTS, SCHEMES, parse
from agent.errors import SourceError


class UnmaskedTwin(NamedTuple):
    """A stream that shows what another one hides.

    Attributes:
        name: of the stream that hides something.
        other: name of the one that shows it.
        keys: key of the other one's source, below the stream.
        text: warning about the pair.
    """

    name: str
    other: str
    keys: tuple[str, ...]
    text: str


def unmasked_twins(streams: Mapping[str, StreamConfig]) -> Iterator[UnmaskedTwin]:
    """Yield pairs of a stream that hides something and another one that shows or records it from the same source.

    Masks are compared as they are drawn: one that lies within another is told, too.
    """
    running = {name: (stream, origin_of(stream.source)) for name, stream in streams.items() if stream.enabled}
    for name, (stream, origin) in running.items():
        for other, (its, its_origin) in running.items():
            if not stream.hides or other == name:
                continue
            if its_origin == origin and _shows_more(its, stream):
                hides = "less of it" if its.hides else "nothing of it"
                text = f"stream {other} shows the source of stream {name}, and hides {hides}"
                yield UnmaskedTwin(name, other, ("source",), text)
            recorded = its.clips.record_source if its.clips is not None else ""
            if recorded and origin_of(recorded) == origin:
                text = f"the clips of stream {other} show the source of stream {name}, and hide nothing of it"
                yield UnmaskedTwin(name, other, ("clips", "record_source"), text)


def _shows_more(stream: StreamConfig, than: StreamConfig) -> bool:
    masks, others = ({mask.polygon for mask in one.privacy} for one in (stream, than))
    return not (others <= masks and set(than.blur) <= set(stream.blur))


def origin_of(uri: str) -> str:
    """Return what two URIs of one source have in common: scheme, host, port, path and query, or device.

    A login, the case of scheme and host, the scheme's own port and the pace of files make no difference.
    """
    try:
        address = parse(uri)
        parts = urlsplit(uri, allow_fragments=False)
        port = parts.port or DEFAULT_PORTS.get(address.scheme, 0)
    except (SourceError, ValueError):  # told elsewhere
        return uri
    if address.scheme == "test":
        return uri
    if not SCHEMES[address.scheme].network:
        return f"{address.scheme}:{address.target}"
    host = (parts.hostname or "").removesuffix(".")
    return f"{address.scheme}://{host}:{port}{parts.path or '/'}?{parts.query}"
