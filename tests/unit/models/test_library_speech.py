"""The bundled speech embedding: nothing about it is guessed or doubted."""

from __future__ import annotations

from agent.models.library import look_up, open_manifest


def test_an_embedding_needs_no_labels() -> None:
    assert list(look_up("speech-embedding").remarks()) == []


def test_it_has_words_that_are_taught_and_nothing_to_count() -> None:
    manifest = open_manifest("speech-embedding")
    assert manifest.is_embedding
    assert not manifest.has_tracks
    assert not manifest.gives_numbers
    assert not open_manifest("inspection").is_embedding
