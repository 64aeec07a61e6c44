"""Identities that the tracker keeps, against SORT, ByteTrack and norfair, at three rates.

Detections: of MOT15 the published ones of a Faster R-CNN; of MOT17 the ground truth, of which 20 % are dropped,
and whose centres (in sides) and sides (by a factor) have a normal error of 6 %; the same for all trackers. Every
frame, every 3rd and every 6th is given to them, since the motion gate and the governor leave frames out. The
figures are those of motmetrics, at an overlap of one half.

- Halves: the sequences of each set are divided once, `TUNED` against the others, so that each half has cameras
  that stand and one that moves. Vedette's constants were chosen on the first half, on its sequences and on copies
  of three of them whose camera was moved at random. What a user sets, of Vedette and of the others, is chosen by
  `--tune` from `GRIDS` on the same half, for each set anew and for the three rates together: SORT and norfair by
  their mean IDF1, ByteTrack by its mean MOTA, Vedette by the mean of both. All is reported on the second half.
- Two scores: a detection of less than `score` is ignored; a track of Vedette must have had one of `start_score`
  (`[[streams.NAME.filters]]`), one of ByteTrack of `score`, and its weaker ones are a second round.
- What a tracker reports: Vedette, SORT and ByteTrack the detections that they have assigned; norfair those, or
  also where it supposes what it has missed, whichever is better (`predict`).
- SORT and ByteTrack are those of PyPI `trackers`; times that they count in frames follow the rate.
- Cost: processor time of `Tracker.update` for a frame, of the set and rate where it is most; of the others time
  by the wall clock.

With --quick every 3rd and every 6th frame alone.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import logging
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import common
import motmetrics
import numpy as np
from _mot import MotSequence, read_clips, read_published

from agent.compute.track.places import DetectionFilters, Zones
from agent.compute.track.tracker import Tracker
from agent.config import TrackConfig
from agent.config.places import FilterConfig
from agent.optimise.evaluation.operating import overlaps
from agent.types import Detection

SETS = ("MOT15", "MOT17")
TUNED = {"MOT15": ("ADL-Rundle-6", "KITTI-13", "TUD-Stadtmitte"), "MOT17": ("02", "05")}
RATES = (1, 3, 6)
DROPPED, ERROR = 0.2, 0.06
_SCORE = 0.9
"""Score of a detection that was made of the ground truth."""
_AT = datetime(2026, 1, 1, tzinfo=UTC)

Settings = Mapping[str, float]
Told = tuple[list[int], np.ndarray]
"""Ids and boxes that a tracker reports for a picture."""

GRIDS: dict[str, dict[str, tuple[float, ...]]] = {
    "vedette": {
        "min_hits": (1, 2, 3),
        "score": (0.0, 0.8, 0.9),
        "start_score": (0.0, 0.95, 0.98),
        "lost_s": (2.5, 5.0),
    },
    "sort": {
        "hits": (1, 2, 3),
        "overlap": (0.05, 0.1, 0.2, 0.3),
        "lost_s": (0.5, 1.0, 2.5),
        "score": (0.0, 0.8, 0.9),
    },
    "bytetrack": {
        "hits": (1, 2, 3),
        "overlap": (0.05, 0.1, 0.2),
        "lost_s": (0.5, 1.0, 2.5),
        "score": (0.6, 0.8, 0.9),
    },
    "norfair": {
        "delay": (0, 1, 2),
        "distance": (0.7, 0.8, 0.9),
        "lost_s": (0.25, 0.5, 1.0),
        "score": (0.0, 0.8, 0.9),
        "predict": (0, 1),
    },
}
"""Values of the settings that `--tune` tries."""
CHOSEN: dict[str, dict[str, Settings]] = {
    "vedette": {
        "MOT15": {"min_hits": 1, "score": 0.9, "start_score": 0.95, "lost_s": 2.5},
        "MOT17": {"min_hits": 1, "score": 0.0, "start_score": 0.0, "lost_s": 2.5},
    },
    "sort": {
        "MOT15": {"hits": 1, "overlap": 0.05, "lost_s": 2.5, "score": 0.9},
        "MOT17": {"hits": 1, "overlap": 0.2, "lost_s": 1.0, "score": 0.0},
    },
    "bytetrack": {
        "MOT15": {"hits": 2, "overlap": 0.1, "lost_s": 0.5, "score": 0.9},
        "MOT17": {"hits": 1, "overlap": 0.05, "lost_s": 2.5, "score": 0.6},
    },
    "norfair": {
        "MOT15": {"delay": 1, "distance": 0.9, "lost_s": 0.5, "score": 0.9, "predict": 0},
        "MOT17": {"delay": 0, "distance": 0.8, "lost_s": 1.0, "score": 0.0, "predict": 1},
    },
}
"""What `--tune` chose, by set; of norfair on MOT17 the best of a part of the combinations, which take hours."""
WEIGHTS = {"vedette": (1.0, 1.0), "sort": (0.0, 1.0), "bytetrack": (1.0, 0.0), "norfair": (0.0, 1.0)}
"""Weights of MOTA and IDF1 by which settings are chosen."""
TARGETS = {
    "idf1_over_norfair": "> 0 for each set and rate",
    "idf1_over_sort": "> 0 for each set and rate",
    "mota_over_bytetrack": ">= 0 for each set and rate",
    "cpu_us": "<= 300",
}


class Picture(NamedTuple):
    """A picture of a clip: what is to be tracked, and what was detected; boxes in pixels."""

    at_s: float
    ids: np.ndarray
    truth: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray


class Clip(NamedTuple):
    """A sequence at one rate."""

    set: str
    name: str
    every: int
    fps: float
    size: np.ndarray
    pictures: list[Picture]


class Figures(NamedTuple):
    """What motmetrics tells of the clips of one set at one rate, and the processor time of a frame, µs."""

    mota: float
    idf1: float
    switches: int
    cpu_us: float


def main() -> None:
    given = arguments()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    clips = read(given)
    if given.tune:
        tune(clips, given.tune)
        return
    told = {name: compared(name, clips) for name in GRIDS}
    figures: dict[str, float] = {}
    for name, by_case in told.items():
        for case, one in by_case.items():
            figures |= {f"{name}_{case}_{key}": getattr(one, key) for key in ("mota", "idf1", "switches")}
            print(
                f"{name:10}{case:10}{one.mota:8.3f}{one.idf1:7.3f}{one.switches:6}{one.cpu_us:8.0f} µs",
                flush=True,
            )
    figures |= margins(told)
    figures["cpu_us"] = max(one.cpu_us for one in told["vedette"].values())
    better = min(figures["idf1_over_norfair"], figures["idf1_over_sort"]) > 0.0
    meets = better and figures["mota_over_bytetrack"] >= 0.0 and figures["cpu_us"] <= 300.0
    common.conclude("tracking", figures, TARGETS, meets)


def arguments() -> argparse.Namespace:
    parser = common.arguments(__doc__ or "")
    common.data_argument(parser)
    parser.add_argument("--tune", choices=GRIDS, help="choose the settings of a tracker on the first half")
    return parser.parse_args()


def margins(told: Mapping[str, Mapping[str, Figures]]) -> dict[str, float]:
    """By how much Vedette is better, in the worst case of all sets and rates."""
    ours = told["vedette"]
    return {
        "idf1_over_norfair": min(one.idf1 - told["norfair"][case].idf1 for case, one in ours.items()),
        "idf1_over_sort": min(one.idf1 - told["sort"][case].idf1 for case, one in ours.items()),
        "mota_over_bytetrack": min(one.mota - told["bytetrack"][case].mota for case, one in ours.items()),
    }


def read(given: argparse.Namespace) -> list[Clip]:
    """Read the half that is asked for, at each rate."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        with tarfile.open(common.needed(given.data / "mot_dev.tar.xz")) as archive:
            archive.extractall(name, filter="data")
        for part in SETS:
            for sequence in read_clips(Path(name, part)):
                if (sequence.name in TUNED[part]) is bool(given.tune):
                    rows = detected(part, sequence)
                    rates = RATES[1:] if given.quick else RATES
                    found += [clip_of(part, sequence, rows, every) for every in rates]
    return found


def detected(part: str, sequence: MotSequence) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Boxes, fractions of the picture, and scores by frame."""
    frames = range(1, sequence.frames + 1)
    if part == "MOT15":
        rows = read_published(sequence)
        return {frame: (rows.at(frame).boxes, np.clip(rows.at(frame).scores, 0.0, 1.0)) for frame in frames}
    random = np.random.default_rng(0)
    return {frame: noisy(sequence.truth.at(frame).boxes, random) for frame in frames}


def noisy(boxes: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Boxes with dropped ones and errors, and their scores."""
    boxes = boxes[random.random(len(boxes)) >= DROPPED]
    sides, centres = boxes[:, 2:] - boxes[:, :2], (boxes[:, 2:] + boxes[:, :2]) / 2
    centres = centres + random.normal(0.0, ERROR, centres.shape) * sides
    sides = sides * np.exp(random.normal(0.0, ERROR, sides.shape))
    return np.concatenate((centres - sides / 2, centres + sides / 2), axis=1), np.full(len(boxes), _SCORE)


def clip_of(
    part: str, sequence: MotSequence, rows: Mapping[int, tuple[np.ndarray, np.ndarray]], every: int
) -> Clip:
    size = np.array([sequence.width, sequence.height] * 2, float)
    pictures = []
    for frame in range(1, sequence.frames + 1, every):
        truth, (boxes, scores) = sequence.truth.at(frame), rows[frame]
        at_s = (frame - 1) / sequence.fps
        pictures.append(Picture(at_s, truth.ids, truth.boxes * size, boxes.reshape(-1, 4) * size, scores))
    return Clip(part, sequence.name, every, sequence.fps / every, size, pictures)


def compared(name: str, clips: Sequence[Clip]) -> dict[str, Figures]:
    """Figures of a tracker with its chosen settings, by set and rate."""
    cases = dict.fromkeys((clip.set, clip.every) for clip in clips)
    return {
        f"{part.lower()}_{every}": measured(
            name, [clip for clip in clips if (clip.set, clip.every) == (part, every)], CHOSEN[name][part]
        )
        for part, every in cases
    }


def measured(name: str, clips: Sequence[Clip], settings: Settings) -> Figures:
    """Run a tracker on clips; return the figures over all."""
    accumulators, spent = [], 0.0
    for clip in clips:
        told, seconds = TRACKERS[name](clip, settings)
        spent += seconds
        accumulator = motmetrics.MOTAccumulator(auto_id=True)
        for picture, (ids, boxes) in zip(clip.pictures, told, strict=True):
            distances = 1.0 - overlaps(picture.truth, boxes.reshape(-1, 4))
            distances[distances > 0.5] = np.nan
            accumulator.update(picture.ids, ids, distances)
        accumulators.append(accumulator)
    row = (
        motmetrics.metrics.create()
        .compute_many(accumulators, metrics=["mota", "idf1", "num_switches"], generate_overall=True)
        .loc["OVERALL"]
    )
    pictures = sum(len(clip.pictures) for clip in clips)
    return Figures(float(row["mota"]), float(row["idf1"]), int(row["num_switches"]), spent / pictures * 1e6)


def vedette(clip: Clip, settings: Settings) -> tuple[list[Told], float]:
    """The tracker of the daemon."""
    tracker, again = new_tracker(settings), new_tracker(settings)
    given = [
        [
            Detection("person", float(score), tuple(box))
            for box, score in zip((one.boxes / clip.size).tolist(), one.scores, strict=True)
            if score >= settings["score"]
        ]
        for one in clip.pictures
    ]
    told, numbers = [], dict[str, int]()
    for picture, detections in zip(clip.pictures, given, strict=True):
        at = _AT + timedelta(seconds=picture.at_s)
        tracker.update(detections, round(picture.at_s * 1e9), at)
        shown = [one for one in tracker.tracks() if one.last_seen == at]
        boxes = np.array([one.box for one in shown], float).reshape(-1, 4) * clip.size
        told.append(([numbers.setdefault(one.id, len(numbers)) for one in shown], boxes))
    begun = time.process_time()  # once, because the call itself costs as much as a picture on some machines
    for picture, detections in zip(clip.pictures, given, strict=True):
        again.update(detections, round(picture.at_s * 1e9), _AT)
    return told, time.process_time() - begun


def new_tracker(settings: Settings) -> Tracker:
    config = TrackConfig(min_hits=int(settings["min_hits"]), lost_after_s=settings["lost_s"])
    filters = DetectionFilters([FilterConfig(start_score=settings["start_score"])], settings["score"])
    return Tracker(config, Zones(()), "bench", run="0", filters=filters)


def sort(clip: Clip, settings: Settings) -> tuple[list[Told], float]:
    """SORT (Bewley et al., 2016) of PyPI `trackers`."""
    library = importlib.import_module("trackers")
    return by_trackers(library.SORTTracker(**common_settings(clip, settings)), clip, settings["score"])


def bytetrack(clip: Clip, settings: Settings) -> tuple[list[Told], float]:
    """ByteTrack (Zhang et al., 2022) of PyPI `trackers`; weaker detections than `score` are its second round."""
    library = importlib.import_module("trackers")
    score = settings["score"]
    high = {"track_activation_threshold": score, "high_conf_det_threshold": score}
    return by_trackers(library.ByteTrackTracker(**common_settings(clip, settings), **high), clip, 0.0)


def common_settings(clip: Clip, settings: Settings) -> dict[str, Any]:
    return {
        "frame_rate": 30.0,  # so that the buffer counts frames
        "lost_track_buffer": max(1, round(settings["lost_s"] * clip.fps)),
        "minimum_consecutive_frames": int(settings["hits"]),
        "minimum_iou_threshold": settings["overlap"],
    }


def by_trackers(tracker: Any, clip: Clip, score: float) -> tuple[list[Told], float]:
    supervision = importlib.import_module("supervision")
    told: list[Told] = []
    spent = 0.0
    for picture in clip.pictures:
        strong = picture.scores >= score
        found = supervision.Detections(picture.boxes[strong], confidence=picture.scores[strong])
        begun = time.perf_counter()
        tracked = tracker.update(found)
        spent += time.perf_counter() - begun
        ids = np.asarray(tracked.tracker_id if len(tracked) else [], int)
        told.append((ids[ids >= 0].tolist(), np.asarray(tracked.xyxy).reshape(-1, 4)[ids >= 0]))
    return told, spent


def norfair(clip: Clip, settings: Settings) -> tuple[list[Told], float]:
    """Library norfair with the overlap of boxes as its distance."""
    library = importlib.import_module("norfair")
    delay = int(settings["delay"])
    most = max(delay + 1, round(settings["lost_s"] * clip.fps))
    tracker = library.Tracker("iou", settings["distance"], most, delay, past_detections_length=0)
    told: list[Told] = []
    spent = 0.0
    for number, picture in enumerate(clip.pictures):
        boxes = picture.boxes[picture.scores >= settings["score"]]
        found = [library.Detection(points=box.reshape(2, 2), data=(number, box)) for box in boxes]
        begun = time.perf_counter()
        objects = tracker.update(found)
        spent += time.perf_counter() - begun
        if settings["predict"]:
            shown = [one.estimate.reshape(4) for one in objects]
        else:
            objects = [one for one in objects if one.last_detection.data[0] == number]
            shown = [one.last_detection.data[1] for one in objects]
        told.append(([one.id for one in objects], np.array(shown, float).reshape(-1, 4)))
    return told, spent


TRACKERS: dict[str, Callable[[Clip, Settings], tuple[list[Told], float]]] = {
    "vedette": vedette,
    "sort": sort,
    "bytetrack": bytetrack,
    "norfair": norfair,
}


def tune(clips: Sequence[Clip], name: str) -> None:
    """Print the settings of a tracker that are best on the first half, for each set."""
    weight_mota, weight_idf1 = WEIGHTS[name]
    for part in SETS:
        best: tuple[float, Settings] = (-np.inf, {})
        for settings in settings_of(name, part):
            by_rate = [
                measured(name, [clip for clip in clips if (clip.set, clip.every) == (part, every)], settings)
                for every in RATES
            ]
            value = float(np.mean([weight_mota * one.mota + weight_idf1 * one.idf1 for one in by_rate]))
            if value > best[0]:
                best = (value, dict(settings))
                shown = "  ".join(f"{one.mota:.3f} {one.idf1:.3f} {one.switches}" for one in by_rate)
                print(f"{part} {best[0]:.4f} {settings}: {shown}", file=sys.stderr, flush=True)
        print(name, part, best[1], flush=True)


def settings_of(name: str, part: str) -> Iterator[Settings]:
    """Every combination of the values to be tried; the detections of MOT17 have one score."""
    grid = dict(GRIDS[name])
    for key in grid:
        if part == "MOT17" and "score" in key:
            grid[key] = grid[key][:1]
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


if __name__ == "__main__":
    main()
