"""Configuration of one stream: source, model, gate, tracking, messages and clips."""

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
    """`[streams.NAME.capture]`: how the source is opened and watched.

    Attributes:
        stall_s: time without a frame after which the source is closed and reopened, s; at least 0.1.
        reopen_max_s: longest pause between two attempts to reopen, s; at least 0.1. Left out: 5 for a camera of
            the
            local network, 30 for other sources. A device that is plugged in is opened at once.
        max_fps: most frames per second handed on; 0: all.
        username: user name for a network camera whose URI has none.
        password_file: file whose first line is the camera's password; `$CREDENTIALS_DIRECTORY`, which systemd
            sets,
            is expanded. It is read each time that the camera is opened.
    """

    stall_s: Patience = 10.0
    reopen_max_s: Patience | None = None
    max_fps: Annotated[float, Meta(ge=0.0, le=1000.0)] = 0.0
    username: str = ""
    password_file: str = ""


class GateConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[streams.NAME.gate]`: when inference is skipped.

    Attributes:
        motion: skip inference while nothing moves.
        voice: skip inference during silence.
        sensitivity: 0 notices only large changes, 1 the smallest.
        min_area: share of the frame that a moving region must cover.
        hold_s: time that the gate stays open after the last motion or sound, s.
        max_idle_s: longest time between two inferences, even without motion or sound, s.
        pre_roll_s: length of the audio before the gate opened that is processed as well, s; at least the model's
            own window.
        crop: infer on the moving regions instead of the whole frame if they are small (distant objects).
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
    """`[streams.NAME.decode]`: which results of the model count.

    Attributes:
        score_threshold: overrides the manifest's.
        iou_threshold: overrides the manifest's.
        labels: only these; empty: all.
        max_detections: most detections per frame; the strongest are kept.
    """

    score_threshold: Unit | None = None
    iou_threshold: Unit | None = None
    labels: tuple[str, ...] = ()
    max_detections: Count = 100


class TrackConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[streams.NAME.track]`: how detections become tracks.

    Attributes:
        min_hits: detections before a track is announced by `new`; default: 3 for pictures, 1 for audio.
        lost_after_s: time without a detection until `end`, s.
        iou_threshold: least overlap of a detection with a track's predicted box.
        update_every_s: least time between two `update` events of a track, unless its zones change, s.
        stationary_after_s: time without movement until a track is stationary, s; one `update` says so, and the
            track
            no longer keeps the motion gate open. 0: never.
        stationary_check_s: longest time between two inferences on a stationary track, even without motion, s.
        stationary_update_s: time between two `update` events of an unchanged stationary track, s; 0: none.
    """

    min_hits: Count | None = None
    lost_after_s: Seconds = 2.5
    iou_threshold: Unit = 0.2
    update_every_s: Seconds = 5.0
    stationary_after_s: Annotated[float, Meta(ge=0.0, le=1e8)] = 10.0
    stationary_check_s: Seconds = 30.0
    stationary_update_s: Annotated[float, Meta(ge=0.0, le=1e8)] = 0.0


class ZoneConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[[streams.NAME.zones]]`: a polygon in the frame.

    Attributes:
        name: in events and topics.
        polygon: at least three corners, fractions 0..1 of the frame.
        labels: only these count; empty: all.
        enabled: whether tracks are assigned to it.
    """

    name: Name
    polygon: tuple[Point, ...]
    labels: tuple[str, ...] = ()
    enabled: bool = True


class PublishConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[streams.NAME.publish]`: which messages the stream publishes.

    Attributes:
        events: `new`, `update`, `end` of tracks, QoS 1.
        only_zones: leave out tracks that have never been in a zone.
        detections: every processed frame's detections, QoS 0; for keywords the best label with its score.
        counts: number of live tracks per label, retained.
        snapshot: JPEG of the best frame of the newest event, retained.
        snapshot_every_s: least time between two snapshots, s.
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
    """`[streams.NAME.clips]`: keep the last seconds of a camera in memory, and save clips around events.

    The table enables this, even an empty one. `StorageConfig` says where clips go and for how long.

    Attributes:
        events: save a clip around each event; else only those that a command asks for.
        labels: only for tracks with these labels; empty: all.
        zones: only for tracks that have been in one of these zones; empty: for all that are published.
        min_score: least best score of a track.
        before_s: length of the clip before the event, s.
        after_s: length of the clip after the end of its last event, s.
        max_s: longest time from the first event to the clip's end, s; an event for which less than `after_s` is
            left starts the next clip.
        fps: most pictures per second.
        max_width: wider pictures are scaled down, px.
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
    """`[streams.NAME]`: one source, one model.

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
        """Pairs of zone and label to count from the start; an empty zone is the whole picture."""
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
