"""Loss of a detector: which cells answer for which box is decided by how well they already do.

Assignment and targets are those of Feng et al., TOOD: Task-aligned One-stage Object Detection (ICCV 2021); boxes
are compared by Rezatofighi et al., Generalized Intersection over Union (CVPR 2019).

Random changes of training pictures together with their boxes: flips, another size and place, and light.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from msgspec import Struct
from numpy.typing import NDArray
from torch.nn import functional

from agent.optimise.augment import Normalisation, lit
from agent.optimise.data.annotations import ObjectBoxes
from agent.optimise.training.networks import BINS, STRIDES

_CELLS = 10
"""Cells that answer for a box, at most."""
_SCORE_POWER, _OVERLAP_POWER = 0.5, 6.0
_BOX_WEIGHT = 2.0


class DetectionLoss:
    """Loss for pictures of one size.

    Args:
        height, width: of the pictures, pixels.
        device: a torch device.
    """

    def __init__(self, height: int, width: int, device: Any) -> None:
        centres, strides = [], []
        for stride in STRIDES:
            rows, columns = torch.meshgrid(
                torch.arange(height // stride), torch.arange(width // stride), indexing="ij"
            )
            centres.append((torch.stack((columns, rows), -1).reshape(-1, 2) + 0.5) * stride)
            strides.append(torch.full((rows.numel(), 1), float(stride)))
        self._centres, self._strides = torch.cat(centres).to(device), torch.cat(strides).to(device)
        self._size = torch.tensor([width, height, width, height], device=device)
        self._bins = torch.arange(BINS, dtype=torch.float32, device=device)

    def boxes(self, distances: Any) -> Any:
        """Return boxes in pixels, [batch, cells, 4], of values of 0..1, [batch, cells, 4 * BINS]."""
        bins = distances.unflatten(-1, (4, BINS))
        sides = (bins @ self._bins) / bins.sum(-1).clamp(min=1e-6) * self._strides
        return torch.cat((self._centres - sides[..., :2], self._centres + sides[..., 2:]), -1)

    def __call__(self, outputs: tuple[Any, Any], boxes: Any, classes: Any) -> Any:
        """Return the loss of a batch, a tensor without dimensions.

        Args:
            outputs: logits of a `BoxDetector`.
            boxes: of the objects, in fractions of the picture, [batch, most, 4].
            classes: of these, [batch, most]; -1: no object.
        """
        logits, found = outputs[0].float(), self.boxes(outputs[1].float().sigmoid())
        truth = boxes * self._size
        with torch.no_grad():
            owner, target = self._assign(logits.sigmoid(), found, truth, classes)
        weight = target.sum(-1)
        total = weight.sum().clamp(min=1.0)
        told = functional.binary_cross_entropy_with_logits(logits, target, reduction="sum") / total
        taken = weight > 0
        wanted = truth.gather(1, owner[..., None].expand(-1, -1, 4))[taken]
        placed = ((1 - generalized_iou(found[taken], wanted)) * weight[taken]).sum() / total
        return told + _BOX_WEIGHT * placed

    def _assign(self, scores: Any, found: Any, truth: Any, classes: Any) -> tuple[Any, Any]:
        """Return the object that each cell answers for, [batch, cells], and the target of its scores."""
        there = classes >= 0
        overlaps = iou(truth[:, :, None], found[:, None]).clamp(min=0.0) * there[..., None]
        told = scores.transpose(1, 2).gather(1, classes.clamp(min=0)[..., None].expand(-1, -1, scores.shape[1]))
        aligned = (
            (told**_SCORE_POWER * overlaps**_OVERLAP_POWER + 1e-12) * self._is_near(truth) * there[..., None]
        )
        most = min(_CELLS, aligned.shape[-1])
        chosen = torch.zeros_like(aligned).scatter_(-1, aligned.topk(most).indices, 1.0)
        chosen = chosen * (aligned > 0)
        # A cell that several objects want answers for the one that it overlaps most.
        owner = (overlaps * chosen + chosen * 1e-6).argmax(1)
        chosen = chosen * functional.one_hot(owner, truth.shape[1]).transpose(1, 2)
        aligned = aligned * chosen
        best = (overlaps * chosen).amax(-1, keepdim=True)
        quality = (aligned / aligned.amax(-1, keepdim=True).clamp(min=1e-12) * best.clamp(min=0.05)).amax(1)
        kind = classes.clamp(min=0).gather(1, owner)
        taken = chosen.amax(1)
        target = functional.one_hot(kind, scores.shape[-1]) * (quality * taken)[..., None]
        return owner, target

    def _is_near(self, truth: Any) -> Any:
        """Return whether the centre of a cell lies in a box, or next to its middle, [batch, most, cells]."""
        offsets = torch.cat(
            (self._centres[None, None] - truth[:, :, None, :2], truth[:, :, None, 2:] - self._centres), -1
        )
        middle = (truth[..., :2] + truth[..., 2:]) / 2
        beside = (self._centres - middle[:, :, None]).abs().amax(-1) <= STRIDES[0] / 2
        return (offsets.amin(-1) > 0) | (beside & (self._strides[:, 0] == STRIDES[0]))


def iou(one: Any, other: Any) -> Any:
    """Return intersection over union of boxes, [...] of [..., 4] each."""
    shared, union, _ = _areas(one, other)
    return shared / union


def generalized_iou(one: Any, other: Any) -> Any:
    """Return intersection over union less the share of the enclosing box that neither covers, -1..1."""
    shared, union, whole = _areas(one, other)
    return shared / union - (whole - union) / whole


def _areas(one: Any, other: Any) -> tuple[Any, Any, Any]:
    shared = (torch.minimum(one[..., 2:], other[..., 2:]) - torch.maximum(one[..., :2], other[..., :2])).clamp(
        min=0
    )
    whole = torch.maximum(one[..., 2:], other[..., 2:]) - torch.minimum(one[..., :2], other[..., :2])
    areas = [(box[..., 2:] - box[..., :2]).clamp(min=0).prod(-1) for box in (one, other)]
    union = areas[0] + areas[1] - shared.prod(-1)
    return shared.prod(-1), union.clamp(min=1e-6), whole.clamp(min=0).prod(-1).clamp(min=1e-6)


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
        """Return changed and normalised pictures, float32 [indices, channels, height, width]; sets `boxes`.

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
        return self._normalisation.apply(chosen.to(self._device))

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
