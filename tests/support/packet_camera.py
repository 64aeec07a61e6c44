"""An RTSP camera on the loopback whose packets a test chooses: any codec, order, time stamp and loss.

RTP over the RTSP connection (RFC 2326, 10.12), H.264 by RFC 6184 and H.265 by RFC 7798.
"""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from types import TracebackType
from typing import Any, Self

import av
import numpy as np
from msgspec import Struct

from agent.types import Image

CLOCK_HZ = 90_000
_FRAGMENT = 1200


class Unit(Struct, frozen=True):
    """One encoded picture: with start codes, whether it is a key frame, and when it is shown, s."""

    data: bytes
    keyframe: bool
    pts_s: float


def encode(
    pictures: Iterable[Image], codec: str = "libx264", fps: int = 15, *, options: Mapping[str, str]
) -> list[Unit]:
    """Encode pictures, BGR; options are the encoder's."""
    context, units = None, []
    for number, picture in enumerate(pictures):
        if context is None:
            context = av.CodecContext.create(codec, "w")
            context.height, context.width = picture.shape[:2]  # type: ignore[attr-defined]
            context.pix_fmt, context.time_base = "yuv420p", Fraction(1, fps)  # type: ignore[attr-defined]
            context.options = dict(options)
        frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
        frame.pts, frame.time_base = number, Fraction(1, fps)
        units += context.encode(frame)  # type: ignore[attr-defined]
    units += context.encode(None)  # type: ignore[union-attr]
    return [Unit(bytes(one), one.is_keyframe, one.pts / fps) for one in units]


def pattern(count: int, width: int = 320, height: int = 240, moves: range = range(0)) -> list[Image]:
    """Pictures of a still, slightly noisy place, in which a light square moves during some of them."""
    random = np.random.default_rng(5)
    place = random.integers(40, 200, (height // 16, width // 16, 3), np.uint8)
    still = np.kron(place, np.ones((16, 16, 1), np.uint8))
    # Drawn once and laid elsewhere over each picture: drawing as much for each takes longer than encoding it.
    noise = np.floor(random.normal(0, 2, 2 * still.size)).astype(np.int16)
    found = []
    for number in range(count):
        picture = still.astype(np.int16)
        if number in moves:
            left = 8 * (number - moves.start) % (width - 64)
            picture[height // 3 : height // 3 + 64, left : left + 64] = 255
        first = int(random.integers(still.size))
        picture += noise[first : first + still.size].reshape(still.shape)
        found.append(np.clip(picture, 0, 255).astype(np.uint8))
    return found


def without_parameters(unit: Unit) -> Unit:
    """Return a picture of H.264 without SPS and PPS, as of a camera that sends them once."""
    kept = [one for one in re.split(b"\0\0\0?\1", unit.data) if one and one[0] & 0x1F not in (7, 8)]
    return Unit(b"".join(b"\0\0\0\1" + one for one in kept), unit.keyframe, unit.pts_s)


class PacketCamera:
    """Serves units in real time, from their beginning for each viewer, again and again.

    Attributes:
        port: where it listens.
        uri: of the camera.
        viewers: number of connections that have begun to play.
        sent: number of units that were sent, to all of them.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        *,
        codec: str = "H264",
        fps: int = 15,
        lost: Callable[[int], bool] = lambda number: False,
        shift_s: Callable[[int], float] = lambda number: 0.0,
        speed: float = 1.0,
        sound: bool | bytes = False,
        rate_hz: int = 8000,
        lag: int = 0,
        udp: bool = False,
        port: int = 0,
    ) -> None:
        """Listen; nothing is sent yet.

        Args:
            units: in the order of decoding; none: the camera has sound alone.
            codec: H264 or H265.
            fps: units per second.
            lost: tells by its number whether an RTP packet of video is lost.
            shift_s: what is added to the time stamp of a unit, by its number, s.
            speed: factor on `fps` at which it sends.
            sound: whether there is a track of G.711 A-law, of silence; or its samples, again and again.
            rate_hz: samples of sound per second.
            lag: units by which pictures are sent later than the sound of the same moment.
            udp: whether it sends pictures by UDP, and refuses TCP.
            port: where it listens; 0: on a free one.
        """
        self._units, self._codec, self._fps, self._speed = units, codec, fps, speed
        self._lost, self._shift_s, self._sound = lost, shift_s, sound
        self._rate_hz, self._lag, self.viewers, self.sent = rate_hz, lag, 0, 0
        self._udp = udp
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = int(self._listener.getsockname()[1])
        self.uri = f"rtsp://127.0.0.1:{self.port}/cam"
        self._stopped = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._listener.close()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):  # the viewer has gone
            self._answer_all(connection)

    def _answer_all(self, connection: socket.socket) -> None:
        received, channels = b"", dict[str, int]()
        while not self._stopped.is_set():
            head, end, rest = received.partition(b"\r\n\r\n")
            if not end:
                piece = connection.recv(4096)
                if not piece:
                    return
                received += piece
                continue
            received = rest
            if head.startswith(b"$"):
                continue
            method = head.split(b" ", 1)[0].decode()
            if found := re.search(rb"/(track\d) .*(?:interleaved|client_port)=(\d+)", head, re.DOTALL):
                channels[found[1].decode()] = int(found[2])
            connection.sendall(self._answer(method, head.decode()))
            if method == "PLAY":
                if self._udp:
                    with _Datagrams(socket.AF_INET, socket.SOCK_DGRAM) as connection:
                        connection.connect(("127.0.0.1", channels["track0"]))
                        self._play(connection, channels)
                else:
                    self._play(connection, channels)
                return

    def _answer(self, method: str, head: str) -> bytes:
        sequence = re.search(r"CSeq: *(\d+)", head)
        lines = ["RTSP/1.0 200 OK", f"CSeq: {sequence[1] if sequence else 0}"]
        body = ""
        if method == "OPTIONS":
            lines.append("Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN")
        elif method == "DESCRIBE":
            body = self._description()
            lines += [
                "Content-Type: application/sdp",
                f"Content-Base: {self.uri}/",
                f"Content-Length: {len(body)}",
            ]
        elif method == "SETUP" and self._udp != ("client_port" in head):
            lines[0] = "RTSP/1.0 461 Unsupported Transport"
        elif method == "SETUP" and self._udp:
            ports = re.search(r"client_port=(\d+-\d+)", head)
            lines += ["Session: 1", f"Transport: RTP/AVP;unicast;client_port={ports[1] if ports else ''}"]
        elif method == "SETUP":
            channels = re.search(r"interleaved=(\d+-\d+)", head)
            lines += [
                "Session: 1",
                f"Transport: RTP/AVP/TCP;unicast;interleaved={channels[1] if channels else '0-1'}",
            ]
        else:
            lines.append("Session: 1")
        return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()

    def _description(self) -> str:
        lines = ["v=0", "o=- 0 0 IN IP4 127.0.0.1", "s=camera", "t=0 0"]
        if self._units:
            lines += ["m=video 0 RTP/AVP 96", f"a=rtpmap:96 {self._codec}/{CLOCK_HZ}"]
            lines += ["a=fmtp:96 packetization-mode=1"] * (self._codec == "H264")
            lines += ["a=control:track0"]
        if self._sound or not self._units:
            lines += ["m=audio 0 RTP/AVP 97", f"a=rtpmap:97 PCMA/{self._rate_hz}", "a=control:track1"]
        return "\r\n".join([*lines, ""])

    def _play(self, connection: socket.socket, channels: Mapping[str, int]) -> None:
        """Send the tracks that were set up, each on its channel."""
        pictures, sound = channels.get("track0"), channels.get("track1")
        self.viewers += 1
        began_s, number, sequence, fps = time.monotonic(), 0, 0, self._fps * self._speed
        while not self._stopped.wait(max(0.0, began_s + number / fps - time.monotonic())):
            if pictures is not None and number >= self._lag:
                shown = number - self._lag
                unit = self._units[shown % len(self._units)]
                round_s = shown // len(self._units) * len(self._units) / self._fps
                at_s = unit.pts_s + round_s + self._shift_s(shown)
                for payload, last in _payloads(unit.data, self._codec):
                    if not self._lost(sequence):
                        _send(connection, pictures, 96, sequence, round(at_s * CLOCK_HZ), payload, last=last)
                    sequence += 1
                self.sent += 1
            if sound is not None and number:  # sound is sent when its last sample is there
                samples = self._rate_hz // self._fps
                said, at = self._said((number - 1) * samples, samples), (number - 1) * samples
                _send(connection, sound, 97, number, at, said, last=False)
            number += 1

    def _said(self, first: int, count: int) -> bytes:
        """Return so many samples of the sound."""
        sound = self._sound if isinstance(self._sound, bytes) else b"\xd5"
        return bytes(sound[at % len(sound)] for at in range(first, first + count))


class _Datagrams(socket.socket):
    """Sends RTP by UDP, without the head that it has within a connection."""

    def sendall(self, data: Any, *flags: int) -> None:
        self.send(data[4:])


def _payloads(data: bytes, codec: str) -> Iterable[tuple[bytes, bool]]:
    """Cut a picture into payloads of RTP; True for its last."""
    units = [one.rstrip(b"\0") for one in re.split(b"\0\0\1", data) if one.rstrip(b"\0")]
    for number, unit in enumerate(units):
        pieces = [unit] if len(unit) <= _FRAGMENT else _fragments(unit, codec)
        for at, piece in enumerate(pieces):
            yield piece, number == len(units) - 1 and at == len(pieces) - 1


def _fragments(unit: bytes, codec: str) -> list[bytes]:
    if codec == "H264":
        head, kind, body = bytes([unit[0] & 0xE0 | 28]), unit[0] & 0x1F, unit[1:]
    else:
        head, kind, body = bytes([unit[0] & 0x81 | 49 << 1, unit[1]]), unit[0] >> 1 & 0x3F, unit[2:]
    pieces = [body[at : at + _FRAGMENT] for at in range(0, len(body), _FRAGMENT)]
    marks = [(number == 0) << 7 | (number == len(pieces) - 1) << 6 for number in range(len(pieces))]
    return [head + bytes([mark | kind]) + piece for mark, piece in zip(marks, pieces, strict=True)]


def _send(
    connection: socket.socket, channel: int, kind: int, sequence: int, at: int, payload: bytes, *, last: bool
) -> None:
    rtp = struct.pack(">BBHII", 0x80, last << 7 | kind, sequence & 0xFFFF, at & 0xFFFFFFFF, 77) + payload
    connection.sendall(struct.pack(">BBH", 0x24, channel & 0xFF, len(rtp)) + rtp)
