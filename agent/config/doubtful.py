"""Values that are allowed, but hardly meant: what `vedette config check` warns of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from agent.config import Config, StreamConfig
from agent.config.capture import CaptureConfig
from agent.config.filters import FilterConfig
from agent.config.polygon import area
from agent.config.source_uri import SCHEMES, SourceUri, parse
from agent.config.twins import origin_of
from agent.errors import SourceError

_OF_PICTURES = ("dark", "frozen", "blurred", "covered", "moved", "tilted")
_OF_SOUND = ("silent", "clipped", "humming")
"""Problems that only cameras, and only microphones, have."""
_LEAST_MS = 1.0
"""Time that no picture takes less from capture to result, ms."""
_WARM_ROOM_C = 50.0
"""A board whose limit is lower may exceed it without any load, on a summer's day or in its case, °C."""
_WHOLE = 0.99
"""A polygon that covers so much of the frame, as a share, is meant to be a part of it, or leaves nothing."""


class Doubt(NamedTuple):
    """A value that is hardly meant; `keys` of it, and what is odd about it."""

    keys: tuple[str | int, ...]
    text: str


def doubts(config: Config) -> Iterator[Doubt]:
    """Yield the doubtful values of `[storage]`, `[governor]` and of each stream."""
    if _is_relative(config.storage.state_dir):
        text = "it is no full path: where it leads depends on the folder in which vedette is started"
        yield Doubt(("storage", "state_dir"), text)
    for text in _twice(config.governor.order):
        yield Doubt(("governor", "order"), text)
    if config.governor.enabled and not config.governor.order:
        yield Doubt(("governor", "order"), "it is empty: nothing is ever reduced for a stream, or against heat")
    yield from _of_saving(config)
    yield from _of_heat(config.governor.max_temperature_c)
    for name, stream in config.streams.items():
        of_tables = (_of_service, _of_condition, _of_filters, _of_gate, _of_decoding, _of_record_source)
        for doubt in (one for of_table in of_tables for one in of_table(stream)):
            yield Doubt(("streams", name, *doubt.keys), doubt.text)


def _is_relative(folder: str) -> bool:
    return bool(folder) and folder[0] not in "/~$"


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


def _twice(names: Sequence[str]) -> Iterator[str]:
    for name in dict.fromkeys(names):
        if (count := names.count(name)) > 1:
            yield f"{name} is named {count} times"


def _of_saving(config: Config) -> Iterator[Doubt]:
    """Tell why a low battery would reduce nothing."""
    governor, why = config.governor, ""
    if not governor.enabled:
        why = "governor.enabled is false"
    elif "inference" not in governor.order:
        why = "governor.order lacks inference"
    elif governor.max_stride == 1 and not any(one.service.smaller_variants for one in config.streams.values()):
        why = "governor.max_stride is 1, and no stream has service.smaller_variants"
    if governor.save_below_percent and why:
        yield Doubt(("governor", "save_below_percent"), f"it reduces nothing: {why}")


def _of_heat(most_c: float | None) -> Iterator[Doubt]:
    if most_c is not None and most_c < _WARM_ROOM_C:
        text = f"a board in a warm room may be hotter than {most_c:g} °C without any load: all would stay reduced"
        yield Doubt(("governor", "max_temperature_c"), text)


def _of_gate(stream: StreamConfig) -> Iterator[Doubt]:
    """Tell motion masks that leave nothing of the picture."""
    gate = stream.gate
    if gate.motion and any(area(one) >= _WHOLE for one in gate.masks_in_use):
        text = (
            f"one covers the whole picture: no motion is seen, and one picture in {gate.max_idle_s:g} s inferred"
        )
        yield Doubt(("gate", "masks"), text)


def _of_filters(stream: StreamConfig) -> Iterator[Doubt]:
    """Tell filters that let everything pass, and names that people and commands confuse."""
    for number, one in enumerate(stream.filters, 1):
        if one == FilterConfig(labels=one.labels, name=one.name, enabled=one.enabled):
            what = f"filter {one.name or number} has no effect: it lets everything pass"
            yield Doubt(("filters",), f"{what}; give it min_score or another bound")
        elif one.enabled and any(area(mask) >= _WHOLE for mask in one.masks):
            what = f"a mask of filter {one.name or number} covers the whole picture"
            yield Doubt(("filters",), f"{what}: nothing of its labels is ever found")
    alike: dict[str, str] = {}
    for name in (one.name for one in stream.filters if one.name):
        other = alike.setdefault(name.lower(), name)
        if other != name:
            yield Doubt(("filters",), f"the names {other} and {name} differ only in upper and lower case")


def _of_service(stream: StreamConfig) -> Iterator[Doubt]:
    promised, most = stream.service.min_fps, stream.capture.max_fps
    if 0.0 < most < promised:
        yield Doubt(("service", "min_fps"), f"{promised:g} is more than capture.max_fps ({most:g}) lets through")
    if 0.0 < stream.service.max_latency_ms < _LEAST_MS:
        text = f"{stream.service.max_latency_ms:g} ms are less than any picture takes from capture to result"
        yield Doubt(("service", "max_latency_ms"), text)


def _of_condition(stream: StreamConfig) -> Iterator[Doubt]:
    keys = "condition", "ignore"
    for text in _twice(stream.condition.ignore):
        yield Doubt(keys, text)
    if (address := _address(stream)) is None:
        return
    for kinds, found, what in (
        (_OF_PICTURES, address.gives_pictures, "pictures"),
        (_OF_SOUND, address.gives_sound, "sound"),
    ):
        for problem in dict.fromkeys(stream.condition.ignore):
            if problem in kinds and not found:
                yield Doubt(keys, f"{problem} is a problem of {what}, and {address.scheme}: gives none")
