"""Examples of every layout, and all that can be wrong with them."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from msgspec.structs import replace

from agent.compute.infer.image_input import ImageInput
from agent.compute.manifest import AudioManifest, InputManifest, Manifest, Model, OutputManifest
from agent.compute.tflite.model import TensorSpec
from agent.errors import ModelError
from agent.optimise.data import Examples, read_examples
from agent.optimise.source import open_source
from tests.support.picture_models import COLOURS, SIDE, classifier, picture

MANIFEST = Manifest(
    "colours",
    OutputManifest("classify", COLOURS),
    InputManifest("rgb", "stretch", (127.5,) * 3, (127.5,) * 3),
)
CONTENT = classifier("float32")
MODEL = Model(CONTENT, hashlib.sha256(CONTENT).hexdigest(), MANIFEST, "colours.tflite")


def encoded(colour: str) -> bytes:
    return cv2.imencode(".png", picture(colour))[1].tobytes()


def by_class(folder: Path, each: int = 4) -> Path:
    for colour in COLOURS:
        (folder / colour).mkdir(parents=True)
        for number in range(each):
            (folder / colour / f"{number}.png").write_bytes(encoded(colour))
    return folder


def yolo(folder: Path) -> Path:
    """Eight pictures, all but the last with a box; the classes are in another order than the model's."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for number in range(8):
        colour = COLOURS[number % 3]
        (folder / "images" / f"{number}.png").write_bytes(encoded(colour))
        if number < 7:
            (folder / "labels" / f"{number}.txt").write_text(f"{2 - number % 3} 0.5 0.4 0.5 0.2\n\n")
    (folder / "classes.txt").write_text("blue\nGreen\nred\n")
    return folder


def archive(folder: Path, path: Path, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        tar.add(folder, ".")
    return path


def test_a_folder_of_classes_is_matched_by_name(tmp_path: Path) -> None:
    by_class(tmp_path)
    (tmp_path / "red").rename(tmp_path / "Red")
    (tmp_path / "Red" / ".hidden.png").write_bytes(b"")
    examples = read_examples(tmp_path, MODEL)
    assert (examples.kind, len(examples), examples.shape) == ("classes", 12, (SIDE, SIDE, 3))
    assert examples.names == COLOURS
    assert examples.labels is not None
    for index, label in enumerate(examples.labels):
        means = examples.picture(index).mean(axis=(0, 1))[::-1]
        assert int(means.argmax()) == label
    assert "12 examples" in examples.description


def test_a_class_whose_name_is_not_utf8_is_named_by_its_escapes(tmp_path: Path) -> None:
    by_class(tmp_path)
    try:
        (tmp_path / "red").rename(tmp_path / os.fsdecode(b"rouge \xe9"))
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    nameless = replace(MODEL, manifest=replace(MANIFEST, output=OutputManifest("classify")))
    assert "".join(read_examples(tmp_path, nameless).names).encode()


def test_pictures_are_prepared_as_the_daemon_prepares_them(tmp_path: Path) -> None:
    examples = read_examples(by_class(tmp_path), MODEL)
    spec = TensorSpec("image", (1, SIDE, SIDE, 3), "float32")
    expected = np.empty(spec.shape, np.float32)
    assert examples.labels is not None
    ImageInput(spec, MANIFEST.input).fill(expected, picture(COLOURS[examples.labels[5]]), "bgr")
    batch = examples.batch([5, 0])
    assert batch.shape == (2, SIDE, SIDE, 3)
    assert batch.dtype == np.float32
    np.testing.assert_array_equal(batch[0], expected[0])


def test_boxes_are_read_with_their_classes(tmp_path: Path) -> None:
    examples = read_examples(yolo(tmp_path), MODEL)
    assert (examples.kind, len(examples), examples.labels) == ("boxes", 8, None)
    truth = examples.truth(1)
    assert truth.classes.tolist() == [1]
    np.testing.assert_allclose(truth.boxes, [[0.25, 0.3, 0.75, 0.5]])
    assert examples.truth(0).classes.tolist() == [0]  # number 2 in the data, `red`
    assert len(examples.truth(7).classes) == 0


@pytest.mark.parametrize("layout", [by_class, yolo])
def test_an_archive_is_read_like_the_folder(tmp_path: Path, layout: Callable[[Path], Path]) -> None:
    folder = layout(tmp_path / "folder" / "inner")
    expected = read_examples(folder, MODEL)
    found = read_examples(archive(folder.parent, tmp_path / "a.tar"), MODEL)
    assert same(found, expected)
    assert same(pickle.loads(pickle.dumps(found)), expected)


def same(one: Examples, other: Examples) -> bool:
    assert (one.kind, len(one), one.names) == (other.kind, len(other), other.names)
    np.testing.assert_array_equal(one.batch(range(len(one))), other.batch(range(len(other))))
    if one.kind == "classes":
        np.testing.assert_array_equal(one.labels, other.labels)
    else:
        for index in range(len(one)):
            np.testing.assert_array_equal(one.truth(index).boxes, other.truth(index).boxes)
    return True


def test_pictures_of_one_folder_have_no_labels(tmp_path: Path) -> None:
    by_class(tmp_path / "one", 8)
    for colour in COLOURS[1:]:
        shutil.rmtree(tmp_path / "one" / colour)
    (tmp_path / "one" / "red" / "0.png").write_bytes(encoded("blue"))
    (tmp_path / "one" / "annotations").mkdir()
    (tmp_path / "one" / "annotations" / "0.xml").write_text("<annotation/>")
    for path in (tmp_path / "one", tmp_path / "one" / "red"):
        assert (read_examples(path, MODEL).kind, len(read_examples(path, MODEL))) == ("none", 8)


def test_a_class_whose_pictures_are_all_left_out_does_not_vanish(tmp_path: Path) -> None:
    by_class(tmp_path, 12)
    for path in (tmp_path / COLOURS[-1]).iterdir():
        path.rename(path.with_suffix(".gif"))
    with pytest.raises(ModelError, match=f"no picture .*in .*{COLOURS[-1]}"):
        read_examples(tmp_path, MODEL)


def test_an_archive_may_not_name_files_outside(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded("red"))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number in range(8):
            member, content = tarfile.TarInfo(f"{number}.png"), encoded(COLOURS[number % 3])
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for name, kind in (("l.png", tarfile.SYMTYPE), ("m.png", tarfile.LNKTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, str(secret)
            tar.addfile(link)
    examples = read_examples(tmp_path / "a.tar", MODEL)
    assert (examples.kind, len(examples)) == ("none", 8)


def test_arrays_of_pictures_are_in_rgb(tmp_path: Path) -> None:
    pictures = np.array([picture(COLOURS[number % 3])[:, :, ::-1] for number in range(9)])
    np.savez(tmp_path / "x.npz", x=pictures, y=np.arange(9) % 3)
    examples = read_examples(tmp_path / "x.npz", MODEL)
    assert (examples.kind, examples.names) == ("classes", COLOURS)
    assert examples.batch([0])[0].mean(axis=(0, 1)).argmax() == 0
    np.testing.assert_array_equal(examples.picture(0), pictures[0])


def test_real_values_are_given_to_the_model_as_they_are(tmp_path: Path) -> None:
    values = np.random.default_rng(1).uniform(-1, 1, (10, SIDE, SIDE, 3)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=values)
    examples = read_examples(tmp_path / "x.npz", MODEL)
    np.testing.assert_array_equal(examples.batch([3]), values[3:4])
    np.testing.assert_array_equal(examples.take([3, 4]).batch([1]), values[4:5])
    stored = np.empty((1, SIDE, SIDE, 3), np.int8)
    examples.fill(3, TensorSpec("image", stored.shape, "int8", 1 / 64, 1), stored)
    np.testing.assert_array_equal(stored[0], np.clip(np.rint(values[3].astype(float) * 64) + 1, -128, 127))


def values_file(folder: Path, low: float, high: float) -> Path:
    values = np.linspace(low, high, 8 * SIDE * SIDE * 3).reshape(8, SIDE, SIDE, 3)
    np.savez(folder / "x.npz", x=values.astype(np.float32))
    return folder / "x.npz"


def test_the_range_of_pixels_is_the_manifests_whatever_the_examples_show(tmp_path: Path) -> None:
    examples = read_examples(values_file(tmp_path, -1.0, 0.3), MODEL)
    assert examples.value_range() == (-1.0, 1.0)
    assert examples.remarks == ()


@pytest.mark.parametrize("most", [0.6, 1.0])
def test_fractions_are_refused_where_the_manifest_has_a_mean(tmp_path: Path, most: float) -> None:
    with pytest.raises(ModelError, match="pixels lie within -1 to 1"):
        read_examples(values_file(tmp_path, 0.0, most), MODEL)


def test_values_that_are_no_pixels_are_taken_as_they_are(tmp_path: Path) -> None:
    manifest = replace(MODEL.manifest, input=InputManifest(pixels=False))
    examples = read_examples(values_file(tmp_path, -4.5, 5.0), replace(MODEL, manifest=manifest))
    assert not examples.are_pixels
    assert examples.value_range() == (-4.5, 5.0)
    by_class(tmp_path / "pictures", 10)
    with pytest.raises(ModelError, match="pixels = false"):
        read_examples(tmp_path / "pictures", replace(MODEL, manifest=manifest))


def test_a_limit_takes_the_same_examples_each_time(tmp_path: Path) -> None:
    by_class(tmp_path, 10)
    one, other = (read_examples(tmp_path, MODEL, limit=12) for _ in range(2))
    assert len(one) == 12
    assert one.labels is not None
    assert len(set(one.labels)) == 3
    np.testing.assert_array_equal(one.labels, other.labels)


def test_classes_of_a_model_without_names_are_numbers(tmp_path: Path) -> None:
    by_class(tmp_path)
    nameless = replace(MODEL, manifest=replace(MANIFEST, output=OutputManifest("classify")))
    assert read_examples(tmp_path, nameless).names == tuple(sorted(COLOURS))
    for number, colour in enumerate(COLOURS):
        (tmp_path / colour).rename(tmp_path / str(2 - number))
    for model in (nameless, MODEL):
        examples = read_examples(tmp_path, model)
        assert examples.labels is not None
        assert [int(label) for label in sorted(set(examples.labels))] == [0, 1, 2]


def test_classes_without_an_example_are_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.arange(8 * 81, dtype=np.uint8).reshape(8, 9, 9), y=np.zeros(8, int))
    assert "2 of the model's 3 classes" in read_examples(tmp_path / "x.npz", MODEL).remarks[0]


def empty_class(folder: Path) -> str:
    (by_class(folder) / "red" / "0.png").unlink()
    for path in (folder / "red").iterdir():
        path.unlink()
    return "red"


def unknown_class(folder: Path) -> str:
    (by_class(folder) / "green").rename(folder / "gren")
    return "'gren'.*'green'"


def too_few(folder: Path) -> str:
    by_class(folder, 2)
    return "6 examples.*8"


def loose_picture(folder: Path) -> str:
    (by_class(folder) / "loose.png").write_bytes(encoded("red"))
    return r"loose\.png"


def broken_picture(folder: Path) -> str:
    (by_class(folder) / "green" / "2.png").write_bytes(encoded("red")[:60])
    return r"green/2\.png"


def lost_label(folder: Path) -> str:
    (yolo(folder) / "images" / "3.png").unlink()
    (folder / "images" / "9.png").write_bytes(encoded("red"))
    return r"labels/3\.txt"


def label_of_another_format(folder: Path) -> str:
    (yolo(folder) / "images" / "3.png").rename(folder / "images" / "3.webp")
    return r"labels/3\.txt has no picture .bmp, "


def label_out_of_range(folder: Path) -> str:
    (yolo(folder) / "labels" / "3.txt").write_text("3 0.5 0.5 0.1 0.1")
    return r"images/3\.png.*class 3"


def label_in_pixels(folder: Path) -> str:
    (yolo(folder) / "labels" / "3.txt").write_text("0 0.5 0.5 0.1 0.1\n0 50 50 10 10")
    return r"labels/3\.txt:2"


def label_of_outlines(folder: Path) -> str:
    (yolo(folder) / "labels" / "3.txt").write_text("0 0.5 0.5 0.1 0.1 0.4 0.4")
    return r"labels/3\.txt:1"


def no_boxes(folder: Path) -> str:
    for path in (yolo(folder) / "labels").iterdir():
        path.write_text("")
    return "not one box"


def no_pictures(folder: Path) -> str:
    (folder / "notes.txt").write_text("nothing")
    for number in range(2):
        (folder / f"{number}.wav").write_bytes(b"")
    return r"no pictures .* in it: expected a sub-folder of pictures for each class"


def folders_of_sounds(folder: Path) -> str:
    (by_class(folder) / "zebra").mkdir()
    (folder / "zebra" / "0.wav").write_bytes(b"")
    return r"no picture \(.*\) in zebra: each sub-folder is a class"


@pytest.mark.parametrize(
    "fault",
    [
        empty_class,
        unknown_class,
        too_few,
        loose_picture,
        broken_picture,
        lost_label,
        label_of_another_format,
        label_out_of_range,
        label_in_pixels,
        label_of_outlines,
        no_boxes,
        no_pictures,
        folders_of_sounds,
    ],
)
def test_a_fault_is_found_and_named_at_once(tmp_path: Path, fault: Callable[[Path], str]) -> None:
    expected = fault(tmp_path)
    with pytest.raises(ModelError, match=expected):
        read_examples(tmp_path, MODEL)


def two_inputs(folder: Path) -> Model:
    pytest.importorskip("ai_edge_litert", reason="the schema comes with LiteRT")
    from tests.support.graph_sketch import Sketch

    sketch = Sketch()
    one, other = sketch.tensor((1, 4)), sketch.tensor((1, 2))
    joined = sketch.apply("CONCATENATION", [one, other], sketch.tensor((1, 6)), "ConcatenationOptions", axis=1)
    (folder / "two.tflite").write_bytes(sketch.file([one, other], [joined]))
    return open_source(str(folder / "two.tflite"), lambda _: None)


def test_a_model_of_two_inputs_takes_an_array_for_each(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    one, other = random.normal(size=(8, 4)).astype(np.float32), random.normal(size=(8, 2)).astype(np.float32)
    model = two_inputs(tmp_path)
    for name in ("t0", "x"):
        np.savez(tmp_path / "x.npz", **{name: one, "t1": other})  # type: ignore[arg-type]
        examples = read_examples(tmp_path / "x.npz", model).take([3, 5])
        found = examples.inputs(1, ["t1", "t0"])
        assert np.array_equal(found[0], other[5:6])
        assert np.array_equal(found[1], one[5:6])
    np.savez(tmp_path / "x.npz", x=one)
    with pytest.raises(ModelError, match="needs `t0` and `t1`, an array for each input; it has: x"):
        read_examples(tmp_path / "x.npz", model)
    np.savez(tmp_path / "x.npz", x=one, t1=other[:7])
    with pytest.raises(ModelError, match="`t1` has 7 rows, and the first input 8"):
        read_examples(tmp_path / "x.npz", model)


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"y": np.zeros(8, int)}, "needs `x`, an array for each input; it has: y"),
        ({"x": np.zeros((8, 4), np.uint8)}, "expected pictures"),
        ({"x": np.zeros((8, 4, 4, 3), bool)}, "bool"),
        ({"x": np.zeros((8, 4, 4, 3), np.float32)}, r"\[n, 8, 8, 3\]"),
        ({"x": np.linspace(0, 255, 8 * 192, dtype=np.float32).reshape(8, 8, 8, 3)}, "0 to 255.*-1 to 1"),
        ({"x": np.full((8, 8, 8, 3), np.nan, np.float32)}, "expected none beyond"),
        (
            {"x": np.full((8, 8, 8, 3), 1e30, np.float32)},
            r"to 1e\+30: expected none beyond 1e\+15",
        ),
        ({"x": np.zeros((8, 9, 9, 3), np.uint8), "y": np.zeros((8, 3), int)}, r"\[8\]"),
        ({"x": np.zeros((8, 9, 9, 3), np.uint8), "y": np.full(8, 3)}, "class 3"),
        ({"x": np.zeros((8, 9, 9, 3), np.uint8), "y": np.full(8, -1)}, "class -1"),
        ({"x": np.array([{}] * 8)}, "cannot be read"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], expected: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=expected):
        read_examples(tmp_path / "x.npz", MODEL)


@pytest.mark.parametrize("name", ["x.npz", "x.tar", "x.jpg"])
def test_a_damaged_file_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for content in (b"", b"\x00" * 2000, b"PK\x03\x04" + b"x" * 100):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=str(path)):
            read_examples(path, MODEL)
    with pytest.raises(ModelError, match="no such file"):
        read_examples(tmp_path / f"missing{Path(name).suffix}", MODEL)


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    path = archive(by_class(tmp_path / "folder"), tmp_path / "x.tar")
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(ModelError, match="archive"):
        read_examples(path, MODEL)


def test_a_model_of_sound_takes_no_pictures(tmp_path: Path) -> None:
    sound = replace(MODEL, manifest=replace(MANIFEST, audio=AudioManifest(16_000, "raw")))
    with pytest.raises(ModelError, match="sound"):
        read_examples(by_class(tmp_path), sound)


def test_features_of_sound_are_no_pixels_even_in_the_shape_of_a_picture(tmp_path: Path) -> None:
    shape = read_examples(by_class(tmp_path / "pictures"), MODEL).shape
    values = np.full((8, *shape), 40.0, np.float32)
    values[0] += 1.0
    np.savez(tmp_path / "x.npz", x=values)
    sound = replace(MODEL, manifest=replace(MANIFEST, audio=AudioManifest(16_000, "raw")))
    assert len(read_examples(tmp_path / "x.npz", sound)) == 8
    with pytest.raises(ModelError, match="pixels lie within"):
        read_examples(tmp_path / "x.npz", MODEL)


def test_examples_without_boxes_say_so(tmp_path: Path) -> None:
    examples = read_examples(by_class(tmp_path), MODEL)
    with pytest.raises(ModelError, match="no boxes"):
        examples.truth(0)


def test_a_limit_below_the_fewest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="at least 8"):
        read_examples(by_class(tmp_path), MODEL, limit=7)


def test_a_line_break_in_a_name_is_shown_as_an_escape(tmp_path: Path) -> None:
    folder = by_class(tmp_path / "pictures")
    (folder / "red" / "a\nb.png").write_bytes(b"no picture")
    with pytest.raises(ModelError, match=r"red/a\\nb\.png"):
        read_examples(folder, MODEL)


def test_boxes_need_a_decoder(tmp_path: Path) -> None:
    undecoded = replace(MODEL, manifest=replace(MANIFEST, output=OutputManifest()))
    with pytest.raises(ModelError, match="decoder"):
        read_examples(yolo(tmp_path), undecoded)


def test_examples_that_are_all_the_same_are_refused(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"{number}.png").write_bytes(encoded(COLOURS[0]))
    with pytest.raises(ModelError, match="all 9 examples are the same"):
        read_examples(tmp_path, MODEL)
    for dtype in (np.uint8, np.float32):
        np.savez(tmp_path / "x.npz", x=np.zeros((9, SIDE, SIDE, 3), dtype))
        with pytest.raises(ModelError):
            read_examples(tmp_path / "x.npz", MODEL)


def test_raw_outputs_are_scores_of_classes_only_where_the_manifest_names_the_classes(tmp_path: Path) -> None:
    data, raw = by_class(tmp_path / "data"), replace(MODEL.manifest, output=OutputManifest("raw"))
    with pytest.raises(ModelError, match=r"no scores of classes .*'raw' tells none"):
        read_examples(data, replace(MODEL, manifest=raw))
    named = replace(raw, output=OutputManifest("raw", COLOURS))
    assert read_examples(data, replace(MODEL, manifest=named)).kind == "classes"
