"""A camera whose packets come from a file, on the file's own time. Part of the bench `decode`."""

from __future__ import annotations

import hashlib
import threading
import time
import zlib
from collections.abc import Iterator
from datetime import timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from _stillness import BEGAN, LABEL, config_for
from av.packet import Packet
from av.stream import Stream
from av.video.stream import VideoStream
from gate import Sink
from msgspec import Struct
from numpy.typing import NDArray

from agent.capture.media import Media
from agent.capture.network import NetworkStream
from agent.capture.source import DecodeChoice, Demand
from agent.comms.messages import ModelId
from agent.comms.reporter import Reporter
from agent.comms.topics import Topics
from agent.compute.infer.backends import open_session
from agent.compute.infer.session import Session, SessionOptions
from agent.compute.manifest import Model
from agent.compute.vision import VideoPerception
from agent.config import DecodeConfig, PublishConfig
from agent.config.source_uri import parse
from agent.daemon.streams.pipeline import VideoPipeline
from agent.errors import SourceError
from agent.models.library import open_model
from agent.types import Frame, Image, MediaPacket, OpenTrack


class Encoding(Struct, frozen=True):
    """How a camera encodes.

    Attributes:
        codec: FFmpeg's encoder.
        fps: pictures per second.
        gop: pictures from one key frame to the next.
        kbit_s: constant rate; 0: constant quality.
    """

    codec: str = "libx264"
    fps: int = 10
    gop: int = 20
    kbit_s: int = 0


def encode(path: Path, pictures: Iterator[Image], encoding: Encoding) -> None:
    """Write pictures, BGR, into an MPEG transport stream, without B pictures, as cameras send."""
    with av.open(str(path), "w", format="mpegts") as container:
        stream: VideoStream | None = None
        for number, picture in enumerate(pictures):
            if stream is None:
                added = container.add_stream(encoding.codec, rate=encoding.fps, options=_options(encoding))
                stream = cast(VideoStream, added)
                stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], "yuv420p"
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
            frame.pts, frame.time_base = number, Fraction(1, encoding.fps)
            container.mux(stream.encode(frame))
        assert stream is not None
        container.mux(stream.encode(None))


def _options(encoding: Encoding) -> dict[str, str]:
    gop = f"keyint={encoding.gop}:min-keyint={encoding.gop}:scenecut=0"
    if encoding.kbit_s:
        gop += f":bitrate={encoding.kbit_s}:vbv-maxrate={encoding.kbit_s}:vbv-bufsize={encoding.kbit_s}"
    if encoding.codec == "libx265":
        return {"preset": "ultrafast", "tune": "zerolatency", "x265-params": f"{gop}:log-level=none:bframes=0"}
    return {"preset": "veryfast", "tune": "zerolatency", "x264-params": gop}


class _Recorded(Media):
    """A file whose packets arrive when they are due, on a clock of its own."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), {})
        self.began_ns = self.now_ns = time.monotonic_ns()
        self._first: Fraction | None = None

    def packets(self) -> Iterator[Packet[Stream]]:
        for packet in super().packets():
            if packet.size and packet.dts is not None:
                at_s = packet.dts * packet.time_base
                self._first = at_s if self._first is None else self._first
                self.now_ns = self.began_ns + round((at_s - self._first) * 1_000_000_000)
            yield packet


class Camera:
    """A frame source of the pipeline, which decodes on its demand.

    Attributes:
        decoded, came: pictures decoded, and all.
        cpu_s: processor time of reading and decoding, s.
        full_s: recorded time during which everything was decoded, s.
    """

    lost = wants_packets = wants_sound = False

    def __init__(self, path: Path, decode: DecodeChoice) -> None:
        self._media = _Recorded(path)
        self._source = NetworkStream(self._media, parse("rtsp://127.0.0.1/cam"), 60.0, lambda: self._media.now_ns)
        self.decode, self.demand, self.ended = decode, Demand(), False
        self.decoded = self.came = 0
        self.cpu_s = self.full_s = 0.0
        self._source.follow(self)

    @property
    def decoder(self) -> str:
        return "software"

    def take_packet(self, packet: MediaPacket) -> None:
        """Nobody records."""

    def set_demand(self, demand: Demand) -> None:
        self.demand = demand

    @property
    def now_s(self) -> float:
        """Recorded time, s."""
        return (self._media.now_ns - self._media.began_ns) / 1e9

    def take(self, timeout_s: float) -> Frame | None:
        """The next frame; None at the end."""
        source, began_s = self._source, time.thread_time()
        try:
            while True:
                before_s = self.now_s
                source.grab()
                if source.decoding == "full":
                    self.full_s += self.now_s - before_s
                if source.holds:
                    break
            image = source.picture(None)
        except SourceError:
            self.ended, self.came = True, source.undecoded + self.decoded
            source.close()
            return None
        finally:
            self.cpu_s += time.thread_time() - began_s
        self.decoded += 1
        at_s = (source.captured_ns - self._media.began_ns) / 1e9
        at = BEGAN + timedelta(seconds=at_s)
        read_ns = time.monotonic_ns()
        return Frame(image, "bench", self.decoded, source.captured_ns, at, read_ns=read_ns, late=source.late)

    def give_back(self, frame: Frame) -> None:
        """Each frame has memory of its own."""


class Seen(Struct, frozen=True):
    """Someone was announced: when she was captured, and when that was told, s of recorded time."""

    captured_s: float
    told_s: float


class _Announced(Sink):
    """Notes when someone is announced."""

    def __init__(self, camera: Camera) -> None:
        super().__init__()
        self._camera = camera
        self.seen: list[Seen] = []

    def put(self, topic: str, body: bytes, track: OpenTrack | None = None) -> None:
        super().put(topic, body, track)
        for event in self.events:
            if event.kind == "new":
                captured_s = (event.captured_at - BEGAN).total_seconds()
                self.seen.append(Seen(captured_s, self._camera.now_s))
        self.events.clear()


class Watched(Struct, frozen=True):
    """What came of a camera that was watched by the real pipeline with the real model.

    Attributes:
        seen: who was announced.
        camera: with its counters.
        inferences: that were made.
    """

    seen: list[Seen]
    camera: Camera
    inferences: int


class Answers:
    """What a model has answered to the inputs of a scene, compressed: runs that see the same share it."""

    def __init__(self) -> None:
        self._known: dict[bytes, list[tuple[bytes, np.dtype[Any], tuple[int, ...]]]] = {}

    def open(self, model: Model, plan: str, options: SessionOptions) -> Session:
        """Open a model whose answers are remembered."""
        return cast(Session, _Remembering(open_session(model, plan, options), self))

    def find(self, key: bytes) -> list[NDArray[Any]] | None:
        """Return what was answered; None: nothing yet."""
        known = self._known.get(key)
        if known is None:
            return None
        return [np.frombuffer(zlib.decompress(data), dtype).reshape(shape).copy() for data, dtype, shape in known]

    def add(self, key: bytes, outputs: list[NDArray[Any]]) -> None:
        """Remember an answer."""
        self._known[key] = [(zlib.compress(one.tobytes(), 1), one.dtype, one.shape) for one in outputs]


class _Remembering:
    """A session that runs the model only on inputs that are new."""

    def __init__(self, session: Session, answers: Answers) -> None:
        self._session, self._answers = session, answers
        self._found: list[NDArray[Any]] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def invoke(self) -> None:
        session = self._session
        key = hashlib.blake2b(session.input(0).tobytes() + session.variant.encode()).digest()
        self._found = self._answers.find(key)
        if self._found is None:
            session.invoke()
            self._answers.add(key, [session.output(index) for index in range(len(session.outputs))])

    def output(self, index: int) -> NDArray[Any]:
        return self._session.output(index) if self._found is None else self._found[index]


def watch(path: Path, model: str, decode: DecodeChoice, answers: Answers | None = None) -> Watched:
    """Take a recorded camera through the pipeline."""
    publish, camera = PublishConfig(snapshot=False), Camera(path, decode)
    config = config_for(model, DecodeConfig(labels=(LABEL,)), gate=True)
    opener = open_session if answers is None else answers.open
    vision, sink = VideoPerception("bench", config, open_model(model), opener), _Announced(camera)
    reporter = Reporter(Topics("vedette", "bench"), "bench", publish, ModelId("bench", ""), sink, sink)
    pipeline = VideoPipeline(camera, vision, reporter)
    pipeline.on_demand = camera.set_demand
    pipeline.run(threading.Event())
    vision.close()
    return Watched(sink.seen, camera, pipeline.metrics.inferences)
