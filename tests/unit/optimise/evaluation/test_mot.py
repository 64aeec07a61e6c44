"""Clips in the layout of MOTChallenge: what is read, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from agent.errors import ModelError
from agent.optimise.evaluation.mot import holds_clips, read_clips, read_published

INFO = "[Sequence]\nname=street\nimDir=img1\nframeRate=10\nseqLength=3\nimWidth=200\nimHeight=100\nimExt=.png\n"
TRUTH = "1,7,20,10,40,50,1,-1,-1,-1\n2,7,30,10,40,50,1,-1,-1,-1\n2,8,100,10,20,20,0,-1,-1,-1\n"


@pytest.fixture
def street(tmp_path: Path) -> Path:
    folder = tmp_path / "clips" / "street"
    (folder / "gt").mkdir(parents=True)
    (folder / "seqinfo.ini").write_text(INFO)
    (folder / "gt/gt.txt").write_text(TRUTH)
    return folder


def pictures(folder: Path, count: int = 3) -> None:
    (folder / "img1").mkdir(exist_ok=True)
    for number in range(count):
        assert cv2.imwrite(str(folder / f"img1/{number + 1:06}.png"), np.full((100, 200, 3), number, np.uint8))


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        read_clips(path)
    return str(caught.value)


def test_a_sequence_and_a_folder_of_them_are_read(street: Path) -> None:
    assert holds_clips(street)
    assert holds_clips(street.parent)
    for path in (street, street.parent):
        (found,) = read_clips(path)
        assert (found.name, found.width, found.height, found.fps, found.frames) == ("street", 200, 100, 10.0, 3)
        assert found.truth.ids.tolist() == [7, 7], "what does not count is left out"
        assert found.truth.at(2).boxes.tolist() == [[0.15, 0.1, 0.35, 0.6]]
        assert len(found.truth.at(3).ids) == 0


def test_other_folders_hold_no_clips(tmp_path: Path) -> None:
    (tmp_path / "red").mkdir()
    assert not holds_clips(tmp_path)
    assert "no seqinfo.ini" in refusal(tmp_path)


def test_published_detections_are_read_from_both_places(street: Path) -> None:
    with pytest.raises(ModelError, match=r"no det/det\.txt in it"):
        read_published(read_clips(street)[0])
    (street / "det.txt").write_text("2,-1,30,10,40,50,0.9,-1,-1,-1\n1,-1,30,10,40,50,7.5\n")
    found = read_published(read_clips(street)[0])
    assert (found.frames.tolist(), found.scores.tolist()) == ([1, 2], [7.5, 0.9])


def test_pictures_are_given_with_their_frames(street: Path) -> None:
    pictures(street)
    (found,) = read_clips(street)
    assert [(frame, int(image[0, 0, 0])) for frame, image in found.images(2)] == [(1, 0), (3, 2)]


def test_a_sequence_without_pictures_or_with_some_missing_says_so(street: Path) -> None:
    with pytest.raises(ModelError, match=r"has no pictures.*det\.txt in place of the model"):
        list(read_clips(street)[0].images(1))
    pictures(street, 2)
    assert "has 2, and seqinfo.ini says 3 pictures" in refusal(street)
    (street / "img1/000003.png").write_bytes(b"no picture")
    with pytest.raises(ModelError, match="000003"):
        list(read_clips(street)[0].images(1))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("3,7,20,10,40", "gt.txt:4: expected `frame,id,left,top,width,height"),
        ("0,7,20,10,40,50,1", "gt.txt:4: expected"),
        ("3,7,20,ten,40,50,1", "found 3,7,20,ten,40,50,1"),
        ("3,7,20,10,-40,50,1", "gt.txt:4"),
        ("3,7,20,10,nan,50,1", "gt.txt:4"),
        ("2,7,20,10,40,50,1", "object 7 is in frame 2 twice"),
    ],
)
def test_a_broken_line_is_told_by_its_number(street: Path, line: str, says: str) -> None:
    (street / "gt/gt.txt").write_text(f"{TRUTH}{line}\n")
    assert says in refusal(street)


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("seqLength=3", "seqLength=many", "seqinfo.ini: cannot be read as [Sequence]"),
        ("frameRate=10", "", "framerate"),
        ("imWidth=200", "imWidth=0", "imWidth"),
        ("[Sequence]", "[Other]", "cannot be read as [Sequence]"),
    ],
)
def test_what_is_wrong_with_the_description_is_told(street: Path, before: str, after: str, says: str) -> None:
    (street / "seqinfo.ini").write_text(INFO.replace(before, after))
    assert says in refusal(street)


def test_a_sequence_without_truth_or_with_nothing_in_it_is_refused(street: Path) -> None:
    (street / "gt/gt.txt").write_text("1,7,20,10,40,50,0\n")
    assert "nothing in it is to be tracked" in refusal(street)
    (street / "gt/gt.txt").write_bytes(b"\xff")
    assert "is not UTF-8" in refusal(street)
    (street / "gt/gt.txt").unlink()
    assert "no gt/gt.txt in it" in refusal(street)
