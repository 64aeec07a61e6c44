"""The sound of a camera on the network: what hearing it costs, and how well it fits the pictures.

A camera in another process sends the packaged clip (768×576, H.264, 15 pictures a second) with G.711. Processor
time is that of this process: for a stream that hears, beside a stream for which every picture is decoded. Then
the clip has white pictures, and the sound beeps, for 0.2 s of every two seconds, with pictures that are sent as
late as an encoder delays them.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import common

if TYPE_CHECKING:
    from agent.capture.camera import Cameras
    from agent.capture.sound import AudioStream
    from agent.capture.streams import FrameStream
    from agent.types import Image

FPS, RATE_HZ, HEARD_HZ, EVERY = 15, 8000, 16_000, 30
LAG = 4
"""Periods of a picture by which pictures are sent later than the sound of the same moment: 0.27 s."""
TARGETS = {
    "apart_ms": "<= 50 ms between a flash and its beep, the worst",
    "cost_ratio": "<= 0.25 of the processor time of decoding the pictures",
}


def main() -> None:
    args = common.arguments(__doc__ or "").parse_args()
    seconds = 8.0 if args.quick else 40.0
    figures: dict[str, float] = {}
    with camera(flashes=False, lag=0) as uri:
        figures["hear_cpu_ms_per_s"] = hear_cost(uri, seconds)
        figures["decode_cpu_ms_per_s"] = decode_cost(uri, seconds)
    figures["cost_ratio"] = figures["hear_cpu_ms_per_s"] / figures["decode_cpu_ms_per_s"]
    with camera(flashes=True, lag=LAG) as uri:
        apart = apart_ms(uri, 1.5 * seconds)
    figures |= {"flashes": float(len(apart)), "apart_ms": max(apart)}
    meets = figures["apart_ms"] <= 50.0 and figures["cost_ratio"] <= 0.25
    common.conclude("camera_sound", figures, TARGETS, meets)


@contextmanager
def camera(*, flashes: bool, lag: int) -> Iterator[str]:
    """A camera in a process of its own; gives its URI."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, flashes, lag), daemon=True)
    process.start()
    try:
        yield here.recv()
    finally:
        process.terminate()
        process.join()


def serve(pipe: Connection, flashes: bool, lag: int) -> None:
    """Be the camera until this process is ended."""
    sys.path.insert(0, str(common.ROOT))
    from tests.support.packet_camera import PacketCamera, encode

    gop = {"preset": "veryfast", "tune": "zerolatency", "x264-params": "keyint=30:min-keyint=30:scenecut=0"}
    with PacketCamera(encode(pictures(flashes), options=gop), sound=beeps(), lag=lag) as opened:
        pipe.send(opened.uri)
        time.sleep(3600.0)


def pictures(flashes: bool) -> list[Image]:
    """Pictures of the packaged clip, an even number of periods of two seconds."""
    import av

    with av.open(str(common.CLIP)) as clip:
        frames = zip(range(90), clip.decode(video=0), strict=False)
        found: list[Any] = [frame.to_ndarray(format="bgr24") for _, frame in frames]
    found = found[: len(found) // EVERY * EVERY]
    for number, picture in enumerate(found):
        if flashes and FPS <= number % EVERY < FPS + 3:
            picture[:] = 255
    return found


def beeps() -> bytes:
    """G.711 A-law of a beep of 1 kHz in every 30 pictures, as many samples as the camera sends with them."""
    import av
    import numpy as np

    step = RATE_HZ // FPS
    samples = np.zeros(EVERY * step, np.int16)
    beep = 8000 * np.sin(2 * np.pi * 1000 * np.arange(3 * step) / RATE_HZ)
    samples[FPS * step : (FPS + 3) * step] = beep.astype(np.int16)
    encoder = av.CodecContext.create("pcm_alaw", "w")
    encoder.sample_rate, encoder.layout, encoder.format = RATE_HZ, "mono", "s16"
    frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="mono")
    frame.sample_rate = RATE_HZ
    return b"".join(bytes(packet) for packet in encoder.encode(frame))


def hearing(uri: str, cameras: Cameras | None = None) -> AudioStream:
    """A started stream that hears."""
    from agent.capture.sound import AudioStream
    from agent.config import CaptureConfig

    stream = AudioStream("hear", uri, CaptureConfig(), HEARD_HZ, on_change=print, cameras=cameras)
    stream.start()
    return stream


def seeing(uri: str, cameras: Cameras | None = None) -> FrameStream:
    """A started stream of every picture."""
    from agent.capture.streams import FrameStream
    from agent.config import CaptureConfig

    stream = FrameStream("see", uri, CaptureConfig(), on_change=print, cameras=cameras)
    stream.start()
    return stream


def hear_cost(uri: str, seconds: float) -> float:
    """Processor time of hearing, ms per s."""
    stream = hearing(uri)
    while stream.take(0.2) is None:
        pass
    began_s, used_s = time.monotonic(), time.process_time()
    while time.monotonic() - began_s < seconds:
        stream.take(0.2)
    cost = (time.process_time() - used_s) / (time.monotonic() - began_s) * 1e3
    stream.stop()
    return cost


def decode_cost(uri: str, seconds: float) -> float:
    """Processor time of decoding every picture, ms per s."""
    stream = seeing(uri)
    while stream.take(0.2) is None:
        pass
    began_s, used_s = time.monotonic(), time.process_time()
    while time.monotonic() - began_s < seconds:
        if (frame := stream.take(0.2)) is not None:
            stream.give_back(frame)
    cost = (time.process_time() - used_s) / (time.monotonic() - began_s) * 1e3
    stream.stop()
    return cost


def apart_ms(uri: str, seconds: float) -> list[float]:
    """Time between each flash and the nearest beep, ms."""
    import numpy as np

    from agent.capture.camera import Cameras

    cameras = Cameras()
    see, hear = seeing(uri, cameras), hearing(uri, cameras)
    seen, heard, is_bright, is_loud = list[int](), list[int](), True, True
    until_s, step = time.monotonic() + seconds, HEARD_HZ // 200
    while time.monotonic() < until_s:
        if (frame := see.take(0.02)) is not None:
            was_bright, is_bright = is_bright, bool(frame.image[::16, ::16].mean() > 240)
            seen += [frame.captured_ns] if is_bright and not was_bright else []
            see.give_back(frame)
        if (chunk := hear.take(0.02)) is not None:
            for at in range(0, len(chunk.samples), step):
                was_loud = is_loud
                is_loud = bool(np.abs(chunk.samples[at : at + step].astype(int)).max() > 3000)
                left_ns = round((len(chunk.samples) - at) / HEARD_HZ * 1e9)
                heard += [chunk.captured_ns - left_ns] if is_loud and not was_loud else []
    see.stop()
    hear.stop()
    return [min(abs(one - other) for other in heard) / 1e6 for one in seen[1:-1]]


if __name__ == "__main__":
    main()
