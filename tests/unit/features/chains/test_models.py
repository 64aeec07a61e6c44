from __future__ import annotations

import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from msgspec.structs import replace

from agent.config import StreamConfig
from agent.config.features import InspectionConfig, SecondaryConfig
from agent.daemon.check import check_stream
from agent.errors import ConfigError, ModelError, VedetteError
from agent.features.chains.models import open_secondary
from agent.features.chains.stage import MOST as MOST_PICTURES
from agent.features.chains.stage import GalleryFolder
from agent.models.findings import DEEPEST, MOST, attribute_names
from agent.models.library import open_model
from tests.support.chains import chained_model, tint_model

_NEXT = '[[secondary]]\nname = "{name}"\nmodel = "{model}.toml"\n'


def _open(path: Path, *secondary: SecondaryConfig) -> list[str]:
    config = StreamConfig("test:", str(path), secondary=secondary or None)
    opened = open_secondary("front", config, open_model(str(path)))
    return [each.config.name for one in opened for each in one.chain()]


def test_the_manifest_names_the_models_beside_it(tmp_path: Path) -> None:
    tint_model(tmp_path)
    assert _open(chained_model(tmp_path)) == ["colour"]


def test_a_stream_names_others_or_none(tmp_path: Path) -> None:
    tint, model = tint_model(tmp_path), chained_model(tmp_path)
    assert _open(model, SecondaryConfig("coat", str(tint))) == ["coat"]
    config = StreamConfig("test:", str(model), secondary=())
    assert open_secondary("front", config, open_model(str(model))) == ()


def test_models_follow_one_another(tmp_path: Path) -> None:
    tint_model(tmp_path, "third")
    tint_model(tmp_path, "second", _NEXT.format(name="three", model="third"))
    path = chained_model(tmp_path, _NEXT.format(name="two", model="second"))
    assert _open(path) == ["two", "three"]
    manifest = open_model(str(path)).manifest
    assert list(attribute_names(StreamConfig("test:", str(path)), manifest)) == ["two", "three"]


@pytest.mark.parametrize("length", [1, 2])
def test_a_circle_of_manifests_is_refused(tmp_path: Path, length: int) -> None:
    names = [f"model{number}" for number in range(length)]
    for number, name in enumerate(names):
        tint_model(tmp_path, name, _NEXT.format(name=f"next{number}", model=names[(number + 1) % length]))
    path = chained_model(tmp_path, _NEXT.format(name="first", model=names[0]))
    with pytest.raises(ModelError, match="circle"):
        _open(path)


def test_a_circle_of_links_of_one_name_is_told_as_a_circle(tmp_path: Path) -> None:
    for name, other in (("one", "two"), ("two", "one")):
        tint_model(tmp_path, name, _NEXT.format(name="x", model=other))
    with pytest.raises(ModelError, match="circle"):
        _open(chained_model(tmp_path, _NEXT.format(name="x", model="one")))


def test_more_models_in_a_row_than_that_are_refused(tmp_path: Path) -> None:
    for number in range(DEEPEST + 1):
        more = _NEXT.format(name=f"n{number + 1}", model=f"model{number + 1}") if number < DEEPEST else ""
        tint_model(tmp_path, f"model{number}", more)
    with pytest.raises(ModelError, match=str(DEEPEST)):
        _open(chained_model(tmp_path, _NEXT.format(name="n0", model="model0")))


def test_more_models_than_that_are_refused(tmp_path: Path) -> None:
    tint = str(tint_model(tmp_path))
    many = [SecondaryConfig(f"n{number}", tint) for number in range(MOST + 1)]
    with pytest.raises(ConfigError, match=str(MOST)):
        _open(chained_model(tmp_path, ""), *many)


def test_two_of_one_name_are_refused(tmp_path: Path) -> None:
    tint = str(tint_model(tmp_path))
    with pytest.raises(ConfigError, match="'colour'"):
        _open(chained_model(tmp_path, ""), SecondaryConfig("colour", tint), SecondaryConfig("colour", tint))


def test_a_label_that_the_first_model_never_finds_is_refused(tmp_path: Path) -> None:
    tint = str(tint_model(tmp_path))
    with pytest.raises(ConfigError, match=r"'car'.*person"):
        _open(chained_model(tmp_path, ""), SecondaryConfig("colour", tint, labels=("car",)))


@pytest.mark.parametrize("model", ["small-speech", "speech-embedding"])
def test_a_model_of_sound_is_refused(tmp_path: Path, model: str) -> None:
    with pytest.raises(ModelError, match="takes sound"):
        _open(chained_model(tmp_path, ""), SecondaryConfig("word", model))


def test_a_backbone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="features"):
        _open(chained_model(tmp_path, ""), SecondaryConfig("look", "inspection"))


def test_an_inspection_has_no_objects_to_look_at(tmp_path: Path) -> None:
    tint_model(tmp_path)
    path = chained_model(tmp_path)
    config = StreamConfig("test:", str(path), inspection=InspectionConfig())
    with pytest.raises(ConfigError, match=re.escape("secondary = []")):
        open_secondary("front", config, open_model(str(path)))
    assert open_secondary("front", replace(config, secondary=()), open_model(str(path))) == ()


def test_a_file_in_another_folder_is_refused_with_its_line(tmp_path: Path) -> None:
    path = chained_model(tmp_path, '[[secondary]]\nname = "colour"\nmodel = "../tint.toml"\n')
    with pytest.raises(ModelError, match=r"person\.toml:\d+.*own folder"):
        open_model(str(path))


@pytest.mark.parametrize(
    ("key", "what"),
    [('name = "a b"', "name"), ('model = ""', "model"), ("margin = 2.0", "margin"), ("x = 1", "x")],
)
def test_wrong_keys_are_told_with_their_line(tmp_path: Path, key: str, what: str) -> None:
    keys = {"name": 'name = "colour"', "model": 'model = "tint.toml"', what: key}
    path = chained_model(tmp_path, "[[secondary]]\n" + "\n".join(keys.values()))
    with pytest.raises(ModelError, match=rf"person\.toml:\d+.*{what}"):
        open_model(str(path))


def _with_gallery(folder: Path, model: Path, gallery: Path) -> None:
    config = SecondaryConfig("who", str(model), gallery=str(gallery))
    stream = StreamConfig("test:", str(chained_model(folder, "")), secondary=(config,))
    check_stream("front", stream)


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({}, "no such folder"),
        ({"known/notes.txt": b"x"}, "no pictures"),
        ({"known/1.jpg": b"x"}, "sub-folder"),
        ({"known/anna/1.jpg": b"not a picture"}, "none of its files"),
        ({"known/anna/1.gif": b"GIF89a"}, "no pictures"),
    ],
)
def test_a_gallery_without_pictures_is_refused(tmp_path: Path, files: dict[str, bytes], what: str) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    vectors = tint_model(tmp_path, "vectors", '[output]\ndecoder = "raw"\n')
    with pytest.raises(ModelError, match=what):
        _with_gallery(tmp_path, vectors, tmp_path / "known")


def test_what_is_no_picture_of_a_gallery_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "known" / "anna"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "0.jpg")
    (folder / "1.jpg").write_bytes(b"half a pic")
    cv2.imwrite(str(folder / "3.png"), np.zeros((8, 8, 3), np.uint8))
    found = list(GalleryFolder(tmp_path / "known").read())
    assert [(name, image.shape) for name, image in found] == [("anna", (8, 8, 3))]
    assert "1.jpg" in caplog.text


def test_more_pictures_than_that_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "known" / "anna"
    folder.mkdir(parents=True)
    for number in range(MOST_PICTURES + 1):
        (folder / f"{number}.jpg").touch()
    with pytest.raises(ModelError, match=str(MOST_PICTURES)):
        GalleryFolder(tmp_path / "known")


def test_manifests_that_name_very_many_are_refused_at_once(tmp_path: Path) -> None:
    for number in range(2):
        more = "".join(_NEXT.format(name=f"n{number}-{one}", model=f"f{number + 1}") for one in range(150))
        tint_model(tmp_path, f"f{number}", more)
    tint_model(tmp_path, "f2")
    with pytest.raises(ConfigError, match=str(MOST)):
        _open(chained_model(tmp_path, _NEXT.format(name="first", model="f0")))


def test_an_answer_that_the_model_never_gives_is_told_of_that_model(tmp_path: Path) -> None:
    config = SecondaryConfig("colour", str(tint_model(tmp_path)), answers=("purple",))
    stream = StreamConfig("test:", str(chained_model(tmp_path, "")), secondary=(config,))
    with pytest.raises(ModelError, match=r"tint\.toml: .*purple"):
        check_stream("front", stream)


def test_a_gallery_of_a_classifier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="raw"):
        _with_gallery(tmp_path, tint_model(tmp_path), tmp_path)


def test_the_check_of_a_configuration_opens_them(tmp_path: Path) -> None:
    model = str(chained_model(tmp_path, ""))
    there = SecondaryConfig("colour", str(tint_model(tmp_path)))
    check_stream("front", StreamConfig("test:", model, secondary=(there,)))
    missing = replace(there, model=str(tmp_path / "gone.tflite"))
    with pytest.raises(VedetteError, match="gone"):
        check_stream("front", StreamConfig("test:", model, secondary=(missing,)))
