from __future__ import annotations

import hashlib
import os
import resource
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from agent.errors import ModelError
from agent.models import files
from agent.models.files import bundled, load_file

CONTENT = b"\x1c\0\0\0TFL3 a model"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MANIFEST = """
name = "walker"
file = "walker.tflite"
sha256 = "{sha256}"
[output]
decoder = "nanodet"
labels = {labels}
"""


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "zoo"
    folder.mkdir()
    monkeypatch.setattr(files, "ZOO", folder)
    make(folder)
    return folder


def make(folder: Path, *, labels: str = '"names.txt"', sha256: str = SHA256, manifest: str = MANIFEST) -> Path:
    (folder / "walker.tflite").write_bytes(CONTENT)
    (folder / "names.txt").write_text("person\nbicycle \n\ncar\n\n")
    path = folder / "walker.toml"
    path.write_text(manifest.format(sha256=sha256, labels=labels))
    return path


def test_a_bundled_model_by_its_name(zoo: Path) -> None:
    assert bundled() == ("walker",)
    content, manifest = load_file("walker")
    assert content == CONTENT
    assert manifest is not None
    assert manifest.data["output"]["labels"] == ["person", "bicycle", "", "car"]


@pytest.mark.parametrize("name", ["walker.toml", "walker.tflite", "./walker.tflite"])
def test_a_path_starts_at_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    make(tmp_path, labels='["a", "b"]', sha256=f"  {SHA256.upper()} ")
    monkeypatch.chdir(tmp_path)
    content, manifest = load_file(name)
    assert content == CONTENT
    assert manifest is not None
    assert manifest.data["output"]["labels"] == ["a", "b"]


def test_the_file_of_a_manifest_may_go_without_saying(tmp_path: Path) -> None:
    path = make(tmp_path, manifest='name = "w"\n[output]\ndecoder = "d"\n')
    assert load_file(path)[0] == CONTENT


def test_a_file_without_a_manifest(tmp_path: Path) -> None:
    make(tmp_path).unlink()
    assert load_file(tmp_path / "walker.tflite") == (CONTENT, None)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "waker",
            r"no bundled model is called 'waker'; did you mean 'walker'\? A file of yours needs its suffix",
        ),
        ("zzz", r"'zzz'; there are: walker. A file"),
        ("models/x.onnx", r"models/x.onnx: a model is a .tflite file or its manifest"),
        ("gone/walkr.tflite", r"gone/walkr.tflite: no such file; there is a bundled model 'walker'"),
        ("gone/zzz.toml", r"gone/zzz.toml: no such file$"),
        ("nul\0.tflite", r"embedded null"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(zoo: Path, name: str, expected: str) -> None:
    with pytest.raises(ModelError, match=expected):
        load_file(name)


def test_a_wrong_hash_names_both(zoo: Path) -> None:
    make(zoo, sha256="0" * 64)
    with pytest.raises(
        ModelError, match=rf"walker.tflite: its sha256 is {SHA256}, but its manifest says {'0' * 64}"
    ):
        load_file("walker")


@pytest.mark.parametrize(
    "labels", ["../names.txt", "/etc/passwd", "sub/names.txt", "..", "link.txt", "nul\\u0000"]
)
def test_labels_outside_the_folder_are_not_read(zoo: Path, labels: str) -> None:
    (zoo.parent / "names.txt").write_text("secret")
    (zoo / "link.txt").symlink_to(zoo.parent / "names.txt")
    make(zoo, labels=f'"{labels}"')
    with pytest.raises(ModelError, match=r"^\S+walker.toml:7: \S+walker.toml: labels = "):
        load_file("walker")


def test_a_model_file_outside_the_folder_is_not_read(zoo: Path) -> None:
    make(zoo, manifest=MANIFEST.replace("walker.tflite", "../walker.tflite"))
    with pytest.raises(
        ModelError, match=r"file = '../walker.tflite' must be a file in the manifest's own folder"
    ):
        load_file("walker")


def test_a_manifest_of_another_file_beside_it(zoo: Path) -> None:
    make(zoo, manifest=MANIFEST.replace("walker.tflite", "runner.tflite"))
    with pytest.raises(ModelError, match=r"is the manifest of runner.tflite, not of walker.tflite"):
        load_file(str(zoo / "walker.tflite"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"name = ", "walker.toml:1: not TOML: "),
        (b"name = '\xff'", "walker.toml: not UTF-8 at byte 8"),
        (b"a = " + b"[" * 5000, "walker.toml: not TOML: "),
        (b"name = 'x'\noutput = 3", "walker.toml:2: `output`: expected a table; found a whole number"),
        (b"# " + bytes(2**20), "walker.toml: 1048578 bytes; at most 1048576"),
    ],
)
def test_a_manifest_that_is_none(zoo: Path, text: bytes, expected: str) -> None:
    (zoo / "walker.toml").write_bytes(text)
    with pytest.raises(ModelError, match=expected):
        load_file("walker")


def test_a_model_of_more_than_two_gigabytes_is_not_read(zoo: Path) -> None:
    with (zoo / "walker.tflite").open("r+b") as file:
        file.truncate(2**31 + 1)
    with pytest.raises(ModelError, match="2147483649 bytes; at most 2147483648 can be used"):
        load_file("walker")


@pytest.mark.parametrize(
    ("meminfo", "refused"),
    [
        ("MemTotal: 900 kB\nMemAvailable: 1000 kB\n", True),
        ("MemAvailable: 1000000 kB\n", False),
        ("MemAvailable:\n", False),
        ("", False),
        (None, False),
    ],
)
def test_a_model_larger_than_the_free_memory_is_not_read(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meminfo: str | None, refused: bool
) -> None:
    memory = tmp_path / "meminfo"
    if meminfo is not None:
        memory.write_text(meminfo)
    monkeypatch.setattr(files, "_MEMORY", memory)
    (zoo / "other.tflite").write_bytes(b"\x1c\0\0\0TFL3" + bytes(1_100_000))
    if refused:
        with pytest.raises(ModelError, match="1100008 bytes, and 1024000 bytes of memory are free"):
            load_file(zoo / "other.tflite")
    else:
        assert len(load_file(zoo / "other.tflite")[0]) == 1_100_008


def test_a_process_that_may_not_have_the_memory_says_so(zoo: Path) -> None:
    with (zoo / "walker.tflite").open("r+b") as file:
        file.truncate(2**31 - 8)
    code = "import sys; from agent.models.files import read; from pathlib import Path; read(Path(sys.argv[1]))"
    limit = (1 << 30, 1 << 30)
    done = subprocess.run(
        [sys.executable, "-c", code, zoo / "walker.tflite"],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limit),
        check=False,
    )
    assert done.returncode == 1
    assert "ModelError" in done.stderr.splitlines()[-1]
    assert "memory" in done.stderr.splitlines()[-1]


def test_reading_takes_no_more_memory_than_the_file(zoo: Path) -> None:
    tracemalloc.start()
    load_file("walker")
    assert tracemalloc.get_traced_memory()[1] < 10_000_000, "a board may not have 2 GB"
    tracemalloc.stop()


def test_a_pipe_is_not_waited_for(zoo: Path) -> None:
    (zoo / "walker.tflite").unlink()
    os.mkfifo(zoo / "walker.tflite")
    with pytest.raises(ModelError, match=r"walker.tflite: not a file"):
        load_file("walker")


def test_a_label_in_place_of_a_list_is_told_from_a_file_of_labels(zoo: Path) -> None:
    make(zoo, labels='"person"')
    with pytest.raises(
        ModelError,
        match=r'walker.toml:7: .output. labels = "person": \S+person: no such file; .*labels = \["person"\]',
    ):
        load_file("walker")
