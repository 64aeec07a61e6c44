"""What a decoder is built from: the manifest's output, the tensors, and the stream's wishes."""

from __future__ import annotations

import difflib
from typing import Literal, TypeVar

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from agent.compute.tensors import TensorSpec
from agent.config import DecodeConfig
from agent.errors import ModelError
from agent.manifest import OutputManifest

Chosen = TypeVar("Chosen", bound="Options")

_HOLES = ("", "???")


_MOST_CLASSES = 1_000_000
"""The whole of ImageNet has 21,841."""


Activation = Literal["", "softmax", "sigmoid"]
"""What makes probabilities of an output; empty: they are probabilities already."""
Logits = bool | Literal["softmax", "sigmoid"]
"""In a manifest; `true` is the softmax."""


def activation(logits: Logits) -> Activation:
    """What an option `logits` asks for."""
    return logits if isinstance(logits, str) else "softmax" if logits else ""


class MisfitError(ModelError):
    """The tensors do not fit the decoder; `build_decoder` adds which would."""


class Options(Struct, frozen=True, forbid_unknown_fields=True):
    """Options that every decoder takes.

    Attributes:
        tensors: role → name of the output tensor, where shapes and names leave a doubt.
    """

    tensors: dict[str, str] = {}


class DetectorOptions(Options, frozen=True, forbid_unknown_fields=True):
    """Options that every decoder of boxes takes.

    Attributes:
        agnostic: suppress overlapping boxes of different classes too.
    """

    agnostic: bool = False


class Setting(Struct, frozen=True):
    """See the module.

    Attributes:
        output: of the manifest.
        inputs, outputs: of the model.
        config: of the stream.
    """

    output: OutputManifest
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    config: DecodeConfig

    @property
    def score_threshold(self) -> float:
        """Least score of a detection, 0..1."""
        wish = self.config.score_threshold
        return self.output.score_threshold if wish is None else wish

    @property
    def iou_threshold(self) -> float:
        """Overlap above which the weaker of two boxes goes, 0..1."""
        wish = self.config.iou_threshold
        return self.output.iou_threshold if wish is None else wish

    def options(self, kind: type[Chosen]) -> Chosen:
        """The manifest's options as a decoder's struct.

        Raises:
            ModelError: an unknown option or a wrong type.
        """
        try:
            return msgspec.convert(self.output.options, kind)
        except msgspec.ValidationError as error:
            known = ", ".join(kind.__struct_fields__)
            raise ModelError(f"decoder {self.output.decoder!r}: options: {error}; known: {known}") from None

    def picture(self) -> tuple[int, int]:
        """Height and width of the input picture.

        Raises:
            MisfitError: the first input is none.
        """
        shape = self.inputs[0].shape if self.inputs else ()
        if len(shape) != 4 or shape[3] not in (1, 3, 4) or min(shape) < 1:
            found = ", ".join(map(str, self.inputs)) or "no input"
            raise MisfitError(f"expected an input picture [1,height,width,3], found {found}")
        return shape[1], shape[2]

    def labels(self, default: tuple[str, ...] = ()) -> Labels:
        """The model's labels and which of them are wanted.

        Raises:
            ModelError: a wanted label is none of the model's.
        """
        names = self.output.labels or default
        for wanted in self.config.labels:
            if names and wanted not in names:
                near = difflib.get_close_matches(wanted, names, 1) or list(names[:5])
                raise ModelError(f"no label {wanted!r}; did you mean {' or '.join(map(repr, near))}?")
        return Labels(names, self.config.labels)


class Labels:
    """Class names by number, and which are wanted."""

    def __init__(self, names: tuple[str, ...], wanted: tuple[str, ...] = ()) -> None:
        self._names = names
        self._wanted = frozenset(wanted)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, number: int) -> str:
        """Name of a class; `class17` where the manifest has none."""
        return self._names[number] if 0 <= number < len(self._names) else f"class{number}"

    def wanted(self, number: int) -> str | None:
        """Name of a class; None when it is not wanted, or a hole in the list: empty, or TensorFlow's `???`."""
        name = self[number]
        return None if name in _HOLES or (self._wanted and name not in self._wanted) else name

    def mask(self, count: int) -> NDArray[np.bool_] | None:
        """Which of `count` classes are wanted; None for all.

        Raises:
            MisfitError: no model has so many; a broken file may say so, and looking at each would take for ever.
        """
        if count > _MOST_CLASSES:
            raise MisfitError(f"expected at most {_MOST_CLASSES:,} classes, found {count:,}")
        mask = np.array([self.wanted(number) is not None for number in range(count)], bool)
        return None if mask.all() else mask
