"""The catalogue of models that can be fetched."""

from __future__ import annotations

import pytest

from agent.compute.decode import DECODERS
from agent.compute.manifest import FEATURES
from agent.errors import ModelError
from agent.models.fetch import (
    LARGEST,
    CatalogueModel,
    catalogue,
    check_task,
    file_name_of,
    find_in_catalogue,
    known_tasks,
    tasks_of,
    with_task,
)
from agent.models.files import bundled
from agent.models.importer import ARCHIVES
from agent.models.library import open_manifest


def test_every_entry_can_be_fetched_and_imported() -> None:
    names = [one.name for one in catalogue()]
    assert names == sorted(set(names))
    assert not set(names) & set(bundled())
    for one in catalogue():
        assert one.decoder in DECODERS
        assert file_name_of(one.url).endswith(ARCHIVES)
        assert "@" not in one.url, "messages take that for a login"
        assert one.member.endswith(".tflite")
        assert one.bytes <= one.fetched_bytes * 4 < LARGEST
        assert one.about.startswith("https://")


def test_an_entry_names_the_bundled_model_that_is_the_same_as_int8() -> None:
    named = {one.name: one for one in catalogue() if one.int8}
    assert {name: one.int8 for name, one in named.items()} == {"face-short-range": "face"}
    for one in named.values():
        output = open_manifest(one.int8).output
        assert (output.decoder, output.labels) == (one.decoder, one.labels)


def test_models_are_found_by_task() -> None:
    assert {one.name for one in with_task("pose")} == {"pose-lite", "pose-full"}
    assert with_task("") == catalogue()
    assert set(known_tasks()) == {task for name in (*DECODERS, FEATURES) for task in tasks_of(name)}
    assert all(one.task in tasks_of(one.decoder) for one in catalogue())
    assert (check_task("detection"), check_task("detect"), check_task("")) == ("detection", "detection", "")
    assert with_task("face") == with_task("face detection")
    with pytest.raises(ModelError, match="expected anomalies, classification"):
        with_task("posing")


def test_a_name_that_is_nearly_right_is_told() -> None:
    found = find_in_catalogue("iris")
    assert isinstance(found, CatalogueModel)
    assert found.decoder == "landmarks"
    with pytest.raises(ModelError, match="did you mean 'pose-lite'"):
        find_in_catalogue("pose-lte")
    with pytest.raises(ModelError, match="no such model"):
        find_in_catalogue("zzzzzzzz")
