"""Network cameras of 1080p, which another process serves by RTSP. Part of the benches `cameras` and `memory`.

Each shows the place of the packaged clip with the noise of a sensor; now and then somebody walks through it. All
show the same, each from another moment on, so that people do not come to all of them at once.
"""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import common
import cv2
import numpy as np
from _visits import Street, Visit
from msgspec import Struct
from msgspec.structs import replace

from agent.types import Image
from tests.support import packet_camera
from tests.support.packet_camera import PacketCamera, Unit

FPS = 15
SIZE = (1920, 1080)
_DRAWN = (960, 540)
_GOP_S, _STILL_S = 2, 8
"""From one key frame to the next, and the most of a still place that is encoded, s: of one that is shown for a
short time, a quarter."""
_NOISE = 2.0
_ROOM = 64
_MODEL = "nanodet"
"""Finds the people in the clip, who are cut out."""


class Scene(Struct, frozen=True):
    """What a camera shows, again and again.

    Attributes:
        visits_s: how long each person is there, s: whole multiples of the time between key frames.
        still_s: how long nobody is there after each of them, s; likewise.
        seed: of the people and of the noise.
    """

    visits_s: tuple[int, ...] = (8,)
    still_s: int = 72
    seed: int = 0

    @property
    def seconds(self) -> int:
        """Time until it repeats, s."""
        return sum(self.visits_s) + len(self.visits_s) * self.still_s

    @property
    def busy(self) -> float:
        """Share of the time in which somebody is there."""
        return sum(self.visits_s) / self.seconds


QUICK = Scene((2,), 18)
"""That is soon encoded."""


class Served(NamedTuple):
    """Cameras that are served: their URIs, and how many pictures each has sent."""

    uris: list[str]
    sent: Any


@contextmanager
def served(scene: Scene, count: int, clip: Path = common.CLIP) -> Iterator[Served]:
    """Serve so many cameras."""
    context = multiprocessing.get_context("spawn")
    queue: Any = context.Queue()
    sent = context.Array("q", count, lock=False)
    server = context.Process(target=_serve, args=(scene, clip, queue, sent), daemon=True)
    server.start()
    try:
        yield Served(queue.get(), sent)
    finally:
        server.kill()
        server.join()


def _serve(scene: Scene, clip: Path, ready: Any, sent: Any) -> None:
    units, count = encoded(scene, clip), len(sent)
    gops = len(units) // (_GOP_S * FPS)
    cameras = [
        PacketCamera(_from(units, number * gops // count * _GOP_S * FPS), fps=FPS) for number in range(count)
    ]
    for camera in cameras:
        camera.__enter__()
    ready.put([camera.uri for camera in cameras])
    stopped = threading.Event()
    while not stopped.wait(0.1):  # until this process is killed
        for number, camera in enumerate(cameras):
            sent[number] = camera.sent


def _from(units: list[Unit], first: int) -> list[Unit]:
    """Return units in a circle, beginning with one of them."""
    return [replace(unit, pts_s=n / FPS) for n, unit in enumerate(units[first:] + units[:first])]


def encoded(scene: Scene, clip: Path) -> list[Unit]:
    """Return a scene as H.264; its key frames are two seconds apart.

    Pictures without people are encoded once, and repeated in any order: they differ by nothing but noise.
    """
    random, street = np.random.default_rng(scene.seed), Street(clip, _MODEL, _DRAWN)
    still_s = min(_STILL_S, max(1, scene.still_s // (4 * _GOP_S)) * _GOP_S)
    still = _gops(_encoded(_pictures(street, [], still_s, random)))
    units: list[Unit] = []
    for number, visit_s in enumerate(scene.visits_s):
        walker, y = int(random.integers(len(street.walkers))), float(random.uniform(0.7, 0.95))
        visit = Visit(0.0, visit_s, walker, float(random.uniform(0.2, 0.32)), y, bool(number % 2))
        units += _encoded(_pictures(street, [visit], visit_s, random))
        for _ in range(scene.still_s // _GOP_S):
            units += still[int(random.integers(len(still)))]
    return units


def _gops(units: list[Unit]) -> list[list[Unit]]:
    return [units[first : first + _GOP_S * FPS] for first in range(0, len(units), _GOP_S * FPS)]


def _encoded(pictures: Iterator[Image]) -> list[Unit]:
    gop = _GOP_S * FPS
    options = {"preset": "veryfast", "tune": "zerolatency"}
    options["x264-params"] = f"keyint={gop}:min-keyint={gop}:scenecut=0"
    return packet_camera.encode(pictures, "libx264", FPS, options=options)


def _pictures(street: Street, visits: list[Visit], seconds: int, random: np.random.Generator) -> Iterator[Image]:
    width, height = SIZE
    field = random.normal(0, _NOISE, (height + _ROOM, width + _ROOM)).astype(np.int8)
    for number in range(seconds * FPS):
        view = np.clip(street.view(visits, number / FPS), 0, 255).astype(np.uint8)
        large = cv2.resize(view, SIZE, interpolation=cv2.INTER_CUBIC)
        y, x = random.integers(_ROOM, size=2)
        noisy = cv2.add(large, cv2.merge([field[y : y + height, x : x + width]] * 3), dtype=cv2.CV_8U)
        yield np.asarray(noisy, np.uint8)
