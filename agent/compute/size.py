"""One size of a model of pictures: frame → tensor → inference → detections in fractions of the frame."""

from __future__ import annotations

import time
from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from agent.compute.decode import build_decoder
from agent.compute.infer.backend import Session
from agent.compute.infer.image import ImageInput, Placement
from agent.config import DecodeConfig
from agent.errors import ModelError
from agent.manifest import Model
from agent.messages import Box, Detection, Frame


class Look(Struct, frozen=True, gc=False):
    """What was made of a frame.

    Attributes:
        detections: strongest first.
        prepare, infer, decode: time that it took, ns.
    """

    detections: list[Detection]
    prepare: int
    infer: int
    decode: int


class Size:
    """What a rung needs before and after its inference. For one thread.

    Attributes:
        rung: its name.
    """

    def __init__(self, session: Session, model: Model, rung: str, config: DecodeConfig) -> None:
        """Prepare; the session uses this rung then.

        Raises:
            ModelError: there is no such rung, or it does not take one picture or fit its decoder.
        """
        session.use(rung)
        if len(session.inputs) != 1:
            raise ModelError(
                f"{model.path}: expected one input, a picture; found {len(session.inputs)}: "
                f"{', '.join(map(str, session.inputs))}"
            )
        self.rung = rung
        self._session = session
        self._decoder = build_decoder(model.manifest, session.inputs, session.outputs, config)
        self._image = ImageInput(session.inputs[0], model.manifest.input)

    def look(self, frame: Frame, crop: Box, complexity: float) -> Look:
        """Look at a part of a frame. The session must be using this rung.

        Args:
            frame: to look at.
            crop: the part.
            complexity: of the frame, 0..1: one size takes all alike.

        Raises:
            BackendError: the inference failed.
        """
        session = self._session
        began = time.monotonic_ns()
        placement = self._image.fill(session.input(0), frame.image, frame.order, crop)
        prepared = time.monotonic_ns()
        session.invoke()
        inferred = time.monotonic_ns()
        detections = self._decoder([session.output(index) for index in range(len(session.outputs))])
        if not placement.whole:
            detections = _placed(detections, placement)
        return Look(detections, prepared - began, inferred - prepared, time.monotonic_ns() - inferred)


def _placed(detections: Sequence[Detection], placement: Placement) -> list[Detection]:
    """Detections in fractions of the frame instead of the model's picture."""
    return [
        replace(
            detection,
            box=placement.to_frame(detection.box) if detection.box else None,
            keypoints=tuple(
                replace(k, x=placed[0], y=placed[1])
                for k in detection.keypoints
                for placed in (placement.point(k.x, k.y),)
            ),
            outline=tuple(placement.point(x, y) for x, y in detection.outline),
        )
        for detection in detections
    ]
