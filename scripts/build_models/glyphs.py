"""Renders the printable ASCII characters of a monospaced font into one row of equal cells, white on black."""

from __future__ import annotations

import sys

import cv2
import numpy as np

CELL = (13, 26)
"""Width and height of a character, px."""
SIZE, BASELINE = 22, 20
CHARACTERS = "".join(map(chr, range(32, 127)))


def main(font_file: str, target: str) -> None:
    font = cv2.FontFace(font_file)
    cells = np.hstack([cell(character, font) for character in CHARACTERS])
    cv2.imwrite(target, cells, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    print(f"{target}: {len(CHARACTERS)} characters of {CELL[0]}x{CELL[1]} px")


def cell(character: str, font: cv2.FontFace) -> np.ndarray:
    picture = np.zeros((CELL[1], CELL[0], 3), np.uint8)
    cv2.putText(picture, character, (0, BASELINE), (255, 255, 255), font, SIZE)
    return picture[:, :, 0]


if __name__ == "__main__":
    main(*sys.argv[1:])
