"""Pictures of a belt with round parts on it, from above."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from agent.types import Image


def belt(
    centres: Sequence[float],
    *,
    scratched: Sequence[int] = (),
    light: float = 1.0,
    seed: int = 0,
    radius: float = 0.3,
    size: tuple[int, int] = (160, 320),
) -> Image:
    """Return a picture, BGR uint8 of `size`, height and width.

    Args:
        centres: of the parts, as shares of the width; may lie outside.
        scratched: numbers of the parts that have a dark scratch.
        light: factor of the brightness.
        seed: of the noise.
        radius: of the parts, as a share of the height.
        size: of the picture.
    """
    height, width = size
    picture = np.full((height, width, 3), 70.0, np.float32)
    picture[:, :: max(1, width // 20)] = 85.0
    picture[: height // 10] = picture[-(height // 10) :] = 40.0
    for number, centre in enumerate(centres):
        middle = round(centre * width), height // 2
        for share, grey in ((1.0, 170.0), (0.6, 140.0), (0.2, 20.0)):
            cv2.circle(picture, middle, round(radius * share * height), (grey, grey, grey), -1, cv2.LINE_AA)
        if number in scratched:
            side = round(0.2 * radius * height)
            at = middle[0] - 2 * side, middle[1] - side
            cv2.rectangle(picture, at, (at[0] + side, at[1] + 2 * side), (5.0, 5.0, 5.0), -1)
    noise = np.random.default_rng(seed).normal(0.0, 2.5, picture.shape)
    return np.clip(picture * light + noise, 0, 255).astype(np.uint8)
