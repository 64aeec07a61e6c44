"""The configuration: one frozen struct per table. `agent.config.load` reads a file.

Every field has a default except a stream's `source` and `model`, so the smallest file is three lines:

    [streams.front]
    source = "v4l2:/dev/video0"
    model = "nanodet"
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from agent.config.features import (
    ConditionConfig,
    GovernorConfig,
    InspectionConfig,
    SecondaryConfig,
    ServiceConfig,
)
from agent.config.places import FilterConfig, LineConfig, Polygon, PrivacyMask, blur_models
from agent.config.servers import MetricsConfig, MqttConfig, PageConfig, Prefix
from agent.config.source_uri import CaptureConfig as CaptureConfig
from agent.config.toml import NAME, Count, Edges, Name, Seconds, Unit

Durability = Literal["event", "batch"]


class DeviceConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[device]`: name and board profile.

    Attributes:
        name: in every topic; empty: the machine's host name. A change waits for a restart.
        profile: board profile that supplies the keys that this file leaves out. `auto`: the
            one that fits this board; else a name such as `pi4b`, a path, or `none`.
    """

    name: Annotated[str, Meta(pattern=r"^([A-Za-z0-9][A-Za-z0-9_-]{0,62})?$", extra=NAME)] = ""
    profile: Annotated[str, Meta(min_length=1)] = "auto"


class StorageConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[storage]`: the state folder. A reload applies new bounds of clips at once; the others wait for a restart.

    Attributes:
        state_dir: folder for state; `~` and `$STATE_DIRECTORY` are expanded. Empty: `$STATE_DIRECTORY`, else
            `~/.local/state/vedette`. A change waits for a restart. On a board whose disk is never written, use a
            folder in memory, such as `/run/vedette`.
        spool_max_bytes: bytes of events kept while the broker is away; the oldest are dropped first.
        durability: `event`: an event is synced to the disk before it is sent, so none is lost. `batch`: an event
            is sent at once and written some seconds later with others, without a sync: that wears an SD card
            less, and a crash or a power cut loses undelivered events since the last write. After a crash, numbers
            begin up to 10,000 higher, so that none is used twice; `first_seq` of a message tells where its run
            began, and a gap before it does not mean lost messages.
        history_max_bytes: bytes of delivered events kept for `vedette events`; the oldest are deleted first.
            0: none are kept.
        clips_folder: full path of the folder for clips, with a subfolder for each stream; `~` and
            `$STATE_DIRECTORY` are expanded. Empty: `clips` in the state folder. A change waits for a restart.
        clips_max_bytes: bytes of all clips; the oldest are deleted first. Left out: a tenth of their file system,
            at most 1 GiB.
        clips_max_age_s: age from which clips are deleted, s; none in the hour after a start or a new clock time.
        recordings_max_age_s: likewise of the pieces of continuous recordings, which also are deleted first where
            room is short, s.
        clips_keep_free_bytes: free space on the disk that clips leave to other programs, bytes: the oldest clips
            are deleted for it, and when that is not enough, no more are saved.
    """

    state_dir: str = ""
    spool_max_bytes: Annotated[int, Meta(ge=65536)] = 64 * 1024 * 1024
    durability: Durability = "event"
    history_max_bytes: Annotated[int, Meta(ge=0)] = 16 * 1024 * 1024
    clips_folder: str = ""
    clips_max_bytes: Annotated[int, Meta(ge=1048576)] | None = None
    clips_max_age_s: Seconds = 30 * 86400.0
    recordings_max_age_s: Seconds = 3 * 86400.0
    clips_keep_free_bytes: Annotated[int, Meta(ge=0)] = 256 * 1024 * 1024


class HealthConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[health]`.

    Attributes:
        every_s: time between two health messages, s; a change of state is published at once.
    """

    every_s: Seconds = 30.0


class ThermalConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[thermal]`.

    Attributes:
        warn_c: temperature of the hottest zone above which the log and health report overheating, °C.
    """

    warn_c: Annotated[float, Meta(ge=0.0, le=150.0)] = 80.0


class HomeAssistantConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[homeassistant]`: announce the device to Home Assistant by MQTT discovery.

    On by default: without Home Assistant at the broker, it is one retained message that nobody reads. A discovery
    message that another program wrote under this device's name is left alone.

    Attributes:
        enabled: whether to announce the device. If false, an earlier announcement is withdrawn.
        prefix: the discovery prefix in Home Assistant's MQTT options.
        max_labels: without `decode.labels`, this many labels of a stream become entities when they are first
            seen; labels that `decode.labels` or a zone names always do.
    """

    enabled: bool = True
    prefix: Prefix = "homeassistant"
    max_labels: Annotated[int, Meta(ge=0, le=1000)] = 16


class SelectionConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[selection]`: how streams with `backend = "auto"` choose the fastest backend of this board.

    Attributes:
        by: `latency`: least time of an inference; `energy`: least CPU time.
        candidates: backends to try besides the CPU; the first wins a tie: names that `vedette bench` lists, or
            `external:LIBRARY?key=value`; None: all that are found.
        threads_max: most threads to try on the CPU.
        after_s: time after the start until a model that is new on this board is measured, s.
    """

    by: Literal["latency", "energy"] = "latency"
    candidates: tuple[str, ...] | None = None
    threads_max: Annotated[int, Meta(ge=1, le=64)] = 4
    after_s: Annotated[float, Meta(ge=0.0, le=1e8)] = 30.0


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
        masks: polygons in the frame; what moves there opens no gate.
        masks_enabled: whether `masks` are used.
    """

    motion: bool = True
    voice: bool = True
    sensitivity: Unit = 0.5
    min_area: Unit = 0.0005
    hold_s: Annotated[float, Meta(ge=0.0, le=1e8)] = 1.0
    max_idle_s: Seconds = 30.0
    pre_roll_s: Annotated[float, Meta(ge=0.0, le=10.0)] = 0.5
    crop: bool = False
    masks: tuple[Polygon, ...] = ()
    masks_enabled: bool = True

    @property
    def masks_in_use(self) -> tuple[Polygon, ...]:
        return self.masks if self.masks_enabled else ()


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
        pattern: regular expression that a text must match, of a model that reads.
    """

    score_threshold: Unit | None = None
    iou_threshold: Unit | None = None
    labels: tuple[str, ...] = ()
    max_detections: Count = 100
    pattern: Annotated[str, Meta(max_length=1000)] = ""


class TrackConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[streams.NAME.track]`: how detections become tracks.

    Attributes:
        min_hits: detections before a track is announced by `new`; default: 3 for pictures, 1 for audio.
        lost_after_s: time without a detection until `end`, s.
        iou_threshold: least overlap of a detection with a track's predicted box where its motion does not fit.
        update_every_s: least time between two `update` events of a track, unless its zones change, s.
        stationary_after_s: time without movement until a track is stationary, s; one `update` says so, and the
            track no longer keeps the motion gate open. 0: never.
        stationary_check_s: longest time between two inferences on a stationary track, even without motion, s.
        stationary_update_s: time between two `update` events of an unchanged stationary track, s; 0: none.
        only_moving: announce an object only when it has left the place where it was first seen.
    """

    min_hits: Count | None = None
    lost_after_s: Seconds = 2.5
    iou_threshold: Unit = 0.2
    update_every_s: Seconds = 5.0
    stationary_after_s: Annotated[float, Meta(ge=0.0, le=1e8)] = 10.0
    stationary_check_s: Seconds = 30.0
    stationary_update_s: Annotated[float, Meta(ge=0.0, le=1e8)] = 0.0
    only_moving: bool = False


class ZoneConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[[streams.NAME.zones]]`: a polygon in the frame.

    Attributes:
        name: in events and topics.
        polygon: at least three corners, fractions 0..1 of the frame.
        labels: only these count; empty: all.
        enabled: whether tracks are assigned to it.
        inertia: consecutive detections inside until a track is in the zone, and outside until it is not;
            from 2 on they must also last 0.2 s.
        loitering_s: time that a track must have been inside before it is in the zone, s.
    """

    name: Name
    polygon: Polygon
    labels: tuple[str, ...] = ()
    enabled: bool = True
    inertia: Annotated[int, Meta(ge=1, le=100)] = 3
    loitering_s: Annotated[float, Meta(ge=0.0, le=1e8)] = 0.0


class PublishConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[streams.NAME.publish]`: which messages the stream publishes.

    Attributes:
        events: `new`, `update`, `end` of tracks, QoS 1.
        only_zones: leave out tracks that have never been in a zone.
        detections: every processed frame's detections, QoS 0; for keywords the best label with its score.
        counts: number of live tracks per label, crossings of lines, measurements, taught states and counters of
            parts, retained.
        snapshot: JPEG of the best frame of the newest event, retained.
        snapshot_every_s: least time between two snapshots, s.
        snapshot_boxes: draw boxes and labels into it.
        snapshot_zones: draw zones and lines into it.
        snapshot_crop: only the object with some of its surroundings.
        snapshot_time: write the local time of capture into it.
        snapshot_quality: of the JPEG, 1 to 100.
        values_every_s: least time between two values of a measurement, s.
    """

    events: bool = True
    only_zones: bool = False
    detections: bool = False
    counts: bool = True
    snapshot: bool = True
    snapshot_every_s: Seconds = 5.0
    snapshot_boxes: bool = True
    snapshot_zones: bool = False
    snapshot_crop: bool = False
    snapshot_time: bool = False
    snapshot_quality: Annotated[int, Meta(ge=1, le=100)] = 80
    values_every_s: Annotated[float, Meta(ge=0.0, le=1e8)] = 1.0


class ClipsConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[streams.NAME.clips]`: keep the last seconds of a camera in memory, and save clips around events.

    The table enables this, even an empty one. `StorageConfig` says where clips are stored and for how long.

    Attributes:
        events: save a clip around each event; else only those that a command asks for.
        labels: only for tracks with these labels; empty: all.
        zones: only for tracks that have been in one of these zones; empty: for all that are published.
        min_score: least best score of a track.
        before_s: length of the clip before the event, s.
        after_s: length of the clip after the end of its last event, s.
        max_s: longest time from the first event to the clip's end, s; an event for which less than `after_s` is
            left starts the next clip.
        record: `continuous`: also record without a pause, in pieces of `segment_s`.
        segment_s: length of the pieces of a continuous recording, s.
        record_source: another URI of the camera that is recorded instead of `source`: mostly its main stream,
            while `source` is its small one.
        fps: most pictures per second, of a source whose pictures are encoded here.
        max_width: likewise; wider pictures are scaled down, px.
        quality: likewise, 1..100.
    """

    events: bool = True
    labels: tuple[str, ...] = ()
    zones: tuple[Name, ...] = ()
    min_score: Unit = 0.0
    before_s: Annotated[float, Meta(ge=0.0, le=120.0)] = 5.0
    after_s: Annotated[float, Meta(ge=0.0, le=600.0)] = 5.0
    max_s: Annotated[float, Meta(ge=1.0, le=600.0)] = 60.0
    record: Literal["events", "continuous"] = "events"
    segment_s: Annotated[float, Meta(ge=5.0, le=3600.0)] = 60.0
    record_source: str = ""
    fps: Annotated[float, Meta(ge=0.1, le=60.0)] = 5.0
    max_width: Annotated[int, Meta(ge=64, le=8192)] = 1280
    quality: Annotated[int, Meta(ge=1, le=100)] = 75


class StreamConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[streams.NAME]`: one source, one model.

    Attributes:
        source: URI, such as `v4l2:/dev/video0`; `vedette devices` and `vedette guide sources` list them.
        model: name of a bundled model, or a path to a `.tflite` or to its manifest `.toml`.
        enabled: run the stream.
        variant: size or exit of the model. Empty: the exit that each input needs, if the model's exits are
            calibrated (`vedette optimise calibrate`), else its first variant. `auto`: likewise, but an error if
            the exits are not calibrated.
        backend: `auto`: the best by measurement (see `[selection]`), with the CPU as fallback; `cpu`; or, without
            fallback, a name that `vedette bench` lists or `external:LIBRARY?key=value`, a TFLite delegate; with
            `,cpu` appended the CPU is the fallback.
        threads: threads of the CPU backend; 0: chosen by the number of cores.
        crop: left, top, right, bottom of what the model is shown, and where motion counts, fractions 0..1 of the
            picture.
        capture: how the source is opened and watched.
        gate: when inference is skipped.
        cascade: time budget of a model with calibrated exits.
        decode: which results of the model count.
        track: how detections become tracks.
        filters: which detections count, by label.
        zones: polygons in the frame.
        lines: in the frame, whose crossings are counted.
        publish: which messages are published.
        clips: recording around events; left out: none.
        inspection: verdicts on parts instead of tracks of objects; left out: none.
        secondary: other models on each found object; left out: those of the model's manifest.
        service: how important the stream is, and what it must keep under load.
        condition: which problems of its camera, microphone or model are told.
        privacy: polygons that are black in all of its pictures.
        blur: labels, such as `face` or `person`: where a bundled model finds one, the picture is blurred.
        mask_model: whether its models and its motion gate see masks and blurs, too. False: they see the true
            picture, but nobody else does.
    """

    source: Annotated[str, Meta(min_length=1)]
    model: Annotated[str, Meta(min_length=1)]
    enabled: bool = True
    variant: str = ""
    backend: Annotated[str, Meta(min_length=1)] = "auto"
    threads: Annotated[int, Meta(ge=0, le=64)] = 0
    crop: Edges = (0.0, 0.0, 1.0, 1.0)
    capture: CaptureConfig = CaptureConfig()
    gate: GateConfig = GateConfig()
    cascade: CascadeConfig = CascadeConfig()
    decode: DecodeConfig = DecodeConfig()
    track: TrackConfig = TrackConfig()
    filters: tuple[FilterConfig, ...] = ()
    zones: tuple[ZoneConfig, ...] = ()
    lines: tuple[LineConfig, ...] = ()
    publish: PublishConfig = PublishConfig()
    clips: ClipsConfig | None = None
    inspection: InspectionConfig | None = None
    secondary: tuple[SecondaryConfig, ...] | None = None
    service: ServiceConfig = ServiceConfig()
    condition: ConditionConfig = ConditionConfig()
    privacy: tuple[PrivacyMask, ...] = ()
    blur: tuple[str, ...] = ()
    mask_model: bool = True

    @property
    def hides(self) -> bool:
        """True if parts of its pictures are hidden: packets of its camera must not be recorded or sent."""
        return bool(self.privacy or self.blur)

    @property
    def models(self) -> tuple[str, ...]:
        """Names or paths of its models, without those that a manifest names."""
        return (self.model, *(one.model for one in self.secondary or ()), *blur_models(self.blur))

    @property
    def variants(self) -> str:
        """Variants of its model to open, as `agent.models.library.open_model` takes them."""
        return f"{self.variant}+" if self.service.smaller_variants else self.variant

    @property
    def shows_part(self) -> bool:
        """True if the model is not shown whole pictures."""
        return self.gate.crop or self.crop != (0.0, 0.0, 1.0, 1.0)

    @property
    def labels_to_count(self) -> tuple[tuple[str, str], ...]:
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


class TextConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[text.NAME]`: text from the broker as evidence for `[fusion]`: messages, or what others have transcribed.

    It is taken from the topic `text/NAME` of this device, under the same condition as commands, see
    `mqtt.commands`. The table, which is empty, enables this.
    """


class FusionConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[fusion.NAME]`: an event from evidence of several streams and texts together, published under NAME.

    One of `when` and `calibration` says what it waits for.

    Attributes:
        when: rule, such as `person and "help"`: labels, `stream:label`, words of a text or heard keywords in
            quotes, `and`, `or`, `not` and parentheses.
        calibration: file of calibrated log-odds, which `vedette optimise fusion calibrate` writes.
        threshold: with `calibration`, least probability of the situation.
        window_s: time for which evidence counts after its end, s.
        late_s: time by which evidence may come late, s, at most `window_s`. A `not` is judged this much later.
        hold_s: time for which the condition must be false until the event ends, s; at least `late_s` counts.
        update_every_s: least time between two updates, s.
    """

    when: str = ""
    calibration: str = ""
    threshold: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.5
    window_s: Annotated[float, Meta(ge=0.1, le=3600.0)] = 5.0
    late_s: Annotated[float, Meta(ge=0.0, le=600.0)] = 0.5
    hold_s: Annotated[float, Meta(ge=0.0, le=3600.0)] = 1.0
    update_every_s: Seconds = 5.0


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    """The configuration file.

    Attributes:
        streams: sources with their models, by name.
        device: name of this device, and the board's profile.
        mqtt: the broker, or several.
        storage: the state folder, and what is kept in it.
        health: how often health is published.
        selection: how streams with `backend = "auto"` choose their backend.
        thermal: limit of the board's temperature.
        governor: what gives way when not all fits.
        homeassistant: how the device announces itself to Home Assistant.
        metrics: metrics for Prometheus; left out: none are served.
        page: page of the newest clips; left out: none is served.
        text: texts from the broker as evidence, by name.
        fusion: events from several streams and texts together, by name.
    """

    streams: dict[Name, StreamConfig] = {}
    device: DeviceConfig = DeviceConfig()
    mqtt: MqttConfig = MqttConfig()
    storage: StorageConfig = StorageConfig()
    health: HealthConfig = HealthConfig()
    selection: SelectionConfig = SelectionConfig()
    thermal: ThermalConfig = ThermalConfig()
    governor: GovernorConfig = GovernorConfig()
    homeassistant: HomeAssistantConfig = HomeAssistantConfig()
    metrics: MetricsConfig | None = None
    page: PageConfig | None = None
    text: dict[Name, TextConfig] = {}
    fusion: dict[Name, FusionConfig] = {}
