"""What the demo shows: the bundled clip, or the bundled recording, or a source of the user's own."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from agent.capture.uri import mask
from agent.config import PublishConfig, StreamConfig
from agent.storage.wakeword import PREFIX, packaged

_ZOO = Path(__file__).parent.parent / "zoo"
CLIP, SPOKEN = _ZOO / "walkers.mp4", _ZOO / "spoken.flac"
_WAKE_WORDS = ("alexa", "okay_nabu")
"""That the recording says, besides digits."""


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
    """
    models, hint = {"demo": model or ("small-speech" if hear else "nanodet")}, ""
    if hear and source is None and model is None:
        words = [word for word in _WAKE_WORDS if PREFIX + word in packaged()]
        models = {"digits": "small-speech", **{word: PREFIX + word for word in words}}
        install = "pip install '.[wakeword]' in the clone to hear them"
        hint = "" if words else f"the recording says wake words, too: {install}"
    bundled = f"wav:{SPOKEN}" if hear else f"file:{CLIP}"
    shown = mask(source) if source else (SPOKEN if hear else CLIP).stem
    uri = source or f"{bundled}?pace=realtime" + ("&loop=1" if loop else "")
    title = f"{shown} → {', '.join(models.values())} → MQTT: events as a subscriber receives them"
    return Programme(title, {name: _stream(uri, used) for name, used in models.items()}, hint)


def _stream(source: str, model: str) -> StreamConfig:
    return StreamConfig(source, model, publish=PublishConfig(snapshot_every_s=1.0))
