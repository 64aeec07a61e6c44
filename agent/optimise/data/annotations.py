"""Read boxes as Pascal VOC and COCO write them. Files are untrusted.

- VOC: an `.xml` for each picture, of the same name without suffix, in any folder: `annotation/object` with `name`
  and `bndbox`, in pixels, of the picture's `size`.
- COCO: one `.json` with `images`, `annotations` and `categories`: https://cocodataset.org/#format-data.

A box of no width or height is left out. One that lies outside of its picture by more than a pixel is an error.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta, Struct

from agent.errors import NO_JSON, ModelError
from agent.optimise.data.layouts import DataFile, ObjectBoxes
from agent.text import plain, plural

_LARGEST = 4 * 1024 * 1024
"""Bytes of an `.xml`; expat bounds what its entities expand to."""
_SLACK = 1.01
"""A box may end so many pixels outside: some count from 1."""
_Pixels = Annotated[float, Meta(ge=-1e6, le=1e6)]
_Side = Annotated[float, Meta(gt=0, le=1e6)]


class NamedBoxes(NamedTuple):
    """Boxes of all pictures.

    Attributes:
        names: of the classes, sorted as the file has them.
        objects: of each picture, by its name.
        remarks: what was left out.
    """

    names: tuple[str, ...]
    objects: dict[str, ObjectBoxes]
    remarks: tuple[str, ...]


class _Named(NamedTuple):
    name: str
    box: tuple[float, float, float, float]


def read_voc(path: str, pictures: Iterable[str], files: Mapping[str, DataFile]) -> NamedBoxes:
    """Read the `.xml` of each picture.

    Args:
        path: of the data, for errors.
        pictures: their names.
        files: the `.xml` files by name.

    Raises:
        ModelError: a picture has no file, or a file is damaged or has a box outside of its picture.
    """
    stems = {PurePosixPath(name).stem: (name, file) for name, file in files.items()}
    found: dict[str, list[_Named]] = {}
    without = []
    for picture in pictures:
        name, file = stems.get(PurePosixPath(picture).stem, ("", None))
        found[picture] = [] if file is None else _voc(file.read(), f"{path}: {plain(name)}")
        without += [picture] if file is None else []
    if without and any(found.values()):
        raise ModelError(f"{path}: {plain(without[0])} has no .xml; others have")
    return _numbered(found, sorted({one.name for some in found.values() for one in some}))


def _voc(content: bytes, shown: str) -> list[_Named]:
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
        return [_voc_object(one, width, height) for one in objects]
    except (ElementTree.ParseError, ValueError) as error:
        raise ModelError(f"{shown}: cannot be used as an annotation of VOC: {error}") from None


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
    if not all(np.isfinite(edges)) or max(outside) > _SLACK:
        box = ", ".join(f"{edge:g}" for edge in edges)
        raise ValueError(f"the box {box} lies outside of its picture of {width:g}x{height:g}")
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
    iscrowd: int = 0


class _CocoCategory(Struct, frozen=True):
    id: int
    name: str


class _Coco(Struct, frozen=True):
    images: list[_CocoImage]
    annotations: list[_CocoBox]
    categories: list[_CocoCategory]


def read_coco(path: str, name: str, content: bytes, pictures: Iterable[str]) -> NamedBoxes:
    """Read a file of COCO; pictures that it does not name have no boxes, crowds are left out.

    Args:
        path: of the data, for errors.
        name: of the file.
        content: of the file.
        pictures: their names in the data.

    Raises:
        ModelError: it is no such file, names pictures that are not there, or has a box outside of its picture.
    """
    shown = f"{path}: {plain(name)}"
    try:
        coco = msgspec.json.decode(content, type=_Coco)
    except NO_JSON as error:
        raise ModelError(f"{shown}: cannot be used as a file of COCO: {plain(str(error))}") from None
    places = {PurePosixPath(one).name: one for one in pictures}
    images = {one.id: one for one in coco.images}
    names = {one.id: one.name for one in coco.categories}
    found: dict[str, list[_Named]] = {picture: [] for picture in places.values()}
    for one in coco.annotations:
        image, kind = images.get(one.image_id), names.get(one.category_id)
        if image is None or kind is None:
            raise ModelError(f"{shown}: a box of image {one.image_id}, category {one.category_id}: not listed")
        if (picture := places.get(PurePosixPath(image.file_name).name)) is None:
            raise ModelError(f"{shown}: {plain(image.file_name)} is not there")
        if not one.iscrowd:
            x, y, width, height = one.bbox
            try:
                box = _fractions((x, y, x + width, y + height), image.width, image.height)
            except ValueError as error:
                raise ModelError(f"{shown}: {plain(image.file_name)}: {error}") from None
            found[picture].append(_Named(kind, box))
    return _numbered(found, [one.name for one in sorted(coco.categories, key=lambda one: one.id)])


def _numbered(found: Mapping[str, list[_Named]], names: list[str]) -> NamedBoxes:
    objects, degenerate = {}, 0
    for picture, some in found.items():
        kept = [one for one in some if one.box[0] < one.box[2] and one.box[1] < one.box[3]]
        degenerate += len(some) - len(kept)
        classes = np.array([names.index(one.name) for one in kept], np.int64)
        objects[picture] = ObjectBoxes(classes, np.array([one.box for one in kept], np.float64).reshape(-1, 4))
    remarks = (f"{plural(degenerate, 'box', 'boxes')} without width or height left out",) if degenerate else ()
    return NamedBoxes(tuple(names), objects, remarks)
