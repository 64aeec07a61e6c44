"""Evaluate detector and tracker on clips: MOTA, IDF1 and what belongs to them, by `py-motmetrics`.

The tracker is the daemon's. What it reports for a picture are the announced tracks that were detected in it: a
track that is missed for a moment has no box there. An object is matched from an overlap (IoU) of one half on.
Sources: Bernardin and Stiefelhagen, Evaluating multiple object tracking performance: the CLEAR MOT metrics, 2008;
Ristani et al., Performance measures and a data set for multi-target, multi-camera tracking, 2016
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from agent.compute.infer.image_input import ImageInput
from agent.compute.manifest import PICTURE_HITS, Model
from agent.compute.track.places import Zones
from agent.compute.track.tracker import Tracker
from agent.config import DecodeConfig, TrackConfig
from agent.config.wording import nearest
from agent.errors import ModelError
from agent.optimise.evaluate import detector, open_content
from agent.optimise.evaluation.mot import PUBLISHED, MotRows, MotSequence, read_published
from agent.optimise.evaluation.operating import overlaps
from agent.text import plural
from agent.types import Detection

_IOU = 0.5
_BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
_PERSON = "person"
_FIGURES = {
    "mota": "MOTA",
    "idf1": "IDF1",
    "idp": "IDP",
    "idr": "IDR",
    "num_frames": "frames",
    "num_objects": "boxes",
    "num_misses": "FN",
    "num_false_positives": "FP",
    "num_switches": "IDs",
    "num_fragmentations": "FM",
    "num_unique_objects": "GT",
    "mostly_tracked": "MT",
    "partially_tracked": "PT",
    "mostly_lost": "ML",
}
"""Metrics of motmetrics, and their names as MOTChallenge has them."""


class TrackEvaluation(Struct, frozen=True):
    """How good detector and tracker are on clips.

    Attributes:
        model, sha256: name and hash of the model; `det.txt` and nothing: published detections.
        data: what was read from where, in a line.
        every: every so manieth picture is taken.
        labels: that are tracked.
        overall: figures over all sequences, by their names in MOTChallenge. IDF1, IDP, IDR: F1, precision and
            recall of identities; FN, FP: boxes that are missed, and found in vain; IDs, FM: how often an object
            becomes another track, or is lost and found again; GT: objects; MT, PT, ML: those of which at least
            80 %, some, or less than 20 % of the boxes are matched.
        sequences: figures by the name of the sequence.
    """

    model: str
    sha256: str
    data: str
    every: int
    labels: tuple[str, ...]
    overall: dict[str, float]
    sequences: dict[str, dict[str, float]]


Detections = Iterable[tuple[int, list[Detection]]]
"""Frames, and what is detected in them."""
TrackProgress = Callable[[int], None]
"""Called with the number of pictures that are done."""


class TrackedFrame(NamedTuple):
    """What is to be tracked in a picture, and what the tracker reports: numbers and boxes."""

    frame: int
    truth: MotRows
    ids: NDArray[np.int64]
    boxes: NDArray[np.float64]


def evaluate_tracking(
    model: Model | None,
    sequences: Sequence[MotSequence],
    data: str,
    *,
    variant: str = "",
    labels: tuple[str, ...] = (),
    every: int = 1,
    progress: TrackProgress = lambda _: None,
) -> TrackEvaluation:
    """Evaluate a detector with the tracker of the daemon, or the tracker alone.

    Args:
        model: a detector; None: published detections are taken.
        sequences: clips.
        data: what they are, in a line.
        variant: of the model; empty: its first.
        labels: that are tracked; empty: `person`, or the model's only one.
        every: every so manieth picture is taken, as at a lower rate.
        progress: see `TrackProgress`.

    Raises:
        ModelError: motmetrics is missing, the model cannot be run, lacks a label, or a clip cannot be read.
    """
    metrics, labels = _metrics(), _labels(model, labels)
    tracked = _tracked(model, _detected(model, sequences, labels, variant, every), progress)
    table = metrics.metrics.create().compute_many(
        [_accumulated(metrics, frames) for frames in tracked.values()],
        metrics=list(_FIGURES),
        names=list(tracked),
        generate_overall=True,
    )
    figures = table.fillna(0.0).rename(columns=_FIGURES).to_dict("index")  # no share of nothing
    return TrackEvaluation(
        PUBLISHED if model is None else model.manifest.name or model.path,
        "" if model is None else model.sha256[:12],
        data,
        every,
        labels,
        figures.pop("OVERALL"),
        figures,
    )


def _tracked(
    model: Model | None, detected: Iterable[tuple[MotSequence, Detections]], progress: TrackProgress
) -> dict[str, list[TrackedFrame]]:
    """Track the objects of each sequence; return its frames by its name."""
    min_hits, done = PICTURE_HITS if model is None else model.manifest.min_hits, 0
    tracked: dict[str, list[TrackedFrame]] = {}
    for sequence, found in detected:
        frames = tracked.setdefault(sequence.name, [])
        for one in track(sequence, found, min_hits=min_hits):
            frames.append(one)
            done += 1
            progress(done)
    return tracked


def _metrics() -> Any:
    try:
        return importlib.import_module("motmetrics")
    except ImportError:
        raise ModelError("clips need motmetrics: pip install '.[optimise]' in the clone") from None


def _labels(model: Model | None, labels: tuple[str, ...]) -> tuple[str, ...]:
    if model is None:
        return (_PERSON,)
    known = model.manifest.output.labels
    if not labels:
        labels = (_PERSON,) if _PERSON in known else known[:1] if len(known) == 1 else ()
        if not labels:
            raise ModelError(
                f"{model.path}: which of its labels is tracked? --positive names it: {', '.join(known[:20])}"
            )
    if unknown := [label for label in labels if label not in known]:
        raise ModelError(f"{model.path}: does not know the class {unknown[0]!r}{nearest(unknown[0], known)}")
    return labels


def _detected(
    model: Model | None, sequences: Sequence[MotSequence], labels: tuple[str, ...], variant: str, every: int
) -> Iterator[tuple[MotSequence, Detections]]:
    if model is None:
        for sequence in sequences:
            yield sequence, published(sequence, every)
        return
    with open_content(model.content, model.manifest, variant) as session:
        preparation = ImageInput(session.inputs[0], model.manifest.input)
        decode = detector(session, model.manifest, DecodeConfig(labels=labels))

        def found(sequence: MotSequence) -> Detections:
            for frame, image in sequence.images(every):
                placement = preparation.fill(session.input(0), image, "bgr")
                session.invoke()
                yield frame, decode(placement)

        for sequence in sequences:
            yield sequence, found(sequence)


def published(sequence: MotSequence, every: int) -> Detections:
    """Yield the published detections of each so manieth frame. Raises ModelError if there are none."""
    rows = read_published(sequence)
    for frame in range(1, sequence.frames + 1, every):
        part = rows.at(frame)
        yield (
            frame,
            [
                Detection(_PERSON, float(np.clip(score, 0.0, 1.0)), (x0, y0, x1, y1))
                for score, (x0, y0, x1, y1) in zip(part.scores, part.boxes.tolist(), strict=True)
            ],
        )


def track(sequence: MotSequence, found: Detections, *, min_hits: int) -> Iterator[TrackedFrame]:
    """Yield what the daemon's tracker reports for each picture.

    Args:
        sequence: whose objects are to be tracked.
        found: frames, rising, and their detections.
        min_hits: detections before a track is announced.
    """
    tracker = Tracker(TrackConfig(), Zones(()), sequence.name, min_hits=min_hits, run="0")
    numbers: dict[str, int] = {}
    for frame, detections in found:
        at_s = (frame - 1) / sequence.fps
        at = _BEGIN + timedelta(seconds=at_s)
        tracker.update(detections, round(at_s * 1e9), at)
        seen = [one for one in tracker.tracks() if one.last_seen == at and one.box is not None]
        ids = np.array([numbers.setdefault(one.id, len(numbers)) for one in seen], np.int64)
        boxes = np.array([one.box for one in seen], np.float64).reshape(-1, 4)
        yield TrackedFrame(frame, sequence.truth.at(frame), ids, boxes)


def _accumulated(metrics: Any, frames: Iterable[TrackedFrame]) -> Any:
    accumulator = metrics.MOTAccumulator()
    for one in frames:
        distances = 1.0 - overlaps(one.truth.boxes, one.boxes)
        distances[distances > _IOU] = np.nan
        accumulator.update(one.truth.ids, one.ids, distances, frameid=one.frame)
    return accumulator


def describe_clips(path: str, sequences: Sequence[MotSequence], every: int) -> str:
    """Return what clips were read, in a line."""
    pictures = sum(len(range(0, one.frames, every)) for one in sequences)
    rate = f", every {every}th taken" if every > 1 else ""
    return f"{path}: {plural(len(sequences), 'sequence')}, {plural(pictures, 'picture')}{rate}"
