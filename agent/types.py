"""Data passed between the packages: frames, detections, tracks and events. Frozen, without logic of a package.

Boxes are `(x0, y0, x1, y1)` as fractions 0..1 of the whole frame, x to the right and y down.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

Image = NDArray[np.uint8]
"""H×W×3 uint8, C-contiguous."""

Samples = NDArray[np.int16]
"""N int16, one channel, C-contiguous."""

Array = NDArray[Any]

Box = tuple[float, float, float, float]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)

Point = tuple[float, float]
ChannelOrder = Literal["bgr", "rgb"]
EventKind = Literal["new", "update", "end", "keyword"]


class Frame(Struct, frozen=True, gc=False):
    """One picture of a stream.

    Attributes:
        image: H×W×3 uint8. Valid until the frame is given back to its grabber.
        stream: name of the stream.
        seq: running number within the stream, from 0; a gap is a dropped frame.
        captured_ns: CLOCK_MONOTONIC at capture, ns. A replay at `pace=fast` counts recorded time from its
            start instead, so that whatever follows things over time sees them move as they did.
        captured_at: UTC at capture, on the same clock as `captured_ns`.
        order: order of the three channels.
        read_ns: CLOCK_MONOTONIC when it was read, ns: what latency is counted from.
    """

    image: Image
    stream: str
    seq: int
    captured_ns: int
    captured_at: datetime
    order: ChannelOrder = "bgr"
    read_ns: int = 0


class AudioChunk(Struct, frozen=True, gc=False):
    """Sound of a stream, without a gap in it.

    Attributes:
        samples: N int16, one channel, C-contiguous, N > 0. Read only; nobody writes over it, however long it is
            kept.
        rate_hz: samples per second.
        stream: name of the stream.
        first: index of the first sample since the source was first opened, counting those that were lost: where
            it is more than the end of the chunk before, sound is missing in between.
        captured_ns: CLOCK_MONOTONIC when the last sample was captured, ns. A replay at `pace=fast` counts
            recorded time from its start instead, as a `Frame` does.
        captured_at: UTC of the same moment, on the same clock as `captured_ns`.
        read_ns: CLOCK_MONOTONIC when the last sample was read, ns: what latency is counted from.
    """

    samples: Samples
    rate_hz: int
    stream: str
    first: int
    captured_ns: int
    captured_at: datetime
    read_ns: int = 0

    @property
    def end(self) -> int:
        """Index after the last sample."""
        return self.first + len(self.samples)


class Keypoint(Struct, frozen=True, gc=False):
    """A named point (fractions of the frame) with its score 0..1."""

    name: str
    x: float
    y: float
    score: float


class Detection(Struct, frozen=True, omit_defaults=True):
    """One thing that a decoder found in one picture or piece of sound.

    Attributes:
        label: class name.
        score: 0..1.
        box: where; None for a verdict on the whole picture, and for sound.
        keypoints: named points, if the model gives any.
        outline: polygon around a segmented region, if the model gives one.
        area: share 0..1 of the frame that a segmented region covers.
    """

    label: str
    score: float
    box: Box | None = None
    keypoints: tuple[Keypoint, ...] = ()
    outline: tuple[Point, ...] = ()
    area: float | None = None


class Track(Struct, frozen=True, omit_defaults=True):
    """A detection over time.

    Attributes:
        id: unique over streams and restarts.
        label: class name.
        score: of the newest detection, 0..1.
        best_score: highest so far, 0..1.
        hits: number of frames in which it was detected.
        first_seen, last_seen: UTC of capture of the first and the newest detection; of a stationary track, of the
            newest picture in which nothing moved there.
        box, keypoints, outline, area: of the newest detection.
        zones: names of the zones that it stands in now, in config order.
        stationary: it has not left its place for `track.stationary_after_s`, and is looked at only now and then;
            absent while it moves.
    """

    id: str
    label: str
    score: float
    best_score: float
    hits: int
    first_seen: datetime
    last_seen: datetime
    box: Box | None = None
    keypoints: tuple[Keypoint, ...] = ()
    outline: tuple[Point, ...] = ()
    area: float | None = None
    zones: tuple[str, ...] = ()
    stationary: bool = False


class Event(Struct, frozen=True):
    """A track began, changed, or ended, or a word was heard. Every `new` has exactly one `end`.

    Attributes:
        kind: new | update | end | heard.
        track: as it stands now; a word's is over when it is told.
        reason: why: `appeared`, `zone`, `moved`, `clearer`, `still here`, `stationary`, `lost`, `ended`, `stall`,
            `shutdown`, `restart`, `word` …
    """

    kind: EventKind
    track: Track
    reason: str


class StageTimes(Struct, frozen=True, gc=False):
    """Nanoseconds spent in each room on one frame; `queue` is the waiting before it."""

    queue: int = 0
    gate: int = 0
    prepare: int = 0
    infer: int = 0
    decode: int = 0
    track: int = 0

    @property
    def total(self) -> int:
        """Capture to now, without what lies between the rooms."""
        return self.queue + self.gate + self.prepare + self.infer + self.decode + self.track


class StreamResult(Struct, frozen=True):
    """Result of one frame.

    Attributes:
        events: of the tracks.
        detections: None when the gate was closed and nothing was inferred.
        stages: see `StageTimes`.
    """

    events: list[Event]
    detections: list[Detection] | None
    stages: StageTimes


class OpenTrack(Struct, frozen=True, gc=False):
    """The crash end of a track: its `end` event, which the next start publishes if this process dies first.

    Attributes:
        key: of the track; a later crash end replaces an earlier one.
        body: JSON of the event; None: the track has ended.
    """

    key: str
    body: bytes | None


class Stored(Struct, frozen=True, gc=False):
    """A message that lies in the spool.

    Attributes:
        seq: gap-free number per device.
        topic: where it goes.
        body: JSON as it was put, without `seq` and without the time of publishing.
        put_at: Unix time at which it was put, s.
        first_seq: first number of the run of the daemon that put it; 0: not known.
    """

    seq: int
    topic: str
    body: bytes
    put_at: float
    first_seq: int = 0


# What flows of clips: the pictures that they are made of, what they are made for, and what became of them.


class EncodedFrame(Struct, frozen=True, gc=False):
    """A frame as a JPEG, as clips are made of.

    Attributes:
        jpeg: the file.
        width, height: in pixels.
        captured_ns: as the frame's, ns.
        captured_at: as the frame's, UTC.
    """

    jpeg: bytes
    width: int
    height: int
    captured_ns: int
    captured_at: datetime


class ClipReason(Struct, frozen=True):
    """Why a clip is made.

    Attributes:
        stream: its name.
        reason: of the event that it began with; `asked`: by a command.
        track: id of that event's track; empty: it was asked for.
        label: of that track.
    """

    stream: str
    reason: str
    track: str = ""
    label: str = ""


class Clip(Struct, frozen=True):
    """A clip that lies on the disk.

    Attributes:
        path: of its file, absolute.
        occasion: why it was made.
        tracks: ids of all tracks that it was made for, the occasion's first.
        began_at, ended_at: UTC of its first picture, and of the end of its last.
        duration_s: between the two, s.
        frames: pictures in it.
        bytes: of the file.
        repaired: whether a crash or a power cut ended it.
    """

    path: str
    occasion: ClipReason
    tracks: tuple[str, ...]
    began_at: datetime
    ended_at: datetime
    duration_s: float
    frames: int
    bytes: int
    repaired: bool = False
