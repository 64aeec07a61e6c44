"""Anomalies: every connected region that differs from what the model was shown is a detection.

For models of `vedette optimise anomaly`: one map [1,H,W,1] of squared distances between a place of the picture
and the nearest that is known from sound parts. A picture is judged by the mean of its `top` largest ones. Its
score is r⁸ / (r⁸ + 1), with r that mean as a share of the limit: 0.5 at the limit, 0.81 at 1.2 times the limit.
All its regions have this score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import cv2
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from agent.compute.decode.decoder import (
    DecoderContext,
    DecoderOptions,
    Floats,
    OutputRole,
    assign_outputs,
)
from agent.config.toml import Unit
from agent.errors import ModelError
from agent.types import Array, Box, Detection

LABEL = "defect"
"""Label of a region where the manifest has none."""
TOP = 10
"""Places of a picture whose mean squared distance is the picture's: a single one may be noise."""
_SIDES = 4096
"""Largest height and width of a map."""
_STEEPNESS = 8.0
_FARTHEST = 1e3
"""Shares of the limit above this score alike."""
_CERTAIN = 1e-6
_HIGHEST = 1e12
"""Distances are clipped to this, and those that are not finite count as it."""


class AnomalyOptions(DecoderOptions, frozen=True, forbid_unknown_fields=True):
    """Options of `anomaly`.

    Attributes:
        limit: squared distance whose score is 0.5, learned from sound parts. It has to be stated.
        place_limit: squared distance that single places of sound parts reach: regions are of places beyond it.
        top: places whose mean counts for the picture.
        min_area: least area of a region, as a share of the picture.
    """

    limit: Annotated[float, Meta(ge=0.0, le=1e9)] = 0.0
    place_limit: Annotated[float, Meta(ge=0.0, le=1e9)] = 0.0
    top: Annotated[int, Meta(ge=1, le=10_000)] = TOP
    min_area: Unit = 0.0


OPTIONS = AnomalyOptions


def build(context: DecoderContext) -> Anomaly:
    """Build a decoder for [1,H,W,1]. Raises ModelError if there is no limit."""
    options = context.options(AnomalyOptions)
    role = OutputRole("distances", ((1, None, None, 1),), ("anomaly", "distance"))
    (place,) = assign_outputs((role,), context.outputs, options.tensors)
    if not options.limit > 0.0:
        raise ModelError(
            "decoder 'anomaly': options: `limit` has to be stated; `vedette optimise anomaly` learns it"
        )
    if context.output.labels and not context.output.labels[0].strip():
        raise ModelError("decoder 'anomaly': its label is empty: name what is reported, such as \"defect\"")
    rows, columns = context.outputs[place].shape[1:3]
    if not (1 <= rows <= _SIDES and 1 <= columns <= _SIDES):
        raise ModelError(f"decoder 'anomaly': expected a map of a fixed size, found {context.outputs[place]}")
    return Anomaly(context, options, place)


def picture_score(distances: Floats, top: int = TOP) -> float:
    """Return the mean of the largest squared distances of a picture's places, of any shape."""
    flat = distances.reshape(-1)
    count = min(top, flat.size)
    return float(np.partition(flat, flat.size - count)[flat.size - count :].mean())


def score_of(share: float) -> float:
    """Return the score, 0..1, of a squared distance as a share of the limit."""
    power = math.pow(min(share, _FARTHEST), _STEEPNESS)
    return power / (power + 1.0)


class Anomaly:
    """Decoder of a model that was shown sound parts only. `scores_at` is the index of the map."""

    def __init__(self, context: DecoderContext, options: AnomalyOptions, place: int) -> None:
        self._place = self.scores_at = place
        self._spec = context.outputs[place]
        self._options = options
        self._threshold = context.score_threshold
        self._most = context.config.max_detections
        self._label = context.labels((LABEL,)).wanted(0)

    def _distances(self, outputs: Sequence[Array]) -> Floats:
        """Return the squared distance of each place, float32 [H,W], finite and not negative."""
        real = np.asarray(self._spec.real(outputs[self._place])[0, :, :, 0], np.float32)
        return np.clip(np.nan_to_num(real, nan=_HIGHEST, posinf=_HIGHEST), 0.0, _HIGHEST)

    def __call__(self, outputs: Sequence[Array]) -> list[Detection]:
        if self._label is None:
            return []
        distances = self._distances(outputs)
        score = score_of(picture_score(distances, self._options.top) / self._options.limit)
        if score < self._threshold:
            return []
        differs = distances >= min(self._least(), float(distances.max()))
        return [Detection(self._label, score, box, area=area) for box, area in self._regions(differs, distances)]

    def _least(self) -> float:
        """Return the distance from which a place belongs to a region: that of the threshold, or `place_limit`."""
        odds = self._threshold / max(1.0 - self._threshold, _CERTAIN)
        return max(self._options.limit * math.pow(odds, 1.0 / _STEEPNESS), self._options.place_limit)

    def _regions(self, differs: NDArray[np.bool_], distances: Floats) -> list[tuple[Box, float]]:
        """Return box and area of each region, the one with the largest distance first."""
        height, width = differs.shape
        count, marks, stats, _ = cv2.connectedComponentsWithStats(differs.astype(np.uint8), connectivity=8)
        found = []
        for number in range(1, count):
            left, top, columns, rows, places = stats[number].tolist()
            area = places / differs.size
            if area < self._options.min_area:
                continue
            window = np.s_[top : top + rows, left : left + columns]
            peak = float(distances[window][marks[window] == number].max())
            box = (left / width, top / height, (left + columns) / width, (top + rows) / height)
            found.append((peak, box, area))
        found.sort(key=lambda one: one[0], reverse=True)
        return [(box, area) for _, box, area in found[: self._most]]
