"""Define every published message as a struct. Their JSON Schema is made from these structs.

A message that goes through the spool is encoded when it is put there and completed when it is sent: only then are
its number and the time of publishing known.
"""

from __future__ import annotations

import time
import uuid
from datetime import datetime
from pathlib import PurePath
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta, Raw, Struct

from agent.health import HealthMessage
from agent.structs import json_decoder
from agent.types import Clip, Detection, EventKind, Stored, Track, Verdict

_IDS = uuid.UUID("c25a3c42-59d4-4e0b-9a32-2a0f1d8a77e5")
"""Namespace of the ids of clips, whose names are unique on a device."""


class ClipMessage(Struct, frozen=True):
    """`<device>/<stream>/clips`, QoS 1, never retained: a clip was saved. The clip itself stays on the device.

    Attributes:
        id: unique; a repeated delivery has the same, also one after a crash.
        device, stream: where it was recorded.
        path: of the file on the device, MP4.
        began_at, ended_at: UTC of the first picture, and of the end of the last.
        duration_s: between the two, s.
        frames: number of pictures.
        bytes: size of the file.
        track, label: of the track that started it; empty: a command did.
        tracks: ids of all its tracks; after a crash, only of the first.
        reason: of the event that started it, or `asked`: a command did.
        repaired: True if a crash or a power cut ended it.
        seq, first_seq: counted together with events, see `EventMessage`.
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
    """Return the message of a clip; every message of one clip has the same id."""
    occasion = clip.occasion
    name = PurePath(clip.path).name.encode("utf-8", "replace").decode()
    return ClipMessage(
        uuid.uuid5(_IDS, f"{device}/{occasion.stream}/{name}").hex,
        device,
        occasion.stream,
        clip.path.encode("utf-8", "replace").decode(),  # a path may not be UTF-8
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


class ModelId(Struct, frozen=True, gc=False):
    """A model: its name and the first 12 hex digits of its file's sha256."""

    name: str
    sha256: str


class PartVerdict(Struct, frozen=True, omit_defaults=True):
    """The verdict on one inspected part.

    Attributes:
        part: id, as its trigger gave it, or made: unique over streams and restarts.
        verdict: see `Verdict`.
        reason: of `ng` the label of the defect; of `ok` `good`; else `between`, `not found`, `half in view`,
            `too few pictures`, `overtaken`, `shutdown` …
        score: strongest evidence of a defect, 0..1.
        views: number of pictures that were judged.
        detections: of the picture that decided it.
        triggered_at: UTC of the trigger.
        rejected: True if the reject output was told to act.
    """

    part: str
    verdict: Verdict
    reason: str
    score: float
    views: int
    triggered_at: datetime
    detections: tuple[Detection, ...] = ()
    rejected: bool = False


class VerdictMessage(Struct, frozen=True):
    """`<device>/<stream>/verdicts`, QoS 1, never retained: a part was inspected.

    Attributes:
        id: unique; a repeated delivery has the same.
        device, stream: where it was inspected.
        part: id of the part: the trigger's, or made, and then unique over streams and restarts.
        verdict: ok | ng (not good) | unsure.
        reason: of `ng` the label of the defect; of `ok` `good`; of `unsure` why: `between`, `not found`,
            `half in view`, `no picture`, `too few pictures`, `late`, `overtaken`, `ended`, `stall`, `shutdown` …
        score: strongest evidence of a defect, 0..1.
        views: number of pictures that were judged.
        detections: of the picture that decided it.
        triggered_at: UTC of the trigger.
        judged_ms: from the trigger to the verdict, ms.
        rejected: True if the reject output was told to act.
        picture: path of the picture on the device; empty: none is kept.
        model, backend, variant: what computed it.
        seq, first_seq: counted together with events, see `EventMessage`.
    """

    id: str
    device: str
    stream: str
    part: str
    verdict: Verdict
    reason: str
    score: float
    views: int
    detections: tuple[Detection, ...]
    triggered_at: datetime
    judged_ms: float
    rejected: bool
    picture: str
    model: ModelId
    backend: str
    variant: str = ""
    seq: int = 0
    first_seq: int = 0


class RetainedMessage(Struct, frozen=True):
    """A retained topic of a stream. A new one is a struct below, that a feature hands to `Reporter.retain`.

    Attributes:
        LEVEL: level of its topic below the stream's; one more is the field `name`, if there is one.
        FADES: True if it says what is seen now, and is deleted when the stream stops.
        IS_COUNT: True if it is only published with `publish.counts`.
    """

    LEVEL: ClassVar[str] = ""
    FADES: ClassVar[bool] = False
    IS_COUNT: ClassVar[bool] = True


_Number = Annotated[int, Meta(ge=0, le=2**53)]
"""Number of crossings that every JSON reader takes exactly."""
_IN_OUT = {"inwards": "in", "outwards": "out"}


class LabelCrossings(Struct, frozen=True, rename=_IN_OUT):
    """Crossings of a line by objects of one label.

    Attributes:
        inwards, outwards: their number; `in` and `out` in JSON.
    """

    inwards: _Number = 0
    outwards: _Number = 0


class LineMessage(RetainedMessage, frozen=True, rename=_IN_OUT):
    """`<device>/<stream>/line/<name>`, retained: the crossings of a line.

    Attributes:
        device, stream: where it is.
        name: of the line.
        inwards, outwards: number of all crossings; `in` and `out` in JSON.
        since: UTC from which on they are counted: the first start with the line, or the newest `reset`.
        labels: crossings by label.
    """

    LEVEL = "line"

    device: str
    stream: str
    name: str
    inwards: int
    outwards: int
    since: datetime
    labels: dict[str, LabelCrossings] = {}


class SensorMessage(RetainedMessage, frozen=True):
    """`<device>/<stream>/sensor/<name>`, retained: the value of a state that was taught; empty: not known.

    Attributes:
        device, stream: where it is seen.
        name: of the state.
        value: one of `values`, or `unsure`.
        score: 0 in the middle between two values, 1 where the examples are; of the picture that changed it.
        since: UTC of capture of that picture.
        values: that it can have besides `unsure`.
    """

    LEVEL, FADES = "sensor", True

    device: str
    stream: str
    name: str
    value: str
    score: float
    since: datetime
    values: tuple[str, ...]


class InspectionMessage(RetainedMessage, frozen=True):
    """`<device>/<stream>/inspection`, retained: the counters of its parts.

    Attributes:
        device, stream: where it was counted.
        parts: number of all parts.
        ok, ng, unsure: parts by verdict.
        rejected: parts for which the reject output was told to act.
        reasons: parts that were not ok by reason.
        last: verdict on the newest part.
    """

    LEVEL = "inspection"

    device: str
    stream: str
    parts: int
    ok: int
    ng: int
    unsure: int
    rejected: int
    reasons: dict[str, int]
    last: Verdict | None = None


class StreamProblem(Struct, frozen=True):
    """A problem of a camera, a microphone or a model.

    Attributes:
        problem: dark | frozen | blurred | covered | moved | tilted | silent | clipped | humming | constant.
        since: UTC of capture of the input at which it was told.
        detail: how far the camera has moved, the frequency of a hum, or why; empty: nothing more is known.
    """

    problem: str
    since: datetime
    detail: str = ""


class ConditionMessage(RetainedMessage, frozen=True):
    """`<device>/<stream>/condition`, retained: what is wrong with a stream whose inputs come; empty: not known.

    Attributes:
        device, stream: where it is so.
        problems: that last, oldest first; empty: there are none.
        zones_suspended: True while the camera's zones are not used, since it has moved.
    """

    LEVEL, FADES, IS_COUNT = "condition", True, False

    device: str
    stream: str
    problems: tuple[StreamProblem, ...]
    zones_suspended: bool = False


SCHEMA_VERSION = 1
"""Version of all published JSON; under MQTT 5 every message carries it as the user property `schema`.

It is raised when a field is removed, or its type, unit or meaning changes. A field or a message that is added
does not raise it: consumers ignore what they do not know.
"""


class Latency(Struct, frozen=True, gc=False):
    """Milliseconds from capture to publishing, by stage.

    Attributes:
        queue: capture → picked up by the stream's thread.
        gate, prepare, infer, decode, track: the stages in turn; `prepare` is resizing into the tensor.
        publish: put into the spool → sent to the broker.
        total: capture → sent to the broker.
        secondary: all models that were run on objects of the picture.
    """

    queue: float
    gate: float
    prepare: float
    infer: float
    decode: float
    track: float
    publish: float = 0.0
    total: float = 0.0
    secondary: float = 0.0

    @property
    def has_frame(self) -> bool:
        """True if a frame caused the event; an `end` at a loss or at shutdown has none."""
        return any((self.queue, self.gate, self.prepare, self.infer, self.decode, self.track))


class EventMessage(Struct, frozen=True):
    """`<device>/<stream>/events`, QoS 1, never retained.

    Attributes:
        id: unique; a repeated delivery has the same.
        device, stream: where it was seen; of a fused event, its name in place of a stream's.
        kind: new | update | end of a track, or keyword.
        reason: why it was sent, in a word or two.
        track: its state at this event.
        captured_at: UTC of the frame, or of the end of the sound; of a fused event that is new, of the instant at
            which its condition became true. An `end` with the reason `restart` has the
            state of the track at its newest event: the device crashed some time after that.
        latency_ms: see `Latency`.
        model, backend, variant: what computed it.
        seq: number of the message among those that the device sends through its spool: events and clips of every
            stream. A gap means lost messages, unless it ends before `first_seq`.
        first_seq: number with which the run of the daemon began that sent this; 0: not known. After a crash a run
            begins up to 10,000 above the one before with durability `batch`, or after damage to the spool. The
            first run on a new card or state folder, and every run whose disk cannot be written, begins at the
            clock's time in µs (below 2^53). Numbers in between were never given out, or lost with the memory. If
            the clock is wrong then, or such a disk is replaced, a run may begin lower: an unknown `first_seq`
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
    """`<device>/<stream>/detections`, QoS 0: the result of one inference.

    Attributes:
        device, stream: where it was seen.
        seq: number of the frame in the stream; for sound, number of the first sample.
        captured_at: UTC of the frame, or of the end of the sound.
        detections: strongest first, empty if nothing was found. A model of words gives the best label of the
            inference with its score, however low, also one that is not a word, such as `silence`.
        latency_ms: see `Latency`.
        model, backend, variant: what computed it.
        predicted: True if the picture was not inferred, to save time: tracks were carried on by their motion.
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
    predicted: bool = False


_encoder = msgspec.json.Encoder(decimal_format="number")
_spooled = json_decoder(dict[str, Raw])
_latency = json_decoder(Latency)

MESSAGES: tuple[type[Struct], ...] = (
    EventMessage,
    DetectionsMessage,
    ClipMessage,
    VerdictMessage,
    InspectionMessage,
    ConditionMessage,
    LineMessage,
    HealthMessage,
)


def new_id() -> str:
    """Return a unique message id of 32 hex digits."""
    return uuid.uuid4().hex


def encode(message: Struct) -> bytes:
    """Return a message as JSON."""
    return _encoder.encode(message)


def complete_spooled(stored: Stored, now: float | None = None) -> bytes:
    """Return the JSON of a spooled message with its number, and in `latency_ms` the time that it waited.

    A message can be spooled if it has an `id` and a `seq`. Detections of older versions, which may wait in a
    spool, have their number in `spool_seq`.

    Args:
        stored: the spooled message.
        now: Unix time of sending, s; default: now.

    Raises:
        msgspec.MsgspecError: the body is not such a message (a damaged row).
    """
    try:
        stored.body.decode()  # raw values are not checked
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
    """Return the JSON Schema (draft 2020-12) of every JSON message, as `$defs` by struct name."""
    (_, components) = msgspec.json.schema_components(MESSAGES, ref_template="#/$defs/{name}")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Vedette messages",
        "anyOf": [{"$ref": f"#/$defs/{message.__name__}"} for message in MESSAGES],
        "$defs": components,
    }
