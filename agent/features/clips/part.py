"""Clips of one stream: keep a ring of packets, and record around events or without a pause.

Packets of a camera are copied as they are. Where there are none, or none that browsers play, the thread
`clips-NAME` encodes pictures: the stream's thread hands frames over, and a frame that comes while another waits
to be encoded replaces it, except in a replay that waits. The recorder's thread writes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from msgspec.structs import asdict

from agent import spans
from agent.capture.source import DecodeMode, Demand
from agent.capture.streams import LatestFrame
from agent.comms.messages import clip_message, encode
from agent.compute.av_encoding import PictureEncoder, SoundTranscoder
from agent.config import Config, StreamConfig
from agent.config.features import StreamBudget
from agent.config.source_uri import parse
from agent.daemon.parts import NO_DEMAND, Asked, DevicePart, Parts, Reply, StreamContext, StreamPart
from agent.errors import BackendError, CommandError
from agent.features.clips.rules import ClipTrigger, PicturePace
from agent.health import ClipsHealth
from agent.storage.clips.file import SOUND_CODECS, VIDEO_CODECS
from agent.storage.clips.job import FOREVER_NS, ClipJob
from agent.storage.clips.packets import PacketRing
from agent.storage.clips.recorder import Recorder
from agent.storage.clips.store import CONTINUOUS
from agent.types import Clip, ClipReason, Event, Frame, MediaPacket, MediaTrack, StreamResult

if TYPE_CHECKING:
    from agent.capture.streams import PacketStream
    from agent.daemon.runtime import Runtime

log = logging.getLogger(__name__)
ASKED = "asked"
"""Reason of a clip that a command requested."""
_TAKE_S = 0.5
_FLUSH_S = 5.0
"""Longest wait for a clip's message to reach the disk, s; after a crash before that, it is published again."""
_CLOSE_S = 0.4
_RING_BYTES = 32 * 1024 * 1024
"""Memory for the packets before a clip, bytes."""
_WAKE_BYTES = 1024 * 1024
"""Bytes after which the recorder is woken."""
_SOUND_NS = 250_000_000
"""Sound that is encoded at a time, ns: what is done packet by packet finds the processor's caches cold."""


class PacketInput:
    """Puts the packets of a camera into a ring, with sound that browsers play. For the thread that reads it.

    Attributes:
        copies: True if the newest video can be copied.
        waits: True if it can be copied once the camera has sent its parameters.
        trouble: why the newest video is not recorded; empty: it is, or its pictures are encoded.
    """

    def __init__(self, stream: str, ring: PacketRing, *, is_only: bool) -> None:
        """Prepare; `is_only`: nothing is recorded where packets cannot be copied."""
        self._stream, self._ring, self._is_only = stream, ring, is_only
        self._video: MediaTrack | None = None
        self._sound: MediaTrack | None = None
        self._transcoder: SoundTranscoder | None = None
        self._gathered: list[MediaPacket] = []
        self._about: tuple[str, int, int] | None = None
        self.copies = self.waits = self._copies_sound = False
        self.trouble = ""

    def add(self, packet: MediaPacket) -> int:
        """Add a packet; return the bytes that were put into the ring."""
        track = packet.track
        if track.kind == "video":
            if track is not self._video:
                self._begin_video(track)
            if packet.keyframe:  # a group of pictures has the sound that came with it
                self._encode_sound()
            if self.copies:
                self._ring.add(packet)
            return len(packet.data) if self.copies else 0
        if not self.copies:
            return 0
        if track is not self._sound:
            self._begin_sound(packet)
        if self._copies_sound:
            self._ring.add(packet)
        elif self._transcoder is not None:
            self._gathered.append(packet)
            if packet.captured_ns - self._gathered[0].captured_ns >= _SOUND_NS:
                self._encode_sound()
        return len(packet.data)

    def _encode_sound(self) -> None:
        gathered, self._gathered = self._gathered, []
        for packet in gathered:
            assert self._transcoder is not None
            for made in self._transcoder.transcode(packet):
                self._ring.add(made)

    def _begin_video(self, track: MediaTrack) -> None:
        self._video, known = track, bool(track.header) and track.width > 0
        self.copies = known and track.codec in VIDEO_CODECS
        self.waits = not known and track.codec in VIDEO_CODECS
        if self.waits:
            return
        before, self.trouble = self.trouble, ""
        if not self.copies and self._is_only:
            self.trouble = f"record_source gives {track.codec}, which clips cannot hold: set it to H.264 or H.265"
        about = track.codec, track.width, track.height
        if self.trouble and self.trouble != before:
            log.error("stream %s: clips: nothing is recorded: %s", self._stream, self.trouble)
        elif about != self._about and not self.trouble:
            what = "is copied" if self.copies else "is not played by browsers: pictures are encoded as H.264"
            size = f"{track.width}x{track.height}"
            log.info("stream %s: clips: %s of %s %s", self._stream, track.codec, size, what)
        self._about = about

    def _begin_sound(self, packet: MediaPacket) -> None:
        track = self._sound = packet.track
        self._transcoder, self._gathered = None, []
        self._copies_sound = bool(track.header) and track.codec in SOUND_CODECS and not _has_adts(packet)
        if not self._copies_sound:
            try:
                self._transcoder = SoundTranscoder(track)
            except BackendError as error:
                log.warning("stream %s: clips have no sound: %s", self._stream, error)


def _has_adts(packet: MediaPacket) -> bool:
    """Return True if each packet of AAC has a header, as in MPEG-TS (ISO/IEC 14496-3): MP4 holds none."""
    return packet.track.codec == "aac" and packet.data[:1] == b"\xff" and packet.data[1:2] >= b"\xf0"


def nothing_to_record(stream: str, state: str, detail: str = "") -> CommandError:
    """Return the refusal to record a stream in whose state there is nothing to record."""
    return CommandError(f"stream {stream} is {state}, so there is nothing to record{detail and f': {detail}'}")


class StreamClips(StreamPart):
    """Clips of one stream. For the stream's thread; any thread may call `record`, `abandon` and `set_budget`.

    Attributes:
        other_source: that is recorded instead of the one that is looked at; it is closed with the clips.
    """

    def __init__(self, stream: str, config: StreamConfig, recorder: Recorder) -> None:
        """Keep packets from now on; pictures are encoded from the first frame on that needs it.

        Args:
            stream: its name.
            config: of the stream; it has clips.
            recorder: of the device.
        """
        assert config.clips is not None
        self._stream, self._config, self._recorder = stream, config.clips, recorder
        clips, lossless = config.clips, parse(config.source).lossless
        self._has_other_source = bool(clips.record_source)
        self._copies = not config.hides  # else what is hidden would be seen
        self._trigger = ClipTrigger(stream, clips, only_zones=config.publish.only_zones)
        self._ring = PacketRing(clips.before_s, _RING_BYTES, patient=lossless)
        self._input = PacketInput(stream, self._ring, is_only=self._has_other_source)
        self._encoder = PictureEncoder(clips.max_width, clips.quality, clips.fps)
        self._slot = LatestFrame(lossless=lossless)
        self._lock = threading.Lock()
        self._job: ClipJob | None = None
        self._asked: ClipJob | None = None
        self._whole: ClipJob | None = None
        self._pace = PicturePace(clips.fps)
        self._frame_now = time.monotonic_ns(), time.monotonic_ns()
        self._packet_now: tuple[int, int] | None = None
        self._waiting, self._has_failed, self._ended = 0, False, False
        self._stall_s = config.capture.stall_s if self._has_other_source else 0.0
        self._thread: threading.Thread | None = None
        self.other_source: PacketStream | None = None
        if clips.record == CONTINUOUS:
            reason, now, stall_s = ClipReason(stream, CONTINUOUS), datetime.now(UTC), config.capture.stall_s
            self._whole = recorder.begin(
                self._ring, reason, now, 0, 0, segment_s=clips.segment_s, stall_s=stall_s
            )

    @property
    def on_packet(self) -> Callable[[MediaPacket], None] | None:
        """What takes the packets of the source that is looked at; None: they are not recorded."""
        return self.add_packet if self._copies and not self._has_other_source else None

    @property
    def encodes(self) -> bool:
        """True if pictures are encoded: no packets come, or none that can be copied."""
        return not self._has_other_source and not self._input.copies and not self._input.waits

    @property
    def trouble(self) -> str:
        """Why nothing can be recorded of the other source; empty: it can, or there is none."""
        if (other := self.other_source) is None:
            return ""
        stats = other.stats
        return f"record_source: lost: {stats.detail}" if stats.state == "lost" else self._input.trouble

    def demand(self) -> Demand:
        return Demand(DecodeMode.FULL, exact=True) if self.encodes else NO_DEMAND

    def process(self, item: Frame, result: StreamResult) -> None:
        self.add_frame(item, result.events)

    def idle(self, events: Sequence[Event], *, lost: bool) -> None:
        self.add_events(events)

    def end(self, events: Sequence[Event], reason: str) -> None:
        self.add_events(events)

    def add_packet(self, packet: MediaPacket) -> None:
        """Take a packet of the camera. For one thread, that of the capture."""
        self._packet_now = packet.captured_ns, time.monotonic_ns()
        self._wake_after(self._input.add(packet))

    def _wake_after(self, more: int) -> None:
        """Wake the recorder when enough bytes wait; slower streams are served by its own polling."""
        self._waiting += more
        if self._waiting > _WAKE_BYTES:
            self._waiting = 0
            self._recorder.wake()

    def add_frame(self, frame: Frame, events: Sequence[Event]) -> bool:
        """Process a frame and its events. Return True if it was kept, and is released later."""
        at_ns = frame.captured_ns
        with self._lock:
            self._frame_now = at_ns, time.monotonic_ns()
            begins = self._trigger_on(events, at_ns, frame.captured_at) if events else False
        if self._ended or not self.encodes or not self._pace.takes(at_ns, must=begins):
            return False
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"clips-{self._stream}", daemon=True)
            self._thread.start()
        frame.keep()
        replaced = self._slot.put(frame)
        if replaced is not None:
            replaced.release()
        return replaced is not frame

    def set_budget(self, budget: StreamBudget) -> None:
        """Encode pictures at the share of a budget; packets that are copied stay as they are."""
        self._pace.set_share(budget.clips_share)

    def add_events(self, events: Sequence[Event]) -> None:
        """Process events that came without a frame."""
        if events:
            with self._lock:
                self._trigger_on(events, self._time_ns(), datetime.now(UTC))

    def record(self, seconds: float, state: str = "running", detail: str = "") -> str:
        """Save the newest seconds and the next ones in a clip of their own; return its file that is written now.

        If such a clip is being recorded, it goes on for so long, or another one begins if that is too long.
        Of a clip that goes on in another file, which is not open yet, it is the folder.

        Args:
            seconds: that are recorded from now on.
            state: of the source that is looked at.
            detail: its reason.

        Raises:
            CommandError: there is nothing to record, or it would be longer than the configuration allows.
            StorageError: it could not be saved, with the reason.
        """
        max_s = self._config.max_s
        if not 0.0 < seconds <= max_s:
            raise CommandError(
                f"stream {self._stream}: a clip of {seconds:g} s cannot be recorded; expected more than 0 and at "
                f"most clips.max_s, {max_s:g}"
            )
        self._check_source(state, detail)
        kept_s = max(1.0, self._config.before_s)
        self._recorder.check(self._stream, round(self._ring.bytes * (1.0 + seconds / kept_s)))
        with self._lock:
            if self._ended:
                raise nothing_to_record(self._stream, "being stopped")
            now_ns, now = self._time_ns(), datetime.now(UTC)
            job, until_ns, most_ns = self._asked, now_ns + round(seconds * 1e9), round(max_s * 1e9)
            if job is None or until_ns > job.at_ns + most_ns or not job.move_end(max(until_ns, job.until_ns)):
                job = self._asked = self._begin(ClipReason(self._stream, ASKED), now_ns, now, until_ns)
            return job.shown

    def _check_source(self, state: str, detail: str) -> None:
        """Raise CommandError if nothing comes to be recorded."""
        what = self._stream
        if (other := self.other_source) is not None:
            what, state, detail = f"{what}: record_source", other.stats.state, other.stats.detail
            if self._input.trouble:
                raise CommandError(f"stream {self._stream}: there is nothing to record: {self._input.trouble}")
        if state in ("starting", "lost"):
            raise nothing_to_record(what, state, detail)

    def close(self) -> None:
        """End a running recording, and stop encoding."""
        other, self.other_source = self.other_source, None
        if other is not None:
            other.stop()
        self._slot.close()
        if self._thread is not None:
            self._thread.join(_CLOSE_S)
        with self._lock:
            self._end(FOREVER_NS)

    def abandon(self) -> None:
        """End a running recording with what was captured until now, and begin none any more.

        Any thread may call this. The stream's own thread may be stuck, and go on when another stream, with other
        masks, has replaced this one. The other source is closed, but not waited for.
        """
        with self._lock:
            self._end(self._time_ns())
            other, self.other_source = self.other_source, None
        if other is not None:
            other.stop(wait=False)

    def _end(self, until_ns: int) -> None:
        self._ended = True
        for job in (self._job, self._asked, self._whole):
            if job is not None:
                job.end(until_ns)

    def _time_ns(self) -> int:
        """Time now by the clock of frames or, if later, of packets, ns: frames of a slow camera come late."""
        clocks, now_ns = filter(None, (self._frame_now, self._packet_now)), time.monotonic_ns()
        return max(at_ns + now_ns - then_ns for at_ns, then_ns in clocks)

    def _trigger_on(self, events: Sequence[Event], at_ns: int, at: datetime) -> bool:
        """Begin or prolong a clip where the events ask for it. Return True if one begins."""
        if self._ended:
            return False
        begins = self._trigger.on_events(events, at_ns)
        until_ns = self._trigger.until_ns
        if begins is not None:
            self._job = self._begin(begins, at_ns, at, until_ns)
        if self._job is not None and not self._job.finished:
            self._job.tracks = self._trigger.tracks
            self._job.move_end(until_ns)
        return begins is not None

    def _begin(self, reason: ClipReason, at_ns: int, at: datetime, until_ns: int) -> ClipJob:
        from_ns = at_ns - round(self._config.before_s * 1e9)
        return self._recorder.begin(self._ring, reason, at, at_ns, from_ns, until_ns, stall_s=self._stall_s)

    def _run(self) -> None:
        while not self._slot.drained:
            frame = self._slot.take(_TAKE_S)
            if frame is None:
                continue
            try:
                self._encode(frame)
            except Exception as error:  # else a replay would wait forever
                if not self._has_failed:
                    is_known = isinstance(error, BackendError)
                    what = "" if is_known else f"internal error (please report): {type(error).__name__}: "
                    log.error("stream %s: clips: %s%s", self._stream, what, error)
                self._has_failed = True
            finally:
                frame.release()

    def _encode(self, frame: Frame) -> None:
        with spans.span("encode"):
            packets = self._encoder.encode(frame)
        for packet in packets:
            self._ring.add(packet)
            self._wake_after(len(packet.data))


def open_part(context: StreamContext, _: Parts) -> StreamClips:
    """Record a stream."""
    part = StreamClips(context.name, context.config, context.services.device("clips").recorder)
    part.other_source = open_record_source(context.name, context.config, part.add_packet)
    return part


def open_record_source(
    name: str, config: StreamConfig, on_packet: Callable[[MediaPacket], None]
) -> PacketStream | None:
    """Return the second source of a stream, which runs from now on; None: it has none."""
    if config.clips is None or not config.clips.record_source:
        return None
    from agent.capture.streams import PacketStream

    def log_change(state: str, reason: str) -> None:
        level = logging.WARNING if state == "lost" else logging.INFO
        log.log(level, "stream %s: record_source: %s: %s", name, state, reason)

    uri = config.clips.record_source
    opened = PacketStream(name, uri, config.capture, on_packet=on_packet, on_change=log_change)
    opened.start()
    return opened


class ClipsWriter(DevicePart):
    """Writes the clips of all streams, and announces them.

    Attributes:
        recorder: of the device.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.recorder = Recorder(runtime.clips_folder, runtime.config.storage, self._announce)

    @property
    def trouble(self) -> str:
        return self.recorder.stats.trouble

    @property
    def behind_s(self) -> float:
        return self.recorder.behind_s

    def start(self) -> None:
        self.recorder.start()

    def configure(self, config: Config) -> None:
        self.recorder.configure(config.storage)

    def health(self) -> dict[str, Any]:
        if all(stream.config.clips is None for stream in dict(self._runtime.streams).values()):
            return {}  # a reload has turned them off
        return {"clips": ClipsHealth(**asdict(self.recorder.stats))}

    def close(self, seconds: float) -> None:
        self.recorder.close(seconds)

    def _announce(self, clip: Clip) -> None:
        """Publish a clip's message, unless its stream is off."""
        runtime, stream = self._runtime, clip.occasion.stream
        if stream not in runtime.silent:
            runtime.spool.put(runtime.topics.clips(stream), encode(clip_message(clip, runtime.topics.device)))
            runtime.spool.flush(_FLUSH_S)


def open_device_part(runtime: Runtime) -> ClipsWriter:
    """Write the clips of all streams."""
    return ClipsWriter(runtime)


def record(asked: Asked) -> Reply:
    """Begin a clip, whose message is published when it is complete. Raises CommandError or StorageError."""
    stream = asked.stream
    if stream.config.clips is None:
        raise CommandError(f"stream {stream.name}: clips are off; [streams.{stream.name}.clips] turns them on")
    if (clips := stream.parts.get("clips")) is None:
        raise nothing_to_record(stream.name, *stream.status)
    return "", {"path": clips.record(asked.command.seconds, *stream.status)}
