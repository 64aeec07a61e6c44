"""Tracking: figures of sequences whose every identity is known."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("motmetrics", reason="clips need the extra [optimise]")

from agent.compute.vision import VideoPerception
from agent.config import DecodeConfig, GateConfig, StreamConfig
from agent.errors import ModelError
from agent.models.files import ZOO
from agent.models.library import open_model
from agent.optimise.evaluation.mot import MotRows, MotSequence, read_clips
from agent.optimise.evaluation.tracking import evaluate_tracking, track
from agent.types import Detection, Frame

FRAMES = 30
PICTURES = 30
INFO = "[Sequence]\nframeRate=10\nseqLength={frames}\nimWidth=1000\nimHeight=1000\n"


def box(ident: int, frame: int) -> tuple[float, float, float, float]:
    """Two people who walk to the right, one above the other, 8 pixels a frame."""
    left, top = 50.0 + 8 * frame, 100.0 + 400 * ident
    return left, top, left + 80, top + 200


def lines(frames: Sequence[int], idents: Sequence[int], *, known: bool) -> str:
    rows = []
    for frame in frames:
        for ident in idents:
            x0, y0, x1, y1 = box(ident, frame)
            rows.append(f"{frame},{ident + 1 if known else -1},{x0},{y0},{x1 - x0},{y1 - y0},1,-1,-1,-1")
    return "\n".join(rows)


def sequence(folder: Path, found: str, frames: int = FRAMES) -> Path:
    folder.mkdir(parents=True)
    (folder / "seqinfo.ini").write_text(INFO.format(frames=frames))
    (folder / "gt.txt").write_text(lines(range(1, frames + 1), (0, 1), known=True))
    (folder / "det.txt").write_text(found)
    return folder


def test_all_is_tracked_but_the_frames_before_a_track_is_announced(tmp_path: Path) -> None:
    path = sequence(tmp_path / "walk", lines(range(1, FRAMES + 1), (0, 1), known=False))
    found = evaluate_tracking(None, read_clips(path), "walk")
    one = found.overall
    assert (one["GT"], one["boxes"], one["FN"], one["FP"]) == (2, 60, 4, 0)
    assert (one["IDs"], one["MT"], one["ML"]) == (0, 2, 0)
    assert one["MOTA"] == pytest.approx(1 - 4 / 60)
    assert (one["IDP"], one["IDR"]) == pytest.approx((1.0, 56 / 60))
    assert found.labels == ("person",)


def test_what_is_lost_for_long_comes_back_as_another_track(tmp_path: Path) -> None:
    """The tracker gives an object up after 2.5 s, here 25 frames; it is found 35 frames later, far from there."""
    frames = 80
    seen = [*range(1, 21), *range(56, frames + 1)]
    path = sequence(tmp_path / "walk", lines(seen, (0,), known=False), frames)
    one = evaluate_tracking(None, read_clips(path), "walk").overall
    assert (one["IDs"], one["FM"]) == (1, 1)
    assert (one["ML"], one["PT"]) == (1, 1)
    assert one["FN"] == 80 + 35 + 2 + 2


def test_detections_of_nothing_are_false_positives(tmp_path: Path) -> None:
    ghost = "\n".join(f"{frame},-1,700,700,50,50,0.9" for frame in range(1, FRAMES + 1))
    both = lines(range(1, FRAMES + 1), (0, 1), known=False)
    one = evaluate_tracking(None, read_clips(sequence(tmp_path / "walk", f"{both}\n{ghost}")), "").overall
    assert one["FP"] == FRAMES - 2
    assert one["MOTA"] == pytest.approx(1 - (4 + 28) / 60)


def test_fewer_pictures_may_be_taken(tmp_path: Path) -> None:
    path = sequence(tmp_path / "walk", lines(range(1, FRAMES + 1), (0, 1), known=False))
    one = evaluate_tracking(None, read_clips(path), "", every=3).overall
    assert (one["frames"], one["boxes"], one["FN"]) == (10, 20, 4)


def test_sequences_are_told_apart_and_together(tmp_path: Path) -> None:
    sequence(tmp_path / "clips/good", lines(range(1, FRAMES + 1), (0, 1), known=False))
    sequence(tmp_path / "clips/poor", lines(range(1, FRAMES + 1), (0,), known=False))
    found = evaluate_tracking(None, read_clips(tmp_path / "clips"), "")
    assert list(found.sequences) == ["good", "poor"]
    assert found.overall["boxes"] == sum(one["boxes"] for one in found.sequences.values())
    assert found.overall["FN"] == sum(one["FN"] for one in found.sequences.values())


def test_nothing_is_reported_for_a_picture_in_which_nothing_was_detected() -> None:
    rows = MotRows(np.array([1]), np.array([1]), np.zeros((1, 4)), np.ones(1))
    still = (0.1, 0.1, 0.3, 0.5)
    found = [(frame, [Detection("person", 0.9, still)] if frame != 5 else []) for frame in range(1, 8)]
    clip = MotSequence("walk", Path("walk"), 100, 100, 10.0, 7, rows)
    reported = [len(one.ids) for one in track(clip, found, min_hits=3)]
    assert reported == [0, 0, 1, 1, 0, 1, 1]


def test_a_class_that_the_model_does_not_know_is_refused(tmp_path: Path) -> None:
    clips = read_clips(sequence(tmp_path / "walk", ""))
    with pytest.raises(ModelError, match=r"does not know the class 'unicorn'"):
        evaluate_tracking(open_model("nanodet"), clips, "", labels=("unicorn",))
    with pytest.raises(ModelError, match=r"which of its labels is tracked\?"):
        evaluate_tracking(open_model("blood-cells"), clips, "")
    with pytest.raises(ModelError, match="has no pictures"):
        evaluate_tracking(open_model("nanodet"), clips, "")


def test_nothing_at_all_may_be_detected(tmp_path: Path) -> None:
    one = evaluate_tracking(None, read_clips(sequence(tmp_path / "walk", "")), "").overall
    assert (one["MOTA"], one["IDF1"], one["FN"], one["ML"]) == (0.0, 0.0, 60, 2)


def tracked_by_a_stream(pictures: Sequence[np.ndarray]) -> str:
    """What a stream of the daemon tracks in a clip, as the lines of a gt.txt."""
    config = StreamConfig(
        "test:", "nanodet", gate=GateConfig(motion=False), decode=DecodeConfig(labels=("person",)), threads=1
    )
    perception = VideoPerception("street", config, open_model("nanodet"))
    rows, numbers = [], dict[str, int]()
    for number, image in enumerate(pictures):
        height, width = image.shape[:2]
        at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number / 10)
        perception.process(Frame(image, "street", number, round(number * 1e8), at))
        for one in perception.tracker.tracks():
            if one.last_seen == at and one.box is not None:
                x0, y0, x1, y1 = np.array(one.box) * (width, height, width, height)
                ident = numbers.setdefault(one.id, len(numbers) + 1)
                rows.append(f"{number + 1},{ident},{x0},{y0},{x1 - x0},{y1 - y0},1")
    perception.close()
    return "\n".join(rows)


def test_a_model_and_the_tracker_do_what_a_stream_does(tmp_path: Path) -> None:
    capture = cv2.VideoCapture(str(ZOO / "walkers.mp4"))
    pictures = [np.asarray(capture.read()[1], np.uint8) for _ in range(PICTURES)]
    (tmp_path / "img1").mkdir()
    for number, picture in enumerate(pictures, 1):
        assert cv2.imwrite(str(tmp_path / f"img1/{number:06}.png"), picture)
    size = f"imWidth={pictures[0].shape[1]}\nimHeight={pictures[0].shape[0]}\n"
    (tmp_path / "seqinfo.ini").write_text(f"[Sequence]\nframeRate=10\nseqLength={PICTURES}\n{size}")
    (tmp_path / "gt.txt").write_text(tracked_by_a_stream(pictures))
    found = evaluate_tracking(open_model("nanodet"), read_clips(tmp_path), "").overall
    assert found["boxes"] > PICTURES
    assert (found["MOTA"], found["IDF1"], found["IDs"]) == (1.0, 1.0, 0)
