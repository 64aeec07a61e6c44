"""What is wrong with `[streams.NAME.clips]`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from agent.compute.manifest import Model
from agent.config import ClipsConfig, StreamConfig, ZoneConfig
from agent.config.source_uri import parse_picture
from agent.daemon.parts import Step
from agent.errors import ConfigError, SourceError

_SCHEMES = ("rtsp", "rtsps", "http", "https")


def steps(name: str, config: StreamConfig) -> Iterator[Step]:
    """Yield the checks that need no model."""
    assert config.clips is not None
    yield ("clips", "record_source"), partial(check_record_source, name, config)
    yield ("clips",), partial(check_clips, config.clips, config.zones)


def check_with_model(name: str, config: StreamConfig, model: Model) -> None:
    """Refuse clips of a stream of sound. Raises ConfigError."""
    if model.manifest.audio is not None:
        raise ConfigError(f"stream {name}: clips are of pictures, and {config.model} takes sound")
    assert config.clips is not None
    check_clips(config.clips, config.zones)


def check_record_source(name: str, config: StreamConfig) -> None:
    """Check what can be checked without opening the second source of a stream.

    Raises:
        SourceError: it cannot be used, by the name of its key.
    """
    if config.clips is None or not config.clips.record_source:
        return
    key = f"streams.{name}.clips.record_source"
    try:
        address = parse_picture(config.clips.record_source)
    except SourceError as error:
        raise SourceError(f"{key}: {error}") from None
    if address.scheme not in _SCHEMES:
        found = f"found {address.masked}, whose packets cannot be copied"
        raise SourceError(f"{key}: expected a camera on the network ({', '.join(_SCHEMES)}); {found}")
    if config.hides:
        raise SourceError(f"{key}: what `privacy` and `blur` hide would be seen in it: leave it out")


def check_clips(config: ClipsConfig, zones: Sequence[ZoneConfig]) -> None:
    """Refuse clips of an unknown zone, or whose `after_s` is more than `max_s`. Raises ConfigError."""
    known = [zone.name for zone in zones]
    for name in config.zones:
        if name not in known:
            hint = f"known: {', '.join(known)}" if known else "the stream has no [[zones]]"
            raise ConfigError(f"clips.zones: no zone is called {name!r}; {hint}")
    if config.after_s > config.max_s:
        raise ConfigError(f"clips.after_s: {config.after_s:g} is more than max_s, {config.max_s:g}")
