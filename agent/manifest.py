"""The manifest: what a model needs to know about itself that its file does not say. TOML beside it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from agent.errors import ModelError
from agent.messages import ChannelOrder

Unit = Annotated[float, Meta(ge=0.0, le=1.0)]
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
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)


class OutputManifest(Struct, frozen=True, forbid_unknown_fields=True):
    """How the output tensors become detections.

    Attributes:
        decoder: name of a decoder in `agent.compute.decode`.
        labels: class names in order. In the file it may be the name of a text file beside the manifest.
        score_threshold: detections below are dropped.
        iou_threshold: overlap above which non-maximum suppression drops the weaker of two boxes.
        options: what this decoder needs besides, checked by the decoder.
    """

    decoder: str
    labels: tuple[str, ...] = ()
    score_threshold: Unit = 0.4
    iou_threshold: Unit = 0.6
    options: dict[str, Any] = {}


class Rung(Struct, frozen=True, forbid_unknown_fields=True):
    """One depth or size of a model that has several.

    Attributes:
        name: what the config, the commands and the messages call it.
        signature: the signature of the file that runs it; empty for the model's only graph.
    """

    name: str
    signature: str = ""


class Manifest(Struct, frozen=True, forbid_unknown_fields=True):
    """A model's manifest.

    Attributes:
        name: what the messages call the model.
        output: see `OutputManifest`.
        input: see `InputManifest`.
        file: name of the model file beside the manifest.
        sha256: of the model file; checked when it is loaded. Empty: not checked.
        licence: SPDX expression of the weights.
        source: where the model came from.
        description: for people.
        rungs: largest or deepest first; the first is the default.
    """

    name: str
    output: OutputManifest
    input: InputManifest = InputManifest()
    file: str = ""
    sha256: str = ""
    licence: str = ""
    source: str = ""
    description: str = ""
    rungs: tuple[Rung, ...] = (Rung(name="full"),)

    def rung(self, name: str) -> Rung:
        """The rung of that name; the first for an empty name.

        Raises:
            ModelError: there is none.
        """
        for rung in self.rungs:
            if name in ("", rung.name):
                return rung
        known = ", ".join(r.name for r in self.rungs)
        raise ModelError(f"model {self.name} has no rung {name!r}; it has: {known}")


class Model(Struct, frozen=True, weakref=True):
    """A model in memory: bytes, their hash, and the manifest.

    Attributes:
        content: the `.tflite` file.
        sha256: hex digest of `content`.
        manifest: see `Manifest`.
        path: where it came from, for messages.
    """

    content: bytes
    sha256: str
    manifest: Manifest
    path: str


def manifest_from(data: dict[str, Any], where: str) -> Manifest:
    """Build a manifest from a parsed TOML document whose `labels` are already a list.

    Args:
        data: the document.
        where: its path, for messages.

    Raises:
        ModelError: an unknown key, a wrong type or an empty ladder.
    """
    try:
        manifest = msgspec.convert(data, Manifest)
    except msgspec.ValidationError as error:
        raise ModelError(f"{where}: {error}") from error
    if not manifest.rungs:
        raise ModelError(f"{where}: `rungs` is empty; leave it out for a model with one graph")
    return manifest
