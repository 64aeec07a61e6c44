"""The configuration of one stream: what it takes in, how it looks or listens, and what it tells."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from agent.config.device import NAME, Seconds
from agent.types import Point

Unit = Annotated[float, Meta(ge=0.0, le=1.0)]
Patience = Annotated[float, Meta(ge=0.1, le=1e8)]
Count = Annotated[int, Meta(ge=1)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$", extra=NAME)]


class CaptureConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[streams.NAME.capture]`.

    Attributes:
        stall_s: no frame for so long → the source is closed and reopened, s; at least 0.1.
        reopen_max_s: longest pause between two attempts to reopen, s; at least 0.1. Left out: 5 for a camera of
            the local network, 30 for other sources. A device that is plugged in is opened at once.
        max_fps: frames per second handed on, at most; 0: all.
        username: who we are at a camera on the network, where its URI names nobody.
        password_file: file whose first line is the password there; `$CREDENTIALS_DIRECTORY`, which systemd sets,
            is expanded. It is read each time that the camera is opened.
    """

    stall_s: Patience = 10.0
    reopen_max_s: Patience | None = None
    max_fps: Annotated[float, Meta(ge=0.0, le=1000.0)] = 0.0
    username: str = ""
    password_file: str = ""


class GateConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[streams.NAME.gate]`.

    Attributes:
        motion: skip inference while nothing moves.
        voice: skip inference while nothing is to be heard.
        sensitivity: 0 notices only large changes, 1 the smallest.
        min_area: share of the frame that a moving region must cover.
        hold_s: stays open for so long after the last motion or sound, s.
        max_idle_s: an inference at least so often, even when nothing moves or sounds, s.
        pre_roll_s: what was heard for so long before the gate opened is listened to as well, s; at least what the
            model hears at once.
        crop: infer on the moving regions instead of the whole frame when they are small (far objects).
    """

    motion: bool = True
    voice: bool = True
    sensitivity: Unit = 0.5
    min_area: Unit = 0.0005
    hold_s: Annotated[float, Meta(ge=0.0, le=1e8)] = 1.0
    max_idle_s: Seconds = 30.0
    pre_roll_s: Annotated[float, Meta(ge=0.0, le=10.0)] = 0.5
    crop: bool = False


class CascadeConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[streams.NAME.cascade]`: for a model with calibrated exits and `variant` left open or `"auto"`.

    Attributes:
        budget_ms: for all exits of one input together, ms; a deeper exit that would exceed it does not run.
    """

    budget_ms: Annotated[float, Meta(gt=0.0, le=1e6)] = 100.0


class DecodeConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[streams.NAME.decode]`.

    Attributes:
        score_threshold: overrides the manifest's.
        iou_threshold: overrides the manifest's.
        labels: only these; empty: all.
        max_detections: strongest kept per frame.
    """

    score_threshold: Unit | None = None
    iou_threshold: Unit | None = None
    labels: tuple[str, ...] = ()
    max_detections: Count = 100


class TrackConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[streams.NAME.track]`.

    Attributes:
        min_hits: detections before a track is announced by `new`; default: 3 of pictures, 1 of sound.
        lost_after_s: not seen for so long → `end`, s.
        iou_threshold: least overlap of a detection with where a track should be by now.
        update_every_s: at most one `update` per track in so long, unless its zones change, s.
        stationary_after_s: a track that has not left its place for so long is stationary: one `update` says so,
            and it no longer keeps the motion gate open, s; 0: never.
        stationary_check_s: look at each stationary track at least so often, even when nothing moves there, s.
        stationary_update_s: one `update` per stationary track in so long, although nothing changed, s; 0: none.
    """

    min_hits: Count | None = None
    lost_after_s: Seconds = 2.5
    iou_threshold: Unit = 0.2
    update_every_s: Seconds = 5.0
    stationary_after_s: Annotated[float, Meta(ge=0.0, le=1e8)] = 10.0
    stationary_check_s: Seconds = 30.0
    stationary_update_s: Annotated[float, Meta(ge=0.0, le=1e8)] = 0.0


class ZoneConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[[streams.NAME.zones]]`: a polygon that tracks stand in or not.

    Attributes:
        name: in events and topics.
        polygon: at least three corners, fractions 0..1 of the frame.
        labels: only these count; empty: all.
        enabled: whether anything stands in it.
    """

    name: Name
    polygon: tuple[Point, ...]
    labels: tuple[str, ...] = ()
    enabled: bool = True


class PublishConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[streams.NAME.publish]`.

    Attributes:
        events: `new`, `update`, `end` of tracks, QoS 1.
        only_zones: leave out tracks that have not stood in a zone.
        detections: every processed frame's detections, QoS 0; of words the best label with its score.
        counts: number of live tracks per label, retained.
        snapshot: JPEG of the best frame of the newest event, retained.
        snapshot_every_s: at most one snapshot in so long, s.
        snapshot_quality: JPEG quality.
    """

    events: bool = True
    only_zones: bool = False
    detections: bool = False
    counts: bool = True
    snapshot: bool = True
    snapshot_every_s: Seconds = 5.0
    snapshot_quality: Annotated[int, Meta(ge=1, le=100)] = 80


class ClipsConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[streams.NAME.clips]`: keep the last seconds of a camera, and save them around events.

    The table turns that on, even an empty one. Where clips go and for how long, see `StorageConfig`.

    Attributes:
        events: save a clip around each event; else only those that a command asks for.
        labels: only around things of these; empty: all.
        zones: only around things that have stood in one of these; empty: around all that are published.
        min_score: only around things whose best score reached this.
        before_s: how much of the time before the event, s.
        after_s: how long after the end of the last event in it, s.
        max_s: it ends so long after the event that it began with, at the latest, s; what comes so late that less
            than `after_s` is left for it begins the next.
        fps: pictures per second, at most.
        max_width: wider pictures are made smaller, px.
        quality: JPEG quality.
    """

    events: bool = True
    labels: tuple[str, ...] = ()
    zones: tuple[Name, ...] = ()
    min_score: Unit = 0.0
    before_s: Annotated[float, Meta(ge=0.0, le=120.0)] = 5.0
    after_s: Annotated[float, Meta(ge=0.0, le=600.0)] = 5.0
    max_s: Annotated[float, Meta(ge=1.0, le=600.0)] = 60.0
    fps: Annotated[float, Meta(ge=0.1, le=60.0)] = 5.0
    max_width: Annotated[int, Meta(ge=64, le=8192)] = 1280
    quality: Annotated[int, Meta(ge=1, le=100)] = 75


class StreamConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[streams.NAME]`: one camera or file, one model.

    Attributes:
        source: URI, see `agent.capture.source`.
        model: name of a bundled model, or a path to a `.tflite` or to its manifest `.toml`.
        enabled: whether it runs.
        variant: size or exit of the model. Empty: the exit that each input needs, if the model's exits are
            calibrated (`vedette models calibrate`), else its first variant. `auto`: the same, and an error if
            they are not.
        backend: `auto`: what was measured to be best, see `SelectionConfig`, with the CPU standing by; `cpu`; or
            one that never falls back: a name that `vedette bench` lists, or `external:LIBRARY?key=value`, a
            TFLite delegate. With `,cpu` behind it the CPU stands by.
        threads: of the CPU backend; 0: chosen by the number of cores.
        capture, gate, cascade, decode, track, zones, publish: see each.
        clips: see `ClipsConfig`; None: no clips.
    """

    source: Annotated[str, Meta(min_length=1)]
    model: Annotated[str, Meta(min_length=1)]
    enabled: bool = True
    variant: str = ""
    backend: Annotated[str, Meta(min_length=1)] = "auto"
    threads: Annotated[int, Meta(ge=0, le=64)] = 0
    capture: CaptureConfig = CaptureConfig()
    gate: GateConfig = GateConfig()
    cascade: CascadeConfig = CascadeConfig()
    decode: DecodeConfig = DecodeConfig()
    track: TrackConfig = TrackConfig()
    zones: tuple[ZoneConfig, ...] = ()
    publish: PublishConfig = PublishConfig()
    clips: ClipsConfig | None = None

    @property
    def named(self) -> tuple[tuple[str, str], ...]:
        """Zones and labels that it names, so that they are counted from the start; no zone: the whole picture."""
        asked = self.decode.labels
        return (
            *(("", label) for label in asked),
            *(
                (zone.name, label)
                for zone in self.zones
                for label in zone.labels or asked
                if label in asked or not asked
            ),
        )
