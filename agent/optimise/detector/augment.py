"""Random changes of training pictures together with their boxes: flips, another size and place, and light."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from msgspec import Struct
from numpy.typing import NDArray

from agent.optimise.augment import Normalisation, lit
from agent.optimise.data.layouts import ObjectBoxes
from agent.optimise.factory import fastest_dtype

_SEEN = 0.4
"""Share of a box that is in the changed picture, below which the box is dropped."""


class BoxAugmentation(Struct, frozen=True, forbid_unknown_fields=True):
    """Changes of each picture.

    Attributes:
        flip: exchange left and right of half of the pictures.
        turn: exchange top and bottom of half of them, too.
        scale: largest change of the size, as a factor, 1 or more.
        light: largest change of the brightness and of the contrast, as a share of them, 0..1.
    """

    flip: bool = True
    turn: bool = False
    scale: float = 1.35
    light: float = 0.1


class BoxAugmenter:
    """Training pictures with boxes, from which changed batches are drawn.

    Args:
        pictures: uint8 [pictures, height, width, channels].
        objects: of each picture.
        augmentation: changes of each picture.
        normalisation: of each batch.
        seed: of all that is random.
        device: a torch device.

    Attributes:
        boxes: of the newest batch, in fractions of the picture, float [batch, most, 4].
        classes: of these, int64 [batch, most]; -1: no object.
    """

    def __init__(
        self,
        pictures: NDArray[Any],
        objects: list[ObjectBoxes],
        augmentation: BoxAugmentation,
        normalisation: Normalisation,
        seed: int,
        device: Any,
    ) -> None:
        self._augmentation, self._normalisation, self._seed, self._device = (
            augmentation,
            normalisation,
            seed,
            device,
        )
        self._pictures = torch.from_numpy(pictures)
        most = max(1, max(len(one.classes) for one in objects))
        self._boxes = torch.zeros((len(objects), most, 4))
        self._classes = torch.full((len(objects), most), -1, dtype=torch.int64)
        for row, one in enumerate(objects):
            self._boxes[row, : len(one.classes)] = torch.from_numpy(one.boxes.astype(np.float32))
            self._classes[row, : len(one.classes)] = torch.from_numpy(one.classes)
        self.boxes, self.classes = self._boxes[:0].to(device), self._classes[:0].to(device)

    def batch(self, indices: Any, epoch: int, step: int) -> Any:
        """Return changed, normalised pictures, `fastest_dtype` [indices, channels, height, width]; sets `boxes`.

        Args:
            indices: of the pictures, an int64 tensor.
            epoch: is not used.
            step: number of the step, which with the seed decides all.
        """
        draw = torch.Generator().manual_seed(self._seed * 1_000_003 + step)
        _, height, width, _ = self._pictures.shape
        first, factor = self._placements(len(indices), draw)
        chosen = self._pictures[indices]
        inside = torch.ones((len(indices), height, width), dtype=torch.bool)
        for axis, size in ((1, height), (2, width)):
            places = first[:, axis - 1, None] + factor[:, axis - 1, None] * (torch.arange(size) + 0.5) / size
            rows = (places * size).floor().long()
            shape = (-1, size, 1) if axis == 1 else (-1, 1, size)
            inside &= ((rows >= 0) & (rows < size)).view(shape)
            view = [len(indices), 1, 1, 1]
            view[axis] = size
            chosen = chosen.gather(axis, rows.clamp(0, size - 1).view(view).expand(chosen.shape))
        chosen = torch.where(inside[..., None], chosen.float(), 128.0)
        if self._augmentation.light:
            chosen = lit(chosen, self._augmentation.light, draw)
        self._move(indices, first, factor)
        return self._normalisation.apply(chosen.to(self._device), fastest_dtype(self._device))

    def _placements(self, count: int, draw: Any) -> tuple[Any, Any]:
        """Return where the changed picture begins, and its size, of y and x in fractions of the old one, [n, 2].

        A negative size exchanges the sides.
        """
        spread = torch.rand((count, 1), generator=draw) * 2 - 1
        factor = (self._augmentation.scale**spread).expand(count, 2).clone()
        first = torch.rand((count, 2), generator=draw) * (1 - factor)
        flips = torch.rand((count, 2), generator=draw) < 0.5
        for axis, wanted in ((0, self._augmentation.turn), (1, self._augmentation.flip)):
            if wanted:
                turned = flips[:, axis]
                first[turned, axis] += factor[turned, axis]
                factor[turned, axis] *= -1
        return first, factor

    def _move(self, indices: Any, first: Any, factor: Any) -> None:
        """Set the boxes of the changed pictures."""
        boxes, classes = self._boxes[indices].clone(), self._classes[indices].clone()
        for axis, columns in ((0, [1, 3]), (1, [0, 2])):
            moved = (boxes[..., columns] - first[:, axis, None, None]) / factor[:, axis, None, None]
            boxes[..., columns] = moved.sort(-1).values
        clipped = boxes.clamp(0.0, 1.0)
        areas, seen = ((one[..., 2:] - one[..., :2]).prod(-1) for one in (boxes, clipped))
        classes[seen <= _SEEN * areas] = -1
        self.boxes, self.classes = clipped.to(self._device), classes.to(self._device)
