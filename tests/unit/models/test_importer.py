"""Models out of files and archives as tools hand them over."""

from __future__ import annotations

import gzip
import io
import tarfile
import tracemalloc
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import ModelError
from agent.models import importer
from agent.models.importer import find_model, prepare_import, read_labels, write_import
from agent.models.library import look_up
from tests.support import picture_models
from tests.support.examples import examples

MODEL = picture_models.classifier("float32", described=False)


Files = dict[str, bytes | str]


def archive(path: Path, files: Mapping[str, bytes | str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in files.items():
            target.writestr(name, content)
    return path


def test_what_teachable_machine_exports_needs_nothing_more(tmp_path: Path) -> None:
    files: Files = {"model_unquant.tflite": MODEL, "labels.txt": "0 red\n1 green\n2 blue things\n"}
    found = find_model(archive(tmp_path / "my signs.zip", files))
    assert (found.name, found.labels, found.origin) == (
        "my-signs",
        ("red", "green", "blue things"),
        "Teachable Machine",
    )
    model = prepare_import(found, tmp_path / "signs.tflite")
    write_import(model)
    known = look_up(str(tmp_path / "signs.tflite"))
    assert known.manifest.output.labels == ("red", "green", "blue things")
    assert known.manifest.input.mean == known.manifest.input.std == (127.5, 127.5, 127.5)
    assert known.manifest.source == "Teachable Machine"
    assert "# guessed: its outputs fit" in (tmp_path / "signs.toml").read_text()


def test_a_bare_file_keeps_its_manifest(tmp_path: Path) -> None:
    path = tmp_path / "ei-signs.lite"
    path.write_bytes(MODEL)
    assert find_model(path).name == "ei-signs"
    own = tmp_path / "mine.tflite"
    own.write_bytes(MODEL)
    own.with_suffix(".toml").write_text('[input]\nmean = [1, 2, 3]\n[output]\nlabels = ["a", "b", "c"]\n')
    (tmp_path / "to").mkdir()
    write_import(prepare_import(find_model(own), tmp_path / "to" / "other.tflite", pixels="unit"))
    known = look_up(str(tmp_path / "to" / "other.tflite")).manifest
    assert (known.output.labels, known.input.std) == (("a", "b", "c"), (255.0, 255.0, 255.0))


def test_of_several_models_one_is_named(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "several.zip",
        {
            "a/x_float32.tflite": MODEL,
            "a/x_int8.tflite": MODEL,
            "__MACOSX/a/._x.tflite": b"",
            "labels.txt": "a\nb",
        },
    )
    with pytest.raises(ModelError, match=r"has 2 models: name one by --member: a/x_float32.tflite"):
        find_model(path)
    with pytest.raises(ModelError, match=r"--member .tflite fits 2 of its models"):
        find_model(path, ".tflite")
    found = find_model(path, "x_int8.tflite")
    assert (found.name, found.labels, found.origin) == ("x_int8", ("a", "b"), "")
    (tmp_path / "bare.tflite").write_bytes(MODEL)
    with pytest.raises(ModelError, match="--member names a file in one"):
        find_model(tmp_path / "bare.tflite", "x")


def test_two_files_of_one_name_are_told(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "twins.zip", "w") as target:
        target.writestr("m.tflite", MODEL)
        with pytest.warns(UserWarning, match="Duplicate"):
            target.writestr("m.tflite", MODEL)
    with pytest.raises(ModelError, match=r"has 2 files called m.tflite: pack it again"):
        find_model(tmp_path / "twins.zip")


def test_a_manifest_that_is_not_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "m.lite").write_bytes(MODEL)
    (tmp_path / "m.toml").write_text("")
    assert find_model(tmp_path / "m.lite").remarks[0].startswith("m.toml beside it is not used")


def test_labels_lie_beside_their_model(tmp_path: Path) -> None:
    files: Files = {"one/m.tflite": MODEL, "one/labels.txt": "a\nb", "two/labels.txt": "c\nd"}
    assert find_model(archive(tmp_path / "near.zip", files)).labels == ("a", "b")
    files = {"m.tflite": MODEL, "one/labels.txt": "a\nb", "two/labels.txt": "c\nd"}
    assert find_model(archive(tmp_path / "far.zip", files)).labels == ()
    found = find_model(archive(tmp_path / "none.zip", {"m.tflite": MODEL, "labels.txt": "\n"}))
    assert (found.labels, "labels.txt is empty: no labels" in found.remarks) == ((), True)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("0 red\n1 green", ("red", "green")),
        ("0: red\n1: dark green\n\n", ("red", "dark green")),
        ("1 red\n2 green", ("1 red", "2 green")),
        ("0 red\ngreen", ("0 red", "green")),
        ("\ufeffred\n\ngreen", ("red", "???", "green")),
        ("9" * 5000 + " a", ("9" * 5000 + " a",)),
        ("0\n1", ("0", "1")),
    ],
)
def test_numbers_in_front_of_labels_are_left_out_if_they_count(
    tmp_path: Path, text: str, labels: tuple[str, ...]
) -> None:
    (tmp_path / "labels.txt").write_text(text)
    assert read_labels(tmp_path / "labels.txt") == labels


@pytest.mark.parametrize(
    ("name", "files", "told"),
    [
        ("none.zip", {"model.onnx": b"x"}, r"no .tflite in it; models of other kinds \(.onnx"),
        ("page.zip", {"m.tflite": b"<html>"}, "m.tflite: is no TFLite model, but an HTML page"),
        ("lfs.zip", {"m.tflite": b"version https://git-lfs"}, "a Git LFS pointer: fetch the file itself"),
        ("empty.zip", {"m.tflite": b""}, "is no TFLite model"),
        ("latin.zip", {"m.tflite": MODEL, "labels.txt": b"\xff"}, "its labels are not UTF-8"),
    ],
)
def test_an_archive_without_a_model_is_refused(
    tmp_path: Path, name: str, files: dict[str, bytes], told: str
) -> None:
    with pytest.raises(ModelError, match=told):
        find_model(archive(tmp_path / name, files))


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("no archive")
    (tmp_path / "model.h5").write_bytes(b"x")
    for name, told in (
        ("text.zip", "cannot be read as an archive"),
        ("model.h5", "expected a .tflite"),
        ("none.zip", "no such file"),
    ):
        with pytest.raises(ModelError, match=told):
            find_model(tmp_path / name)
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(ModelError, match="no labels in it"):
        read_labels(tmp_path / "empty.txt")


def test_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(tmp_path / "bomb.zip", {"m.tflite": b"\0\0\0\0TFL3" + b"\0" * 2_000_000})
    monkeypatch.setattr(importer, "_LARGEST", 1_000_000)
    with pytest.raises(ModelError, match=r"m.tflite: 2 MB: expected at most 1"):
        find_model(path)
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02") + 24  # the size in the directory, which may lie
    content[at : at + 4] = (900_000).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"larger than the archive says|cannot be read as an archive"):
        find_model(path)
    page = archive(tmp_path / "page.zip", {"m.tflite": b"<" * 900_000})
    with pytest.raises(ModelError, match=r"m.tflite: is no TFLite model, but an HTML page"):
        find_model(page)
    monkeypatch.setattr(importer, "_MOST", 3)
    with pytest.raises(ModelError, match="has 4 files"):
        find_model(archive(tmp_path / "many.zip", dict.fromkeys("abcd", b"")))


def test_a_model_of_an_archive_is_held_in_memory_once(tmp_path: Path) -> None:
    size = 20_000_000
    path = archive(tmp_path / "large.zip", {"m.tflite": b"\0\0\0\0TFL3" + bytes(size)})
    tracemalloc.start()
    try:
        assert len(find_model(path).content) > size
        assert tracemalloc.get_traced_memory()[1] < 1.6 * size
    finally:
        tracemalloc.stop()


def test_names_are_no_paths(tmp_path: Path) -> None:
    found = find_model(archive(tmp_path / "up.zip", {"../../etc/évil name;.tflite": MODEL}))
    assert found.name == "vil-name"
    assert find_model(archive(tmp_path / "dots.zip", {"../...tflite": MODEL})).name == "model"


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=12), st.integers(0, 10**6))
def test_damaged_archives_raise_nothing_but_model_errors(changes: list[tuple[int, int]], cut: int) -> None:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as target:
        target.writestr("model.tflite", MODEL)
        target.writestr("labels.txt", "0 a\n1 b\n2 c")
    content = bytearray(whole.getvalue())
    for at, value in changes:
        content[-1 - at % len(content)] = value
    if cut % 3 == 0:
        del content[cut % len(content) :]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importer, "read", lambda _path, _largest=0: bytes(content))
        try:
            found = find_model(Path("damaged.zip"))
            assert found.content[4:8] == b"TFL3"
        except ModelError:
            pass


def test_labels_that_cannot_be_printed_are_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("red\n\x1b[31mgreen\n")
    with pytest.raises(ModelError, match="label 2 has a character that cannot be printed"):
        read_labels(tmp_path / "labels.txt")


def test_a_manifest_of_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.tflite").write_bytes(MODEL)
    (tmp_path / "other.tflite").write_bytes(MODEL)
    (tmp_path / "b.toml").write_text('file = "other.tflite"\n[output]\nlabels = ["x", "y", "z"]\n')
    with pytest.raises(ModelError, match=r"is the manifest of other.tflite"):
        find_model(tmp_path / "b.tflite")


def test_nothing_is_written_over_what_is_there(tmp_path: Path) -> None:
    model = prepare_import(importer.FoundModel(MODEL, "m", ("a", "b", "c")), tmp_path / "m.tflite", pixels="unit")
    (tmp_path / "m.toml").write_text("mine")
    with pytest.raises(ModelError, match=r"m.toml: exists; --force replaces it"):
        write_import(model)
    assert not (tmp_path / "m.tflite").exists()
    assert (tmp_path / "m.toml").read_text() == "mine"
    write_import(model, force=True)
    assert (tmp_path / "m.tflite").read_bytes() == MODEL
    with pytest.raises(ModelError, match="there is no such folder"):
        importer.check_free(tmp_path / "none" / "m.tflite")


def tgz(path: Path, files: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(path, "w:gz") as packed:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.type = len(content), kind
            packed.addfile(info, io.BytesIO(content))
    return path


def test_a_package_of_npm_and_a_wheel_are_archives(tmp_path: Path) -> None:
    content = MODEL
    files = {"package/../../m.tflite": content, "package/labels.txt": b"a\nb\n", "package/index.js": b"x" * 5000}
    found = find_model(tgz(tmp_path / "p-1.0.tgz", files))
    assert (found.content, found.name, found.labels) == (content, "m", ("a", "b"))
    beside = {"package/m.tflite": content, "package/labels.txt": b"a\nb\n"}
    assert find_model(tgz(tmp_path / "p.tar.gz", beside)).labels == ("a", "b")
    assert find_model(archive(tmp_path / "p-1.0-py3-none-any.whl", beside)).labels == ("a", "b")
    two = {"a/m.tflite": content, "b/n.tflite": content}
    with pytest.raises(ModelError, match="has 2 models: name one by --member"):
        find_model(tgz(tmp_path / "two.tgz", two))
    assert find_model(tgz(tmp_path / "two.tgz", two), "n.tflite").name == "n"


def test_tar_archives_that_cannot_be_read_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.tgz").write_bytes(b"no archive")
    (tmp_path / "b.tgz").write_bytes(tgz(tmp_path / "c.tgz", {"m.tflite": b"x" * 90_000}).read_bytes()[:-40])
    for name in ("a.tgz", "b.tgz"):
        with pytest.raises(ModelError, match="cannot be read as an archive"):
            find_model(tmp_path / name)
    with pytest.raises(ModelError, match=r"no \.tflite in it"):
        find_model(tgz(tmp_path / "link.tgz", {"m.tflite": b""}, tarfile.SYMTYPE))
    bomb = tgz(tmp_path / "bomb.tgz", {"zeros": b"\0" * 3_000_000, "m.tflite": MODEL})
    monkeypatch.setattr("agent.models.importer._LARGEST", 1_000_000)
    with pytest.raises(ModelError, match="unpacks to more than 1 MB"):
        find_model(bomb)
    monkeypatch.setattr("agent.models.importer._MOST", 1)
    with pytest.raises(ModelError, match="more than 1 files"):
        find_model(tgz(tmp_path / "many.tgz", {"a": b"", "b": b""}))


def test_a_header_of_a_gigabyte_is_not_unpacked(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.size, info.type = 1_500_000_000, tarfile.GNUTYPE_LONGNAME
    (tmp_path / "long.tgz").write_bytes(gzip.compress(info.tobuf() + bytes(3_000_000)))
    with pytest.raises(ModelError, match=r"cannot be read as an archive|no \.tflite in it"):
        find_model(tmp_path / "long.tgz")
