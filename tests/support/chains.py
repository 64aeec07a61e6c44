"""Chains of real models: one that always sees one thing, and others that tell its colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from agent.types import Box
from tests.support.doubles import person_model
from tests.support.picture_models import classifier

BOX: Box = (0.25, 0.25, 0.75, 0.75)
_BGR = {"red": (40, 40, 220), "green": (40, 220, 40), "blue": (220, 40, 40)}


def tint_model(folder: Path, name: str = "tint", more: str = "") -> Path:
    """Write a model that tells which colour a picture has, with its manifest; `more` is appended to that."""
    (folder / f"{name}.tflite").write_bytes(classifier())
    path = folder / f"{name}.toml"
    path.write_text(f'name = "{name}"\n{more}')
    return path


def chained_model(
    folder: Path, secondary: str = '[[secondary]]\nname = "colour"\nmodel = "tint.tflite"\n'
) -> Path:
    """Write a model that always sees a person in `BOX`, whose manifest ends with `secondary`; gives its path."""
    path = person_model(folder, box=BOX)
    path.write_text(f"{path.read_text()}\n{secondary}")
    return path


def dressed(inside: str, outside: str = "green", side: int = 96) -> np.ndarray:
    """A BGR picture of one colour, with another in `BOX` and around it as far as a margin of a tenth goes."""
    picture = np.full((side, side, 3), _BGR[outside], np.uint8)
    first, last = round(0.2 * side), round(0.8 * side)
    picture[first:last, first:last] = _BGR[inside]
    return picture
