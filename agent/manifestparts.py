"""The parts of a model's manifest that say what goes in, what comes out, and what a device must answer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from agent.messages import ChannelOrder

Unit = Annotated[float, Meta(ge=0.0, le=1.0)]
Mean = Annotated[float, Meta(ge=-1e6, le=1e6)]
Std = Annotated[float, Meta(ge=1e-6, le=1e6)]
Resize = Literal["stretch", "letterbox"]


class InputManifest(Struct, frozen=True, forbid_unknown_fields=True):
    """How a picture becomes the input tensor.

    Attributes:
        order: channel order that the model was trained with.
        resize: `stretch` to the input's size, or `letterbox`: keep the aspect and pad with grey 114.
        mean, std: `(pixel - mean) / std`, per channel in `order`, in the tensor's real-valued domain.
    """

    order: ChannelOrder = "rgb"
    resize: Resize = "stretch"
    mean: tuple[Mean, Mean, Mean] = (0.0, 0.0, 0.0)
    std: tuple[Std, Std, Std] = (1.0, 1.0, 1.0)


class AudioManifest(Struct, frozen=True, forbid_unknown_fields=True):
    """How sound becomes the input tensor: samples → rows of a front end → the newest rows, quantised.

    Attributes:
        rate_hz: of the samples that the front end takes.
        frontend: name of a front end in `agent.compute.infer.audio`.
        every_s: from one inference to the next, s; 0: whenever the tensor is full of new rows, for a model that
            remembers what it has heard.
        mean, std: `(row - mean) / std`, in the tensor's real-valued domain.
        options: what this front end needs besides, checked by it.
    """

    rate_hz: Annotated[int, Meta(ge=4000, le=192_000)]
    frontend: str
    every_s: Annotated[float, Meta(ge=0.0, le=60.0)] = 0.0
    mean: Mean = 0.0
    std: Std = 1.0
    options: dict[str, Any] = {}


class OutputManifest(Struct, frozen=True, forbid_unknown_fields=True):
    """How the output tensors become detections.

    Attributes:
        decoder: name of a decoder in `agent.compute.decode`; empty: the one that the outputs fit.
        labels: class names in order, of sounds each once; or in the file the name of a text file beside it.
        score_threshold: detections below are dropped.
        iou_threshold: overlap above which non-maximum suppression drops the weaker of two boxes.
        options: what this decoder needs besides, checked by the decoder.
    """

    decoder: str = ""
    labels: tuple[str, ...] = ()
    score_threshold: Unit = 0.4
    iou_threshold: Unit = 0.6
    options: dict[str, Any] = {}


class GoldenManifest(Struct, frozen=True, forbid_unknown_fields=True):
    """Inputs that a device must answer as the CPU does before it may run the model.

    Attributes:
        files: beside the manifest, pictures or recordings as the model will meet them; none: noisy shapes.
        tolerance: root mean square of the difference, as a share of the answer's own deviation (of its size where
            its numbers are alike, or it is only one), over the worst output; None: 0.1 of a quantised model, 0.02
            of another.
    """

    files: tuple[str, ...] = ()
    tolerance: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
