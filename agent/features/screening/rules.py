"""Screening of pictures for one kind of finding, such as cells in a blood smear. Contains rules only.

An operating point has been chosen on labelled pictures: the threshold of a finding, that of a doubt, and what a
score is worth. A picture is cut into tiles of the size of those pictures, what is found in them is joined, and
the picture is judged. Whoever screens with it decides: nothing here is a medical device.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from agent.types import Box, Detection

NOTICE = "Not a medical device: a person has to look at what is found, and at what is not."
Status = Literal["finding", "doubt", "clear", "unusable"]
Verdict = Literal["confirmed", "rejected"]
TO_REVIEW: tuple[Status, ...] = ("finding", "doubt", "unusable")
"""Statuses of pictures that a person has to look at."""

_Share = Annotated[float, Meta(ge=0.0, le=1.0)]
_Rate = Annotated[float, Meta(ge=0.0, le=1000.0)]
_Side = Annotated[int, Meta(ge=16, le=8192)]
_Count = Annotated[int, Meta(ge=0)]
_Text = Annotated[str, Meta(max_length=500)]
_Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
_Range = tuple[Annotated[float, Meta(ge=0.0, le=1e6)], Annotated[float, Meta(ge=0.0, le=1e6)]]
_EDGE = 0.01
"""Share of a tile's side: a box that ends nearer to an inner edge may be cut off by it."""
_SAME, _INSIDE = 0.5, 0.6
"""Overlap, and share of the smaller one, from which boxes of two tiles are the same thing."""
_TOO_SMALL = 0.8
_MOST = 1000
"""Most findings in the record of a picture."""


class ScoreCalibration(Struct, frozen=True, forbid_unknown_fields=True):
    """Probability that a detection is right, by Platt's logistic function of the score's logit.

    Attributes:
        slope, offset: of the logit.
        error: expected calibration error on pictures that did not fit them, 0..1.
    """

    slope: Annotated[float, Meta(gt=0.0, le=100.0)]
    offset: Annotated[float, Meta(ge=-100.0, le=100.0)]
    error: _Share

    def probability(self, score: float) -> float:
        """Return the probability for a score, both 0..1."""
        edge = min(max(score, 1e-6), 1 - 1e-6)
        exponent = self.slope * math.log(edge / (1 - edge)) + self.offset
        return 1 / (1 + math.exp(-min(max(exponent, -700.0), 700.0)))


class Expectation(Struct, frozen=True, forbid_unknown_fields=True):
    """Performance of an operating point on the labelled pictures.

    Attributes:
        sensitivity: share of the objects that were found.
        interval: of it, 95 %, by bootstrap over pictures.
        false_positives: found in vain, for each picture.
        pictures, objects: their numbers.
        froc: sensitivity at numbers of false positives for each picture.
    """

    sensitivity: _Share
    interval: tuple[_Share, _Share]
    false_positives: _Rate
    pictures: _Count
    objects: _Count
    froc: tuple[tuple[_Rate, _Share], ...] = ()


class PictureLimits(Struct, frozen=True, forbid_unknown_fields=True):
    """The labelled pictures: others are judged only if they look alike.

    Attributes:
        height, width: of a tile, pixels.
        sharpness, brightness, colour: least and largest one, see `PictureQuality`.
    """

    height: _Side
    width: _Side
    sharpness: _Range
    brightness: _Range
    colour: _Range


class ScreeningPoint(Struct, frozen=True, forbid_unknown_fields=True):
    """Operating point of a model for one label, as `vedette optimise screening calibrate` writes it.

    Attributes:
        model: its name or path.
        sha256: of its file.
        manifest: SHA-256 of how its pictures are prepared and its outputs decoded.
        label: what is looked for.
        threshold: least score of a finding.
        doubt: least score at which a person has to look.
        overlap: of two tiles, as a share of their sides.
        calibration: see there.
        expected: see there.
        pictures: see there.
        check: SHA-256 of all else, see `check_of`: what was changed by hand does not give what is expected.
    """

    model: Annotated[str, Meta(min_length=1, max_length=500)]
    sha256: _Sha256
    manifest: _Sha256
    label: Annotated[str, Meta(min_length=1, max_length=200)]
    threshold: _Share
    doubt: _Share
    overlap: Annotated[float, Meta(ge=0.05, le=0.5)]
    calibration: ScoreCalibration
    expected: Expectation
    pictures: PictureLimits
    check: str = ""


def check_of(point: ScreeningPoint) -> str:
    """Return the SHA-256 of an operating point without its `check`."""
    content = msgspec.json.encode(replace(point, check=""), order="deterministic")
    return hashlib.sha256(content).hexdigest()


class PictureQuality(NamedTuple):
    """How a picture looks.

    Attributes:
        sharpness: variance of the Laplacian as a share of that of the pixels.
        brightness: mean of the pixels, 0..255.
        colour: mean difference of the largest and the least channel, 0..255.
    """

    sharpness: float
    brightness: float
    colour: float


class ScreeningFinding(Struct, frozen=True):
    """One thing that was found.

    Attributes:
        box: in fractions of the picture.
        score: of the model, 0..1.
        probability: that it is right, 0..1.
    """

    box: Box
    score: float
    probability: float


class PictureJudgement(NamedTuple):
    """Result for one picture.

    Attributes:
        status: `finding`, `doubt`, `clear`, or `unusable`.
        reasons: why it is unusable or doubtful.
        findings: from the threshold of a doubt on, the surest first.
    """

    status: Status
    reasons: tuple[str, ...]
    findings: tuple[ScreeningFinding, ...]


class StartRecord(Struct, frozen=True, tag="start"):
    """Record of a run: with what.

    Attributes:
        notice: `NOTICE`.
        at: time, UTC.
        version: of Vedette.
        point: SHA-256 of the operating point's file.
        model, label: see `ScreeningPoint`; the model by its SHA-256.
        previous: SHA-256 of the line before.
    """

    notice: str
    at: datetime
    version: str
    point: str
    model: str
    label: str
    previous: str = ""


class PictureRecord(Struct, frozen=True, tag="picture"):
    """Record of a picture. It has no name, no metadata of the file and no pixels.

    Attributes:
        id: pseudonym, made of the file's content and the key of the folder.
        at: time, UTC.
        width, height: pixels.
        status, reasons, findings: see `PictureJudgement`.
        previous: SHA-256 of the line before.
    """

    id: str
    at: datetime
    width: int
    height: int
    status: Status
    reasons: tuple[str, ...]
    findings: tuple[ScreeningFinding, ...]
    previous: str = ""


class ReviewRecord(Struct, frozen=True, tag="review"):
    """Record of what a person has decided.

    Attributes:
        id: of the picture.
        at: time, UTC.
        verdict: whether the picture has what is looked for: `confirmed` or `rejected`.
        reviewer, note: as the person gave them.
        previous: SHA-256 of the line before.
    """

    id: str
    at: datetime
    verdict: Verdict
    reviewer: _Text = ""
    note: _Text = ""
    previous: str = ""


ScreeningRecord = StartRecord | PictureRecord | ReviewRecord


def tiles_of(width: int, height: int, limits: PictureLimits, overlap: float) -> list[Box]:
    """Return the tiles of a picture, in fractions of it; one, the whole, if it is hardly larger than a tile.

    They have the size of the labelled pictures, so that things have the size that the model knows, and are spread
    evenly.

    Args:
        width: of the picture, pixels.
        height: of the picture, pixels.
        limits: size of a tile.
        overlap: least overlap of two tiles, as a share of their sides.
    """
    rows, columns = _spans(height, limits.height, overlap), _spans(width, limits.width, overlap)
    return [(x0 / width, y0 / height, x1 / width, y1 / height) for y0, y1 in rows for x0, x1 in columns]


def _spans(length: int, side: int, overlap: float) -> list[tuple[int, int]]:
    if length <= side / _TOO_SMALL:
        return [(0, length)]
    count = math.ceil((length - side) / (side * (1 - overlap))) + 1
    starts = [round(number * (length - side) / (count - 1)) for number in range(count)]
    return [(start, start + side) for start in starts]


def joined(found: Iterable[tuple[Box, Sequence[Detection]]], overlap: float) -> list[Detection]:
    """Join what was found in the tiles of a picture, the strongest first.

    A box that an inner edge of its tile cuts off is left out if a neighbour must have it whole; of two boxes from
    different tiles that lie upon each other, the weaker one is.

    Args:
        found: tiles and detections in them; all in fractions of the picture.
        overlap: of two tiles, as a share of their sides.
    """
    given = [
        (tile, one) for tile, some in found for one in some if one.box and not _is_cut(one.box, tile, overlap)
    ]
    given.sort(key=lambda pair: -pair[1].score)
    kept: list[tuple[Box, Detection]] = []
    for tile, one in given:
        assert one.box is not None
        rivals = (other.box for place, other in kept if place != tile and other.label == one.label)
        if not any(box and _is_same(one.box, box) for box in rivals):
            kept.append((tile, one))
    return [one for _, one in kept]


def _is_cut(box: Box, tile: Box, overlap: float) -> bool:
    for axis in (0, 1):
        side = tile[axis + 2] - tile[axis]
        if box[axis + 2] - box[axis] >= overlap * side:
            continue  # no neighbour is sure to have it whole
        cut_before = tile[axis] > 0.0 and box[axis] - tile[axis] < _EDGE * side
        cut_after = tile[axis + 2] < 1.0 and tile[axis + 2] - box[axis + 2] < _EDGE * side
        if cut_before or cut_after:
            return True
    return False


def _is_same(one: Box, other: Box) -> bool:
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    if wide <= 0 or high <= 0:
        return False
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    shared = wide * high
    return shared >= _SAME * (sum(areas) - shared) or shared >= _INSIDE * min(areas)


def judge(
    found: Sequence[Detection], quality: PictureQuality, width: int, height: int, point: ScreeningPoint
) -> PictureJudgement:
    """Judge a picture.

    Args:
        found: see `joined`.
        quality: of the picture.
        width: of the picture, pixels.
        height: of the picture, pixels.
        point: operating point.
    """
    findings = tuple(
        ScreeningFinding(one.box, round(one.score, 4), round(point.calibration.probability(one.score), 4))
        for one in found
        if one.box is not None and one.label == point.label and one.score >= point.doubt
    )[:_MOST]
    reasons = tuple(_unlike(quality, width, height, point.pictures))
    if findings and findings[0].score >= point.threshold:
        return PictureJudgement("finding", reasons, findings)
    if reasons:
        return PictureJudgement("unusable", reasons, findings)
    return PictureJudgement("doubt" if findings else "clear", (), findings)


def _unlike(quality: PictureQuality, width: int, height: int, limits: PictureLimits) -> Iterator[str]:
    """Yield how a picture differs from those that the operating point comes from."""
    if width < _TOO_SMALL * limits.width or height < _TOO_SMALL * limits.height:
        turned = width >= _TOO_SMALL * limits.height and height >= _TOO_SMALL * limits.width
        why = "is it turned" if turned else "is it of another magnification"
        yield f"{width}x{height} pixels, not {limits.width}x{limits.height}: {why}?"
    for value, (low, high), below, above in (
        (quality.sharpness, limits.sharpness, "out of focus", "noise"),
        (quality.brightness, limits.brightness, "too dark", "too bright"),
        (quality.colour, limits.colour, "too little colour", "too much colour"),
    ):
        if not low <= value <= high:
            yield below if value < low else above


def queue_of(records: Iterable[ScreeningRecord]) -> list[PictureRecord]:
    """Return the pictures that wait for a person: the most probable finding first, unusable ones last."""
    waiting: dict[str, PictureRecord] = {}
    for one in records:
        if isinstance(one, PictureRecord) and one.status in TO_REVIEW:
            waiting[one.id] = one
        elif isinstance(one, ReviewRecord):
            waiting.pop(one.id, None)
    return sorted(waiting.values(), key=lambda one: (TO_REVIEW.index(one.status), -priority(one), one.id))


def priority(record: PictureRecord) -> float:
    """Return the probability of the surest finding, 0..1."""
    return max((one.probability for one in record.findings), default=0.0)
