"""Data passed between the packages: frames, detections, tracks, events and clips. Frozen, and without logic.

Boxes are `(x0, y0, x1, y1)` as fractions 0..1 of the whole frame, x to the right and y down.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any, Literal, NamedTuple, Protocol

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
Verdict = Literal["ok", "ng", "unsure"]
"""Verdict on an inspected part; NG: not good."""


class Luma(NamedTuple):
    """Brightness of a picture, as its decoder gave it: H×W uint8, whose rows may have gaps. Read only.

    With `full_range`, black is 0 and white 255; else they are 16 and 235 (ITU-R BT.601, BT.709).
    """

    pixels: NDArray[np.uint8]
    full_range: bool


class Planes(NamedTuple):
    """A picture as brightness and colour differences, as its decoder gave it. Read only.

    `blue` and `red` are uint8, of half its height and width, rounded up; their rows may have gaps. With
    `is_bt709`, they are those of ITU-R BT.709; else of BT.601.
    """

    luma: Luma
    blue: NDArray[np.uint8]
    red: NDArray[np.uint8]
    is_bt709: bool


class DeferredImage(Protocol):
    """A decoded picture, H×W×3, that is converted when its pixels are first used. Any thread may call it."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def image(self) -> Image:
        """Return the picture, always the same array."""
        ...

    def luma(self) -> Luma | None:
        """Return its brightness; None: its decoder gives none in 8 bits."""
        ...

    def planes(self) -> Planes | None:
        """Return it as it was decoded; None: its decoder gives other planes than those of `Planes`."""
        ...


Pixels = Image | DeferredImage
"""A picture, or one that is not converted yet."""


class Lease:
    """Counts who reads a frame's memory; who releases it last gives it back. Any thread may call it."""

    def __init__(self, give_back: Callable[[], None]) -> None:
        self._give_back, self._lock, self._readers = give_back, threading.Lock(), 1

    @property
    def is_alone(self) -> bool:
        """True if one reader is left."""
        return self._readers == 1

    def keep(self) -> None:
        with self._lock:
            self._readers += 1

    def release(self) -> None:
        with self._lock:
            self._readers -= 1
            is_last = self._readers == 0
        if is_last:
            self._give_back()


class Frame(Struct, frozen=True, gc=False):
    """One picture of a stream.

    Attributes:
        pixels: `image`, or what it is made of; nobody else reads it.
        stream: name of the stream.
        seq: running number within the stream, from 0; a gap is a dropped frame.
        captured_ns: CLOCK_MONOTONIC at capture, ns. A replay at `pace=fast` counts recorded time from its
            start instead, so that tracks move as they did.
        captured_at: UTC at capture, on the same clock as `captured_ns`.
        order: order of the three channels.
        read_ns: CLOCK_MONOTONIC when it was read, ns; the start of its latency.
        shared: other streams have the same image: it must not be written to.
        unmasked: the picture without masks, of a stream with `mask_model = false`, as long as `image` is valid;
            None: `image` is all that may be seen. Only `model_image` reads it.
        late: decoded later than it came, after something has drawn attention to it; its latency says nothing
            about the board.
        lease: counts its readers; None: its memory is never used again.
    """

    pixels: Pixels
    stream: str
    seq: int
    captured_ns: int
    captured_at: datetime
    order: ChannelOrder = "bgr"
    read_ns: int = 0
    shared: bool = False
    unmasked: Image | None = None
    late: bool = False
    lease: Lease | None = None

    def keep(self) -> None:
        """Read the frame beyond the call that got it: `release` follows, from any thread."""
        if self.lease is not None:
            self.lease.keep()

    def release(self) -> None:
        """Read the frame no more; once for each `keep`, and once for who has taken it from its `FrameStream`."""
        if self.lease is not None:
            self.lease.release()

    @property
    def may_be_drawn_on(self) -> bool:
        """True if no other stream and no other part reads it."""
        return not self.shared and (self.lease is None or self.lease.is_alone)

    @property
    def image(self) -> Image:
        """H×W×3 uint8, with the stream's privacy masks; converted at the first use.

        Valid until the frame was released by all of its readers.
        """
        pixels = self.pixels
        return pixels if isinstance(pixels, np.ndarray) else pixels.image()

    @property
    def shape(self) -> tuple[int, ...]:
        """Height, width and 3."""
        return self.pixels.shape

    @property
    def luma(self) -> Luma | None:
        """Brightness of the picture that models are shown; None, as where masks are: take `model_image`."""
        pixels = self.pixels
        return None if isinstance(pixels, np.ndarray) else pixels.luma()

    @property
    def planes(self) -> Planes | None:
        """The picture that models are shown, as it was decoded; None, as where masks are: take `model_image`."""
        pixels = self.pixels
        return None if isinstance(pixels, np.ndarray) else pixels.planes()

    @property
    def model_image(self) -> Image:
        """What models and the motion gate are shown. It must not be stored, sent or shown to people."""
        return self.image if self.unmasked is None else self.unmasked


class MediaTrack(Struct, frozen=True, gc=False):
    """One elementary stream of a camera or file, whose packets are not decoded.

    Plain data, that outlives the connection.

    Attributes:
        kind: what its packets hold.
        codec: FFmpeg's name, such as `h264`, `hevc`, `mjpeg`, `aac` or `pcm_alaw`.
        time_base: seconds per tick of its time stamps, as numerator and denominator.
        header: initialisation segment of a fragmented MP4 file with this track alone (ISO/IEC 14496-12, `ftyp`
            and `moov`), which holds the parameters that a decoder needs; empty: MP4 cannot hold this codec.
        width, height: pixels; 0 for sound.
        rate_hz, channels: samples per second and their channels; 0 for video.
        setup: parameters that a decoder of sound needs, FFmpeg's `extradata`; empty: none.
    """

    kind: Literal["video", "sound"]
    codec: str
    time_base: tuple[int, int]
    header: bytes
    width: int = 0
    height: int = 0
    rate_hz: int = 0
    channels: int = 0
    setup: bytes = b""


class MediaPacket(Struct, frozen=True, gc=False):
    """One packet of a track: an encoded picture, or a piece of encoded sound.

    Attributes:
        track: what it belongs to; another object after a reconnection or a change of the codec or size.
        data: the encoded bytes, as the demultiplexer gave them.
        pts, dts: time stamps of presentation and of decoding, ticks of the track; None: the stream gives none.
        duration: ticks; 0: unknown.
        keyframe: whether decoding can begin with it.
        captured_ns: CLOCK_MONOTONIC when it was read, ns.
        began_ns: CLOCK_MONOTONIC when its picture, or its first sample, was captured, ns: its time stamp on the
            clock of all tracks of a camera; 0: unknown, as of a file.
    """

    track: MediaTrack
    data: bytes
    pts: int | None
    dts: int | None
    duration: int
    keyframe: bool
    captured_ns: int
    began_ns: int = 0


class AudioChunk(Struct, frozen=True, gc=False):
    """Audio of a stream, without a gap.

    Attributes:
        samples: N int16, one channel, C-contiguous, N > 0. Read only; the memory is not used again.
        rate_hz: samples per second.
        stream: name of the stream.
        first: index of the first sample since the source was first opened, counting lost ones: where it exceeds
            the end of the chunk before, audio is missing.
        captured_ns: CLOCK_MONOTONIC when the last sample was captured, ns. A replay at `pace=fast` counts
            recorded time from its start instead, as a `Frame` does.
        captured_at: UTC of the same moment, on the same clock as `captured_ns`.
        read_ns: CLOCK_MONOTONIC when the last sample was read, ns; the start of its latency.
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
    """One result of a decoder for one frame or window of audio.

    Attributes:
        label: class name.
        score: 0..1.
        box: where it is; None for the whole frame, and for audio.
        keypoints: named points, if the model gives any.
        outline: polygon around a segmented region, if the model gives one.
        area: share 0..1 of the frame that a segmented region covers.
        values: a measurement, or the numbers of an output, if the model gives these.
    """

    label: str
    score: float
    box: Box | None = None
    keypoints: tuple[Keypoint, ...] = ()
    outline: tuple[Point, ...] = ()
    area: float | None = None
    values: tuple[float, ...] = ()


class Attribute(Struct, frozen=True, omit_defaults=True):
    """What a secondary model tells about a tracked object, joined over several pictures.

    Attributes:
        value: label or text; of a measurement its name.
        score: of this value, 0..1, the mean over all answers, the newer ones more: 0 where it told another value.
        answers: number of pictures of which it told something.
        values: a measurement, or the numbers of an output, their mean over the pictures.
        box, keypoints: of the newest answer with this value, if the model gives any.
    """

    value: str
    score: float
    answers: int = 1
    values: tuple[float, ...] = ()
    box: Box | None = None
    keypoints: tuple[Keypoint, ...] = ()


class FusedEvidence(Struct, frozen=True, omit_defaults=True):
    """One piece of what a fused event rests on.

    Attributes:
        source: name of the stream, or of the text input.
        label, score, track: of the track or keyword; of a text, the words that were asked for, 1, and empty.
        age_s: time from its end to the event, s; None: it was going on.
    """

    source: str
    label: str
    score: float
    track: str = ""
    age_s: float | None = None


class Crossing(Struct, frozen=True, gc=False):
    """A line, by its name, that a track has crossed in a direction, see `LineConfig`."""

    line: str
    direction: Literal["in", "out"]


class Track(Struct, frozen=True, omit_defaults=True):
    """A detection over time, or a fused event.

    Attributes:
        id: unique over streams and restarts.
        label: class name.
        score: of the newest detection, 0..1.
        best_score: highest so far, 0..1.
        hits: number of frames in which it was detected.
        first_seen, last_seen: UTC of capture of the first and the newest detection; for a stationary track, of
            the newest frame in which nothing moved there.
        box, keypoints, outline, area: of the newest detection.
        zones: names of the zones that it is in now, in config order.
        stationary: whether it has not left its place for `track.stationary_after_s`.
        evidence: what a fused event rests on, newest first; its `hits` count the pieces.
        attributes: what secondary models tell about it, by their name in the configuration.
        crossed: lines that it has crossed, the newest last, at most eight.
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
    evidence: tuple[FusedEvidence, ...] = ()
    attributes: dict[str, Attribute] = {}
    crossed: tuple[Crossing, ...] = ()


class Event(Struct, frozen=True):
    """A track began, changed or ended, or a keyword was detected. Every `new` has exactly one `end`.

    Attributes:
        track: current state; a keyword's track has already ended.
        reason: `appeared`, `zone`, `line`, `moved`, `clearer`, `still here`, `stationary`, `attribute`, `lost`,
            `ended`, `stall`, `shutdown`, `restart`, `word` …
    """

    kind: EventKind
    track: Track
    reason: str


class StageTimes(Struct, frozen=True, gc=False):
    """Time spent in each stage on one frame, ns; `queue` is the time before the first.

    `secondary` is the time of all models that were run on its objects.
    """

    queue: int = 0
    gate: int = 0
    prepare: int = 0
    infer: int = 0
    decode: int = 0
    track: int = 0
    secondary: int = 0

    @property
    def total(self) -> int:
        """Sum of all stages, ns."""
        return self.queue + self.gate + self.prepare + self.infer + self.decode + self.track + self.secondary


class StreamResult(Struct, frozen=True):
    """Result of one frame: events of the tracks, and times.

    `detections` is None if the gate was closed and the model did not run; `predicted`: where the tracks should be
    now, if the frame was not inferred although the gate was open.
    """

    events: list[Event]
    detections: list[Detection] | None
    stages: StageTimes
    predicted: list[Detection] | None = None


class OpenTrack(Struct, frozen=True, gc=False):
    """The crash end of a track: its `end` event, which the next start publishes if this process dies first.

    `body` is JSON, None: the track has ended. A later crash end of one `key` replaces an earlier one.
    """

    key: str
    body: bytes | None


class Stored(Struct, frozen=True, gc=False):
    """A message in the spool.

    Attributes:
        seq: gap-free number per device.
        topic: MQTT topic.
        body: JSON as it was put, without `seq` and without the time of publishing.
        put_at: Unix time at which it was put, s.
        first_seq: first number of the daemon's run that put it; 0: unknown.
    """

    seq: int
    topic: str
    body: bytes
    put_at: float
    first_seq: int = 0


class ClipReason(Struct, frozen=True):
    """Why a clip is made: the event that it began with, its track's id and label.

    The reason is `asked`, and the track empty, if a command began it.
    """

    stream: str
    reason: str
    track: str = ""
    label: str = ""


class Clip(Struct, frozen=True):
    """A saved clip; `path` is absolute.

    `tracks` are the ids of all tracks that it was made for, the occasion's first. It lasts from `began_at`, the
    UTC of its first picture, to `ended_at`. `repaired`: a crash or a power cut ended it.
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
