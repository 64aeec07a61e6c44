"""Boxes of VOC and COCO: as they are written, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from agent.errors import ModelError
from agent.optimise.data.layouts import FoundData, read_data

_BOUNDS = "<bndbox><xmin>{1}</xmin><ymin>{2}</ymin><xmax>{3}</xmax><ymax>{4}</ymax></bndbox>"
_OBJECT = f"<object><name>{{0}}</name>{_BOUNDS}</object>"


def voc(*objects: tuple[Any, ...], width: object = 200, height: object = 100) -> str:
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation>{size}{''.join(_OBJECT.format(*one) for one in objects)}</annotation>"


def write(folder: Path, count: int = 3) -> list[str]:
    (folder / "JPEGImages").mkdir(parents=True)
    (folder / "Annotations").mkdir()
    names = [f"p{number}" for number in range(count)]
    for name in names:
        assert cv2.imwrite(str(folder / "JPEGImages" / f"{name}.jpg"), np.zeros((100, 200, 3), np.uint8))
        (folder / "Annotations" / f"{name}.xml").write_text(voc(("cell", 20, 10, 60, 50)))
    return names


def boxes(found: FoundData) -> list[list[tuple[str, list[float]]]]:
    assert found.objects is not None
    return [
        [(found.names[kind], np.round(box, 3).tolist()) for kind, box in zip(one.classes, one.boxes, strict=True)]
        for one in found.objects
    ]


def test_voc_boxes_are_fractions_of_their_picture(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "Annotations" / "p1.xml").write_text(voc(("WBC", 1, 1, 201, 101), ("cell", 0, 0, 100, 100)))
    found = read_data(tmp_path)
    assert found.names == ("WBC", "cell")
    assert boxes(found)[0] == [("cell", [0.1, 0.1, 0.3, 0.5])]
    assert boxes(found)[1] == [("WBC", [0.005, 0.01, 1.0, 1.0]), ("cell", [0.0, 0.0, 0.5, 1.0])]
    assert "4 boxes of VOC" in found.words


def test_a_box_without_area_is_left_out(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "Annotations" / "p1.xml").write_text(voc(("cell", 5, 5, 5, 9)))
    found = read_data(tmp_path)
    assert boxes(found)[1] == []


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (voc(("cell", 20, 10, 260, 50)), "outside of its picture of 200x100"),
        (voc(("cell", -9, 10, 60, 50)), "outside"),
        (voc(("cell", 60, 10, 20, 50)), "ends before it begins"),
        (voc(("cell", 2, 1, 6, 5), width=20, height=10), "it tells 20x10, and the picture has 200x100 pixels"),
        ('<?xml version="1.0" encoding="nonsense"?><annotation/>', "cannot be used"),
        (voc(("cell", "nan", 10, 60, 50)), "outside"),
        (voc(("", 20, 10, 60, 50)), "has no name"),
        (voc(("cell", "x", 10, 60, 50)), "no number in bndbox/xmin"),
        (voc(("cell", 1, 1, 2, 2), width=0), "a size of 0x100"),
        (voc(("cell", 1, 1, 2, 2), width="inf"), "a size of inf"),
        ("<annotation>", "cannot be used as an annotation of VOC"),
        ("", "cannot be used"),
        (
            '<!DOCTYPE a [<!ENTITY b "'
            + "x" * 1000
            + '">'
            + "".join(f'<!ENTITY b{n} "{f"&b{n - 1 if n else str()};" * 10}">' for n in range(9))
            + "]><annotation>&b8;</annotation>",
            "cannot be used",
        ),
    ],
)
def test_a_wrong_annotation_is_named(tmp_path: Path, content: str, why: str) -> None:
    write(tmp_path)
    (tmp_path / "Annotations" / "p1.xml").write_text(content)
    with pytest.raises(ModelError, match=f"p1.xml: .*{why}"):
        read_data(tmp_path)


def test_a_picture_without_its_annotation_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "Annotations" / "p1.xml").unlink()
    with pytest.raises(ModelError, match=r"p1.jpg has no .xml"):
        read_data(tmp_path)


def coco(folder: Path, **changed: Any) -> None:
    images = [{"id": n, "file_name": f"p{n}.jpg", "width": 200, "height": 100} for n in range(3)]
    annotations = [
        {"id": 1, "image_id": 0, "category_id": 7, "bbox": [20, 10, 40, 40], "area": 1600, "iscrowd": 0},
        {"id": 2, "image_id": 2, "category_id": 3, "bbox": [0, 0, 200, 100], "area": 20000},
        {"id": 3, "image_id": 2, "category_id": 3, "bbox": [0, 0, 20, 10], "iscrowd": 1, "segmentation": {}},
    ]
    categories = [{"id": 7, "name": "cell"}, {"id": 3, "name": "WBC"}]
    told = {"info": {}, "images": images, "annotations": annotations, "categories": categories, **changed}
    for name in write(folder):
        (folder / "Annotations" / f"{name}.xml").unlink()
    (folder / "instances.json").write_text(json.dumps(told))


def test_coco_boxes_are_read_and_crowds_left_out(tmp_path: Path) -> None:
    coco(tmp_path)
    found = read_data(tmp_path)
    assert boxes(found) == [[("cell", [0.1, 0.1, 0.3, 0.5])], [], [("WBC", [0.0, 0.0, 1.0, 1.0])]]


_BOX = {"id": 1, "image_id": 0, "category_id": 7, "bbox": [20, 10, 40, 40]}


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"annotations": [{**_BOX, "bbox": [20, 10, 400, 40]}]}, "p0.jpg: the box 20, 10, 420, 50 lies outside"),
        ({"annotations": [{**_BOX, "image_id": 9}]}, "image 9, category 7: not listed"),
        ({"annotations": [{**_BOX, "bbox": [20, 10]}]}, "cannot be used as a file of COCO"),
        (
            {"images": [{"id": 0, "file_name": "gone.jpg", "width": 200, "height": 100}], "annotations": [_BOX]},
            "gone.jpg is not among the pictures",
        ),
        (
            {"images": [{"id": 0, "file_name": "p.webp", "width": 200, "height": 100}], "annotations": [_BOX]},
            "p.webp is not among the pictures .bmp, ",
        ),
        ({"annotations": []}, "not one box"),
        ({"images": 5}, "cannot be used"),
        (
            {"categories": [{"id": 7, "name": "cell"}, {"id": 7, "name": "WBC"}], "annotations": [_BOX]},
            "the same id",
        ),
        ({"annotations": [{**_BOX, "bbox": [20, 10, -5, 40]}]}, "ends before it begins"),
    ],
)
def test_a_wrong_file_of_coco_is_named(tmp_path: Path, changed: dict[str, Any], why: str) -> None:
    coco(tmp_path, **changed)
    with pytest.raises(ModelError, match=why):
        read_data(tmp_path)


def test_pictures_of_one_name_have_the_annotation_of_their_own_folder(tmp_path: Path) -> None:
    for folder, name in (("a", "red"), ("b", "green")):
        (tmp_path / folder).mkdir()
        assert cv2.imwrite(str(tmp_path / folder / "0.png"), np.zeros((100, 200, 3), np.uint8))
        (tmp_path / folder / "0.xml").write_text(voc((name, 20, 10, 60, 50)))
    assert [one[0][0] for one in boxes(read_data(tmp_path))] == ["red", "green"]
    for folder in ("a", "b"):
        (tmp_path / folder / "0.xml").rename(tmp_path / folder / "moved.xml")
        (tmp_path / f"notes-{folder}").mkdir()
        (tmp_path / folder / "moved.xml").rename(tmp_path / f"notes-{folder}" / "0.xml")
    with pytest.raises(ModelError, match="is not clear"):
        read_data(tmp_path)


def test_coco_means_the_picture_of_its_path(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        assert cv2.imwrite(str(tmp_path / folder / "0.png"), np.zeros((100, 200, 3), np.uint8))
    told = {
        "images": [{"id": 1, "file_name": "b/0.png", "width": 200, "height": 100}],
        "annotations": [{"image_id": 1, "category_id": 7, "bbox": [20, 10, 40, 40]}],
        "categories": [{"id": 7, "name": "cell"}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(told))
    found = read_data(tmp_path)
    assert [len(one) for one in boxes(found)] == [0, 1]
    told["images"] = [{"id": 1, "file_name": "0.png", "width": 200, "height": 100}]
    (tmp_path / "coco.json").write_text(json.dumps(told))
    with pytest.raises(ModelError, match="is not clear"):
        read_data(tmp_path)


def test_other_json_beside_pictures_is_no_annotation(tmp_path: Path) -> None:
    for name in ("red", "blue"):
        (tmp_path / name).mkdir()
        assert cv2.imwrite(str(tmp_path / name / "0.png"), np.zeros((10, 20, 3), np.uint8))
    (tmp_path / "meta.json").write_text('{"made": "today"}')
    assert read_data(tmp_path).classes is not None
