"""Conditions that a measurement depends on."""

from __future__ import annotations

import os
from pathlib import Path

from msgspec.structs import replace

from agent.compute.infer.delegates import DelegateProbe
from agent.compute.infer.session import BackendSpec
from agent.compute.manifest import GoldenManifest
from agent.daemon.measurements import measurement_key
from agent.models.library import open_model


def found(library: Path, **settings: str) -> list[DelegateProbe]:
    plan = BackendSpec("stub", "delegate", str(library), settings)
    return [
        DelegateProbe("stub", "a stub", plan, (str(library),)),
        DelegateProbe("away", "another", missing="not here"),
    ]


def test_the_same_is_the_same_and_each_change_is_named(tmp_path: Path) -> None:
    library = tmp_path / "lib.so"
    library.write_bytes(b"one")
    model = open_model("small-speech", "3")
    before = measurement_key(model, found(library), 2)
    again = measurement_key(model, found(library), 2)
    assert before.differences(again) == []
    assert set(before.candidates) == {"stub"}
    assert "litert" in before.runtime or "tflite" in before.runtime
    for changed, names in (
        (measurement_key(model, found(library, mode="x"), 2), ["candidates"]),
        (measurement_key(model, [], 2), ["candidates"]),
        (measurement_key(model, found(library), 1), ["threads_max"]),
        (measurement_key(open_model("small-speech", "4"), found(library), 2), ["variants"]),
        (measurement_key(replace(model, sha256="0"), found(library), 2), ["model"]),
    ):
        assert before.differences(changed) == names
    manifest = replace(model.manifest, golden=GoldenManifest(tolerance=0.3))
    other = measurement_key(replace(model, manifest=manifest), found(library), 2)
    assert before.differences(other) == ["golden"]


def test_a_library_that_was_installed_again_is_measured_again(tmp_path: Path) -> None:
    library = tmp_path / "lib.so"
    library.write_bytes(b"one")
    model = open_model("small-speech", "3")
    before = measurement_key(model, found(library), 2)
    os.utime(library, ns=(1, 1))
    assert before.differences(measurement_key(model, found(library), 2)) == ["candidates"]
    library.unlink()
    assert before.differences(measurement_key(model, found(library), 2)) == ["candidates"]
