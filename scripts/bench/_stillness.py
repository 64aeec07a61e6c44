"""A clip of stillness and then walkers, as a cheap camera would send it. Part of the bench `gate`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np

from agent.compute.vision import VideoPerception
from agent.config import DecodeConfig, GateConfig, StreamConfig
from agent.models.library import open_model
from agent.types import Frame, Image

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
FPS = 10
STILL_S = 60
LABEL = "person"
"""Only these: the place has parked cars too, and they would be tracked all the time."""


def make_clip(walkers: Path, target: Path, model: str, walk_s: int) -> int:
    """Write stillness and then walkers; the number of frames."""
    people = read(walkers, walk_s * FPS)
    if not people:
        raise SystemExit(f"cannot read {walkers}: give a clip of pedestrians with --clip")
    median = np.median(np.stack(read(walkers, 50, every=12)), axis=0).astype(np.uint8)
    background = deserted(median, model).astype(np.float32)
    height, width = background.shape[:2]
    fourcc = cv2.VideoWriter.fourcc(*"MJPG")
    writer = cv2.VideoWriter(str(target), fourcc, FPS, (width, height))
    noise = sensor_noise(background)
    still = STILL_S * FPS
    for number in range(still + len(people)):
        scene = background if number < still else people[number - still].astype(np.float32)
        # Ten per cent of light, up and down in forty seconds: clouds.
        light = 1.0 + 0.1 * np.sin(2 * np.pi * number / (40 * FPS))
        writer.write(np.clip(scene * light + next(noise), 0, 255).astype(np.uint8))
    writer.release()
    return still + len(people)


def deserted(background: Image, model: str) -> Image:
    """The background without what the model takes for a person, even faintly."""
    perception = VideoPerception(
        "bench", config_for(model, DecodeConfig(labels=(LABEL,), score_threshold=0.15)), open_model(model)
    )
    picture = background.copy()
    for number in range(10):
        found = perception.process(Frame(picture, "bench", number, number, BEGAN)).detections
        if not found:
            break
        height, width = picture.shape[:2]
        mask = np.zeros((height, width), np.uint8)
        for x0, y0, x1, y1 in (detection.box for detection in found if detection.box):
            mask[int(y0 * height) : int(y1 * height) + 4, int(x0 * width) : int(x1 * width) + 4] = 255
        picture = np.asarray(cv2.inpaint(picture, mask, 5, cv2.INPAINT_TELEA), np.uint8)
    perception.close()
    return picture


def config_for(model: str, decode: DecodeConfig, *, gate: bool = False) -> StreamConfig:
    """A stream with defaults but for these."""
    return StreamConfig(source="test:", model=model, gate=GateConfig(motion=gate), decode=decode)


def sensor_noise(background: np.ndarray) -> Iterator[np.ndarray]:
    """Gaussian noise that grows with the root of the light (shot noise): sigma 2 in the dark, 5 in the light."""
    sigma = 2.0 + 3.0 * np.sqrt(background / 255.0)
    random = np.random.default_rng(20)
    fields = [(sigma * random.standard_normal(sigma.shape, np.float32)).astype(np.float32) for _ in range(16)]
    while True:
        field = fields[random.integers(len(fields))]
        yield field[:, ::-1] if random.random() < 0.5 else field


def read(path: Path, most: int, every: int = 1) -> list[Image]:
    """Pictures of a clip, from its beginning."""
    reader = cv2.VideoCapture(str(path))
    frames: list[Image] = []
    while len(frames) < most and reader.grab():
        frames.append(np.asarray(reader.retrieve()[1], np.uint8))
        for _ in range(every - 1):
            reader.grab()
    return frames
