"""Loss of a detector: which cells answer for which box is decided by how well they already do.

Assignment and targets are those of Feng et al., TOOD: Task-aligned One-stage Object Detection (ICCV 2021); boxes
are compared by Rezatofighi et al., Generalized Intersection over Union (CVPR 2019).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from agent.optimise.detector.networks import BINS, STRIDES

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
