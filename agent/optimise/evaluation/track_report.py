"""Reports of tracking: tables, and an HTML file with the pictures in which an object is lost or mistaken."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from agent.compute.drawing import annotate_detections
from agent.optimise.evaluation.mot import MotSequence
from agent.optimise.evaluation.report import EvaluationTable, percent, slice_table
from agent.optimise.evaluation.tracking import TrackEvaluation, TrackFigures, WrongTrack
from agent.optimise.report import html_page, html_picture, html_table
from agent.text import plain
from agent.types import Detection, Image

_SIDE, _QUALITY = 480, 80
"""Longest side of a picture in the report, px, and quality of its JPEG."""


def track_lines(found: TrackEvaluation, reused: int = 0) -> list[str]:
    """Return what comes before the tables, a line each; empty ones are left out when they are shown."""
    one, other = found.overall, found.against
    of = f" of {', '.join(found.labels)}" if found.sha256 else " of published detections"
    told = f"{found.model}: MOTA {percent(one.mota)}, IDF1 {percent(one.idf1)}{of}"
    against = ""
    if other is not None:
        by = (other[1] - one.mota) * 100
        against = f"MOTA of {other[0]} {percent(other[1])}: {by:+.1f} percentage points"
    taken = f"{reused} results of an earlier run were taken over" if reused else ""
    return [told, against, found.data, *found.remarks, taken]


def track_tables(found: TrackEvaluation) -> Iterator[EvaluationTable]:
    """Yield the tables of an evaluation."""
    shares = ("sequence", "pictures", "MOTA", "IDF1", "IDP", "IDR", "boxes", "missed", "in vain")
    rows = (*found.sequences, *([found.overall] if len(found.sequences) > 1 else []))
    yield EvaluationTable("tracking", shares, shares[1:], [_shares(one) for one in rows])
    counts = ("sequence", "objects", "mostly tracked", "partially", "mostly lost", "switches", "fragments")
    yield EvaluationTable("objects", counts, counts[1:], [_counts(one) for one in rows])
    yield from slice_table(found.slices, "matched")


def _shares(one: TrackFigures) -> tuple[str, ...]:
    figures = map(percent, (one.mota, one.idf1, one.idp, one.idr))
    return (one.name, str(one.pictures), *figures, *map(str, (one.boxes, one.misses, one.false_positives)))


def _counts(one: TrackFigures) -> tuple[str, ...]:
    kinds = (one.objects, one.mostly_tracked, one.partially_tracked, one.mostly_lost, one.switches, one.fragments)
    return (one.name, *map(str, kinds))


def tracks_to_html(found: TrackEvaluation, sequences: Sequence[MotSequence], lines: Sequence[str]) -> str:
    """Return the evaluation as one HTML file that loads nothing.

    Args:
        found: to show.
        sequences: whose pictures are shown, if they have any.
        lines: that come first.
    """
    parts = [html_table(("", ""), [("", line) for line in lines if line])]
    for table in track_tables(found):
        parts += [f"<h2>{table.title}</h2>", html_table(table.columns, table.rows)]
    if found.wrong:
        columns = ("sequence", "object", "frame", "boxes", "matched", "switches")
        parts += ["<h2>objects that are tracked worst</h2>", html_table(columns, map(_row, found.wrong))]
        parts += _pictures(found.wrong, sequences)
    return html_page(f"evaluation: {found.model}", parts)


def _row(one: WrongTrack) -> tuple[str, ...]:
    return (one.name, *map(str, (one.object, one.frame, one.boxes, one.matched, one.switches)))


def _pictures(wrong: Sequence[WrongTrack], sequences: Sequence[MotSequence]) -> Iterator[str]:
    for sequence in sequences:
        own = [one for one in wrong if one.name == sequence.name]
        if not own or not (sequence.pictures or sequence.is_video):
            continue
        frames = {one.frame for one in own}
        images = {frame: image for frame, image in sequence.images(1) if frame in frames}
        for one in own:
            if one.frame in images:
                yield _figure(one, sequence, images[one.frame])


def _figure(one: WrongTrack, sequence: MotSequence, image: Image) -> str:
    rows = sequence.truth.at(one.frame)
    x0, y0, x1, y1 = rows.boxes[rows.ids == one.object][0].tolist()
    drawn = annotate_detections(image, [Detection(f"object {one.object}", 1.0, (x0, y0, x1, y1))], order="bgr")
    scale = min(1.0, _SIDE / max(drawn.shape[:2]))
    size = max(1, round(drawn.shape[1] * scale)), max(1, round(drawn.shape[0] * scale))
    small = cv2.resize(drawn, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    encoded = cv2.imencode(".jpg", small, (cv2.IMWRITE_JPEG_QUALITY, _QUALITY))[1].tobytes()
    what = f"switched {one.switches} times" if one.switches else f"missed in {one.boxes - one.matched} pictures"
    about = f"{one.name}, frame {one.frame}: object {one.object}, {what}"
    caption = f"<figcaption>{html.escape(plain(about))}</figcaption>"
    return f"<figure>{html_picture(about, encoded, 'jpeg')}{caption}</figure>"
