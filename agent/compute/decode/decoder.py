"""What turns outputs into detections, the table of what there is, and how one is built for a model."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping, Sequence
from typing import Protocol

from agent.compute.decode.setting import MisfitError, Options, Setting
from agent.compute.tensors import TensorSpec
from agent.config import DecodeConfig
from agent.errors import ModelError
from agent.manifest import Manifest, OutputManifest
from agent.messages import Array, Detection


class Decoder(Protocol):
    """Outputs of one inference → detections. For one thread: it reuses its scratch memory."""

    def __call__(self, outputs: Sequence[Array]) -> list[Detection]:
        """Decode one inference.

        Args:
            outputs: arrays in the order, shapes and types of the specs it was built for. They may be views of
                the tensors' own memory: no reference is kept.

        Returns:
            Strongest first. Boxes, keypoints and outlines are fractions of the model's input picture; the caller
            maps them to the frame. What is not finite is left out.
        """
        ...


DECODERS: Mapping[str, str] = {
    "ssd": "agent.compute.decode.ssd",
    "blazeface": "agent.compute.decode.blazeface",
    "keypoints": "agent.compute.decode.keypoints",
    "nanodet": "agent.compute.decode.nanodet",
    "yolo": "agent.compute.decode.yolo",
    "segment": "agent.compute.decode.segment",
    "classify": "agent.compute.decode.classify",
    "keyword": "agent.compute.decode.keyword",
}
"""Name in a manifest → module, whose `build(setting)` gives the decoder. The most particular first, as `fitting`
tries them in this order."""


def build_decoder(
    manifest: Manifest, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], config: DecodeConfig
) -> Decoder:
    """The decoder that the manifest names, for these tensors.

    Raises:
        ModelError: there is no such decoder, its options are wrong, a label of `config` is none of the model's,
            or the tensors do not fit: says which was expected, what was found, and which decoder would fit.
    """
    setting = Setting(manifest.output, tuple(inputs), tuple(outputs), config)
    name = manifest.output.decoder
    try:
        return make(name, setting)
    except MisfitError as error:
        other = fitting(setting.inputs, setting.outputs)
        hint = f"; these tensors would fit decoder {other!r}" if other not in (None, name) else ""
        raise ModelError(f"model {manifest.name}: decoder {name!r}: {error}{hint}") from None
    except ModelError as error:
        raise ModelError(f"model {manifest.name}: {error}") from None


def make(name: str, setting: Setting) -> Decoder:
    """A decoder by its name.

    Raises:
        MisfitError: the tensors do not fit it; ModelError: see `build_decoder`.
    """
    if name not in DECODERS:
        near = difflib.get_close_matches(name, DECODERS, 1)
        meant = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(DECODERS)}"
        raise ModelError(f"no decoder {name!r}{meant}")
    decoder: Decoder = importlib.import_module(DECODERS[name]).build(setting)
    return decoder


def options_kind(name: str) -> type[Options]:
    """The struct of a decoder's options.

    Args:
        name: one of `DECODERS`.
    """
    kind: type[Options] = importlib.import_module(DECODERS[name]).OPTIONS
    return kind


def fitting(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str | None:
    """Name of the most particular decoder that these tensors fit without any options; None: none does."""
    for name in DECODERS:
        if name == "keyword":  # the scores of `classify`; only a manifest tells that they are about sound
            continue
        try:
            make(name, Setting(OutputManifest(name), tuple(inputs), tuple(outputs), DecodeConfig()))
        except ModelError:
            continue
        return name
    return None
