from __future__ import annotations

import json
import re
import shutil
import tomllib
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

from agent.cli.config import config
from agent.cli.models import models
from agent.cli.profile import profile
from agent.compute.manifest import Manifest
from agent.errors import ModelError, VedetteError
from agent.models.files import golden_paths, model_path
from agent.models.library import look_up, open_model
from agent.text import plain
from tests.support.doubles import person_model
from tests.support.int4_models import int4_model
from tests.support.picture_models import classifier, detector
from tests.support.tflite_builder import (
    Op,
    T,
    add_model,
    bad_dimension_model,
    constant_model,
    crashing_model,
    fully_connected_model,
    write,
)

MANIFEST = """
name = "birds"
licence = "MIT"
[output]
decoder = "classify"
labels = ["robin", "wren", "owl", "crow"]
"""


def call(*args: str) -> Result:
    result = CliRunner().invoke(models, args)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    path = tmp_path / "birds.tflite"
    path.write_bytes(constant_model({"scores": np.zeros((1, 4), np.float32)}, signature="serve"))
    path.with_suffix(".toml").write_text(MANIFEST, "utf-8")
    return path


def test_inspecting_shows_what_is_inside(birds: Path) -> None:
    result = call("inspect", str(birds))
    assert result.exit_code == 0
    for words in ("2 RESHAPE", "signature serve", "scores float32[1,4]", "classify with 4 labels (manifest)"):
        assert words in result.output
    assert "litert: compatible" in result.output


def test_inspecting_as_json(birds: Path) -> None:
    found = json.loads(call("inspect", str(birds), "--json").output)
    assert found["operations"] == {"RESHAPE": 2}
    assert found["manifest"]["name"] == "birds"
    assert found["guessed"] is False
    assert found["refusals"] == {"litert": [], "tflite-runtime": []}


def test_int4_weights_that_run_as_int8_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "small.tflite"
    weights = np.random.default_rng(0).integers(-8, 8, (6, 3, 3, 4), dtype=np.int8)
    path.write_bytes(int4_model("CONV_2D", weights, np.ones(6, np.float32), "int4"))
    found = json.loads(CliRunner().invoke(models, ["inspect", str(path), "--json"]).output)
    assert found["expanded"] == weights.size
    assert found["weights"]["int4"] == weights.size // 2
    assert found["refusals"] == {"litert": [], "tflite-runtime": []}


def test_a_path_that_is_not_utf8_may_be_inspected_and_listed(tmp_path: Path) -> None:
    folder = tmp_path / "d\udcff"
    folder.mkdir()
    path = folder / "n\udcfe.tflite"
    path.write_bytes(classifier(described=False))
    shown = plain(str(path))
    assert json.loads(call("inspect", str(path), "--json").stdout)["file"] == shown
    assert json.loads(call("list", str(path), "--json").stdout)[-1]["name"] == shown
    with pytest.raises(ModelError, match="cannot be printed: rename the model"):
        call("inspect", str(path), "--write-manifest")


def test_a_path_that_is_not_utf8_may_be_profiled(tmp_path: Path) -> None:
    path = tmp_path / "n\udcfe.tflite"
    path.write_bytes(classifier(described=False))
    result = CliRunner().invoke(profile, [str(path), "--runs", "1", "--json"])
    assert json.loads(result.stdout)["variant"] == "full"


def test_a_model_without_a_manifest_is_guessed(birds: Path) -> None:
    birds.with_suffix(".toml").unlink()
    result = call("inspect", str(birds))
    assert result.exit_code == 0
    assert "classify without labels (guessed)" in result.output


def test_a_model_that_cannot_be_guessed_exits_with_1(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(add_model((1, 4)))
    result = call("inspect", str(path))
    assert result.exit_code == 1
    assert "write a manifest beside it (m.toml)" in result.output.replace("\n", "")


def test_a_manifest_that_does_not_fit_exits_with_1(birds: Path) -> None:
    birds.with_suffix(".toml").write_text(MANIFEST.replace('"classify"', '"yolo"'), "utf-8")
    result = call("inspect", str(birds))
    assert result.exit_code == 1
    assert "these tensors would fit decoder 'classify'" in result.output.replace("\n", "")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (bad_dimension_model(), "quantised dimension"),
        (fully_connected_model(hybrid=True), "tflite-runtime cannot run it: dynamic-range"),
    ],
)
def test_refusals_exit_with_1(birds: Path, content: bytes, words: str) -> None:
    birds.write_bytes(content)
    result = call("inspect", str(birds))
    assert result.exit_code == 1
    assert words in result.output


def test_names_in_a_file_are_no_markup(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(add_model((1, 4), output_name="[red]\x1b[2Jevil"))
    output = call("inspect", str(path)).output
    assert "[red]\\x1b[2Jevil" in output
    assert "\x1b" not in output


def test_what_is_no_model_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(b"<html>")
    with pytest.raises(VedetteError, match=r"m\.tflite: the model file is a web page"):
        call("inspect", str(path))
    with pytest.raises(VedetteError, match="no such file"):
        call("inspect", str(tmp_path / "gone.tflite"))


def test_the_list_has_every_bundled_model_and_the_files(birds: Path) -> None:
    result = call("list", str(birds), "--json")
    assert result.exit_code == 0
    *_, last = json.loads(result.output)
    assert last["decoder"] == "classify"
    assert (last["labels"], last["variants"], last["licence"]) == (4, ["full"], "MIT")
    assert "classify" in call("list", str(birds)).output


def test_a_model_of_depths_is_listed_with_what_it_takes_itself() -> None:
    speech = next(row for row in json.loads(call("list", "--json").output) if row["name"] == "small-speech")
    assert speech["input"].startswith("8000 Hz, logmel → features int8[1,98,40,1]")
    assert "8000 Hz, logmel" in call("inspect", "small-speech").output


def test_a_broken_file_in_the_list_exits_with_1(birds: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.tflite"
    bad.write_bytes(b"PK\x03\x04")
    result = call("list", str(birds), str(bad))
    assert result.exit_code == 1
    assert result.stderr.startswith(f"vedette: {bad}: the model file is a zip archive")
    assert "MIT" in result.stdout
    assert "zip archive" not in result.stdout


def written(name_or_path: str, folder: Path, *more: str) -> tuple[Manifest, Manifest]:
    """Return a model's manifest, and the one read from the manifest that is written beside a copy of it."""
    before = look_up(name_or_path)
    target = folder / f"{Path(name_or_path).stem}.toml"
    for path in (model_path(name_or_path), *golden_paths(name_or_path, before.manifest)):
        if path.parent != folder:
            shutil.copy(path, folder)
    result = call("inspect", name_or_path, "--manifest", str(target), *more)
    assert result.exit_code == 0, result.output
    after = look_up(str(target))
    assert (after.completed.sources, after.sha256) == ({}, before.sha256)
    assert after.manifest.sha256 == before.sha256
    return without_place(before.manifest), without_place(after.manifest)


def without_place(manifest: Manifest) -> Manifest:
    """Return a manifest without what names its own folder and file."""
    stated = manifest.verification
    if stated is not None:
        stated = msgspec.structs.replace(stated, head=Path(stated.head).name)
    return msgspec.structs.replace(manifest, file="", sha256="", verification=stated)


@pytest.mark.parametrize(
    "content",
    [
        classifier("float32"),
        classifier("int8", ""),
        classifier("uint8", described=False),
        detector(),
        detector(sigmoid=False),
        constant_model(
            {"r": np.zeros((1, 896, 16), np.float32), "s": np.zeros((1, 896, 1), np.float32)}, (1, 128, 128, 3)
        ),
        constant_model({"out": np.zeros((1, 6, 84), np.float32)}, (1, 64, 64, 3)),
        constant_model({"mask": np.zeros((1, 32, 32, 21), np.float32)}, (1, 32, 32, 3)),
        constant_model({"keypoints": np.zeros((1, 1, 17, 3), np.float32)}, (1, 32, 32, 3)),
    ],
    ids=["float", "logits", "quantised", "ssd", "ssd logits", "faces", "yolo", "segment", "keypoints"],
)
def test_a_written_manifest_says_the_same_as_was_found(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(content)
    (tmp_path / "new").mkdir()
    before, after = written(str(path), tmp_path / "new")
    assert before == after


@pytest.mark.parametrize("name", ["nanodet", "small-speech"])
def test_a_manifest_that_is_complete_is_written_as_it_is(tmp_path: Path, name: str) -> None:
    before, after = written(name, tmp_path)
    assert before == after


def test_a_part_of_a_manifest_is_completed(tmp_path: Path) -> None:
    person_model(tmp_path)
    (tmp_path / "new").mkdir()
    before, after = written(str(tmp_path / "person.toml"), tmp_path / "new")
    assert before == after


def test_a_written_manifest_tells_where_each_key_came_from(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(detector())
    assert call("inspect", str(path), "--write-manifest").exit_code == 0
    text = path.with_suffix(".toml").read_text()
    for line in (
        'name = "m"  # the name of the file',
        "mean = [  # from the metadata in the model file",
        'decoder = "ssd"  # guessed: its outputs fit',
        "score_threshold = 0.4  # default",
        "label_offset = 1  # guessed: the labels begin with the background",
    ):
        assert line in text


def test_a_manifest_is_replaced_only_if_that_is_asked_for(birds: Path) -> None:
    with pytest.raises(ModelError, match=r"birds\.toml: is there already; --force replaces it"):
        call("inspect", str(birds), "--write-manifest")
    assert birds.with_suffix(".toml").read_text() == MANIFEST
    assert call("inspect", str(birds), "--write-manifest", "--force").exit_code == 0
    assert 'name = "birds"' in birds.with_suffix(".toml").read_text()
    with pytest.raises(ModelError, match=r"a manifest is a \.toml file"):
        call("inspect", str(birds), "--manifest", str(birds))


def test_a_manifest_in_another_folder_than_its_model_is_refused_and_nothing_is_copied(birds: Path) -> None:
    other = birds.parent / "other"
    other.mkdir()
    with pytest.raises(
        ModelError, match=r"other/x\.toml: a manifest lies beside its model, .* copy .* there first"
    ):
        call("inspect", str(birds), "--manifest", str(other / "x.toml"))
    assert not any(other.iterdir())


def test_the_model_may_follow_the_option_that_writes_its_manifest(birds: Path) -> None:
    birds.with_suffix(".toml").unlink()
    assert call("inspect", "--write-manifest", str(birds)).exit_code == 0
    assert birds.with_suffix(".toml").is_file()


def test_a_manifest_without_a_known_range_has_comments_to_fill_in(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(classifier("float32", described=False))
    result = call("inspect", str(path), "--write-manifest")
    assert "m.toml: unknown: [input] mean and std, [output] labels; fill in the commented lines" in result.stderr
    text = path.with_suffix(".toml").read_text()
    assert "mean" not in tomllib.loads(text)["input"]
    path.with_suffix(".toml").write_text(re.sub("^# ((?:mean|std) =)", r"\1", text, flags=re.MULTILINE))
    found = look_up(str(path))
    assert (found.manifest.input.mean, found.manifest.input.std) == ((127.5,) * 3, (127.5,) * 3)
    assert (found.manifest.output.decoder, found.completed.doubts) == ("classify", ())


def test_a_manifest_of_a_model_without_labels_has_a_comment_to_fill_in(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(classifier(described=False))
    result = call("inspect", str(path), "--write-manifest")
    assert "m.toml: unknown: [output] labels; fill in the commented lines" in result.stderr
    text = path.with_suffix(".toml").read_text()
    assert "labels" not in tomllib.loads(text)["output"]
    (tmp_path / "labels.txt").write_text("red\ngreen\nblue\n")
    path.with_suffix(".toml").write_text(re.sub("^# (labels =)", r"\1", text, flags=re.MULTILINE))
    known = look_up(str(path))
    assert known.manifest.output.labels == ("red", "green", "blue")
    assert not any("labels" in remark for remark in known.remarks())


def test_a_model_that_crashes_the_runtime_is_told_as_such(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(crashing_model())
    result = call("inspect", str(path))
    assert result.exit_code == 1
    assert "crashes: the runtime crashes on this model (SIGSEGV)" in result.output
    assert ": compatible" not in result.output
    assert "cannot be used:" not in result.output


MANY = [
    T(f"very/long/name/of/a/layer/in/a/model/that/a/converter/made/{n}", (2, 4), "int8", bytes(8), 0.5, ())
    for n in range(30)
]


@pytest.mark.parametrize(
    ("content", "manifest", "usable"),
    [
        (classifier(), None, True),
        (classifier(batch=-1), None, True),
        (classifier(shape=()), None, True),
        (classifier(shape=(1, 7)), None, True),
        (classifier(labels=("a", "b")), None, False),
        (detector(), None, True),
        (detector(described=False), "[input]\nmean = [0, 0, 0]\nstd = [1, 1, 1]", True),
        (classifier("float32", described=False), None, False),
        (classifier(), '[output]\ndecoder = "yolo"', False),
        (classifier(), "[input]\nmeen = 3", False),
        (constant_model({"a": np.zeros((3, 2, 2, 7, 5), np.float32)}), None, False),
        (write([T("image", (1, 8, 8, 3)), T("y", (1, 4))], [Op("Odd", (0,), (1,))], (0,), (1,)), None, False),
        (write([T("image", (1, 8, 8, 3)), T("y", (1, 4)), *MANY], [], (0,), (1,)), None, False),
    ],
    ids=[
        "fine",
        "batch",
        "shapeless",
        "lying",
        "labels",
        "ssd",
        "ssd2",
        "range",
        "misfit",
        "key",
        "nothing",
        "custom",
        "many",
    ],
)
def test_inspect_and_check_judge_alike_in_one_line(
    tmp_path: Path, content: bytes, manifest: str | None, usable: bool
) -> None:
    path, file = tmp_path / "m.tflite", tmp_path / "vedette.toml"
    path.write_bytes(content)
    if manifest is not None:
        path.with_suffix(".toml").write_text(manifest)
    file.write_text(f'[streams.front]\nsource = "test:"\nmodel = "{path}"\n')
    checked = CliRunner().invoke(config, ["check", str(file)])
    try:
        inspected = call("inspect", str(path)).exit_code
    except VedetteError:
        inspected = 1
    assert (checked.exit_code == 0, inspected == 0) == (usable, usable), checked.output
    if not usable:
        (line,) = checked.stderr.splitlines()
        assert len(line.replace(str(tmp_path), "")) <= 260, line


def test_an_operation_that_cannot_run_is_named_before_a_manifest_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(write([T("image", (1, 8, 8, 3)), T("y", (3, 2, 7))], [Op("Odd", (0,), (1,))], (0,), (1,)))
    with pytest.raises(ModelError, match="refused: custom operation Odd is unknown"):
        open_model(str(path))
    output = call("inspect", str(path)).output
    assert "custom operation Odd" in output
    assert "manifest" not in output


def test_inspecting_lists_every_fault_that_an_error_counts(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(write([T("image", (1, 8, 8, 3)), T("y", (3, 2, 7)), *MANY], [], (0,), (1,)))
    with pytest.raises(ModelError, match=r"\(and 29 more: `vedette models inspect` lists them\)$"):
        open_model(str(path))
    assert call("inspect", str(path)).output.count("litert cannot run it:") == 30
    path.with_suffix(".toml").write_text('nam = "x"\n[input]\nmeen = 3\n')
    with pytest.raises(VedetteError) as raised:
        call("inspect", str(path))
    assert len(str(raised.value).splitlines()) == 2
