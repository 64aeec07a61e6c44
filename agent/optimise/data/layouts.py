"""Read the layouts of examples: pictures in folders or archives with their labels, and arrays.

Classes get the numbers that the model has for them: by their names, or by their numbers.

Content is untrusted: no name in an archive is used as a path, and nothing is unpacked to disk.
"""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from agent.capture.local import SUFFIXES
from agent.compute.decode.decoder import assign_scores
from agent.compute.manifest import HIDDEN, Model
from agent.compute.tflite.model import TensorSpec
from agent.config.wording import nearest
from agent.errors import ModelError
from agent.optimise.data.annotations import (
    DataFile,
    ObjectBoxes,
    kinds,
    read_coco,
    read_voc,
    suffix_of,
)
from agent.text import plain, plural
from agent.types import Array

_IMAGES, _LABELS, _CLASSES = "images", "labels", "classes.txt"
_EXAMPLES = "expected a folder, a .tar or a .npz of examples"
_LAYOUTS = "expected a sub-folder of pictures for each class, `images/` with boxes in `labels/`, or a .npz"
_CLASSES_MAX = 1_000_000
_DAMAGED = (tarfile.TarError, OSError, EOFError, ValueError)
"""Errors that a damaged archive raises."""


_Files = dict[str, DataFile]
"""By name relative to the top, with forward slashes, sorted."""


class FoundData(Struct, frozen=True):
    """Examples as they were found, before they are matched with a model.

    Attributes:
        pictures: files by name, or an array: see the module.
        words: what it is, for messages.
        classes: number of each example among `names`; None: there are no classes.
        objects: of each example, numbers among `names`; None: there are no boxes.
        names: of the classes; empty: not known.
        places: where each class number of `objects` was found.
        others: values [n, …] of further inputs of a model, by name.
    """

    pictures: tuple[tuple[str, DataFile], ...] | Array
    words: str
    classes: NDArray[np.int64] | None = None
    objects: tuple[ObjectBoxes, ...] | None = None
    names: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    others: dict[str, Array] = {}

    @property
    def has_pictures(self) -> bool:
        """True for pictures, False for real values."""
        return isinstance(self.pictures, tuple) or self.pictures.dtype == np.uint8


def read_data(path: Path, inputs: Sequence[str] = ("x",)) -> FoundData:
    """Read what lies at a path, see `agent.optimise.data`.

    Args:
        path: of the examples.
        inputs: names of the model's inputs, by which a `.npz` may have arrays; `x` is the one that it has not.

    Raises:
        ModelError: there is no such path, nothing that can be used in it, or a label is wrong.
    """
    if not path.exists():
        raise ModelError(f"{path}: there is no such file or folder; {_EXAMPLES}")
    if path.suffix == ".npz":
        return _read_arrays(path, inputs)
    files = _without_top(dict(sorted(_list(path))))
    pictures = {name: file for name, file in files.items() if suffix_of(name) in SUFFIXES}
    if not pictures:
        raise ModelError(f"{path}: no pictures ({kinds()}) in it: {_LAYOUTS}")
    return _read_pictures(path, files, pictures)


def _read_pictures(path: Path, files: _Files, pictures: _Files) -> FoundData:
    if (boxed := _read_annotated(path, files, pictures)) is not None:
        return boxed
    tops = {name.partition("/")[0] if "/" in name else "" for name in pictures}
    if _IMAGES in tops:
        return _read_yolo(path, files, {name: file for name, file in pictures.items() if _top(name) == _IMAGES})
    if len(tops) == 1:  # a single folder is no choice between classes
        return FoundData(tuple(pictures.items()), "pictures without labels")
    if "" in tops:
        loose = next(name for name in pictures if "/" not in name)
        raise ModelError(
            f"{path}: {plain(loose)} lies beside sub-folders of pictures: move it into that of its class"
        )
    return _read_folders(path, files, pictures)


def _read_annotated(path: Path, files: _Files, pictures: _Files) -> FoundData | None:
    """Read boxes of VOC or COCO; None: there are none."""
    notes = {name: file for name, file in files.items() if name.endswith(".xml")}
    lists = [name for name in files if name.endswith(".json") and _is_coco(files[name])]
    if notes:
        words, (names, boxes) = "of VOC", read_voc(str(path), pictures, notes)
    elif len(lists) == 1:
        words, (names, boxes) = "of COCO", read_coco(str(path), lists[0], files[lists[0]].read(), pictures)
    else:
        return None
    if notes and not any(len(one.classes) for one in boxes.values()):
        return None  # of a tool that wrote no boxes
    return _boxed(path, pictures, [boxes[name] for name in pictures], names, words)


def _boxed(
    path: Path, pictures: _Files, objects: Sequence[ObjectBoxes], names: tuple[str, ...], words: str
) -> FoundData:
    if not (count := sum(len(one.classes) for one in objects)):
        raise ModelError(f"{path}: not one box {words}")
    words = f"with {plural(count, 'box', 'boxes')} {words}"
    places = tuple(f"{path}: {plain(name)}" for name in pictures)
    return FoundData(tuple(pictures.items()), words, objects=tuple(objects), names=names, places=places)


def _is_coco(file: DataFile) -> bool:
    """Return True for JSON with the tables of COCO; other programs write JSON beside pictures, too."""
    content = file.read()
    return all(f'"{key}"'.encode() in content for key in ("images", "annotations", "categories"))


def _top(name: str) -> str:
    return name.partition("/")[0]


def _list(path: Path) -> Iterator[tuple[str, DataFile]]:
    """Yield files and, with a slash at the end, folders. Hidden ones do not count."""
    if path.is_dir():
        for found in path.rglob("*"):
            name = found.relative_to(path).as_posix()
            if not _is_hidden(name):
                yield f"{name}/" if found.is_dir() else name, DataFile(found)
    elif path.suffix == ".tar":
        yield from _list_archive(path)
    else:
        raise ModelError(f"{path}: is of no known kind; {_EXAMPLES}")


def _list_archive(path: Path) -> Iterator[tuple[str, DataFile]]:
    """Yield the members of an archive. Links and devices are left out."""
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                name = member.name.removeprefix("./").strip("/")
                if member.isdir() and not _is_hidden(name):
                    yield f"{name}/", DataFile(path)
                elif member.isfile() and not _is_hidden(name):
                    yield name, DataFile(path, member.offset_data, member.size)
    except _DAMAGED as error:
        raise ModelError(f"{path}: cannot be read as an archive that is not compressed: {error}") from None


def _is_hidden(name: str) -> bool:
    return not name or any(part.startswith(".") for part in name.split("/"))


def _without_top(files: _Files) -> _Files:
    """Leave out a folder that everything is in, if sub-folders are in it, too."""
    tops = {_top(name) for name in files}
    if len(tops) != 1 or tops == {_IMAGES}:
        return files
    inner = {name.partition("/")[2]: file for name, file in files.items() if name.partition("/")[2]}
    return _without_top(inner) if any("/" in name for name in inner) else files


def _read_folders(path: Path, files: _Files, pictures: _Files) -> FoundData:
    # A name that is not UTF-8 could be in no manifest: its escapes can.
    names = tuple(sorted({plain(_top(name)) for name in files if "/" in name}))
    classes = np.array([names.index(plain(_top(name))) for name in pictures], np.int64)
    counts = np.bincount(classes, minlength=len(names))
    if empty := [names[number] for number in np.flatnonzero(counts == 0)]:
        told = f"no picture ({kinds()}) in {', '.join(empty)}"
        raise ModelError(f"{path}: {told}: each sub-folder is a class")
    words = f"{plural(len(names), 'class', 'classes')} by sub-folder"
    return FoundData(tuple(pictures.items()), words, classes, names=names)


def _read_yolo(path: Path, files: _Files, pictures: _Files) -> FoundData:
    texts = {name: file for name, file in files.items() if _top(name) == _LABELS and name.endswith(".txt")}
    texts.pop(f"{_LABELS}/{_CLASSES}", None)
    if not texts:
        return FoundData(tuple(pictures.items()), "pictures without labels")
    stems = {_label_name(name) for name in pictures}
    if lost := [name for name in texts if name not in stems]:
        more = f", and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise ModelError(f"{path}: {plain(lost[0])} has no picture ({kinds()}) in {_IMAGES}/{more}")
    labels = [_label_name(name) for name in pictures]
    objects = [_objects(texts.get(name), f"{path}: {plain(name)}") for name in labels]
    return _boxed(path, pictures, objects, _class_names(files), f"from {_LABELS}/*.txt")


def _label_name(picture: str) -> str:
    return f"{_LABELS}{PurePosixPath(picture).with_suffix('.txt').as_posix().removeprefix(_IMAGES)}"


def _class_names(files: _Files) -> tuple[str, ...]:
    found = files.get(_CLASSES) or files.get(f"{_LABELS}/{_CLASSES}")
    lines = found.text().rstrip().splitlines() if found else []
    return tuple(line.strip() for line in lines)


def _objects(file: DataFile | None, shown: str) -> ObjectBoxes:
    rows = []
    for number, line in enumerate(file.text().splitlines() if file else (), 1):
        if words := line.split():
            rows.append(_object(words, f"{shown}:{number}"))
    values = np.array(rows, np.float64).reshape(-1, 5)
    centres, halves = values[:, 1:3], values[:, 3:5] / 2
    boxes = np.concatenate((centres - halves, centres + halves), axis=1)
    return ObjectBoxes(values[:, 0].astype(np.int64), boxes)


def _object(words: list[str], where: str) -> list[float]:
    try:
        values = [float(word) for word in words]
    except ValueError:
        values = []
    fits = (
        len(values) == 5 and all(0 <= value <= 1.001 for value in values[1:]) and 0 <= values[0] <= _CLASSES_MAX
    )
    if not fits or values[0] != int(values[0]):
        found = " ".join(words)[:60]
        raise ModelError(f"{where}: expected `class x y width height`, the last four as fractions; found {found}")
    return values


def _read_arrays(path: Path, inputs: Sequence[str]) -> FoundData:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            wanted = ("x", "y", "names", *(inputs if len(inputs) > 1 else ()))
            found = {name: arrays[name] for name in wanted if name in arrays.files}
            others = ", ".join(arrays.files)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, MemoryError) as error:
        told = "it holds Python objects, or is of another kind" if "pickle" in str(error) else error
        raise ModelError(f"{path}: cannot be read as a .npz of numbers: {told}") from None
    further = {name: _checked_values(path, found[name], name) for name in inputs[1:] if name in found}
    if "x" not in found and inputs[0] in found:
        found["x"] = found[inputs[0]]
    if "x" not in found or len(further) + 1 != len(inputs):
        needed = "`x`" if len(inputs) == 1 else " and ".join(f"`{name}`" for name in inputs)
        raise ModelError(f"{path}: needs {needed}, an array for each input; it has: {others or 'nothing'}")
    values = _checked_values(path, found["x"])
    if wrong := [name for name, one in further.items() if len(one) != len(values)]:
        raise ModelError(
            f"{path}: `{wrong[0]}` has {len(further[wrong[0]])} rows, and the first input {len(values)}"
        )
    names = tuple(map(str, found["names"].ravel())) if "names" in found else ()
    words = "pictures" if values.dtype == np.uint8 else "real values"
    if "y" not in found:
        return FoundData(values, f"{words} without labels", names=names, others=further)
    labels = found["y"]
    is_too_large = labels.dtype.kind == "u" and labels.max(initial=0) > _CLASSES_MAX  # for int64
    if labels.dtype.kind not in "iu" or labels.shape != (len(values),) or is_too_large:
        told = f"{labels.dtype} {list(labels.shape)}"
        raise ModelError(f"{path}: `y` is {told}; expected numbers of classes, [{len(values)}]")
    classes = labels.astype(np.int64)
    words += f" of {plural(len(np.unique(classes)), 'class', 'classes')}"
    return FoundData(values, words, classes, names=names, others=further)


def _checked_values(path: Path, values: Array, name: str = "x") -> Array:
    if values.dtype == np.uint8 and values.ndim == 3:
        values = values[..., None]
    is_picture = values.dtype == np.uint8
    if values.dtype.kind not in "fiu" or (is_picture and (values.ndim != 4 or values.shape[3] not in (1, 3))):
        raise ModelError(
            f"{path}: `{name}` is {values.dtype} {list(values.shape)}; expected pictures, uint8 [n, height, "
            "width, 3 or 1], or float32 or whole numbers"
        )
    with np.errstate(over="ignore"):  # what is too large becomes infinite, which is refused
        return values.astype(np.float32, copy=False) if values.dtype.kind == "f" else values


SCORE_HINTS = ("score", "prob", "class", "softmax", "logit")
"""Parts of names of an output that holds scores of classes, if several fit."""
_CLASSIFY = ("classify", "keyword")
"""Decoders of classes: they find the scores themselves."""


def check_classifier(content: FoundData, path: Path, model: Model, outputs: Sequence[TensorSpec]) -> None:
    """Raise ModelError for examples of classes if the outputs of the model are no scores of classes."""
    decoder, outputs = model.manifest.output.decoder, [one for one in outputs if one.name != HIDDEN]
    if content.classes is None or decoder in _CLASSIFY:
        return
    try:
        if decoder and not (decoder == "raw" and model.manifest.output.labels):
            raise ModelError(f"the decoder {decoder!r} tells none")
        place = assign_scores(0, outputs, {}, SCORE_HINTS)
        if len(outputs) > 1 and not any(hint in outputs[place].name.lower() for hint in SCORE_HINTS):
            raise ModelError(f"there are {len(outputs)}, and no name says which holds some")
    except ModelError as error:
        raise no_classifier(f"{path}: {content.words}", f"the outputs of {model.path}", error) from None


def no_classifier(examples: str, outputs: str, error: ModelError) -> ModelError:
    """Return the error for examples of classes and a model that gives no scores of classes."""
    return ModelError(
        f"{examples}, and {outputs} are no scores of classes ({error}): write a manifest beside the model with "
        "the [output] decoder that reads them, see `vedette guide models`, or give examples without classes: "
        "pictures without class folders, or no `y`"
    )


def matched(
    content: FoundData, path: Path, model: Model, outputs: Sequence[TensorSpec]
) -> tuple[FoundData, tuple[str, ...]]:
    """Give classes the numbers that the model has for them; return doubts, too."""
    labels, names = model.manifest.output.labels, content.names
    numbered = bool(names) and all(name.isdecimal() for name in names)
    numbers = _numbers(names, labels, path) if names and (labels or numbered) else None
    count = len(labels) or (0 if content.objects else _classes_of(outputs))
    convert = _converter(numbers, count, len(names))
    names = labels or (names if numbers is None else ())
    if content.classes is not None:
        classes = convert(content.classes, str(path))
        unseen = count - len(np.unique(classes))
        doubt = f"{path}: {unseen} of the model's {count} classes without an example"
        return replace(content, classes=classes, names=names), (doubt,) if unseen > 0 else ()
    objects = tuple(
        ObjectBoxes(convert(one.classes, place), one.boxes)
        for one, place in zip(content.objects or (), content.places, strict=True)
    )
    return replace(content, objects=objects or None, names=names), ()


def _classes_of(outputs: Sequence[TensorSpec]) -> int:
    """Return the number of scores of a classifier, which may have a state for the next exit; 0: not known."""
    outputs = [one for one in outputs if one.name != HIDDEN]
    return outputs[0].shape[-1] if len(outputs) == 1 and len(outputs[0].shape) in (2, 4) else 0


def _numbers(names: Sequence[str], labels: Sequence[str], path: Path) -> NDArray[np.int64]:
    """Return the model's number of each class by its name, or by the name as a number.

    Raises:
        ModelError: the model knows no such class.
    """
    numbered = list(enumerate(labels))[::-1]  # of equal labels the first counts
    known = {_folded(label): number for number, label in numbered} | {label: number for number, label in numbered}
    found = [known.get(name, known.get(_folded(name))) for name in names]
    unknown = [name for name, number in zip(names, found, strict=True) if number is None]
    if not unknown:
        return np.array(found, np.int64)
    if all(name.isdecimal() for name in names):
        return np.array([int(name) for name in names], np.int64)
    others = f" (nor {len(unknown) - 1} more)" if len(unknown) > 1 else ""
    raise ModelError(f"{path}: the model has no class {unknown[0]!r}{others}{nearest(unknown[0], labels)}")


def _folded(name: str) -> str:
    return name.casefold().replace("_", " ").replace("-", " ").strip()


def _converter(
    numbers: NDArray[np.int64] | None, count: int, named: int
) -> Callable[[NDArray[np.int64], str], NDArray[np.int64]]:
    """Return a function that converts the data's class numbers to the model's, and checks them."""

    def convert(classes: NDArray[np.int64], where: str) -> NDArray[np.int64]:
        known = named or count
        if len(classes) and known and not 0 <= classes.min() <= classes.max() < known:
            wrong = classes[(classes < 0) | (classes >= known)][0]
            raise ModelError(f"{where}: class {wrong} is out of range: expected 0 to {known - 1}")
        found = classes if numbers is None else numbers[classes]
        if len(found) and count and found.max() >= count:
            has = plural(count, "class", "classes")
            raise ModelError(f"{where}: class {found.max()} is out of range: the model has {has}")
        return found

    return convert
