"""Packets of a camera whose pictures nobody needs: its second source, which is recorded and not decoded."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import cast

from agent.capture.decode_policy import DecodeChoice, Demand
from agent.capture.network.stream import NetworkStream
from agent.capture.reader import SourceThread
from agent.capture.source import Source, open_source
from agent.capture.supervisor import CaptureStats, OnChange, SourceSupervisor
from agent.config import CaptureConfig
from agent.config.source_uri import parse_picture
from agent.errors import SourceError
from agent.types import MediaPacket

_STEADY_S = 5.0
"""An outage ends when pictures have come for so long, s: a camera that drops each connection is still lost."""


class PacketReader(SourceThread[Source]):
    """Reads one opening of a camera."""

    def __init__(self, uri: str, config: CaptureConfig, stream: PacketStream, name: str) -> None:
        super().__init__(uri, stream.supervisor.woken, name)
        self._config, self._stream, self.goes_on = config, stream, False

    @property
    def wants_packets(self) -> bool:
        return True

    @property
    def wants_sound(self) -> bool:
        return True

    @property
    def decode(self) -> DecodeChoice:
        return "full"

    @property
    def demand(self) -> Demand:
        return Demand()

    def decoder(self, codec: str) -> str:
        return ""

    def take_packet(self, packet: MediaPacket) -> None:
        if not self._abandoned.is_set():
            self._stream.deliver(self, packet)

    def _open(self) -> Source:
        return open_source(self._uri, stall_s=self._config.stall_s, login=self._config)

    def _read(self, source: Source) -> None:
        source.follow(self)
        camera, began_s = cast(NetworkStream, source), time.monotonic()
        while not self._abandoned.is_set():
            self._asked_ns = time.monotonic_ns()
            has_come = camera.skip()
            self.waits_for = camera.waits_for
            if has_come:
                self._count()
                if not self.goes_on and time.monotonic() - began_s >= _STEADY_S:
                    self.goes_on = True
                    self._woken.set()


class PacketStream:
    """Keeps a camera open, and hands its packets on.

    Attributes:
        supervisor: reopens the camera.
    """

    def __init__(
        self,
        stream: str,
        uri: str,
        config: CaptureConfig,
        *,
        on_packet: Callable[[MediaPacket], None],
        on_change: OnChange,
    ) -> None:
        """Prepare the stream; nothing is opened yet.

        Args:
            stream: its name, for threads.
            uri: of a camera on the network.
            config: of the stream.
            on_packet: called with every packet, from the thread that reads it; must not wait.
            on_change: see `OnChange`.

        Raises:
            SourceError: the URI is wrong, or names a source of sound.
        """
        self._stream, self._uri, self._config, self._on_packet = stream, uri, config, on_packet
        self._lock, self._packets = threading.Lock(), 0
        self.supervisor = SourceSupervisor(
            f"{stream}-record",
            parse_picture(uri),
            config,
            open_next=self._reader,
            finish=self._finish,
            on_change=on_change,
        )

    def start(self) -> None:
        """Open and read the camera in other threads."""
        self.supervisor.start()

    def stop(self, *, wait: bool = True) -> None:
        """Close the camera, see `SourceSupervisor.stop`."""
        self.supervisor.stop(wait=wait)

    @property
    def stats(self) -> CaptureStats:
        """Number of packets, and state as of now."""
        return self.supervisor.stats(self._packets, 0)

    def deliver(self, reader: PacketReader, packet: MediaPacket) -> None:
        """Hand a packet on, from a reader's thread, unless another reader has replaced it."""
        if reader is self.supervisor.current and not self.supervisor.stopped:
            self._packets += 1
            self._on_packet(packet)

    def _reader(self) -> PacketReader:
        return PacketReader(self._uri, self._config, self, f"read-{self._stream}-record")

    def _finish(self, error: SourceError | None) -> None:
        """A camera never ends."""
