"""Slices: the same figure by folder, by attributes of the files, and by what can be measured in them. Pure.

A slice is worst if its figure is the lowest of its attribute, among those of enough examples to tell.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from agent.errors import ModelError
from agent.optimise.evaluate import wilson
from agent.structs import from_json
from agent.text import plain

Attributes = Mapping[str, Mapping[str, str]]
"""Values by attribute, by the name of a file."""
_FEWEST = 5
_SLICES_MAX = 40
"""Most values of an attribute that is told: one of more, such as a number of each file, tells nothing."""
_DARK, _BRIGHT = 60.0, 180.0
"""Mean of a picture's grey, 0..255, below and above which it is dark or bright."""
_SMALL, _LARGE = 32.0**2, 96.0**2
"""Areas of boxes, pixels, as COCO divides them: https://cocodataset.org/#detection-eval"""
_QUIET, _LOUD = -40.0, -25.0
"""Levels of sound, dB below full scale."""
_NOISY, _CLEAR = 10.0, 25.0
"""Signal-to-noise ratios, dB."""


class SlicedExample(NamedTuple):
    """What an example adds to a slice.

    Attributes:
        name: of its file.
        attributes: values that were measured.
        right: number of what was right in it.
        total: of how many.
    """

    name: str
    attributes: Mapping[str, str]
    right: int
    total: int


class SliceResult(Struct, frozen=True):
    """A slice.

    Attributes:
        attribute: what the examples are divided by.
        value: of these.
        count: number of examples, objects or words.
        figure: share of them that is right.
        interval: of 95 %, Wilson's.
        worst: the lowest figure of the attribute.
    """

    attribute: str
    value: str
    count: int
    figure: float
    interval: tuple[float, float]
    worst: bool = False


def slice_results(outcomes: Iterable[SlicedExample], given: Attributes) -> tuple[SliceResult, ...]:
    """Return the slices of an evaluation, by attribute and value.

    Args:
        outcomes: of all examples.
        given: attributes of files, beside those that were measured; see `read_slices`.
    """
    sums: dict[str, dict[str, list[int]]] = {}
    for one in outcomes:
        for attribute, value in {**one.attributes, **given.get(one.name, {})}.items():
            counted = sums.setdefault(attribute, {}).setdefault(value, [0, 0])
            counted[0] += one.right
            counted[1] += one.total
    found: list[SliceResult] = []
    for attribute, values in sums.items():
        rows = [
            SliceResult(attribute, value, count, right / count, wilson(right, count))
            for value, (right, count) in sorted(values.items())
            if count
        ]
        if 2 <= len(rows) <= _SLICES_MAX:
            found += _marked(rows)
    return tuple(found)


def _marked(rows: Sequence[SliceResult]) -> Iterator[SliceResult]:
    enough = [one for one in rows if one.count >= _FEWEST]
    worst = min(enough, key=lambda one: one.figure, default=None)
    equal = worst is None or worst.figure == max(one.figure for one in enough)
    for one in rows:
        yield replace(one, worst=True) if one is worst and not equal else one


def read_slices(content: bytes, shown: str, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Read attributes of files: CSV with lines `file,attribute,value`, or JSON `{file: {attribute: value}}`.

    A file is named by its path below the data, or by its last part where only one file has that.

    Args:
        content: of the file of attributes.
        shown: its name, for messages; `.json` at its end tells JSON.
        names: of the files that are evaluated.

    Raises:
        ModelError: a line is wrong, or names a file that is not evaluated.
    """
    rows = _json_rows(content, shown) if shown.endswith(".json") else _csv_rows(content, shown)
    known = set(names)
    short: dict[str, list[str]] = {}
    for name in names:
        short.setdefault(PurePosixPath(name).name, []).append(name)
    found: dict[str, dict[str, str]] = {}
    for where, file, attribute, value in rows:
        alone = short.get(file, [])
        if file not in known and len(alone) != 1:
            why = "is the name of several files: give its path" if alone else "is none of the files"
            raise ModelError(f"{where}: {plain(file)} {why}, such as {plain(names[0])}")
        found.setdefault(file if file in known else alone[0], {})[attribute] = value
    return found


def _csv_rows(content: bytes, shown: str) -> Iterator[tuple[str, str, str, str]]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ModelError(f"{shown}: is not UTF-8") from None
    for number, row in enumerate(csv.reader(io.StringIO(text)), 1):
        fields = [field.strip() for field in row]
        if not any(fields) or (number == 1 and fields == ["file", "attribute", "value"]):
            continue
        if len(fields) != 3 or not all(fields):
            raise ModelError(
                f"{shown}:{number}: expected `file,attribute,value`; found {plain(','.join(row))[:60]}"
            )
        yield (f"{shown}:{number}", fields[0], fields[1], fields[2])


def _json_rows(content: bytes, shown: str) -> Iterator[tuple[str, str, str, str]]:
    try:
        found = from_json(content, dict[str, dict[str, str | int | float | bool]])
    except msgspec.MsgspecError as error:
        raise ModelError(f"{shown}: expected {{file: {{attribute: value}}}}: {error}") from None
    for file, values in found.items():
        for attribute, value in values.items():
            yield shown, file, attribute, str(value)


def brightness_of(mean: float) -> str:
    """Return the slice of a picture by the mean of its grey, 0..255."""
    return "dark" if mean < _DARK else "bright" if mean > _BRIGHT else "medium"


def size_of(area: float) -> str:
    """Return the slice of an object by the area of its box, pixels."""
    return "small" if area < _SMALL else "large" if area > _LARGE else "medium"


def loudness_of(level_db: float) -> str:
    """Return the slice of a recording by its level, dB below full scale."""
    return "quiet" if level_db < _QUIET else "loud" if level_db > _LOUD else "medium"


def clarity_of(snr_db: float) -> str:
    """Return the slice of a recording by its signal-to-noise ratio, dB."""
    return "below 10 dB" if snr_db < _NOISY else "above 25 dB" if snr_db > _CLEAR else "10 to 25 dB"


def folder_of(name: str) -> str:
    """Return the folder of a file, as far as it is no class: of `red/night/1.png` it is `night`; empty: none."""
    return "/".join(PurePosixPath(name).parts[1:-1])
