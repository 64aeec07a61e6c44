"""What turns outputs into detections, the table of what there is, and how one is built for a model."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, Protocol, TypeVar

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from agent.compute.manifest import Manifest, OutputManifest
from agent.compute.tensors import TensorSpec
from agent.config.stream import DecodeConfig
from agent.errors import ModelError
from agent.types import Array, Detection

OptionsT = TypeVar("OptionsT", bound="DecoderOptions")

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


class ShapeMismatchError(ModelError):
    """The tensors do not fit the decoder; `build_decoder` adds which would."""


class DecoderOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """Options that every decoder takes.

    Attributes:
        tensors: role → name of the output tensor, where shapes and names leave a doubt.
    """

    tensors: dict[str, str] = {}


class DetectorOptions(DecoderOptions, frozen=True, forbid_unknown_fields=True):
    """Options that every decoder of boxes takes.

    Attributes:
        agnostic: suppress overlapping boxes of different classes too.
    """

    agnostic: bool = False


class DecoderContext(Struct, frozen=True):
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

    def options(self, kind: type[OptionsT]) -> OptionsT:
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
            raise ShapeMismatchError(f"expected an input picture [1,height,width,3], found {found}")
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
            raise ShapeMismatchError(f"expected at most {_MOST_CLASSES:,} classes, found {count:,}")
        mask = np.array([self.wanted(number) is not None for number in range(count)], bool)
        return None if mask.all() else mask


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
    setting = DecoderContext(manifest.output, tuple(inputs), tuple(outputs), config)
    name = manifest.output.decoder
    try:
        return make(name, setting)
    except ShapeMismatchError as error:
        other = fitting(setting.inputs, setting.outputs)
        hint = f"; these tensors would fit decoder {other!r}" if other not in (None, name) else ""
        raise ModelError(f"model {manifest.name}: decoder {name!r}: {error}{hint}") from None
    except ModelError as error:
        raise ModelError(f"model {manifest.name}: {error}") from None


def make(name: str, setting: DecoderContext) -> Decoder:
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


def options_kind(name: str) -> type[DecoderOptions]:
    """The struct of a decoder's options.

    Args:
        name: one of `DECODERS`.
    """
    kind: type[DecoderOptions] = importlib.import_module(DECODERS[name]).OPTIONS
    return kind


def fitting(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str | None:
    """Name of the most particular decoder that these tensors fit without any options; None: none does."""
    for name in DECODERS:
        if name == "keyword":  # the scores of `classify`; only a manifest tells that they are about sound
            continue
        try:
            make(name, DecoderContext(OutputManifest(name), tuple(inputs), tuple(outputs), DecodeConfig()))
        except ModelError:
            continue
        return name
    return None


Shape = tuple[int | None, ...]

_MANY = 16
"""Outputs that are tried against each other at most."""


class OutputRole(Struct, frozen=True):
    """A part that a tensor plays.

    Attributes:
        name: for messages and for the option `tensors`.
        shapes: any of these; None for any size.
        hints: words that its name often contains, in lower case.
    """

    name: str
    shapes: tuple[Shape, ...]
    hints: tuple[str, ...] = ()

    def fits(self, spec: TensorSpec) -> bool:
        """Whether a tensor has one of the shapes."""
        return any(
            len(shape) == len(spec.shape)
            and all(size is None or size == found for size, found in zip(shape, spec.shape, strict=True))
            for shape in self.shapes
        )

    def hinted(self, spec: TensorSpec) -> bool:
        """Whether a tensor's name suggests this part."""
        return any(hint in spec.name.lower() for hint in self.hints)

    def __str__(self) -> str:
        shapes = (",".join("*" if size is None else str(size) for size in shape) for shape in self.shapes)
        return f"{self.name} {' or '.join(f'[{shape}]' for shape in shapes)}"


def assign_outputs(
    roles: Sequence[OutputRole], outputs: Sequence[TensorSpec], named: Mapping[str, str] | None = None
) -> tuple[int, ...]:
    """Index of the output for each role: shapes must fit, then hints decide, then the order.

    Args:
        roles: of a decoder.
        outputs: of a model.
        named: role → tensor name, as the manifest insists.

    Raises:
        MisfitError: some role has no tensor.
    """
    places = [_places(role, outputs, (named or {}).get(role.name)) for role in roles]
    best = max(_assignments(places), key=lambda casting: _hints(casting, roles, outputs), default=None)
    if best is None:
        raise ShapeMismatchError(
            f"expected {_join(roles)}; the tensors left no choice that fits all: {_join(outputs)}"
        )
    return best


def cast_scores(
    labels: int, outputs: Sequence[TensorSpec], named: Mapping[str, str], hints: tuple[str, ...]
) -> int:
    """Index of the output with one score per class, [1,classes] or [1,1,1,classes].

    Args:
        labels: how many there are; 0: not known.
        outputs: of a model.
        named: see `assign_outputs`.
        hints: see `OutputRole`.

    Raises:
        MisfitError: there is none, or it has another number of classes.
    """
    count = labels or None
    try:
        return assign_outputs((OutputRole("scores", ((1, count), (1, 1, 1, count)), hints),), outputs, named)[0]
    except ShapeMismatchError:
        if not labels:
            raise
    other = outputs[cast_scores(0, outputs, named, hints)]
    raise other_classes(labels, other.shape[-1], other)


def other_classes(labels: int, classes: int, spec: TensorSpec) -> ShapeMismatchError:
    """The error for a manifest with another number of labels than the scores in `spec` have classes."""
    found = "1 class" if classes == 1 else f"{classes} classes"
    return ShapeMismatchError(f"expected a score for each of {labels} labels, found {found} in {spec}")


def _places(role: OutputRole, outputs: Sequence[TensorSpec], name: str | None) -> list[int]:
    places = [i for i, spec in enumerate(outputs[:_MANY]) if role.fits(spec) and name in (None, spec.name)]
    if not places:
        called = f" named {name!r}" if name else ""
        raise ShapeMismatchError(f"expected an output {role}{called}, found {_join(outputs)}")
    return places


def _assignments(places: Sequence[Sequence[int]], taken: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    if len(taken) == len(places):
        yield taken
        return
    for place in places[len(taken)]:
        if place not in taken:
            yield from _assignments(places, (*taken, place))


def _hints(casting: Sequence[int], roles: Sequence[OutputRole], outputs: Sequence[TensorSpec]) -> int:
    return sum(role.hinted(outputs[i]) for i, role in zip(casting, roles, strict=True))


def _join(items: Sequence[object]) -> str:
    return ", ".join(map(str, items)) or "nothing"
