from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.errors import ModelError
from agent.models import wakeword
from agent.models.files import load_file
from agent.models.library import look_up
from tests.support.tflite_builder import add_model

FILE = {
    "type": "micro",
    "wake_word": "Hey You",
    "author": "somebody",
    "model": "hey.tflite",
    "version": 2,
    "micro": {"probability_cutoff": 0.9, "sliding_window_size": 5, "feature_step_size": 10},
}


def test_a_manifest_of_theirs_becomes_one_of_ours(tmp_path: Path) -> None:
    (tmp_path / "hey.json").write_text(json.dumps(FILE))
    (tmp_path / "hey.tflite").write_bytes(add_model())
    content, manifest = load_file(str(tmp_path / "hey.json"))
    assert content == add_model()
    assert manifest is not None
    name, output, audio = (manifest.data[key] for key in ("name", "output", "audio"))
    assert (name, list(output["labels"]), output["score_threshold"]) == ("hey-you", ["Hey You"], 0.9)
    assert output["options"] == {"mean_of": 5, "logits": False}
    assert (audio["frontend"], audio["rate_hz"], audio["every_s"]) == ("micro", 16000, 0.0)


def test_a_manifest_of_version_1_has_a_step_of_20_ms(tmp_path: Path) -> None:
    micro = {"probability_cutoff": 0.5, "sliding_window_average_size": 10}
    (tmp_path / "hey.json").write_text(
        json.dumps({**FILE, "model": "./hey.tflite", "version": 1, "micro": micro})
    )
    (tmp_path / "hey.tflite").write_bytes(add_model())
    manifest = load_file(str(tmp_path / "hey.json"))[1]
    assert manifest is not None
    assert manifest.data["output"]["options"]["mean_of"] == 10
    assert manifest.data["audio"]["options"] == {"hop_ms": 20}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"{", "not a manifest of microWakeWord"),
        (b"[]", "not a manifest of microWakeWord"),
        (b'{"wake_word": "\xff"}', "not a manifest of microWakeWord"),
        (b'{"x": ' + b"[" * 100_000, "not a manifest of microWakeWord"),
        (json.dumps({**FILE, "type": "other"}).encode(), "expected type 'micro'"),
        (json.dumps({**FILE, "micro": {"probability_cutoff": 1}}).encode(), "sliding_window_size"),
        (json.dumps({**FILE, "model": "../hey.tflite"}).encode(), "must be a file in the manifest's own folder"),
    ],
)
def test_what_is_none_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(ModelError, match=why):
        load_file(str(tmp_path / "bad.json"))


def test_without_the_package_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wakeword, "_PACKAGE", "there_is_no_such_package")
    assert wakeword.packaged() == ()
    with pytest.raises(ModelError, match=r"pip install '\.\[wakeword\]' in the clone"):
        load_file("wakeword/alexa")


def test_the_packages_models_are_found_by_name() -> None:
    pytest.importorskip("pymicro_wakeword", reason="the extra [wakeword] is not installed")
    assert "wakeword/alexa" in wakeword.packaged()
    with pytest.raises(ModelError, match="no wake word 'wakeword/alexis'"):
        load_file("wakeword/alexis")


def test_nothing_is_guessed_of_the_packages_models() -> None:
    pytest.importorskip("pymicro_wakeword", reason="the extra [wakeword] is not installed")
    assert {name: look_up(name, thorough=True).remarks() for name in wakeword.packaged()} == {
        name: [] for name in wakeword.packaged()
    }
