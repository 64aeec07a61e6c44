"""Streams of the network that have sound alone are heard; who wants pictures of them is refused."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import av
import numpy as np

from agent.capture.camera import Cameras
from tests.support.packet_camera import PacketCamera
from tests.system.test_camera_sound import a_law, first, heard, hearing, is_whole, pitch_hz, seeing, tone, wait

MP3_RATE = 16_000


def mp3(seconds: float) -> bytes:
    """A tone of 500 Hz."""
    memory = io.BytesIO()
    with av.open(memory, "w", format="mp3") as file:
        stream = file.add_stream("libmp3lame", rate=MP3_RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone(seconds, MP3_RATE)[None], format="s16p", layout="mono")
        frame.sample_rate = MP3_RATE
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return memory.getvalue()


@contextmanager
def radio(seconds: float) -> Iterator[str]:
    """An HTTP server that sends a tone in real time, and its address."""
    data = mp3(seconds)

    class Station(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "audio/mpeg")
            self.end_headers()
            piece = round(len(data) / seconds / 10)
            with suppress(OSError):
                for at in range(0, len(data), piece):
                    self.wfile.write(data[at : at + piece])
                    time.sleep(0.1)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Station) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/radio"
        server.shutdown()


def test_a_camera_of_sound_alone_is_heard_without_a_gap() -> None:
    with PacketCamera([], sound=a_law(tone(1.0))) as camera, hearing(camera.uri) as (stream, news):
        first(stream)
        chunks = heard(stream, 3.0)
        assert is_whole(chunks)
        samples = np.concatenate([chunk.samples for chunk in chunks])
        assert abs(pitch_hz(samples) - 500) < 3
        assert 0 <= time.monotonic_ns() - chunks[-1].captured_ns < 3e9
        assert (stream.stats.state, stream.stats.detail) == ("running", "8000 Hz, 1 channel, pcm_alaw")
        assert news == []


def test_sound_alone_is_lost_with_its_server_and_heard_again() -> None:
    with PacketCamera([], sound=a_law(tone(1.0))) as camera, hearing(camera.uri) as (stream, news):
        first(stream)
        camera.__exit__(None, None, None)
        wait(lambda: stream.lost)
        heard(stream, 1.0)
        with PacketCamera([], sound=a_law(tone(1.0)), port=camera.port):
            wait(lambda: stream.stats.state == "running")
            assert [one.partition(":")[0] for one in news] == ["lost", "running"]


def test_an_audio_stream_over_http_is_heard() -> None:
    with radio(20.0) as uri, hearing(uri) as (stream, _):
        first(stream)
        chunks = heard(stream, 2.0)
        assert is_whole(chunks)
        assert abs(pitch_hz(np.concatenate([chunk.samples for chunk in chunks])) - 500) < 3


def test_who_wants_pictures_of_it_is_refused() -> None:
    with PacketCamera([], sound=True) as camera, seeing(camera.uri, Cameras()) as stream:
        wait(lambda: stream.lost)
        assert "it has no video, only pcm_alaw" in stream.stats.detail
