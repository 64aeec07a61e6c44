"""Sequences of MOTChallenge: what is to be tracked, published detections, and the daemon's tracker on these.

Source: Leal-Taixé et al., MOTChallenge 2015, https://arxiv.org/abs/1504.01942; Milan et al., MOT16,
https://arxiv.org/abs/1603.00831
"""

from __future__ import annotations

import configparser
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import motmetrics
import numpy as np
from numpy.typing import NDArray

from agent.compute.track.places import Zones
from agent.compute.track.tracker import Tracker
from agent.config import TrackConfig
from agent.optimise.evaluation.operating import overlaps
from agent.types import Detection

PUBLISHED = "det.txt"
_INFO, _BEGIN = "seqinfo.ini", datetime(2026, 1, 1, tzinfo=UTC)
_FIGURES = {"mota": "MOTA", "idf1": "IDF1", "num_frames": "frames", "num_objects": "boxes"}
_FIGURES |= {"num_misses": "FN", "num_false_positives": "FP", "num_switches": "IDs"}


class MotRows(NamedTuple):
    """Boxes of a sequence as fractions of the picture, sorted by frame, which count from 1."""

    frames: NDArray[np.int64]
    ids: NDArray[np.int64]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]

    def at(self, frame: int) -> MotRows:
        """The boxes of one frame."""
        part = slice(*np.searchsorted(self.frames, (frame, frame + 1)))
        return MotRows(self.frames[part], self.ids[part], self.boxes[part], self.scores[part])


class MotSequence(NamedTuple):
    """A clip with what is to be tracked in it."""

    name: str
    path: Path
    width: int
    height: int
    fps: float
    frames: int
    truth: MotRows


class TrackedFrame(NamedTuple):
    """What is to be tracked in a picture, and what the tracker reports: numbers and boxes."""

    frame: int
    truth: MotRows
    ids: NDArray[np.int64]
    boxes: NDArray[np.float64]


def read_clips(path: Path) -> list[MotSequence]:
    """A sequence, or those of a folder."""
    return [_read(one.parent) for one in sorted([*path.glob(_INFO), *path.glob(f"*/{_INFO}")])]


def _read(folder: Path) -> MotSequence:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(folder / _INFO)
    width, height, frames = (parser.getint("Sequence", key) for key in ("imWidth", "imHeight", "seqLength"))
    fps, truth = parser.getfloat("Sequence", "frameRate"), _rows(folder, "gt", width, height)
    return MotSequence(folder.name, folder, width, height, fps, frames, truth)


def read_published(sequence: MotSequence) -> MotRows:
    """The published detections of a sequence."""
    return _rows(sequence.path, "det", sequence.width, sequence.height)


def _rows(folder: Path, kind: str, width: int, height: int) -> MotRows:
    file = folder / kind / f"{kind}.txt"
    values = np.loadtxt(
        file if file.is_file() else folder / f"{kind}.txt", delimiter=",", usecols=range(7), ndmin=2
    )
    if kind == "gt":
        values = values[values[:, 6] != 0]  # the others do not count
    values = values[np.argsort(values[:, 0], kind="stable")]
    boxes = values[:, 2:6] / (width, height, width, height)
    boxes[:, 2:] += boxes[:, :2]
    return MotRows(values[:, 0].astype(np.int64), values[:, 1].astype(np.int64), boxes, values[:, 6])


def track(sequence: MotSequence, every: int) -> Iterator[TrackedFrame]:
    """What the daemon's tracker makes of the published detections of each so manieth frame."""
    tracker = Tracker(TrackConfig(), Zones(()), sequence.name, min_hits=3, run="0")
    rows, numbers = read_published(sequence), dict[str, int]()
    for frame in range(1, sequence.frames + 1, every):
        at_s, part = (frame - 1) / sequence.fps, rows.at(frame)
        at = _BEGIN + timedelta(seconds=at_s)
        found = [
            Detection("person", float(np.clip(score, 0.0, 1.0)), (x0, y0, x1, y1))
            for score, (x0, y0, x1, y1) in zip(part.scores, part.boxes.tolist(), strict=True)
        ]
        tracker.update(found, round(at_s * 1e9), at)
        seen = [one for one in tracker.tracks() if one.last_seen == at and one.box is not None]
        ids = np.array([numbers.setdefault(one.id, len(numbers)) for one in seen], np.int64)
        boxes = np.array([one.box for one in seen], np.float64).reshape(-1, 4)
        yield TrackedFrame(frame, sequence.truth.at(frame), ids, boxes)


def tracking_figures(tracked: Sequence[Sequence[TrackedFrame]]) -> dict[str, float]:
    """MOTA, IDF1 and more over all sequences, at an overlap of one half."""
    accumulators = list[Any]()
    for frames in tracked:
        accumulators.append(motmetrics.MOTAccumulator())
        for one in frames:
            distances = 1.0 - overlaps(one.truth.boxes, one.boxes)
            distances[distances > 0.5] = np.nan
            accumulators[-1].update(one.truth.ids, one.ids, distances, frameid=one.frame)
    table = motmetrics.metrics.create().compute_many(accumulators, metrics=list(_FIGURES), generate_overall=True)
    found: dict[str, float] = table.rename(columns=_FIGURES).loc["OVERALL"].to_dict()
    return found
