"""Define every published message as a struct. Their JSON Schema is made from these structs.

A message that goes through the spool is encoded when it is put there and finished when it is sent: only then are
its number and the time of publishing known.
"""

from __future__ import annotations

import time
import uuid
from datetime import datetime
from pathlib import PurePath
from typing import Any

import msgspec
from msgspec import Raw, Struct

from agent.types import Clip, Detection, EventKind, Stored, Track

_IDS = uuid.UUID("c25a3c42-59d4-4e0b-9a32-2a0f1d8a77e5")
"""Namespace of the ids: names of clips are unique on a device."""


class ClipMessage(Struct, frozen=True):
    """`<device>/<stream>/clips`, QoS 1, never retained: a clip lies on the device. The clip itself is not sent.

    Attributes:
        id: unique; a repeated delivery has the same, also one after a crash.
        device, stream: where it was recorded.
        path: of the file, on the device: Matroska with JPEG pictures.
        began_at, ended_at: UTC of its first picture, and of the end of its last.
        duration_s: between the two, s.
        frames: pictures in it.
        bytes: of the file.
        track, label: that it was begun for; empty: it was asked for.
        tracks: ids of all tracks that it was made for; of one that was cut off, the first.
        reason: of the event that it began with, or `asked`: by a command.
        repaired: whether a crash or a power cut ended it.
        seq, first_seq: per device, in one row with those of events; see `EventMessage`.
    """

    id: str
    device: str
    stream: str
    path: str
    began_at: datetime
    ended_at: datetime
    duration_s: float
    frames: int
    bytes: int
    track: str
    label: str
    tracks: tuple[str, ...]
    reason: str
    repaired: bool = False
    seq: int = 0
    first_seq: int = 0


def clip_message(clip: Clip, device: str) -> ClipMessage:
    """The news of a clip; whenever they are made for one, they have the same id."""
    occasion = clip.occasion
    name = PurePath(clip.path).name.encode("utf-8", "replace").decode()
    return ClipMessage(
        uuid.uuid5(_IDS, f"{device}/{occasion.stream}/{name}").hex,
        device,
        occasion.stream,
        clip.path.encode("utf-8", "replace").decode(),  # a path may be no UTF-8
        clip.began_at,
        clip.ended_at,
        clip.duration_s,
        clip.frames,
        clip.bytes,
        occasion.track,
        occasion.label,
        clip.tracks,
        occasion.reason,
        clip.repaired,
    )


class SpoolHealth(Struct, frozen=True):
    """State of the spool.

    Attributes:
        waiting: events not yet acknowledged.
        bytes: that they take.
        dropped: events that went without having been delivered, ever.
        on: `disk`, or `memory` while the disk fails.
        dropped_by: of these, by reason: `bytes` and `age`, the bounds of the spool; `unsendable`, no broker takes
            them; `memory`, counted by older versions only.
        first_seq: the first number that this run of the daemon gives out; see `EventMessage`.
    """

    waiting: int
    bytes: int
    dropped: int
    on: str
    dropped_by: dict[str, int] = {}
    first_seq: int = 0


class StreamHealth(Struct, frozen=True):
    """State of one stream.

    Attributes:
        state: starting | running | degraded (its device fails, and the CPU answers) | lost | ended | failed |
            disabled.
        detail: why, when it is not running.
        fps: frames handled per second, over the last interval.
        inferences_per_s: of those, frames that were inferred.
        infer_ms: mean of the last interval.
        frames, dropped, reopened: since start.
        tracks: alive now.
        model, backend, variant: in use.
        set_by_command: what operators have set against the configuration file.
    """

    state: str
    detail: str = ""
    fps: float = 0.0
    inferences_per_s: float = 0.0
    infer_ms: float = 0.0
    frames: int = 0
    dropped: int = 0
    reopened: int = 0
    tracks: int = 0
    model: str = ""
    backend: str = ""
    variant: str = ""
    set_by_command: tuple[str, ...] = ()


class LinkHealth(Struct, frozen=True):
    """The line to the broker.

    Attributes:
        broker: `host:port` of the one that this came over.
        how: protocol, encryption and user.
        fallback: whether that is not the first of the configuration.
        connects: how often a broker has accepted us, since start.
        trouble: where and why the line was lost last, such as another client with our client id; empty: never.
    """

    broker: str
    how: str
    fallback: bool = False
    connects: int = 0
    trouble: str = ""


class ClipsHealth(Struct, frozen=True):
    """How the clips of all streams are doing.

    Attributes:
        saved, failed: since start; what is being recorded is neither yet.
        deleted: since start, because they were too old or to make room for newer ones.
        kept, bytes: clips on the board's disk, and what they take.
        trouble: why none can be saved; empty: as far as is known, they can.
    """

    saved: int
    failed: int
    deleted: int
    kept: int
    bytes: int
    trouble: str = ""


class HealthMessage(Struct, frozen=True):
    """`<device>/health`, retained.

    Attributes:
        version: of Vedette.
        at: UTC.
        uptime_s: of the daemon, s.
        streams: by name.
        spool: see `SpoolHealth`.
        rss_mb: resident memory of the daemon, MB.
        temperature_c: hottest thermal zone, °C, where there is one.
        hot: whether that has reached `thermal.warn_c`, and is not 5 °C below it again.
        link: see `LinkHealth`; None when there was no connection as this was written.
        waits_for_restart: keys, such as `storage.state_dir`, that the file has changed since the start and that a
            reload could not take up.
        clips: see `ClipsHealth`; None where no stream makes any.
        homeassistant: why Home Assistant does not find this device; empty: nothing speaks against it.
        commands_off: why no commands are taken from the broker; empty: they are taken.
        state_folder: that it was deleted or replaced while the daemon ran, and whether it could be written anew;
            also that what commands have set is not written yet; empty: neither.
    """

    version: str
    at: datetime
    uptime_s: float
    streams: dict[str, StreamHealth]
    spool: SpoolHealth
    rss_mb: float
    temperature_c: float | None = None
    hot: bool = False
    link: LinkHealth | None = None
    waits_for_restart: tuple[str, ...] = ()
    clips: ClipsHealth | None = None
    homeassistant: str = ""
    commands_off: str = ""
    state_folder: str = ""


SCHEMA_VERSION = 1
"""Version of all published JSON; under MQTT 5 every message carries it as the user property `schema`.

It is raised when a field goes, gets another type or unit, or means something else: a consumer that was written
for an older one may then be wrong. A field or a message that is added does not raise it: consumers leave out what
they do not know.
"""


class Latency(Struct, frozen=True, gc=False):
    """Milliseconds from capture to publishing, by stage.

    Attributes:
        queue: capture → picked up by the stream's thread.
        gate, prepare, infer, decode, track: the rooms in turn; `prepare` is resizing into the tensor.
        publish: put into the spool → handed to the broker.
        total: capture → handed to the broker.
    """

    queue: float
    gate: float
    prepare: float
    infer: float
    decode: float
    track: float
    publish: float = 0.0
    total: float = 0.0

    @property
    def has_frame(self) -> bool:
        """Return True if a frame caused the event; an end at a loss or at shutdown has none, and only waits."""
        return any((self.queue, self.gate, self.prepare, self.infer, self.decode, self.track))


class ModelId(Struct, frozen=True, gc=False):
    """Which model answered: its name and the first 12 hex digits of its file's sha256."""

    name: str
    sha256: str


class EventMessage(Struct, frozen=True):
    """`<device>/<stream>/events`, QoS 1, never retained.

    Attributes:
        id: unique; a repeated delivery has the same.
        device, stream: where it was seen.
        kind: new | update | end of a track, or keyword: a word.
        reason: why it was sent, in a word or two.
        track: as it stood then.
        captured_at: UTC of the frame, or of the end of the sound. An `end` with the reason `restart` tells how
            the track stood at its newest event: the device crashed some time after that.
        latency_ms: see `Latency`.
        model, backend, variant: who computed it; `variant` is empty in messages of versions that said `rung`.
        seq: per device and without gaps: a gap is a loss, unless it ends before `first_seq`. It counts all that
            the device sends through its spool: events and clips of every stream.
        first_seq: number with which the run of the daemon began that gave `seq`; 0: not known. A run after a
            crash begins up to 10,000 above the one before with durability `batch`, or after damage to the spool.
            The first run on a new card or state folder, and every run whose disk cannot be written, begins at the
            µs of the clock (below 2^53). Numbers in between were never given out, or were lost with the memory.
            If the clock is wrong then, or such a disk is replaced, a run may begin lower: an unknown `first_seq`
            with a `seq` below the highest begins a new count.
    """

    id: str
    device: str
    stream: str
    kind: EventKind
    reason: str
    track: Track
    captured_at: datetime
    latency_ms: Latency
    model: ModelId
    backend: str
    variant: str = ""
    seq: int = 0
    first_seq: int = 0


class DetectionsMessage(Struct, frozen=True):
    """`<device>/<stream>/detections`, QoS 0: one frame, or piece of sound, that the model has processed.

    Attributes:
        device, stream: where it was seen.
        seq: counts frames of the stream; of sound it is the number of the first sample.
        captured_at: UTC of the frame, or of the end of the sound.
        detections: strongest first, empty when nothing was found. Of a model of words it is the best label of the
            inference with its score, however low, also one that is no word, such as `silence`: what it answers
            now, while an event tells a word once.
        latency_ms: see `Latency`.
        model, backend, variant: who computed it.
    """

    device: str
    stream: str
    seq: int
    captured_at: datetime
    detections: list[Detection]
    latency_ms: Latency
    model: ModelId
    backend: str
    variant: str = ""


_encoder = msgspec.json.Encoder(decimal_format="number")
_spooled = msgspec.json.Decoder(dict[str, Raw])
_latency = msgspec.json.Decoder(Latency)

MESSAGES: tuple[type[Struct], ...] = (EventMessage, DetectionsMessage, ClipMessage, HealthMessage)


def new_id() -> str:
    """A unique message id: 32 hex digits."""
    return uuid.uuid4().hex


def encode(message: Struct) -> bytes:
    """JSON, UTF-8."""
    return _encoder.encode(message)


def complete_spooled(stored: Stored, now: float | None = None) -> bytes:
    """The JSON of a spooled message as it goes out.

    Any message may be spooled that has an `id`, and `seq` for the number; a `latency_ms` gets the time that it
    waited. Detections of older versions, which may wait in a spool, have their number in `spool_seq`.

    Args:
        stored: the spooled message.
        now: Unix time of sending, s; default: now.

    Raises:
        msgspec.MsgspecError: the body is not such a message (a damaged row).
    """
    try:
        stored.body.decode()  # raw values are not looked at
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(str(error)) from error
    fields = _spooled.decode(stored.body)
    number = "spool_seq" if "spool_seq" in fields else "seq"
    if not {"id", number} <= fields.keys() or not bytes(fields["id"]).startswith(b'"'):
        raise msgspec.ValidationError("a spooled message has an `id` and a number")
    if raw := fields.get("latency_ms"):
        waited_ms = max(0.0, ((time.time() if now is None else now) - stored.put_at) * 1e3)
        latency = _latency.decode(raw)
        fields["latency_ms"] = Raw(
            encode(
                msgspec.structs.replace(
                    latency, publish=round(waited_ms, 3), total=round(latency.total + waited_ms, 3)
                )
            )
        )
    fields[number] = Raw(b"%d" % stored.seq)
    fields["first_seq"] = Raw(b"%d" % stored.first_seq)
    return _encoder.encode(fields)


def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of every JSON message, as `$defs` by struct name."""
    (_, components) = msgspec.json.schema_components(MESSAGES, ref_template="#/$defs/{name}")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Vedette messages",
        "anyOf": [{"$ref": f"#/$defs/{message.__name__}"} for message in MESSAGES],
        "$defs": components,
    }
