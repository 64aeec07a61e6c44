from __future__ import annotations

import gc
import hashlib
import re
import weakref
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from agent.comms.topics import Topics
from agent.compute.infer.backends import open_session
from agent.compute.infer.session import SessionOptions
from agent.compute.tflite.read import read_modelfile
from agent.compute.vision import Detector
from agent.config import DecodeConfig, StreamConfig
from agent.daemon.streams.services import StreamServices
from agent.daemon.streams.stream import Stream
from agent.errors import ModelError
from agent.models.files import ZOO, bundled
from agent.models.library import look_up, open_model
from agent.types import WHOLE, Detection, Frame
from tests.support.doubles import Kept, person_model
from tests.support.int4_models import int4_model
from tests.support.picture_models import COLOURS, Ending, Numbers, classifier, detector, picture
from tests.support.sizes import sizes_model
from tests.support.tflite_builder import constant_model, crashing_model


def test_streams_share_a_model(tmp_path: Path) -> None:
    path = str(person_model(tmp_path))
    assert open_model(path) is open_model(path)


def test_a_model_that_nobody_uses_is_forgotten(tmp_path: Path) -> None:
    path = str(person_model(tmp_path))
    model = weakref.ref(open_model(path))
    gc.collect()
    assert model() is None


def test_a_file_that_has_changed_is_another_model(tmp_path: Path) -> None:
    path = str(person_model(tmp_path))
    old = open_model(path)
    person_model(tmp_path, score=0.5)
    assert open_model(path).sha256 != old.sha256


def test_a_manifest_that_has_changed_is_read_anew(tmp_path: Path) -> None:
    path = person_model(tmp_path)
    old = open_model(str(path))
    path.write_text(path.read_text().replace("score_threshold = 0.4", "score_threshold = 0.123"))
    new = open_model(str(path))
    assert (new.manifest.output.score_threshold, new.sha256) == (0.123, old.sha256)
    assert open_model(str(path)) is new


def test_a_variant_is_that_variant_alone() -> None:
    model = open_model("nanodet", "256")
    assert [variant.name for variant in model.manifest.variants] == ["256"]
    file = read_modelfile(model.content)
    assert [signature.name for signature in file.signatures] == [model.manifest.variants[0].signature]
    assert len(file.subgraphs) == 1


def test_the_first_variant_is_the_default() -> None:
    assert open_model("nanodet") is open_model("nanodet", open_model("nanodet").manifest.variants[0].name)


def test_the_hash_is_that_of_the_whole_file() -> None:
    assert open_model("nanodet").sha256 == hashlib.sha256((ZOO / "nanodet.tflite").read_bytes()).hexdigest()


def test_an_unknown_variant_names_those_there_are() -> None:
    with pytest.raises(ModelError, match=r"^nanodet: has no variant '999'; it has: "):
        open_model("nanodet", "999")


def test_without_a_manifest_it_is_guessed(tmp_path: Path) -> None:
    path = tmp_path / "birds.tflite"
    path.write_bytes(constant_model({"scores": np.zeros((1, 4), np.float32)}))
    model = open_model(str(path))
    assert (model.manifest.name, model.manifest.output.decoder) == ("birds", "classify")


def test_nothing_is_guessed_of_a_bundled_model() -> None:
    assert not [(name, told) for name in bundled() if (told := look_up(name, thorough=True).remarks())]


def test_what_cannot_be_guessed_is_named(tmp_path: Path) -> None:
    path = tmp_path / "odd.tflite"
    path.write_bytes(constant_model({"a": np.zeros((3, 2, 2, 7, 5), np.float32)}))
    with pytest.raises(ModelError, match=f"^{path}: "):
        open_model(str(path))


def test_a_model_that_cannot_be_opened_is_not_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bad.tflite"
    path.write_bytes(crashing_model() + b"once")
    with pytest.raises(ModelError, match=r"\(SIGSEGV\)"):
        open_model(str(path))
    monkeypatch.setattr("subprocess.Popen", None)
    for wait_s in (None, 0.0):
        with pytest.raises(ModelError, match=r"\(SIGSEGV\)"):
            open_model(str(path), wait_s=wait_s)


COLOURED = "[output]\nscore_threshold = 0.5\n"


def found(path: Path, *pictures: np.ndarray) -> list[list[Detection]]:
    """Return the detections of a model on pictures."""
    model = open_model(str(path))
    session = open_session(model, "cpu", SessionOptions())
    size = Detector(session, model, "full", DecodeConfig())
    frames = (Frame(one, "front", 0, 0, datetime.now(UTC), "bgr", 0) for one in pictures)
    return [size.run(frame, WHOLE).detections for frame in frames]


def seen(path: Path) -> list[list[str]]:
    """Labels that a model sees on a picture of each colour."""
    return [[d.label for d in one] for one in found(path, *map(picture, COLOURS))]


@pytest.mark.parametrize(
    "content",
    [
        classifier("int8"),
        classifier("uint8", ""),
        classifier("float32", "LOGISTIC"),
        classifier("int8", batch=-1),
        detector(),
        detector(sigmoid=False),
    ],
    ids=["int8", "uint8 logits", "float", "open batch", "ssd", "ssd logits"],
)
@pytest.mark.parametrize("manifest", [None, COLOURED])
def test_a_model_that_describes_itself_sees_rightly_with_and_without_a_manifest(
    tmp_path: Path, content: bytes, manifest: str | None
) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(content)
    if manifest is not None:
        path.with_suffix(".toml").write_text(manifest)
    assert seen(path) == [[colour] for colour in COLOURS]


@pytest.mark.parametrize("numbers", ["float32", "int8", "uint8"])
@pytest.mark.parametrize("manifest", [None, '[output]\ndecoder = "classify"\n'])
def test_logits_become_the_probabilities_that_a_softmax_gives(
    tmp_path: Path, numbers: Numbers, manifest: str | None
) -> None:
    grey, scores = np.full((48, 64, 3), 200, np.uint8), []
    endings: tuple[Ending, ...] = ("SOFTMAX", "")
    for ending in endings:
        path = tmp_path / f"m{ending}.tflite"
        path.write_bytes(classifier(numbers, ending))
        if manifest is not None:
            path.with_suffix(".toml").write_text(manifest)
        nothing, red = found(path, grey, picture("red"))
        assert nothing == []
        scores.append([one.score for one in red])
    assert scores[1] == pytest.approx(scores[0], abs=0.02)
    assert max(scores[1]) < 0.98


def test_several_classes_may_be_there_at_once(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(classifier(ending=""))
    path.with_suffix(".toml").write_text('[output.options]\nlogits = "sigmoid"\ntop_k = 3\n')
    (both,) = found(path, np.maximum(picture("red"), picture("blue")))
    assert {one.label for one in both} == {"red", "blue"}
    assert min(one.score for one in both) > 0.7


@pytest.mark.parametrize("shape", [(), (1, 7), (3, 2, 2, 7, 5)])
def test_shapes_that_the_file_leaves_out_or_gets_wrong_are_the_runtimes(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(classifier("int8", shape=shape))
    assert seen(path) == [[colour] for colour in COLOURS]


def test_what_was_guessed_is_logged_and_a_wild_normalisation_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(classifier(described=False))
    path.with_suffix(".toml").write_text("[input]\nmean = [0, 0, 0]\nstd = [1, 1, 1]\n")
    stream = Stream(
        "front",
        StreamConfig(source="test:", model=str(path)),
        StreamServices(Topics("vedette", "porch"), Kept(), Kept()),
    )
    with caplog.at_level("INFO", "agent.models.library"):
        stream.prepare()
    guessed, doubtful, unnamed = (
        record.message for record in caplog.records if record.name == "agent.models.library"
    )
    assert guessed.startswith(f"stream front: {path}: its manifest leaves keys out: output.decoder (guessed")
    assert "99% of the pixel values lie outside its range" in doubtful
    assert "mean = 128 and std = 127.5" in doubtful
    assert unnamed.startswith(
        f"stream front: {path}: [output] labels are left out: classes are published as class0"
    )


def test_several_variants_without_a_signature_name_those_of_the_file(tmp_path: Path) -> None:
    path = sizes_model(tmp_path, {"64": [], "48": [], "32": []})
    path.write_text(re.sub('signature = "s(48|32)"\n', "", path.read_text()))
    with pytest.raises(ModelError) as caught:
        open_model(str(path))
    line = path.read_text().splitlines().index('name = "48"')
    what = "`variants[1].signature` is left out, and each of several variants needs one: choose one of "
    what += "'s64', 's48', 's32'"
    assert caught.value.faults[0] == f"{path}:{line}: {what}"
    assert "`variants[2].signature`" in caught.value.faults[1]


def test_several_variants_of_a_file_without_signatures_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(classifier())
    path.with_suffix(".toml").write_text('[[variants]]\nname = "a"\n[[variants]]\nname = "b"\n')
    with pytest.raises(
        ModelError, match=r"m\.toml:1: .*the model file has none, so that it can have one variant only"
    ):
        open_model(str(path))


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('[output]\ndecoder = "clasify"', 2, "`output.decoder`: no decoder 'clasify'; did you mean 'classify'?"),
        (
            '[output]\ndecoder = "classify"\n[output.options]\ntop = 3',
            4,
            "unknown key `output.options.top`; did you mean 'top_k'?",
        ),
        ("[output.options]\n\ntop = 3", 3, "unknown key `output.options.top`; did you mean 'top_k'?"),
        (
            '[output]\ndecoder = "classify"\noptions.top_k = 0',
            3,
            "`output.options.top_k`: expected a whole number >= 1",
        ),
        ('[audio]\nrate_hz = 16000\nfrontend = "logmell"', 3, "no front end 'logmell'; did you mean 'logmel'?"),
        ('[audio]\nrate_hz = 16000\nfrontend = "raw"\noptions = {mel = 3}', 4, "`audio.options.mel`"),
        ("[input]\nmeen = [0, 0, 0]", 2, "unknown key `input.meen`; did you mean 'mean'?"),
        ("[input]\nmean = [0, 0]", 2, "`input.mean`: expected a list of length 3; found 2"),
        ('[output]\nlabels = "gone.txt"', 2, "gone.txt: no such file"),
        ("[input\n", 1, "not TOML"),
    ],
)
def test_an_error_in_a_manifest_names_file_line_and_key(tmp_path: Path, text: str, line: int, words: str) -> None:
    path = tmp_path / "m.toml"
    path.with_suffix(".tflite").write_bytes(classifier())
    path.write_text(text)
    with pytest.raises(ModelError) as caught:
        open_model(str(path))
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert words in str(caught.value)


def test_int4_weights_are_expanded_each_time_a_model_is_looked_up(tmp_path: Path) -> None:
    path = tmp_path / "small.tflite"
    path.write_bytes(int4_model("CONV_2D", np.ones((6, 3, 3, 4), np.int8), np.ones(6, np.float32), "int4"))
    pixels, output = "mean = [0.0, 0.0, 0.0]\nstd = [1.0, 1.0, 1.0]", 'decoder = "segment"'
    path.with_suffix(".toml").write_text(f"[input]\n{pixels}\n[output]\n{output}\n")
    for _ in range(2):
        known = look_up(str(path))
        assert not read_modelfile(known.content).int4
        assert known.size == path.stat().st_size < len(known.content)
