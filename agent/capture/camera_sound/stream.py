"""The sound of a camera on the network: one more consumer of the connection that its pictures come through."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from agent.capture.camera import Camera, Cameras, Picture
from agent.capture.camera_sound.packet_sound import PacketSound
from agent.capture.decode_policy import DecodeMode, Demand
from agent.capture.privacy import NO_PRIVACY, MaskPainter
from agent.capture.reader import AudioBlock, AudioReader, Timestamps
from agent.capture.source import SoundSource
from agent.capture.streams import AudioStream, SoundStream
from agent.capture.supervisor import CaptureStats, OnChange, SourceState, SourceSupervisor
from agent.config import CaptureConfig
from agent.config.source_uri import parse, parse_sound
from agent.errors import SoundAloneError, SourceError
from agent.types import ChannelOrder, MediaPacket, Pixels

_STOP_S = 0.3


class PacketAudioReader(AudioReader):
    """Decodes, resamples and stamps the sound of a camera, over all of its connections."""

    def __init__(
        self,
        uri: str,
        rate_hz: int,
        sound: PacketSound,
        deliver: Callable[[AudioReader, AudioBlock], bool],
        on_end: Callable[[SourceError | None], None],
        name: str,
    ) -> None:
        super().__init__(uri, rate_hz, deliver, threading.Event(), stall_s=0.0, name=name)
        self._sound, self._on_end = sound, on_end

    def _open(self) -> SoundSource:
        while not self._abandoned.is_set() and not self._sound.wait_for_rate():
            pass
        self._sound.rate_hz = self._sound.rate_hz or self._rate_hz
        return self._sound

    def _run(self) -> None:
        super()._run()
        self._on_end(self.error)


class CameraSoundStream(SoundStream):
    """Sound of a camera on the network, which other streams may share, see `agent.capture.camera`.

    No picture is decoded for it. If more than 5 s were not taken, the oldest sound is dropped. Its times are on
    the clock of the pictures. A camera without sound, or whose sound stalls, is told as `lost`, although the
    pictures of other streams go on; a camera that only this stream uses is opened again then. Of a source that
    has sound alone, and that another stream wants pictures of, it opens a connection of its own.
    """

    wants_packets, wants_sound = False, True
    demand, privacy = Demand(DecodeMode.NOTHING, most=DecodeMode.KEYFRAMES), NO_PRIVACY
    painter: MaskPainter | None = None

    def __init__(
        self,
        stream: str,
        uri: str,
        config: CaptureConfig,
        rate_hz: int,
        *,
        on_change: OnChange,
        cameras: Cameras | None = None,
    ) -> None:
        """Prepare the stream; nothing is opened yet. The arguments are those of `AudioStream`.

        Args:
            stream: name of the stream, for chunks and threads.
            uri: of a camera on the network.
            config: of the stream; `max_fps` is not used.
            rate_hz: samples per second to hand on.
            on_change: see `OnChange`.
            cameras: that other streams use; None: the camera is this stream's alone.

        Raises:
            SourceError: the URI is wrong, or names a source without sound.
        """
        super().__init__(stream, rate_hz, lossless=False)
        self._uri, self._config, self._on_change = uri, config, on_change
        self._cameras = cameras or Cameras()
        self._camera: Camera | None = None
        self._stopped = False
        self._shown = parse_sound(uri).masked
        self._lock, self._state = threading.Lock(), SourceState()
        self._alive_s, self._heard_s, self._lost_ns = 0.0, float("-inf"), 0
        self._sound = PacketSound(on_idle=self._watch, on_trouble=self._refuse)
        self._reader = PacketAudioReader(
            uri, rate_hz, self._sound, self._deliver, self._end_with, f"hear-{stream}"
        )

    @property
    def _supervisor(self) -> SourceSupervisor | None:
        return self._camera.supervisor if self._camera is not None else None

    @property
    def lost(self) -> bool:
        return self._state.state == "lost"

    @property
    def stats(self) -> CaptureStats:
        """Totals in samples, and state of the sound as of now."""
        reopened = supervisor.stats(0, 0).reopened if (supervisor := self._supervisor) is not None else 0
        with self._lock:
            now = self._state.state, self._state.detail
        return CaptureStats(self._delivered, self._dropped, reopened, *now)

    def start(self) -> None:
        self._alive_s = time.monotonic()
        self._camera = self._cameras.attach(self._stream, self._uri, self._config, self)
        self._reader.start()

    def stop(self, *, wait: bool = True) -> None:
        self._queue.close()
        self._reader.abandon()
        with self._lock:
            self._stopped, camera = True, self._camera
        if camera is not None:
            self._cameras.detach(camera, self, wait=wait)
        if wait:
            self._reader.join(_STOP_S)
        self._queue.clear()

    def passes(self, now_s: float) -> bool:
        return False

    def deliver(self, picture: Picture, stamp: Timestamps, order: ChannelOrder, *, shared: bool) -> Pixels | None:
        """Give a picture back: this stream asks for none."""
        return picture.image

    def take_packet(self, packet: MediaPacket) -> None:
        self._sound.put(packet)

    def change(self, state: str, reason: str) -> None:
        """Tell of an outage of the camera; that it is over is told with the first sound."""
        if state == "lost":
            self._lost_ns = time.monotonic_ns()
        if state == "lost" and not self._is_refused_pictures:
            is_silent = time.monotonic() - self._heard_s > 0.5 * self._config.stall_s
            self._mark_lost(reason.replace(": no picture for ", ": no sound for ") if is_silent else reason)

    def finish(self, error: SourceError | None) -> None:
        self._queue.close(error)

    def _deliver(self, reader: AudioReader, sound: AudioBlock) -> bool:
        """Hand sound on, from the reader's thread."""
        now_s = self._alive_s = self._heard_s = time.monotonic()
        news: str | None = None
        if sound.read_ns > self._lost_ns:  # not what was left when the camera was lost
            with self._lock:
                news = self._state.mark_running(now_s, self._sound.description)
        if news:
            self._on_change("running", news)
        self._hand_on(sound, sound.lost)
        return True

    def _watch(self) -> None:
        """Tell if the camera runs without sound. Called by the reader's thread while nothing comes."""
        if self._is_refused_pictures:
            self._leave()
        now_s, supervisor = time.monotonic(), self._supervisor
        opening = supervisor.current if supervisor is not None else None
        is_away = supervisor is None or opening is None or supervisor.stats(0, 0).state != "running"
        if opening is None or (is_away and self._state.state != "running"):
            self._alive_s = now_s  # the camera tells its own outages
        elif opening.has_sound is False:
            self._refuse("expected sound; it has none, only pictures: turn its sound on")
        elif now_s - self._alive_s > self._config.stall_s:
            self._mark_lost(f"{self._shown}: no sound for {self._config.stall_s:g} s")

    @property
    def _is_refused_pictures(self) -> bool:
        """True if the source has sound alone, and another stream has asked for pictures."""
        opening = supervisor.current if (supervisor := self._supervisor) is not None else None
        return opening is not None and isinstance(opening.error, SoundAloneError)

    def _leave(self) -> None:
        """Open the source for this stream alone."""
        with self._lock:
            if self._stopped or (shared := self._camera) is None:
                return
            self._camera = self._cameras.attach(self._stream, self._uri, self._config, self, alone=True)
        self._cameras.detach(shared, self, wait=False)

    def _refuse(self, why: str) -> None:
        self._mark_lost(f"{self._shown}: {why}")

    def _mark_lost(self, reason: str) -> None:
        with self._lock:
            # A reason that only says that nothing came is told once more with the first exact one.
            is_news = self._state.mark_lost(time.monotonic(), reason, explains=": no sound for " not in reason)
        if is_news:
            self._on_change("lost", reason)

    def _end_with(self, error: SourceError | None) -> None:
        """Fail if the reader has ended by itself: what it needs is missing."""
        if error is not None:
            self._queue.close(error)


def open_sound_stream(
    stream: str,
    uri: str,
    config: CaptureConfig,
    rate_hz: int,
    *,
    on_change: OnChange,
    cameras: Cameras | None = None,
) -> SoundStream:
    """Return the sound of any source, not yet started. The arguments are those of `CameraSoundStream`.

    Raises:
        SourceError: the URI is wrong, or names a source without sound.
    """
    if parse(uri).on_network:
        return CameraSoundStream(stream, uri, config, rate_hz, on_change=on_change, cameras=cameras)
    return AudioStream(stream, uri, config, rate_hz, on_change=on_change)
