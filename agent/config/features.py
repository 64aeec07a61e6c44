"""Tables of features: condition, governor and service, inspection, secondary models."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from agent.config.toml import Edges, Name, Unit

Problem = Literal[
    "dark",
    "frozen",
    "blurred",
    "covered",
    "moved",
    "tilted",
    "silent",
    "clipped",
    "humming",
    "constant",
    "drift",
]
"""The problems of a stream whose inputs come."""


class ConditionConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[streams.NAME.condition]`: whether camera, microphone and model are watched.

    Attributes:
        enabled: left out: for cameras, microphones and network streams, but not for files and test pictures.
        ignore: problems that are not told.
    """

    enabled: bool | None = None
    ignore: tuple[Problem, ...] = ()


Giving = Literal["samples", "snapshots", "clips", "inference", "decoding"]
"""The reductions of a stream."""


class StreamBudget(Struct, frozen=True, gc=False):
    """The share of the board that one stream may use. The default is everything.

    Attributes:
        stride: of the pictures that the gate lets through, one in so many is inferred; tracks are carried on by
            their motion in between.
        variant: size of the model; empty: the configured one.
        samples_every_s: least time between two messages of `detections`, s; 0: each is sent.
        snapshot_quality: of the JPEG, 1..100.
        snapshot_factor: factor on `publish.snapshot_every_s`, at least 1.
        clips_share: factor on `clips.fps`, 0..1, where pictures are encoded for clips.
        decode: `keyframes`: of an encoded camera whose decoding is left to the stream, key frames alone are
            decoded; empty: what the stream wants.
    """

    stride: int = 1
    variant: str = ""
    samples_every_s: float = 0.0
    snapshot_quality: int = 80
    snapshot_factor: float = 1.0
    clips_share: float = 1.0
    decode: Literal["", "keyframes"] = ""


class ServiceConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[streams.NAME.service]`: how important the stream is, and what it must keep under load.

    Attributes:
        priority: where not all fits, streams with a lower number give way first.
        min_fps: pictures per second that are inferred at least while the gate is open, if the source gives so
            many; 0: none are promised.
        max_latency_ms: longest time from the capture of a picture to its result, for 95 of 100, ms; 0: none is
            promised.
        smaller_variants: the model's smaller sizes may be used under load. They are kept in memory for it: 15 MB
            of `nanodet`.
    """

    priority: Annotated[int, Meta(ge=0, le=100)] = 50
    min_fps: Annotated[float, Meta(ge=0.0, le=1000.0)] = 0.0
    max_latency_ms: Annotated[float, Meta(ge=0.0, le=1e6)] = 0.0
    smaller_variants: bool = False


class GovernorConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[governor]`: what gives way when processors, disk or network are too slow, or the board too hot.

    Attributes:
        enabled: whether anything gives way. If false, each stream takes what it gets.
        max_temperature_c: temperature of the hottest zone that is not exceeded, °C. Left out: of each zone 3 °C
            below the one at which the kernel throttles for it, and at most `thermal.warn_c`.
        order: what a stream gives up, the first at first, and decoding always at last; what is left out is never
            reduced. `samples`: messages of `detections`; `snapshots`: their quality and rate; `clips`: their
            pictures per second; `inference`: pictures that are inferred, and the size of the model; `decoding`:
            pictures of an encoded network camera between its key frames, for a stream of a higher priority.
        max_stride: of the pictures in which something moves, at least one in so many is inferred.
        save_below_percent: charge from which on every stream infers as little as it may, while the board runs on
            its battery, 0..100; 0: never.
    """

    enabled: bool = True
    max_temperature_c: Annotated[float, Meta(ge=30.0, le=150.0)] | None = None
    order: tuple[Giving, ...] = ("samples", "snapshots", "clips", "inference", "decoding")
    max_stride: Annotated[int, Meta(ge=1, le=100)] = 6
    save_below_percent: Annotated[float, Meta(ge=0.0, le=100.0)] = 0.0


_TRIGGER = {"use": 'use "every", "command", "region" or "gpio:" with the number of a pin'}
_OUTPUT = {"use": 'use "gpio:" with the number of a pin, such as "gpio:22"'}
Trigger = Annotated[str, Meta(pattern=r"^(every|command|region|gpio:(0|[1-9][0-9]{0,2}))$", extra=_TRIGGER)]
Output = Annotated[str, Meta(pattern=r"^(gpio:(0|[1-9][0-9]{0,2}))?$", extra=_OUTPUT)]
Delay = Annotated[float, Meta(ge=0.0, le=3600.0)]


class InspectionConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[streams.NAME.inspection]`: judge parts, one after the other, instead of following objects.

    The table enables this, even an empty one. A trigger announces a part; the model judges the next `views`
    pictures; one verdict is published: `ok`, `ng` or `unsure`.

    Attributes:
        trigger: `every` picture is a part; `command`: `<stream>/set/inspect` announces one; `region`: one covers
            `region` of the picture; `gpio:17`: that pin (BCM number) becomes active. A command announces a part
            with every trigger but `every`.
        region: left, top, right, bottom of the light barrier in the picture, fractions 0..1.
        region_cover: share of the region that a part covers at least.
        active_low: the trigger's pin is pulled up, and active when it is low.
        debounce_s: a pin or a command is ignored this soon after another, s.
        delay_s: time from the trigger to the first picture, s. Pictures are dated when they arrive: for a camera
            whose pictures come late, such as one on the network, it must be longer than that lateness.
        views: number of pictures of each part.
        view_every_s: least time between two of them, s.
        crop: left, top, right, bottom of what the model is shown, fractions 0..1 of the picture.
        ng_labels: labels of defects; empty: all that are not in `ok_labels`.
        ok_labels: labels of good parts. With them, a part is only `ok` if its pictures have one; empty: a part
            without a defect is `ok`.
        ng_score: a defect with at least this score makes a part `ng`; one below it, `unsure`.
        ok_score: least score of the label of a good part; below it the part is `unsure`.
        deadline_s: time from the trigger to the verdict, s; a part that is not judged by then is `unsure`.
        reject: output that is pulsed for a part that is not `ok`, such as `gpio:22`; empty: there is none. Pulses
            that overlap are one.
        reject_unsure: reject also parts that are `unsure`, and those of which no verdict comes.
        reject_active_low: the output is low while it is active.
        reject_after_s: time from the trigger to the pulse, s, at least `deadline_s`; 0: at the verdict.
        reject_pulse_s: length of the pulse, s.
        keep_bytes: bytes of pictures of `ng` and `unsure` parts that are kept in the stream's folder of clips, as
            the model was shown them; the oldest are deleted first. 0: none are kept.
        keep_ok: keep pictures of `ok` parts as well, as to train a model.
    """

    trigger: Trigger = "every"
    region: Edges | None = None
    region_cover: Annotated[float, Meta(ge=0.01, le=1.0)] = 0.3
    active_low: bool = False
    debounce_s: Delay = 0.02
    delay_s: Delay = 0.0
    views: Annotated[int, Meta(ge=1, le=100)] = 1
    view_every_s: Delay = 0.0
    crop: Edges = (0.0, 0.0, 1.0, 1.0)
    ng_labels: tuple[str, ...] = ()
    ok_labels: tuple[str, ...] = ()
    ng_score: Unit = 0.6
    ok_score: Unit = 0.6
    deadline_s: Annotated[float, Meta(ge=0.01, le=3600.0)] = 1.0
    reject: Output = ""
    reject_unsure: bool = True
    reject_active_low: bool = False
    reject_after_s: Delay = 0.0
    reject_pulse_s: Annotated[float, Meta(ge=0.001, le=60.0)] = 0.1
    keep_bytes: Annotated[int, Meta(ge=0)] = 256 * 1024 * 1024
    keep_ok: bool = False


class SecondaryConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[[secondary]]`: a model that tells more about each object, as an attribute of its track.

    It is run on the part of the picture that an object covers, when the object appears, then every `every_s`, and
    sooner when it is seen larger. While its answers are the same the time between two grows to `settled_every_s`.

    Attributes:
        name: of the attribute in messages, such as `plate`.
        model: name of a bundled model, or path of a `.tflite` or of its manifest; in a manifest the name of a
            file beside it.
        variant: size of the model; empty: its first.
        labels: only objects with these labels; empty: all.
        answers: only these results of the model count; empty: all.
        pattern: regular expression that a text must match, of a model that reads; overrides its manifest's.
        gallery: folder of pictures of known things, one sub-folder for each; its name is told of what looks like
            its pictures. For models of embeddings.
        margin: share of the box's sides that is added on each side.
        square: extend the shorter side to the longer one's length, as models of faces and hands expect.
        min_pixels: objects whose shorter side has fewer pixels are left out.
        score_threshold: overrides that of the model's manifest.
        every_s: time between two runs on one object, s; 0: each picture.
        settled_every_s: longest time between two runs while the answers are the same, s.
        max_objects: most objects of one picture on which it is run; the others wait for the next one.
    """

    name: Name
    model: Annotated[str, Meta(min_length=1)]
    variant: str = ""
    labels: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    pattern: Annotated[str, Meta(max_length=1000)] = ""
    gallery: str = ""
    margin: Unit = 0.1
    square: bool = False
    min_pixels: Annotated[int, Meta(ge=1, le=10_000)] = 16
    score_threshold: Unit | None = None
    every_s: Annotated[float, Meta(ge=0.0, le=3600.0)] = 1.0
    settled_every_s: Annotated[float, Meta(ge=0.0, le=3600.0)] = 10.0
    max_objects: Annotated[int, Meta(ge=1, le=100)] = 4
