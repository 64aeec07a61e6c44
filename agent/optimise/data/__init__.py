"""Examples from `--data`: pictures with classes or boxes, pictures alone, or arrays, as a model takes them.

What lies at the path decides:

- a folder with a sub-folder of pictures for each class;
- a folder with `images/`, and `labels/` as YOLO writes them: for each picture a `.txt` of the same name with
  lines `class x y width height`, where x and y are the centre, all as fractions; `classes.txt` may name the
  classes, a line each. Without `labels/` the pictures have no labels;
- a folder with pictures and an `.xml` of Pascal VOC for each, or one `.json` of COCO, see
  `agent.optimise.data.annotations`;
- a folder of pictures, or with one sub-folder of them: no labels, for calibration and to compare two models;
- a `.tar` of one of these: nothing is unpacked;
- a `.npz` with `x`, and with `y`, int [n], if there are classes, which `names` may name. `x` is uint8
  [n, height, width, 3 or 1], pictures in RGB, or float32 [n, *shape], real values as the model's input takes
  them, or whole numbers for an input of such. A model of several inputs takes an array for each, by its name.

Pictures are decoded when they are asked for, and prepared by the same code as in the daemon.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from agent.capture.source import check_size, header_size
from agent.compute.infer.image_input import ImageInput, Placement
from agent.compute.manifest import InputManifest, Model
from agent.compute.tflite.model import TensorSpec
from agent.compute.tflite.read import read_modelfile
from agent.errors import ModelError, SourceError
from agent.optimise.data.annotations import ObjectBoxes
from agent.optimise.data.layouts import FoundData, check_classifier, matched, read_data
from agent.text import plain, plural
from agent.types import Array, ChannelOrder, Image

Kind = Literal["classes", "boxes", "none"]

_FEWEST = 8
_PREVIEW = cv2.IMREAD_REDUCED_COLOR_8
_LARGEST = 1e15
"""Largest real value: sums of products of larger ones leave the range of float32."""
_BEYOND, _NARROW = 0.25, 0.05
"""Shares of the range of pixels: how far real values may lie outside, and how little of it they may span."""


class Examples:
    """Inputs of a model, with their labels if they have any. Can be pickled. For one thread.

    `read_examples` makes them.

    Attributes:
        kind: `classes`: one label each; `boxes`: objects in pictures; `none`: no labels.
        shape: of one input without the batch, such as (height, width, channels).
        labels: int64 [n] for `classes`, else None.
        names: of the classes; empty: not known.
        description: what was read from where, in a line.
        remarks: doubts.
    """

    def __init__(
        self,
        content: FoundData,
        shape: tuple[int, ...],
        preparation: InputManifest,
        path: str,
        *,
        sound: bool = False,
    ) -> None:
        self._content, self._preparation, self._path = content, preparation, path
        self._may_be_pixels = preparation.pixels and not sound
        self._rows = np.arange(len(content.pictures))
        self._inputs: dict[TensorSpec, ImageInput] = {}
        self.shape, self.names, self.remarks = shape, content.names, tuple[str, ...]()
        self.kind: Kind = "classes" if content.classes is not None else "boxes" if content.objects else "none"
        self.labels = content.classes

    def __len__(self) -> int:
        return len(self._rows)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_inputs": {}}

    @property
    def description(self) -> str:
        return f"{self._path}: {plural(len(self), 'example')}, {self._content.words}"

    @property
    def order(self) -> ChannelOrder:
        """Order of the channels of `picture`."""
        return "rgb" if isinstance(self._content.pictures, np.ndarray) else "bgr"

    def inputs(self, index: int, names: Sequence[str]) -> tuple[Array, ...]:
        """Return an example as the inputs of the float model take it, [1, *shape] each, in the order of names.

        Raises:
            ModelError: a picture cannot be read any more.
        """
        others = self._content.others
        return tuple(
            others[name][self._rows[index], None] if name in others else self.batch([index]) for name in names
        )

    @property
    def further(self) -> dict[str, tuple[int, ...]]:
        """Shapes, without the batch, of the inputs beyond the first, by name."""
        return {name: values.shape[1:] for name, values in self._content.others.items()}

    def batch(self, indices: Sequence[int] | NDArray[Any]) -> Array:
        """Return values as the model's float input takes them, [b, *shape]: float32, or whole numbers.

        Raises:
            ModelError: a picture cannot be read any more.
        """
        spec = TensorSpec("input", (1, *self.shape), "float32")
        if self.are_whole:
            return np.asarray(self._content.pictures)[self._rows[np.asarray(indices, np.intp)]]
        found = np.empty((len(indices), *self.shape), np.float32)
        for row, index in zip(found, indices, strict=True):
            self.fill(int(index), spec, row[None])
        return found

    def fill(self, index: int, spec: TensorSpec, tensor: Array) -> Placement:
        """Write an example into a view of an input tensor, [1, *shape], as the daemon does.

        Returns:
            The place of the model's picture in the example's.

        Raises:
            ModelError: the picture cannot be read, or the tensor takes none.
        """
        pictures, row = self._content.pictures, self._rows[index]
        if isinstance(pictures, np.ndarray) and pictures.dtype != np.uint8:
            _store(pictures[row], spec, tensor)
            return Placement()
        if spec not in self._inputs:
            self._inputs[spec] = ImageInput(spec, self._preparation)
        return self._inputs[spec].fill(tensor, self.picture(index), self.order)

    def fill_further(self, index: int, spec: TensorSpec, tensor: Array) -> None:
        """Write an example's value for another input, by its name, into a view of its tensor."""
        _store(self._content.others[spec.name][self._rows[index]], spec, tensor)

    def picture(self, index: int) -> Image:
        """Return a picture as it was found, H×W×3 uint8 in `order`: BGR from a file, RGB from an array.

        Raises:
            ModelError: it cannot be read, or the example is no picture.
        """
        pictures, row = self._content.pictures, self._rows[index]
        if not isinstance(pictures, np.ndarray):
            name, file = pictures[row]
            found = _decode(file.read(), f"{self._path}: {plain(name)}")
        elif pictures.dtype != np.uint8:
            raise ModelError(f"{self._path}: `x` holds real values, where pictures are needed: uint8")
        else:
            found = pictures[row] if pictures.shape[-1] == 3 else np.repeat(pictures[row], 3, axis=-1)
        return found

    def name(self, index: int) -> str:
        """Return the name of an example's file, or its number in an array."""
        pictures, row = self._content.pictures, self._rows[index]
        return str(row) if isinstance(pictures, np.ndarray) else plain(pictures[row][0])

    def digest(self, index: int) -> str:
        """Return the SHA-256 of an example's file, or of its values. Raises ModelError if it cannot be read."""
        return hashlib.sha256(self._bytes(index)).hexdigest()

    def _bytes(self, index: int) -> bytes:
        """Return an example's file, or its values."""
        pictures, row = self._content.pictures, self._rows[index]
        return bytes(pictures[row].tobytes()) if isinstance(pictures, np.ndarray) else pictures[row][1].read()

    def truth(self, index: int) -> ObjectBoxes:
        """Return the objects in a picture. Raises ModelError if the examples have no boxes."""
        if self._content.objects is None:
            raise ModelError(f"{self._path}: has no boxes: they are read from `labels/*.txt` beside `images/`")
        found: ObjectBoxes = self._content.objects[self._rows[index]]
        return found

    def take(self, indices: Sequence[int] | NDArray[Any]) -> Examples:
        """Return some of the examples, in this order. They share what is in memory."""
        chosen, found = np.asarray(indices, np.intp), copy.copy(self)
        found._rows, found._inputs = self._rows[chosen], {}
        found.labels = None if self.labels is None else self.labels[chosen]
        return found

    def value_range(self) -> tuple[float, float]:
        """Return least and greatest real value: of pixels, or of arrays that are no pictures.

        The range of pixels is that of the manifest, whatever the examples show: a board will see others.
        """
        if self.are_pixels:
            return _pixel_range(self._preparation)
        values = self._content.pictures
        assert isinstance(values, np.ndarray)
        return float(values.min()), float(values.max())

    @property
    def are_whole(self) -> bool:
        """True for whole numbers that are no pictures, such as those of words."""
        pictures = self._content.pictures
        return not self._content.has_pictures and np.asarray(pictures).dtype.kind in "iu"

    @property
    def are_pixels(self) -> bool:
        """True for pictures, and for real values that a manifest may have made of some; False for sound, too."""
        could_be = self._may_be_pixels and len(self.shape) == 3 and self.shape[2] in (1, 3)
        return self._content.has_pictures or could_be

    def check(self, spec: TensorSpec) -> None:
        """Check that each example fits an input tensor and can be read, and that they differ.

        Args:
            spec: of the tensor.

        Raises:
            ModelError: names the first that cannot be used, or all are the same.
        """
        if self._content.has_pictures:
            ImageInput(spec, self._preparation)
        else:
            self._check_values(np.asarray(self._content.pictures), spec)
        contents = set()
        for index in range(len(self)):
            content, shown = self._bytes(index), f"{self._path}: {self.name(index)}"
            contents.add(hashlib.sha256(content).digest())
            if not isinstance(self._content.pictures, np.ndarray):
                try:
                    _decode(content, shown, _PREVIEW)
                except ModelError:
                    _decode(content, shown)  # less than eight pixels have no preview
        if len(contents) == 1:
            raise ModelError(
                f"{self._path}: all {len(self)} examples are the same: give some that differ as those that the "
                "model will see"
            )

    def _check_values(self, values: Array, spec: TensorSpec) -> None:
        """Check the shape of real values, and their range against that which the manifest makes of pixels."""
        if values.shape[1:] != self.shape:
            expected = ", ".join(map(str, self.shape))
            raise ModelError(f"{self._path}: `x` is {list(values.shape)}; input {spec} needs [n, {expected}]")
        if values.dtype.kind == "f" and np.dtype(spec.dtype).kind in "iu" and not spec.quantised:
            raise ModelError(f"{self._path}: `x` is {values.dtype}; input {spec} needs whole numbers")
        least, most = float(values.min()), float(values.max())
        if not max(-least, most) <= _LARGEST:  # nor NaN
            raise ModelError(
                f"{self._path}: `x` has values from {least:.4g} to {most:.4g}: expected none beyond {_LARGEST:g}"
            )
        if not self.are_pixels:
            return
        low, high = _pixel_range(self._preparation)
        span = high - low
        are_fractions = low < -_BEYOND * span and least >= 0 and most <= 1  # as pixels / 255 are
        outside = least < low - _BEYOND * span or most > high + _BEYOND * span
        if are_fractions or outside or most - least < _NARROW * span:
            raise ModelError(
                f"{self._path}: `x` has values from {least:.4g} to {most:.4g}; with the manifest's [input] mean "
                f"and std (or [search] mean and std), pixels lie within {low:.4g} to {high:.4g}: correct "
                "them, or the values; [input] pixels = false takes values that are none"
            )


def _sized(spec: TensorSpec, sizes: Sequence[int], content: FoundData, path: Path) -> TensorSpec:
    """Return an input whose free sizes are those of the examples. Raises ModelError if they have none."""
    if min(sizes[1:], default=0) >= 0:
        return spec
    found = content.pictures.shape[1:] if isinstance(content.pictures, np.ndarray) else ()
    shown = ", ".join("?" if size < 0 else str(size) for size in sizes)
    if len(found) != len(sizes) - 1 or any(
        size not in (-1, own) for size, own in zip(sizes[1:], found, strict=True)
    ):
        raise ModelError(
            f"{path}: input {spec.name} is [{shown}]: give a .npz with `x` of the size that it shall have"
        )
    return replace(spec, shape=(1, *found))


def _pixel_range(preparation: InputManifest) -> tuple[float, float]:
    mean, std = np.array(preparation.mean), np.array(preparation.std)
    return float((0 - mean / std).min()), float(((255 - mean) / std).max())


def _store(values: Array, spec: TensorSpec, tensor: Array) -> None:
    """Write real values into a tensor of any numbers."""
    if not spec.quantised:
        np.copyto(tensor[0], values, casting="same_kind")
        return
    limits = np.iinfo(spec.dtype)
    stored = np.rint(values.astype(np.float64) / spec.scale) + spec.zero_point
    np.copyto(tensor[0], np.clip(stored, limits.min, limits.max), casting="unsafe")


def _decode(content: bytes, shown: str, how: int = cv2.IMREAD_COLOR) -> Image:
    try:
        check_size(shown, *(header_size(content) or (0, 0)))
        found = cv2.imdecode(np.frombuffer(content, np.uint8), how) if content else None
    except SourceError as error:
        raise ModelError(str(error)) from None
    except cv2.error:
        found = None
    if found is None:
        raise ModelError(f"{shown}: cannot be decoded as a picture: remove it, or save it again")
    return np.asarray(found, np.uint8)


def read_examples(
    path: Path, model: Model, variant: str = "", *, limit: int | None = None, own_classes: bool = False
) -> Examples:
    """Read the examples for a model.

    All that can be wrong is checked now, each picture too, so that no later step stops at it.

    Args:
        path: see the module.
        model: what takes them; its manifest prepares pictures and names the classes.
        variant: of the model; empty: its first.
        limit: use so many, chosen by a fixed rule, at least 8; None: all.
        own_classes: classes keep their names and numbers, and need not be the model's; boxes never do.

    Raises:
        ModelError: there are too few, they do not fit the model, a label or a picture cannot be used, or a class
            has no example. The message names the first file.
    """
    file, signature = read_modelfile(model.content), model.manifest.chain(variant)[0].signature
    inputs, outputs = file.ends(signature)
    if not inputs or min((size for one in inputs for size in one.shape), default=0) < 1:
        found = ", ".join(map(str, inputs)) or "none"
        raise ModelError(f"{model.path}: examples need a model with inputs of fixed shapes; found {found}")
    content = read_data(path, [one.name for one in inputs])
    if len(inputs) != 1 + len(content.others):
        names = ", ".join(one.name for one in inputs)
        raise ModelError(f"{path}: {model.path} takes {names}: give a .npz with an array for each")
    if content.objects is not None and not model.manifest.output.decoder:
        raise ModelError(
            f"{path}: has boxes, and how to decode the outputs of {model.path} is not known: write a manifest "
            "beside it with [output] decoder, or give pictures without labels"
        )
    if model.manifest.audio is not None and content.has_pictures:
        raise ModelError(
            f"{path}: holds pictures, and {model.path} takes sound: give real values, a .npz with `x`"
        )
    if (count := min(len(content.pictures), limit or _FEWEST)) < _FEWEST:
        raise ModelError(f"{path}: {plural(count, 'example')}; expected at least {_FEWEST}")
    doubts: tuple[str, ...] = ()
    if not (own_classes and content.classes is not None):
        check_classifier(content, path, model, outputs)
        content, doubts = matched(content, path, model, outputs)
    ends = next((known.inputs for known in file.signatures if known.name == signature), {})
    graph = file.graph(signature)
    sizes = graph.tensors[ends.get(inputs[0].name, graph.inputs[0])].sizes
    taken = _sized(inputs[0], sizes, content, path)
    examples = Examples(
        content, taken.shape[1:], model.manifest.input, str(path), sound=model.manifest.audio is not None
    )
    if limit is not None and limit < len(examples):
        chosen = np.random.default_rng(0).permutation(len(examples))[:limit]
        examples = examples.take(np.sort(chosen))
    examples.check(taken)
    examples.remarks = doubts
    return examples
