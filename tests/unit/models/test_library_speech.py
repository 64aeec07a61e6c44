"""The bundled speech embedding: nothing about it is guessed or doubted."""

from __future__ import annotations

from click.testing import CliRunner

from agent.cli.main import vedette
from agent.errors import ModelError
from agent.models.files import ZOO
from agent.models.library import look_up, open_manifest


def test_an_embedding_needs_no_labels() -> None:
    assert list(look_up("speech-embedding").remarks()) == []


def test_it_has_words_that_are_taught_and_nothing_to_count() -> None:
    manifest = open_manifest("speech-embedding")
    assert manifest.is_embedding
    assert not manifest.has_tracks
    assert not manifest.gives_numbers
    assert not open_manifest("inspection").is_embedding


def test_trying_it_says_that_words_are_taught() -> None:
    done = CliRunner().invoke(vedette, ["models", "try", "speech-embedding", str(ZOO / "spoken.flac")])
    assert done.exit_code == 1
    assert isinstance(done.exception, ModelError)
    assert "guide teaching" in str(done.exception)


def test_inspecting_it_opens_it_as_a_stream_does() -> None:
    done = CliRunner().invoke(vedette, ["models", "inspect", "speech-embedding", "--json"])
    assert done.exit_code == 0, done.output
