"""What the demo shows: the bundled clip, or the bundled recording, or a source of the user's own."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl

from msgspec import Struct

from agent.capture.uri import mask, parse
from agent.config import GateConfig, PublishConfig, StreamConfig, TrackConfig
from agent.extras import install_command
from agent.storage.wakeword import PREFIX, packaged

_ZOO = Path(__file__).parent.parent / "zoo"
CLIP, SPOKEN = _ZOO / "walkers.mp4", _ZOO / "spoken.flac"
_WAKE_WORDS = ("alexa", "okay_nabu")
"""That the recording says, besides digits."""
_SNAPSHOT_S = 1.0
"""Least time between annotated pictures, s."""
_PICTURE_S, _FPS = 1.0, 10.0
"""How long each picture of a folder is shown, s; and pictures per second where it is played fast."""


class Programme(Struct, frozen=True):
    """Streams that run together.

    Attributes:
        title: a line that says what is to be seen.
        streams: by name.
        hint: how to see more; empty when there is no more.
    """

    title: str
    streams: dict[str, StreamConfig]
    hint: str = ""


def programme(*, hear: bool, source: str | None, model: str | None, loop: bool) -> Programme:
    """Choose the streams.

    Args:
        hear: sound instead of pictures.
        source: URI; None: what is bundled.
        model: None: the usual one, and of the bundled recording every one that hears something in it.
        loop: begin again at the end of what is bundled.

    Raises:
        SourceError: the source is a folder of pictures whose options cannot be used.
    """
    models, hint = {"demo": model or ("small-speech" if hear else "nanodet")}, ""
    if hear and source is None and model is None:
        words = [word for word in _WAKE_WORDS if PREFIX + word in packaged()]
        models = {"digits": "small-speech", **{word: PREFIX + word for word in words}}
        hint = "" if words else f"the recording says wake words, too; to hear them: {install_command('wakeword')}"
    bundled = f"wav:{SPOKEN}" if hear else f"file:{CLIP}"
    shown = mask(source) if source else (SPOKEN if hear else CLIP).stem
    uri = source or f"{bundled}?pace=realtime" + ("&loop=1" if loop else "")
    title = f"{shown} → {', '.join(models.values())} → MQTT: events as a subscriber receives them"
    return Programme(title, {name: _stream(uri, used) for name, used in models.items()}, hint)


def _stream(source: str, model: str) -> StreamConfig:
    publish = PublishConfig(snapshot_every_s=_SNAPSHOT_S)
    if not source.startswith("dir:"):
        return StreamConfig(source, model, publish=publish)
    uri = _unhurried(source)
    # Each picture stands alone: what is found in it is shown at once, and is over before the next.
    alone = TrackConfig(min_hits=1, lost_after_s=0.25 / (parse(uri).options.fps or _FPS))
    return StreamConfig(uri, model, gate=GateConfig(motion=False), track=alone, publish=publish)


def _unhurried(source: str) -> str:
    """Return the URI of a folder of pictures with a pace to follow, unless it names a pace or a rate itself."""
    query = source.partition("?")[2]
    if {"pace", "fps"} & {key for key, _ in parse_qsl(query)}:
        return source
    return f"{source}{'&' if query else '?'}pace=realtime&fps={1 / _PICTURE_S:g}"
