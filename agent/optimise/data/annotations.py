"""Read boxes as Pascal VOC and COCO write them. Files are untrusted.

- VOC: an `.xml` for each picture, of the same name without suffix, in any folder: `annotation/object` with `name`
  and `bndbox`, in pixels, of the picture's `size`.
- COCO: one `.json` with `images`, `annotations` and `categories`: https://cocodataset.org/#format-data.

A box of no width or height is left out, and so are crowds. One that lies outside of its picture by more than a
pixel is an error.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, NamedTuple

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from agent.capture.local import SUFFIXES
from agent.capture.source import header_size
from agent.errors import NO_JSON, ModelError, reason_of
from agent.structs import from_json
from agent.text import plain

_LARGEST = 4 * 1024 * 1024
"""Bytes of an `.xml`; expat bounds what its entities expand to."""
_SLACK = 1.01
"""A box may end so many pixels outside: some count from 1."""
_Pixels = Annotated[float, Meta(ge=-1e6, le=1e6)]
_Side = Annotated[float, Meta(gt=0, le=1e6)]


class ObjectBoxes(NamedTuple):
    """Objects in one picture.

    Attributes:
        classes: numbers, int64 [m].
        boxes: (x0, y0, x1, y1) as fractions of the picture, float64 [m, 4].
    """

    classes: NDArray[np.int64]
    boxes: NDArray[np.float64]


class DataFile(Struct, frozen=True):
    """A file in a folder or in an archive.

    Attributes:
        path: of the file or of the archive.
        offset: where it begins in the archive, bytes.
        size: bytes; -1: to the end.
    """

    path: Path
    offset: int = 0
    size: int = -1

    def read(self) -> bytes:
        """Return the content. Raises ModelError if it cannot be read."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                return file.read(self.size)
        except OSError as error:
            raise ModelError(f"{self.path}: cannot be read: {reason_of(error)}") from None

    def text(self) -> str:
        """Return the content as text. Raises ModelError if it cannot be read, or is not UTF-8."""
        try:
            return self.read().decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ModelError(f"{self.path}: is not UTF-8") from None


def suffix_of(name: str) -> str:
    """Return the suffix of a file, in lower case."""
    return "" if name.endswith("/") else PurePosixPath(name).suffix.lower()


def kinds() -> str:
    """Return the kinds of pictures that are read."""
    return ", ".join(sorted(suffix.removeprefix(".") for suffix in SUFFIXES))


NamedBoxes = tuple[tuple[str, ...], dict[str, ObjectBoxes]]
"""Names of the classes, sorted as the file has them, and the boxes of each picture, by its name."""


class _Named(NamedTuple):
    name: str
    box: tuple[float, float, float, float]


def read_voc(path: str, pictures: Mapping[str, DataFile], files: Mapping[str, DataFile]) -> NamedBoxes:
    """Read the `.xml` of each picture.

    Args:
        path: of the data, for errors.
        pictures: by name.
        files: the `.xml` files by name.

    Raises:
        ModelError: a picture has no file, or a file is damaged, tells another size or has a box outside.
    """
    places = _by_stem(files)
    found: dict[str, list[_Named]] = {}
    without = []
    for picture, file in pictures.items():
        name = _nearest(picture, places, path)
        found[picture] = [] if not name else _voc(files[name].read(), f"{path}: {plain(name)}", file)
        without += [] if name else [picture]
    if without and any(found.values()):
        raise ModelError(f"{path}: {plain(without[0])} has no .xml; others have")
    return _numbered(found, sorted({one.name for some in found.values() for one in some}))


def _by_stem(names: Iterable[str]) -> dict[str, list[str]]:
    places: dict[str, list[str]] = {}
    for name in names:
        places.setdefault(PurePosixPath(name).stem, []).append(name)
    return places


def _nearest(wanted: str, places: Mapping[str, list[str]], shown: str) -> str:
    """Return the file of the same stem: in the same folder, else the only one; empty: there is none."""
    found, folder = places.get(PurePosixPath(wanted).stem, []), PurePosixPath(wanted).parent.parts
    beside = [name for name in found if PurePosixPath(name).parts[-1 - len(folder) : -1] == folder]
    if len(beside or found) > 1:
        several = plain(", ".join((beside or found)[:3]))
        raise ModelError(f"{shown}: {plain(wanted)}: which of {several} belongs to it is not clear")
    return (beside or found or [""])[0]


def _voc(content: bytes, shown: str, picture: DataFile) -> list[_Named]:
    try:
        if len(content) > _LARGEST:
            raise ValueError(f"{len(content)} bytes are too many")
        root = ElementTree.fromstring(content)
        objects = list(root.iter("object"))
        if not objects:
            return []
        width, height = (_number(root, f"size/{side}") for side in ("width", "height"))
        if not (0 < width <= 1e6 and 0 < height <= 1e6):
            raise ValueError(f"a size of {width:g}x{height:g}")
        _check_size(picture, width, height)
        return [_voc_object(one, width, height) for one in objects]
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise ModelError(f"{shown}: cannot be used as an annotation of VOC: {error}") from None


def _check_size(picture: DataFile, width: float, height: float) -> None:
    """Raise ValueError if a picture's own header tells another size."""
    found = header_size(picture.read())
    if found is not None and found not in ((width, height), (height, width)):  # a camera may have been turned
        raise ValueError(f"it tells {width:g}x{height:g}, and the picture has {found[0]}x{found[1]} pixels")


def _voc_object(found: ElementTree.Element, width: float, height: float) -> _Named:
    name = (found.findtext("name") or "").strip()
    if not name:
        raise ValueError("an object has no name")
    edges = [_number(found, f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")]
    return _Named(name, _fractions(edges, width, height))


def _number(found: ElementTree.Element, place: str) -> float:
    try:
        return float(found.findtext(place) or "")
    except ValueError:
        raise ValueError(f"no number in {place}") from None


def _fractions(edges: Any, width: float, height: float) -> tuple[float, float, float, float]:
    """Return a box in fractions of its picture, within it; ValueError if it lies outside."""
    x0, y0, x1, y1 = map(float, edges)
    outside = (-x0, -y0, x1 - width, y1 - height)
    is_turned = x1 < x0 or y1 < y0
    if not all(np.isfinite(edges)) or max(*outside, x0 - width, y0 - height) > _SLACK or is_turned:
        box = ", ".join(f"{edge:g}" for edge in edges)
        why = "ends before it begins" if is_turned else f"lies outside of its picture of {width:g}x{height:g}"
        raise ValueError(f"the box {box} {why}")
    x0, x1 = (min(1.0, max(0.0, one / width)) for one in (x0, x1))
    y0, y1 = (min(1.0, max(0.0, one / height)) for one in (y0, y1))
    return x0, y0, x1, y1


class _CocoImage(Struct, frozen=True):
    id: int
    file_name: str
    width: _Side
    height: _Side


class _CocoBox(Struct, frozen=True):
    image_id: int
    category_id: int
    bbox: tuple[_Pixels, _Pixels, _Pixels, _Pixels]
    iscrowd: Annotated[int, Meta(ge=0, le=1)] = 0


class _CocoCategory(Struct, frozen=True):
    id: int
    name: str


class _Coco(Struct, frozen=True):
    images: list[_CocoImage]
    annotations: list[_CocoBox]
    categories: list[_CocoCategory]


def read_coco(path: str, name: str, content: bytes, pictures: Mapping[str, DataFile]) -> NamedBoxes:
    """Read a file of COCO; pictures that it does not name have no boxes, crowds are left out.

    Args:
        path: of the data, for errors.
        name: of the file.
        content: of the file.
        pictures: by their names in the data.

    Raises:
        ModelError: it is no such file, names pictures that are not there, has other sizes, or a box outside.
    """
    shown = f"{path}: {plain(name)}"
    try:
        coco = from_json(content, _Coco)
    except NO_JSON as error:
        raise ModelError(f"{shown}: cannot be used as a file of COCO: {plain(str(error))}") from None
    stems, places = _by_stem(pictures), dict[int, str]()
    images = {one.id: one for one in coco.images}
    names = {one.id: one.name for one in coco.categories}
    if len(images) < len(coco.images) or len(names) < len(coco.categories):
        raise ModelError(f"{shown}: two images, or two categories, have the same id")
    for one in coco.images:
        places[one.id] = _nearest(one.file_name, stems, shown)
        if places[one.id]:
            with _told_of(one, shown):
                _check_size(pictures[places[one.id]], one.width, one.height)
    found: dict[str, list[_Named]] = {picture: [] for picture in pictures}
    for box in coco.annotations:
        image, kind = images.get(box.image_id), names.get(box.category_id)
        if image is None or kind is None:
            raise ModelError(f"{shown}: a box of image {box.image_id}, category {box.category_id}: not listed")
        if not (picture := places[box.image_id]):
            raise ModelError(f"{shown}: {plain(image.file_name)} is not among the pictures ({kinds()})")
        if not box.iscrowd:
            x, y, width, height = box.bbox
            with _told_of(image, shown):
                edges = _fractions((x, y, x + width, y + height), image.width, image.height)
            found[picture].append(_Named(kind, edges))
    return _numbered(found, [one.name for one in sorted(coco.categories, key=lambda one: one.id)])


@contextmanager
def _told_of(image: _CocoImage, shown: str) -> Iterator[None]:
    """Raise a ValueError as a ModelError that names the image."""
    try:
        yield
    except ValueError as error:
        raise ModelError(f"{shown}: {plain(image.file_name)}: {error}") from None


def _numbered(found: Mapping[str, list[_Named]], names: list[str]) -> NamedBoxes:
    objects = {}
    for picture, some in found.items():
        kept = [one for one in some if one.box[0] < one.box[2] and one.box[1] < one.box[3]]
        classes = np.array([names.index(one.name) for one in kept], np.int64)
        objects[picture] = ObjectBoxes(classes, np.array([one.box for one in kept], np.float64).reshape(-1, 4))
    return tuple(names), objects
