"""The decoder protocol, the table of decoders, and the assignment of output tensors to their roles."""

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
from agent.compute.tflite.model import TensorSpec
from agent.config.stream import DecodeConfig
from agent.errors import ModelError
from agent.types import Array, Detection

OptionsT = TypeVar("OptionsT", bound="DecoderOptions")

_HOLES = ("", "???")


_MOST_CLASSES = 1_000_000
"""Refuse more classes than this; all of ImageNet has 21,841."""


Activation = Literal["", "softmax", "sigmoid"]
"""Function that turns an output into probabilities; empty: the output is probabilities."""
Logits = bool | Literal["softmax", "sigmoid"]
"""Option of a manifest; `true` is the softmax."""


def activation(logits: Logits) -> Activation:
    """Return the activation that the option `logits` asks for."""
    return logits if isinstance(logits, str) else "softmax" if logits else ""


class ShapeMismatchError(ModelError):
    """The tensors do not fit the decoder. `build_decoder` adds which decoder would fit."""


class DecoderOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """Options that every decoder takes.

    Attributes:
        tensors: role → name of the output tensor, if shapes and names are ambiguous.
    """

    tensors: dict[str, str] = {}


class DetectorOptions(DecoderOptions, frozen=True, forbid_unknown_fields=True):
    """Options that every decoder of boxes takes.

    Attributes:
        agnostic: suppress overlapping boxes of different classes too.
    """

    agnostic: bool = False


class DecoderContext(Struct, frozen=True):
    """Inputs that a decoder is built from.

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
        override = self.config.score_threshold
        return self.output.score_threshold if override is None else override

    @property
    def iou_threshold(self) -> float:
        """Overlap above which the weaker of two boxes is dropped, 0..1."""
        override = self.config.iou_threshold
        return self.output.iou_threshold if override is None else override

    def options(self, kind: type[OptionsT]) -> OptionsT:
        """Convert the manifest's options to a decoder's struct.

        Raises:
            ModelError: an unknown option or a wrong type.
        """
        try:
            return msgspec.convert(self.output.options, kind)
        except msgspec.ValidationError as error:
            known = ", ".join(kind.__struct_fields__)
            raise ModelError(f"decoder {self.output.decoder!r}: options: {error}; known: {known}") from None

    def picture(self) -> tuple[int, int]:
        """Return height and width of the input picture.

        Raises:
            ShapeMismatchError: the first input is no picture.
        """
        shape = self.inputs[0].shape if self.inputs else ()
        if len(shape) != 4 or shape[3] not in (1, 3, 4) or min(shape) < 1:
            found = ", ".join(map(str, self.inputs)) or "no input"
            raise ShapeMismatchError(f"expected an input picture [1,height,width,3], found {found}")
        return shape[1], shape[2]

    def labels(self, default: tuple[str, ...] = ()) -> Labels:
        """Return the model's labels and which of them are wanted.

        Raises:
            ModelError: the model lacks a wanted label.
        """
        names = self.output.labels or default
        for wanted in self.config.labels:
            if names and wanted not in names:
                near = difflib.get_close_matches(wanted, names, 1) or list(names[:5])
                raise ModelError(f"no label {wanted!r}; did you mean {' or '.join(map(repr, near))}?")
        return Labels(names, self.config.labels)


class Labels:
    """Class names by number, and which of them are wanted."""

    def __init__(self, names: tuple[str, ...], wanted: tuple[str, ...] = ()) -> None:
        self._names = names
        self._wanted = frozenset(wanted)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, number: int) -> str:
        """Return the name of a class; `class17` if the manifest has none."""
        return self._names[number] if 0 <= number < len(self._names) else f"class{number}"

    def wanted(self, number: int) -> str | None:
        """Return the name of a class; None if it is not wanted, empty, or TensorFlow's `???`."""
        name = self[number]
        return None if name in _HOLES or (self._wanted and name not in self._wanted) else name

    def mask(self, count: int) -> NDArray[np.bool_] | None:
        """Return a mask of the wanted classes; None: all.

        Raises:
            ShapeMismatchError: there are more classes than any model has, as in a broken file.
        """
        if count > _MOST_CLASSES:
            raise ShapeMismatchError(f"expected at most {_MOST_CLASSES:,} classes, found {count:,}")
        mask = np.array([self.wanted(number) is not None for number in range(count)], bool)
        return None if mask.all() else mask


class Decoder(Protocol):
    """Decodes the outputs of one inference. For one thread: it reuses its scratch memory."""

    def __call__(self, outputs: Sequence[Array]) -> list[Detection]:
        """Decode one inference.

        Args:
            outputs: arrays in the order, shapes and dtypes of the specs that it was built for. They may be views
                of the tensors' own memory: no reference is kept.

        Returns:
            Detections, strongest first, all finite. Boxes, keypoints and outlines are fractions of the model's
            picture; the caller maps them to the frame.
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
"""Name in a manifest → module whose `build(context)` returns the decoder. The most specific first: `find_fitting`
tries them in this order."""


def build_decoder(
    manifest: Manifest, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], config: DecodeConfig
) -> Decoder:
    """Build the decoder that the manifest names for these tensors.

    Raises:
        ModelError: the decoder is unknown, its options are wrong, the model lacks a label of `config`, or the
            tensors do not fit. The error names what was expected, what was found, and a decoder that would fit.
    """
    context = DecoderContext(manifest.output, tuple(inputs), tuple(outputs), config)
    name = manifest.output.decoder
    try:
        return create_decoder(name, context)
    except ShapeMismatchError as error:
        other = find_fitting(context.inputs, context.outputs)
        hint = f"; these tensors would fit decoder {other!r}" if other not in (None, name) else ""
        raise ModelError(f"model {manifest.name}: decoder {name!r}: {error}{hint}") from None
    except ModelError as error:
        raise ModelError(f"model {manifest.name}: {error}") from None


def create_decoder(name: str, context: DecoderContext) -> Decoder:
    """Build a decoder by its name.

    Raises:
        ShapeMismatchError: the tensors do not fit it.
        ModelError: the decoder is unknown, or its options are wrong.
    """
    if name not in DECODERS:
        near = difflib.get_close_matches(name, DECODERS, 1)
        meant = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(DECODERS)}"
        raise ModelError(f"no decoder {name!r}{meant}")
    decoder: Decoder = importlib.import_module(DECODERS[name]).build(context)
    return decoder


def options_kind(name: str) -> type[DecoderOptions]:
    """Return the struct of a decoder's options.

    Args:
        name: one of `DECODERS`.
    """
    kind: type[DecoderOptions] = importlib.import_module(DECODERS[name]).OPTIONS
    return kind


def find_fitting(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str | None:
    """Return the most specific decoder that these tensors fit without options; None: there is none."""
    for name in DECODERS:
        if name == "keyword":  # same tensors as `classify`; only a manifest says that they are about sound
            continue
        try:
            create_decoder(
                name, DecoderContext(OutputManifest(name), tuple(inputs), tuple(outputs), DecodeConfig())
            )
        except ModelError:
            continue
        return name
    return None


Shape = tuple[int | None, ...]

_MANY = 16
"""Most outputs whose assignments are compared."""


class OutputRole(Struct, frozen=True):
    """Role of an output tensor.

    Attributes:
        name: for messages and for the option `tensors`.
        shapes: possible shapes; None: any size.
        hints: words that the tensor's name often contains, in lower case.
    """

    name: str
    shapes: tuple[Shape, ...]
    hints: tuple[str, ...] = ()

    def fits(self, spec: TensorSpec) -> bool:
        """Return True if a tensor has one of the shapes."""
        return any(
            len(shape) == len(spec.shape)
            and all(size is None or size == found for size, found in zip(shape, spec.shape, strict=True))
            for shape in self.shapes
        )

    def is_hinted(self, spec: TensorSpec) -> bool:
        """Return True if the tensor's name suggests this role."""
        return any(hint in spec.name.lower() for hint in self.hints)

    def __str__(self) -> str:
        shapes = (",".join("*" if size is None else str(size) for size in shape) for shape in self.shapes)
        return f"{self.name} {' or '.join(f'[{shape}]' for shape in shapes)}"


def assign_outputs(
    roles: Sequence[OutputRole], outputs: Sequence[TensorSpec], named: Mapping[str, str] | None = None
) -> tuple[int, ...]:
    """Assign an output to each role and return their indices: by shapes, then hints, then order.

    Args:
        roles: of a decoder.
        outputs: of a model.
        named: role → tensor name, from the manifest.

    Raises:
        ShapeMismatchError: a role has no tensor.
    """
    places = [_places(role, outputs, (named or {}).get(role.name)) for role in roles]
    best = max(_assignments(places), key=lambda assignment: _hints(assignment, roles, outputs), default=None)
    if best is None:
        raise ShapeMismatchError(f"expected {_join(roles)}; no assignment fits all outputs: {_join(outputs)}")
    return best


def assign_scores(
    labels: int, outputs: Sequence[TensorSpec], named: Mapping[str, str], hints: tuple[str, ...]
) -> int:
    """Return the index of the output with one score per class, [1,classes] or [1,1,1,classes].

    Args:
        labels: their number; 0: not known.
        outputs: of a model.
        named: see `assign_outputs`.
        hints: see `OutputRole`.

    Raises:
        ShapeMismatchError: there is no such output, or it has another number of classes.
    """
    count = labels or None
    try:
        return assign_outputs((OutputRole("scores", ((1, count), (1, 1, 1, count)), hints),), outputs, named)[0]
    except ShapeMismatchError:
        if not labels:
            raise
    other = outputs[assign_scores(0, outputs, named, hints)]
    raise class_mismatch(labels, other.shape[-1], other)


def class_mismatch(labels: int, classes: int, spec: TensorSpec) -> ShapeMismatchError:
    """Return the error for a manifest whose number of labels differs from the classes in `spec`."""
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


def _hints(assignment: Sequence[int], roles: Sequence[OutputRole], outputs: Sequence[TensorSpec]) -> int:
    return sum(role.is_hinted(outputs[i]) for i, role in zip(assignment, roles, strict=True))


def _join(items: Sequence[object]) -> str:
    return ", ".join(map(str, items)) or "nothing"
