"""Climbs a model's sizes for one picture: lets one look, and a larger one where the ladder asks for it."""

from __future__ import annotations

import time

import numpy as np
from msgspec.structs import replace

from agent.compute.certainty import agreement, certainty
from agent.compute.infer.backend import Session
from agent.compute.infer.sizeladder import SizeLadder
from agent.compute.infer.warmup import usual_ns
from agent.compute.size import Look, Size
from agent.config import StreamConfig
from agent.errors import ModelError
from agent.manifest import AUTO, Model
from agent.messages import Box, Frame

_AGREES = 0.8
"""Least agreement with the largest size: whether the last of a crowd is seen is chance."""


class Sizes:
    """One stream's model with all of its sizes. For one thread.

    Attributes:
        rung: that gave the newest answer.
    """

    def __init__(self, session: Session, model: Model, config: StreamConfig) -> None:
        """Prepare every size; the smaller ones give candidates below the threshold too.

        Raises:
            ModelError: nothing was learned about when to stop, a rung is no size, or see `Size`.
        """
        rungs = model.manifest.climbed(AUTO)
        if depths := [rung.name for rung in rungs if rung.after]:
            raise ModelError(
                f"{model.path}: pictures climb sizes, and rung {depths[0]!r} goes on from another; "
                f"name the rung that is to run"
            )
        decode, wish = config.decode, config.decode.score_threshold
        # As the decoders compare: in float32.
        self._threshold = float(np.float32(model.manifest.output.score_threshold if wish is None else wish))
        weak = replace(decode, score_threshold=self._threshold / 2)
        *smaller, largest = rungs
        self._sizes = [Size(session, model, rung.name, weak) for rung in smaller]
        self._sizes.append(Size(session, model, largest.name, decode))
        self._session = session
        self._ladder = SizeLadder(rungs, round(config.ladder.budget_ms * 1e6))
        for index, rung in enumerate(rungs):
            self._ladder.took(index, usual_ns(session, rung.name))
        self.rung = largest.name

    @property
    def used(self) -> dict[str, int]:
        """How often each rung gave the answer."""
        return {size.rung: count for size, count in zip(self._sizes, self._ladder.used, strict=True)}

    def look(self, frame: Frame, crop: Box, complexity: float) -> Look:
        """Look at a part of a frame; times are those of all sizes that did.

        Raises:
            BackendError: the inference failed.
        """
        ladder, began_ns = self._ladder, time.monotonic_ns()
        began = answered = ladder.begin(complexity)
        look, confidence = self._run(began, frame, crop, complexity)
        sure, agreed = ladder.sure(began, confidence), True
        larger = ladder.larger(began, sure=sure, spent_ns=time.monotonic_ns() - began_ns)
        if larger is not None:
            first, answered = look, larger
            look, _ = self._run(larger, frame, crop, complexity)
            agreed = agreement(first.detections, look.detections) >= _AGREES
            look = _after(first, look)
        ladder.settle(began, answered, sure=sure, agreed=agreed)
        self.rung = self._sizes[answered].rung
        return look

    def every(self, frame: Frame, crop: Box) -> list[tuple[Look, float]]:
        """What every size sees in a part of a frame, and how sure it is; smallest first.

        Raises:
            BackendError: the inference failed.
        """
        return [self._run(index, frame, crop, 1.0) for index in range(len(self._sizes))]

    def _run(self, index: int, frame: Frame, crop: Box, complexity: float) -> tuple[Look, float]:
        """What a size sees, and how sure it is."""
        size, began_ns = self._sizes[index], time.monotonic_ns()
        self._session.use(size.rung)
        look = size.look(frame, crop, complexity)
        confidence = 1.0
        if index + 1 < len(self._sizes):
            confidence = certainty((found.score for found in look.detections), self._threshold)
            look = replace(look, detections=[d for d in look.detections if d.score >= self._threshold])
        self._ladder.took(index, time.monotonic_ns() - began_ns)
        return look, confidence


def _after(first: Look, second: Look) -> Look:
    """The second with the time of both."""
    return Look(
        second.detections,
        first.prepare + second.prepare,
        first.infer + second.infer,
        first.decode + second.decode,
    )
