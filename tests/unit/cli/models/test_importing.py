"""`vedette models import`: what it writes, asks and refuses."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

from agent.cli.main import vedette
from agent.models.library import look_up
from tests.support import picture_models
from tests.support.running import ROOT
from tests.support.tflite_builder import Op, T, add_model, write
from tests.unit.models.test_importer import MODEL, archive


def run(*args: object) -> Result:
    return CliRunner().invoke(vedette, ["models", *map(str, args)])


def said(done: Result) -> str:
    return f"{done.output}{done.exception or ''}"


def two_inputs() -> bytes:
    """Adds two pictures."""
    tensors = [T(name, (1, 8, 8, 3)) for name in ("one", "other", "sum")]
    return write(tensors, [Op("ADD", (0, 1), (2,))], (0, 1), (2,))


@pytest.fixture
def signs(tmp_path: Path) -> Path:
    labels = "\n".join(f"{number} {name}" for number, name in enumerate(picture_models.COLOURS))
    return archive(tmp_path / "signs.zip", {"model_unquant.tflite": MODEL, "labels.txt": labels})


def test_an_imported_model_answers(signs: Path) -> None:
    done = run("import", signs, "--to", signs.parent)
    assert done.exit_code == 0, said(done)
    assert "guessed: its outputs fit" in done.stdout
    assert "3 labels from labels.txt" in done.stdout
    model = signs.with_suffix(".tflite")
    assert f"vedette models try {model} PICTURE.jpg" in done.stdout
    cv2.imwrite(str(signs.parent / "green.png"), picture_models.picture("green"))
    tried = run("try", model, signs.parent / "green.png", "--json")
    assert json.loads(tried.stdout)["detections"][0]["label"] == "green"


def test_json_has_the_origin_of_each_key(signs: Path) -> None:
    done = run("import", signs, "--to", signs.parent, "--name", "other", "--json")
    found = json.loads(done.stdout)
    assert found["file"] == str(signs.with_name("other.tflite"))
    assert found["manifest"]["output"]["labels"] == list(picture_models.COLOURS)
    assert found["sources"]["output.decoder"].startswith("guessed")
    assert found["missing"] == []


def test_what_pixels_a_float_model_takes_is_asked_for(tmp_path: Path) -> None:
    path = archive(tmp_path / "plain.zip", {"m.tflite": MODEL, "labels.txt": "a\nb\nc"})
    done = run("import", path, "--to", tmp_path)
    assert done.exit_code == 1
    assert "give --pixels: signed: -1..1" in said(done)
    assert not (tmp_path / "m.tflite").exists()
    done = run("import", path, "--to", tmp_path, "--pixels", "imagenet")
    assert done.exit_code == 0, said(done)
    assert look_up(str(tmp_path / "m.tflite")).manifest.input.mean == (123.675, 116.28, 103.53)


def test_labels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a\nb")
    (tmp_path / "m.tflite").write_bytes(picture_models.classifier("float32", described=False))
    (tmp_path / "to").mkdir()
    given = ["--to", tmp_path / "to", "--pixels", "unit"]
    done = run("import", tmp_path / "m.tflite", *given, "--labels", tmp_path / "labels.txt")
    assert done.exit_code == 1
    assert "2 labels" in said(done) or "labels" in said(done)
    assert list((tmp_path / "to").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--decoder", "keyword"], "decoder 'keyword' is of sound"),
        (["--to", "/none"], "there is no such folder"),
        (["--labels", "/none.txt"], "none.txt"),
    ],
)
def test_wrong_options_are_told(signs: Path, options: list[str], told: str) -> None:
    done = run("import", signs, *(options if "--to" in options else ["--to", str(signs.parent), *options]))
    assert done.exit_code == 1
    assert told in said(done)
    assert not signs.with_suffix(".tflite").exists()


@pytest.mark.parametrize("name", ["../up", "a/b", "", " ", "-x", "a" * 101, "ü"])
def test_a_name_is_plain(signs: Path, name: str) -> None:
    done = run("import", signs, "--to", signs.parent, f"--name={name}")
    assert done.exit_code == (0 if name == "" else 2)


def test_a_model_that_cannot_be_decoded_says_which_options_tell(tmp_path: Path) -> None:
    (tmp_path / "sum.tflite").write_bytes(add_model())
    (tmp_path / "to").mkdir()
    done = run("import", tmp_path / "sum.tflite", "--to", tmp_path / "to")
    assert done.exit_code == 1
    assert list((tmp_path / "to").iterdir()) == []


def test_a_damaged_model_is_told_by_the_name_that_was_given(tmp_path: Path) -> None:
    broken = bytearray(add_model())
    broken[40 : len(broken) // 2] = bytes(len(broken) // 2 - 40)
    (tmp_path / "sum.tflite").write_bytes(broken)
    (tmp_path / "to").mkdir()
    done = run("import", tmp_path / "sum.tflite", "--to", tmp_path / "to")
    assert (done.exit_code, str(tmp_path / "sum.tflite") in said(done)) == (1, True)
    assert "/to/" not in said(done)


def test_a_model_is_not_imported_over_itself(signs: Path) -> None:
    assert run("import", signs, "--to", signs.parent).exit_code == 0
    done = run("import", signs.with_suffix(".tflite"), "--to", signs.parent, "--force")
    assert (done.exit_code, "is where the result would be written" in said(done)) == (1, True)
    assert "inspect --write-manifest" in said(run("import", signs.with_suffix(".tflite"), "--to", signs.parent))


def test_an_unknown_decoder_is_told_with_the_nearest(signs: Path) -> None:
    done = run("import", signs, "--to", signs.parent, "--decoder", "clasify")
    assert (done.exit_code, "expected classify" in said(done)) == (2, True)


def test_a_model_of_two_inputs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "two.tflite").write_bytes(two_inputs())
    (tmp_path / "to").mkdir()
    done = run(
        "import", tmp_path / "two.tflite", "--to", tmp_path / "to", "--pixels", "unit", "--decoder", "segment"
    )
    assert (done.exit_code, "expected one input, a picture; found 2" in said(done)) == (1, True), said(done)
    assert list((tmp_path / "to").iterdir()) == []


FOREIGN = ROOT.parent / "shared" / "data" / "foreign_models_dev.tar.xz"


def of_sound(path: Path, shape: tuple[int, ...], classes: int = 3, *, dtype: str = "float32") -> Path:
    """Write a model whose scores of classes are the same for all inputs."""
    size = int(np.prod(shape))
    tensors = [
        T(
            "x",
            shape,
            dtype,
            scale=(1 / 255,) if dtype == "int8" else (),
            zero_point=-128 if dtype == "int8" else 0,
        ),
        T("flat shape", (2,), "int32", np.array((1, size), np.int32)),
        T("flat", (1, size), dtype, scale=(1 / 255,) if dtype == "int8" else (), zero_point=0),
        T("w", (classes, size), dtype, np.zeros((classes, size), dtype), (1.0,) if dtype == "int8" else ()),
        T("dense", (1, classes), dtype, scale=(1 / 16,) if dtype == "int8" else ()),
    ]
    if dtype == "int8":
        tensors[2] = T("flat", (1, size), dtype, scale=(1 / 255,), zero_point=-128)
    operations = [
        Op("RESHAPE", (0, 1), (2,)),
        Op("FULLY_CONNECTED", (2, 3, -1), (4,), 4 if dtype == "int8" else 1),
    ]
    path.write_bytes(write(tensors, operations, (0,), (4,)))
    return path


def checked(model: Path) -> Result:
    """Check the configuration of a microphone with a model."""
    config = model.with_suffix(".stream.toml")
    config.write_text(f'[streams.a]\nsource = "mic:default"\nmodel = "{model}"\n')
    return CliRunner().invoke(vedette, ["config", "check", str(config)])


@pytest.mark.parametrize(
    ("shape", "options", "frontend"),
    [
        ((1, 144_000), ["--decoder", "keyword"], "raw"),
    ],
)
def test_an_imported_model_of_sound_passes_config_check(
    tmp_path: Path, shape: tuple[int, ...], options: list[str], frontend: str
) -> None:
    (tmp_path / "labels.txt").write_text("a\nb\nsilence")
    given = of_sound(tmp_path / "words.tflite", shape)
    (tmp_path / "to").mkdir()
    done = run("import", given, "--to", tmp_path / "to", "--labels", tmp_path / "labels.txt", *options)
    assert done.exit_code == 0, said(done)
    model = tmp_path / "to" / "words.tflite"
    manifest = look_up(str(model)).manifest
    assert (manifest.output.decoder, manifest.audio and manifest.audio.frontend) == ("keyword", frontend)
    done = checked(model)
    assert done.exit_code == 0, said(done)


def test_nothing_is_written_that_config_check_would_refuse(tmp_path: Path) -> None:
    given = of_sound(tmp_path / "m.tflite", (1, 30, 1, 40), dtype="int8")
    given.with_suffix(".toml").write_text('[input]\nmean = [0, 0, 0]\n[output]\ndecoder = "classify"\n')
    (tmp_path / "to").mkdir()
    done = run("import", given, "--to", tmp_path / "to")
    assert (done.exit_code, "does not take a picture" in said(done)) == (1, True), said(done)
    (tmp_path / "labels.txt").write_text("bark\nbark\nsiren")
    given = of_sound(tmp_path / "sounds.tflite", (1, 16_000))
    done = run("import", given, "--to", tmp_path / "to", "--labels", tmp_path / "labels.txt")
    assert (done.exit_code, "'bark' more than once" in said(done)) == (1, True), said(done)
    assert list((tmp_path / "to").iterdir()) == []


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Published models and a spoken "yes"."""
    if not FOREIGN.is_file():
        pytest.skip(f"{FOREIGN.name} is not there: it is no part of the repository")
    pytest.importorskip("pymicro_features", reason="the extra [wakeword] is not installed")
    folder = tmp_path_factory.mktemp("foreign")
    with tarfile.open(FOREIGN) as files:
        files.extractall(folder, filter="data")
    return folder / "foreign_models"


@pytest.mark.parametrize(
    ("name", "heard"),
    [
        ("yamnet_audio_classifier_with_metadata", "Speech"),
        ("microwakeword_v1/okay_nabu", ""),
    ],
)
def test_published_models_of_sound_need_no_option(foreign: Path, tmp_path: Path, name: str, heard: str) -> None:
    done = run("import", foreign / f"{name}.tflite", "--to", tmp_path)
    assert done.exit_code == 0, said(done)
    model = tmp_path / Path(name).with_suffix(".tflite").name
    answer = json.loads(run("try", model, foreign / "yes_1000ms.wav", "--json").stdout)
    assert [one["label"] for one in answer["heard"]] == ([heard] if heard else [])
    assert heard or answer["strongest"]["label"] == "Okay Nabu"
    done = checked(model)
    assert done.exit_code == 0, said(done)


@pytest.mark.parametrize(
    ("name", "options", "decoder"),
    [
        ("mobilenet_v1_1.0_224_quant_embedding_extractor", ["--decoder", "raw"], "raw"),
        ("trained_lstm_int8", [], "classify"),
    ],
)
def test_published_models_of_pictures_are_imported(
    foreign: Path, tmp_path: Path, name: str, options: list[str], decoder: str
) -> None:
    done = run("import", foreign / f"{name}.tflite", "--to", tmp_path, "--name", "m", *options)
    assert done.exit_code == 0, said(done)
    assert look_up(str(tmp_path / "m.tflite")).manifest.output.decoder == decoder
    cv2.imwrite(str(tmp_path / "red.png"), picture_models.picture("red"))
    done = run("try", tmp_path / "m.tflite", tmp_path / "red.png")
    assert done.exit_code == 0, said(done)
