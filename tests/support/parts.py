"""Pictures of a made part, a disc with rings, each a little different, sound or with a scratch."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from agent.cli.main import vedette
from agent.optimise.evaluate import time_ms
from agent.types import Image

SIDE = 128
SCRATCH = (0.28, 0.40, 0.42, 0.60)
"""Where the scratch lies, x0, y0, x1, y1 as fractions of the picture."""


def part(number: int, *, scratched: bool = False) -> Image:
    """Return the picture of a part, BGR [128, 128, 3], whose light and noise depend on its number."""
    random = np.random.default_rng(number)
    picture = np.full((SIDE, SIDE, 3), 60 + number % 7, np.uint8)
    for radius, grey in ((58, 170), (40, 120), (22, 190), (10, 40)):
        cv2.circle(picture, (SIDE // 2, SIDE // 2), radius, (grey, grey, grey), -1, cv2.LINE_AA)
    if scratched:
        (x0, y0, x1, y1) = (round(side * SIDE) for side in SCRATCH)
        cv2.line(picture, (x0 + 2, y0 + 2), (x1 - 2, y1 - 2), (10, 10, 10), 4, cv2.LINE_AA)
        cv2.line(picture, (x0 + 2, y1 - 2), (x1 - 2, y0 + 2), (250, 250, 250), 4, cv2.LINE_AA)
    noise = random.normal(0.0, 3.0, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def write_parts(folder: Path, count: int, *, scratched: bool = False, first: int = 0) -> Path:
    """Write so many parts as PNG into a new folder, from a number on."""
    folder.mkdir()
    for number in range(first, first + count):
        picture = part(number + 1000 * scratched, scratched=scratched)
        assert cv2.imwrite(str(folder / f"{number:02}.png"), picture)
    return folder


def learn(sound: Path, made: Path) -> None:
    """Make a model of anomalies from a folder of sound parts. Its speed is measured in one round, not in 30."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agent.optimise.anomaly.file.time_ms", partial(time_ms, rounds=1))
        done = CliRunner().invoke(vedette, ["optimise", "anomaly", "inspection", str(made), "--data", str(sound)])
    assert done.exit_code == 0, f"{done.output}{done.exception}"
