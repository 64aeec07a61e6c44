"""A bundle's file: what is written comes out again, and what was changed in it is refused."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import msgspec
import pytest

from agent.errors import BundleError, StorageError
from agent.update import bundle as archive
from agent.update.bundle import BundleFile, render
from tests.support.tiny_bundles import describe, full_files, model_files, models_bundle, tiny_bundle, write_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return tiny_bundle(tmp_path / "one.vedette")


def test_a_bundle_comes_out_as_it_went_in(tmp_path: Path, bundle: Path) -> None:
    description = archive.read_description(bundle)
    archive.check_files(bundle, description)
    archive.unpack(bundle, description, tmp_path / "slot")
    found = {str(path.relative_to(tmp_path / "slot")): path for path in (tmp_path / "slot").rglob("*.*")}
    assert {name: path.read_bytes() for name, path in found.items()} == {
        "bundle.toml": render(description),
        **full_files(),
    }
    assert {path.stat().st_mode & 0o777 for path in found.values()} == {0o644}


def test_the_same_files_give_the_same_bytes(tmp_path: Path, bundle: Path) -> None:
    os.utime(bundle.parent, (0, 0))
    again = tiny_bundle(tmp_path / "two.vedette")
    assert again.read_bytes() == bundle.read_bytes()


def test_other_tools_can_look_into_a_bundle(bundle: Path) -> None:
    import tarfile

    with tarfile.open(bundle, "r:") as tar:
        assert tar.getnames() == ["bundle.toml", *sorted(full_files())]


def test_a_bundle_of_models_needs_no_target(tmp_path: Path) -> None:
    path = models_bundle(tmp_path / "models.vedette", counter=4)
    description = archive.read_description(path)
    archive.check_files(path, description)
    assert (description.kind, description.target, description.models) == ("models", None, ["small-speech"])


def test_a_bit_that_has_flipped_is_found_by_the_hash(tmp_path: Path, bundle: Path) -> None:
    content = bytearray(bundle.read_bytes())
    at = content.index(b"broker.example")
    content[at] ^= 1
    bundle.write_bytes(content)
    description = archive.read_description(bundle)
    with pytest.raises(BundleError, match=r"config/vedette\.toml: its sha256 is"):
        archive.check_files(bundle, description)
    with pytest.raises(BundleError, match=r"config/vedette\.toml: its sha256 is"):
        archive.unpack(bundle, description, tmp_path / "slot")
    assert not (tmp_path / "slot").exists()


@pytest.mark.parametrize("left", [0, 100, 512, 700, 5000, -1500, -512, -1])
def test_a_bundle_that_was_cut_off_is_refused(tmp_path: Path, bundle: Path, left: int) -> None:
    whole = archive.read_description(bundle)
    bundle.write_bytes(bundle.read_bytes()[:left])
    with pytest.raises(BundleError, match="cut off"):
        archive.check_files(bundle, whole)
    with pytest.raises(BundleError, match="cut off"):
        archive.unpack(bundle, whole, tmp_path / "slot")
    assert not (tmp_path / "slot").exists()


@pytest.mark.parametrize("content", [b"#!/bin/sh\necho\n", b"x" * 399, b"\x1f\x8b" * 2000, bytes(20_000)])
def test_what_was_never_a_bundle_is_not_said_to_be_cut_off(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(BundleError, match=r"x: does not begin with bundle\.toml: not a bundle$"):
        archive.read_description(tmp_path / "x")


def test_a_description_that_is_exchanged_after_it_was_read_is_refused(tmp_path: Path, bundle: Path) -> None:
    read = archive.read_description(bundle)
    tiny_bundle(bundle, counter=2)
    with pytest.raises(BundleError, match="has changed since it was read"):
        archive.unpack(bundle, read, tmp_path / "slot")


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path, bundle: Path) -> None:
    (tmp_path / "slot").mkdir()
    (tmp_path / "slot" / "mine").write_text("x")
    with pytest.raises(StorageError, match="cannot be made anew"):
        archive.unpack(bundle, archive.read_description(bundle), tmp_path / "slot")
    assert (tmp_path / "slot" / "mine").read_text() == "x"


def test_a_file_that_has_changed_since_it_was_listed_is_not_written(tmp_path: Path) -> None:
    files = model_files()
    described = describe(files, kind="models", target=None)
    entry = described.files["models/small-speech.toml"]
    wrong = {**described.files, "models/small-speech.toml": BundleFile(entry.sha256, entry.size + 1)}
    with pytest.raises(StorageError, match="changed meanwhile"):
        write_bundle(tmp_path / "x.vedette", msgspec.structs.replace(described, files=wrong), files)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []


def test_a_wheel_that_is_a_zip_bomb_is_not_opened(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.whl"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file:
        for number in range(20):
            file.writestr(f"{number}", bytes(10_000_000))
    files = full_files(more={"wheels/bomb-1.0-py3-none-any.whl": bomb.read_bytes()})
    path = write_bundle(tmp_path / "x.vedette", describe(files), files)
    archive.unpack(path, archive.read_description(path), tmp_path / "slot")
    assert sum(found.stat().st_size for found in (tmp_path / "slot").rglob("*")) < 2_000_000


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/etc/passwd")])
def test_what_is_no_file_is_not_read(tmp_path: Path, make: object) -> None:
    path = tmp_path / "x.vedette"
    assert callable(make)
    make(path)
    with pytest.raises(BundleError, match=r"not a file|is a link|cannot be read"):
        archive.read_description(path)
