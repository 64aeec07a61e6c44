"""Associates detections with tracks, in two passes.

The first is the optimal assignment by how likely each detection is at the place where a track should be. The
uncertainty of that place grows with the time since the track was seen, so the distance that is allowed does too,
and of two tracks that fit a detection alike the more certain one has it: a track that was missed takes no
neighbour's detection. The cost of a pair is the squared Mahalanobis distance and what the uncertainty costs. A
camera that turns moves all tracks: they are moved by the median of their errors, and assigned anew.

The second pass is for what no filter foresees: a box that changes its shape, and a small fast object that was
detected once, or turns back with nothing else near it. It knows only tracks of the picture before, and is greedy.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from operator import itemgetter

from agent.compute.track.state import ExpectedTrack, Forecast, iou, measured
from agent.types import Box, Detection

_COST_MAX = 14.0
"""Largest cost of a pair: that of leaving its track missed and its detection new."""
_REACH = 1.5
"""Largest distance of centres in the second pass, in mean diagonals of the two boxes."""
_ALIKE = 3.0
"""Largest ratio of the areas of boxes that do not overlap."""
_POINT = 1e-9
_STILL = (0.0, 0.0)
_SHIFT_COUNT = 4
"""Least number of tracks that tell a movement of the camera."""
_SHIFT_MANY, _SHIFT_AGREED, _SHIFT_SPREAD = 6, 0.67, 0.25
"""Fewer tracks than so many must agree, such a share of them, each off by such a share of the movement at most,
squared: of few people who walk about, the median moves by chance."""
_SHIFTS = 2
"""Most assignments anew in a picture, each by a better estimate of that movement."""
_SHIFT_LEAST = 0.2
"""Least movement that may change an assignment, squared, in variances."""
_FAR = float("inf")
_SAME = 0.5
"""Least overlap (IoU) of two boxes that stand for the same object."""


def associate(
    tracks: Sequence[ExpectedTrack], found: Sequence[Box], iou_threshold: float
) -> tuple[list[tuple[int, int]], tuple[float, float]]:
    """Return pairs of indices (track, detection), each index at most once, and how far the camera has moved.

    Args:
        tracks: to be found.
        found: detections of one label.
        iou_threshold: least overlap (IoU) of a detection in the second pass.
    """
    if not tracks or not found:
        return [], _STILL
    pairs, shift = _assign(tracks, found)
    tracked, used = {i for i, _ in pairs}, {j for _, j in pairs}
    if len(used) < len(found) and len(tracked) < len(tracks):
        left = [i for i, track in enumerate(tracks) if track.fresh and i not in tracked]
        unknown = [j for j in range(len(found)) if j not in used]
        pairs += _greedy(tracks, found, left, unknown, iou_threshold)
    return pairs, shift


def _assign(
    tracks: Sequence[ExpectedTrack], found: Sequence[Box]
) -> tuple[list[tuple[int, int]], tuple[float, float]]:
    """Return the pairs of the first pass, and how far the camera has moved."""
    forecasts = [track.forecast for track in tracks]
    centres = [(one.x, one.y) for one in forecasts]
    # Sorted, so that only those nearby are compared: this runs for every picture.
    seen = sorted([(*measured(box), j) for j, box in enumerate(found)])
    pairs = optimal(_costs(forecasts, centres, seen))
    shift = _STILL
    for _ in range(_SHIFTS):
        across, down = moved = _common_shift(tracks, centres, found, pairs)
        if moved == _STILL:
            break
        shift = (shift[0] + across, shift[1] + down)
        far_x, far_y = across * across, down * down
        if not any(far_x * one.precision_x + far_y * one.precision_y >= _SHIFT_LEAST for one in forecasts):
            break
        centres = [(x + across, y + down) for x, y in centres]
        pairs = optimal(_costs(forecasts, centres, seen))
    return pairs, shift


def _common_shift(
    tracks: Sequence[ExpectedTrack],
    centres: Sequence[tuple[float, float]],
    found: Sequence[Box],
    pairs: Sequence[tuple[int, int]],
) -> tuple[float, float]:
    """Return how far most have moved beyond their forecasts, by the medians; (0, 0): too few tell."""
    offsets_x, offsets_y = [], []
    for i, j in pairs:
        if tracks[i].settled and tracks[i].fresh:
            box, (x, y) = found[j], centres[i]
            offsets_x.append((box[0] + box[2]) / 2 - x)
            offsets_y.append((box[1] + box[3]) / 2 - y)
    if len(offsets_x) < _SHIFT_COUNT:
        return _STILL
    middle = len(offsets_x) // 2
    across, down = sorted(offsets_x)[middle], sorted(offsets_y)[middle]
    if len(offsets_x) >= _SHIFT_MANY:
        return across, down
    near = (across * across + down * down) * _SHIFT_SPREAD
    agreed = sum((x - across) ** 2 + (y - down) ** 2 < near for x, y in zip(offsets_x, offsets_y, strict=True))
    return (across, down) if agreed >= _SHIFT_AGREED * len(offsets_x) else _STILL


def _costs(
    forecasts: Sequence[Forecast],
    centres: Sequence[tuple[float, float]],
    seen: Sequence[tuple[float, float, float, float, int]],
) -> list[dict[int, float]]:
    """Return, of each track, the gain of each detection that may be its, below 0.

    Args:
        forecasts: of the tracks.
        centres: theirs, moved with the camera.
        seen: see `measured`, and the index of each detection, sorted by the centres' x.
    """
    xs = [one[0] for one in seen]
    rows = []
    for one, (x, y) in zip(forecasts, centres, strict=True):
        row: dict[int, float] = {}
        rows.append(row)
        room = _COST_MAX - one.spread
        if room <= 0.0:
            continue
        reach = math.sqrt(room) * one.deviation_x
        first = bisect_left(xs, x - reach)
        precision_x, precision_y = one.precision_x, one.precision_y
        for other_x, other_y, other_w, other_h, j in seen[first : bisect_right(xs, x + reach, first)]:
            dx, dy = other_x - x, other_y - y
            distance = dx * dx * precision_x + dy * dy * precision_y
            if distance < room:
                dw, dh = other_w - one.log_w, other_h - one.log_h
                distance += dw * dw * one.precision_w + dh * dh * one.precision_h
                if distance < room:
                    row[j] = distance - room
    return rows


def optimal(rows: Sequence[Mapping[int, float]]) -> list[tuple[int, int]]:
    """Return the assignment of the least sum, as pairs (row, column); each may be left out at cost 0.

    Args:
        rows: cost of each column that a row may have, below 0.

    Source: successive shortest paths with potentials, as in Jonker and Volgenant, A shortest augmenting path
    algorithm for dense and sparse linear assignment problems, Computing 38 (1987).
    """
    row_of: dict[int, int] = {}
    prices: dict[int, float] = {}
    values = [0.0] * len(rows)
    for start, row in enumerate(rows):
        if not row:
            continue
        if prices.keys().isdisjoint(row):
            # The path to a free column without a price ends at once; most do.
            column = min(row, key=row.__getitem__)
            if column not in row_of:
                row_of[column], values[start] = start, row[column]
                continue
        _augment(rows, start, row_of, prices, values)
    return sorted((i, j) for j, i in row_of.items() if j >= 0)


def _augment(
    rows: Sequence[Mapping[int, float]],
    start: int,
    row_of: dict[int, int],
    prices: dict[int, float],
    values: list[float],
) -> None:
    """Assign one more row, and exchange columns of others where that is better."""
    column, lengths, before = _shortest_path(rows, start, row_of, prices, values)
    values[start] += lengths[column]
    for j, length in lengths.items():
        if j in row_of:
            values[row_of[j]] += lengths[column] - length
            prices[j] = prices.get(j, 0.0) - (lengths[column] - length)
    while (previous := before[column]) is not None:
        row_of[column] = row_of[previous]
        column = previous
    row_of[column] = start


def _shortest_path(
    rows: Sequence[Mapping[int, float]],
    start: int,
    row_of: Mapping[int, int],
    prices: Mapping[int, float],
    values: Sequence[float],
) -> tuple[int, dict[int, float], dict[int, int | None]]:
    """Return the free column that is nearest to a row, the lengths to columns, and the column before each.

    Column -1 - i is for row i to be left out.
    """
    open_: dict[int, float] = {}
    lengths: dict[int, float] = {}
    before: dict[int, int | None] = {}
    row, length, column = start, 0.0, None
    while True:
        offset = length - values[row]
        for j, cost in rows[row].items():
            if j not in lengths and (total := offset + cost - prices.get(j, 0.0)) < open_.get(j, _FAR):
                open_[j], before[j] = total, column
        open_[-1 - row], before[-1 - row] = offset, column
        column = min(open_, key=open_.__getitem__)
        length = lengths[column] = open_.pop(column)
        if column not in row_of:
            return column, lengths, before
        row = row_of[column]


def _greedy(
    tracks: Sequence[ExpectedTrack],
    found: Sequence[Box],
    left: Sequence[int],
    unknown: Sequence[int],
    iou_threshold: float,
) -> list[tuple[int, int]]:
    """Return pairs of what the first pass left, the most alike first."""
    boxes = {i: tracks[i].forecast.box for i in left}
    alike = [(affinity(boxes[i], found[j], iou_threshold), i, j) for i in left for j in unknown]
    chosen: dict[int, int] = {}
    for value, i, j in sorted(alike, key=itemgetter(0), reverse=True):
        if value <= 0.0 or i in chosen or j in chosen.values():
            continue
        # By distance alone a track that is known would take a neighbour's detection.
        if value > 1.0 or not tracks[i].settled or _is_alone(tracks, found, i, j):
            chosen[i] = j
    return list(chosen.items())


def affinity(expected: Box, box: Box, iou_threshold: float) -> float:
    """Return 1 + IoU for an overlap, 0..1 for a small distance, 0 for boxes that do not fit."""
    ax0, ay0, ax1, ay1 = expected
    bx0, by0, bx1, by1 = box
    shared = iou(expected, box)
    if shared >= iou_threshold and shared > 0.0:
        return 1.0 + shared
    a, b = (ax1 - ax0) * (ay1 - ay0), (bx1 - bx0) * (by1 - by0)
    is_alike = a <= _ALIKE * b + _POINT and b <= _ALIKE * a + _POINT
    return _nearness(expected, box) if is_alike else 0.0


def _nearness(a: Box, b: Box) -> float:
    """Return 1 for one centre, falling with the squared distance to 0 at `_REACH`."""
    w, h = a[2] - a[0] + b[2] - b[0], a[3] - a[1] + b[3] - b[1]
    # Without halves and roots.
    dx, dy = a[0] + a[2] - b[0] - b[2], a[1] + a[3] - b[1] - b[3]
    far = _REACH * _REACH * (w * w + h * h) + _POINT
    return max(0.0, 1.0 - (dx * dx + dy * dy) / far)


def _is_alone(tracks: Sequence[ExpectedTrack], found: Sequence[Box], i: int, j: int) -> bool:
    return not (
        any(k != i and _nearness(track.forecast.box, found[j]) for k, track in enumerate(tracks))
        or any(k != j and _nearness(tracks[i].forecast.box, box) for k, box in enumerate(found))
    )


def detection_f1(found: Sequence[Detection], reference: Sequence[Detection]) -> float:
    """Return the agreement of two answers to one picture, 0..1: F1 of one against the other, 1 if both are empty.

    Detections match that have one label and an IoU of at least one half; without boxes the label decides.
    """
    left = list(reference)
    for detection in found:
        same = max(left, key=lambda other: _likeness(detection, other), default=None)
        if same is not None and _likeness(detection, same) >= _SAME:
            left.remove(same)
    matched, total = len(reference) - len(left), len(found) + len(reference)
    return 2.0 * matched / total if total else 1.0


def _likeness(one: Detection, other: Detection) -> float:
    if one.label != other.label:
        return -1.0
    return iou(one.box, other.box) if one.box and other.box else 1.0
