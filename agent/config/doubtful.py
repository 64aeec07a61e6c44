"""Values that are allowed, but hardly meant: what `vedette config check` warns of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from agent.config import Config, StreamConfig
from agent.config.capture import CaptureConfig
from agent.config.filters import FilterConfig
from agent.config.source_uri import SCHEMES, SourceUri, parse
from agent.config.twins import origin_of
from agent.errors import SourceError


class Doubt(NamedTuple):
    """A value that is hardly meant; `keys` of it, and what is odd about it."""

    keys: tuple[str | int, ...]
    text: str


def doubts(config: Config) -> Iterator[Doubt]:
    """Yield the doubtful values of `[storage]` and of each stream."""
    folder = config.storage.state_dir
    if folder and folder[0] not in "/~$":
        text = "it is no full path: where it leads depends on the folder in which vedette is started"
        yield Doubt(("storage", "state_dir"), text)
    for name, stream in config.streams.items():
        of_tables = (_of_service, _of_filters, _of_decoding, _of_record_source)
        for doubt in (one for of_table in of_tables for one in of_table(stream)):
            yield Doubt(("streams", name, *doubt.keys), doubt.text)


def of_sound_model(stream: StreamConfig) -> Iterator[Doubt]:
    """Yield the keys of `capture`, below the stream, that do nothing since its model takes sound."""
    if (address := _address(stream)) is None or address.on_network:  # else told of its source
        yield from _without_effect(stream.capture, f"{stream.model} takes sound: no picture is decoded")


def _of_decoding(stream: StreamConfig) -> Iterator[Doubt]:
    """Tell settings of decoding of a source that does not decode by them."""
    if (address := _address(stream)) is not None and not address.on_network:
        network = ", ".join(f"{name}:" for name, scheme in SCHEMES.items() if scheme.network)
        text = f"only a camera on the network ({network}) is decoded by it, and this source is {address.scheme}:"
        yield from _without_effect(stream.capture, text)
    if address is not None and not any(one.startswith("rtsp:") for one in _origins(stream)):
        text = f"only a camera by rtsp: sends by it, and this source is {address.scheme}:"
        yield from _without_effect(stream.capture, text, ("rtsp_transport",))


def _origins(stream: StreamConfig) -> tuple[str, ...]:
    """Return the addresses that the keys of `capture` are of, in lower case."""
    other = stream.clips.record_source if stream.clips is not None else ""
    return stream.source.strip().lower(), other.strip().lower()


def _without_effect(
    capture: CaptureConfig, why: str, keys: tuple[str, ...] = ("decode", "decoder")
) -> Iterator[Doubt]:
    for key in keys:
        if (value := getattr(capture, key)) != getattr(CaptureConfig(), key):
            yield Doubt(("capture", key), f"{value} has no effect: {why}")


def _of_record_source(stream: StreamConfig) -> Iterator[Doubt]:
    if stream.clips is None or not (other := stream.clips.record_source):
        return
    if origin_of(other) == origin_of(stream.source):
        text = "it is the same as `source`, which is recorded anyway: it only costs a second connection"
        yield Doubt(("clips", "record_source"), text)


def _address(stream: StreamConfig) -> SourceUri | None:
    """Return the parsed source; None: it is no URI, which is told elsewhere."""
    try:
        return parse(stream.source)
    except SourceError:
        return None


def _of_filters(stream: StreamConfig) -> Iterator[Doubt]:
    """Yield filters that let everything pass."""
    for number, one in enumerate(stream.filters, 1):
        if one == FilterConfig(labels=one.labels, name=one.name, enabled=one.enabled):
            what = f"filter {one.name or number} has no effect: it lets everything pass"
            yield Doubt(("filters",), f"{what}; give it min_score or another bound")


def _of_service(stream: StreamConfig) -> Iterator[Doubt]:
    promised, most = stream.service.min_fps, stream.capture.max_fps
    if 0.0 < most < promised:
        yield Doubt(("service", "min_fps"), f"{promised:g} is more than capture.max_fps ({most:g}) lets through")
