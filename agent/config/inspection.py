"""`[streams.NAME.inspection]`: verdicts on parts instead of tracks of objects."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from agent.config.toml import Edges, Unit

_TRIGGER = {"use": 'use "every", "command", "region" or "gpio:" with the number of a pin'}
_OUTPUT = {"use": 'use "gpio:" with the number of a pin, such as "gpio:22"'}
Trigger = Annotated[str, Meta(pattern=r"^(every|command|region|gpio:(0|[1-9][0-9]{0,2}))$", extra=_TRIGGER)]
Output = Annotated[str, Meta(pattern=r"^(gpio:(0|[1-9][0-9]{0,2}))?$", extra=_OUTPUT)]
_TIME = {"use": 'use times of day such as "06:00"'}
TimeOfDay = Annotated[str, Meta(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$", extra=_TIME)]
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
        shifts: times of day, local, at which a shift begins and the counters start anew; empty: they go on.
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
    shifts: tuple[TimeOfDay, ...] = ()
    keep_bytes: Annotated[int, Meta(ge=0)] = 256 * 1024 * 1024
    keep_ok: bool = False
