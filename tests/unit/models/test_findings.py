"""What a stream's model finds, by its manifest."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.config import StreamConfig
from agent.models.findings import Kind, findings_of
from tests.support.doubles import person_model


@pytest.mark.parametrize(
    ("model", "kind", "some", "others"),
    [
        ("nanodet", "things", {"person", "traffic light"}, set()),
        ("small-speech", "words", {"zero", "nine"}, {"silence", "unknown"}),
    ],
)
def test_a_bundled_model_tells_what_may_come(model: str, kind: Kind, some: set[str], others: set[str]) -> None:
    made = findings_of(StreamConfig("test:", model))
    assert made.kind == kind
    assert some <= set(made.labels)
    assert not others & set(made.labels)


@pytest.mark.parametrize(
    ("manifest", "kind", "labels"),
    [
        ('decoder = "classify"\nlabels = ["good", "", "???", "bad"]', "verdicts", ("good", "bad")),
        ('decoder = "blazeface"', "things", ("face",)),
        ('decoder = "ctc"\nlabels = ["0", "1", "2"]', "texts", ()),
        ('decoder = "keypoints"', "things", ("person",)),
        ('decoder = "keyword"\nlabels = ["go", "none"]\n[output.options]\nignore = ["none"]', "words", ("go",)),
    ],
)
def test_a_model_of_any_kind_is_told_by_its_manifest(
    tmp_path: Path, manifest: str, kind: Kind, labels: tuple[str, ...]
) -> None:
    path = person_model(tmp_path)
    path.write_text(f'name = "any"\n[output]\n{manifest}\n')
    made = findings_of(StreamConfig("test:", str(path)))
    assert (made.kind, made.labels) == (kind, labels)


def test_a_model_of_many_sounds_is_none_of_words(tmp_path: Path) -> None:
    path = person_model(tmp_path)
    audio = '[audio]\nrate_hz = 16000\nfrontend = "raw"\n'
    path.write_text(f'name = "any"\n{audio}[output]\ndecoder = "classify"\nlabels = ["Bark"]\n')
    made = findings_of(StreamConfig("mic:default", str(path)))
    assert (made.kind, made.labels) == ("sounds", ("Bark",))


def test_a_model_that_is_not_there_leaves_open_what_it_finds(tmp_path: Path) -> None:
    made = findings_of(StreamConfig("test:", str(tmp_path / "gone.tflite")))
    assert (made.kind, made.labels) == (None, ())
