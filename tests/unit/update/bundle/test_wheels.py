"""Wheels are fetched by the real pip, here from a folder instead of an index; our own is built for real."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path

import pytest

from agent.cli.guide import TOPICS
from agent.errors import BundleError
from agent.update.bundle import Target
from agent.update.bundle.wheels import (
    check_means,
    check_python,
    fetch,
    metadata,
    own_wheel,
    platforms,
)
from tests.support.running import ROOT
from tests.support.tiny_bundles import tiny_wheel

TARGET = Target("aarch64", "3.11")


class Index:
    """A folder that pip takes for all that there is, and a lock file of what is in it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.lock = folder / "index", folder / "lock"
        self.own, self.out = folder / "vedette-1.0-py3-none-any.whl", folder / "out" / "wheels"
        self.folder.mkdir()
        self.out.parent.mkdir()
        self.lock.write_text("")
        self.told: list[str] = []
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(self.folder))
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)

    def needs(self, *requirements: str) -> None:
        self.own.write_bytes(tiny_wheel(requires=requirements))

    def add(self, name: str, *requirements: str, tag: str = "py3-none-any", version: str = "1.0") -> Path:
        path = self.folder / f"{name}-{version}-{tag}.whl"
        path.write_bytes(tiny_wheel(name, version, requires=requirements))
        self.lock_file(path, name, version)
        return path

    def lock_file(self, path: Path, name: str, version: str = "1.0") -> None:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        with self.lock.open("a") as file:
            file.write(f"{name}=={version} --hash=sha256:{digest}\n")

    def fetch(self, target: Target = TARGET, *extras: str) -> set[str]:
        fetch(self.own, self.lock, target, extras, self.out, self.told.append)
        return {path.name for path in self.out.iterdir()}


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    return Index(tmp_path, monkeypatch)


def test_what_is_needed_is_fetched_with_what_that_needs(index: Index) -> None:
    index.needs("one", "win; sys_platform == 'win32'", "more; extra == 'sound'")
    index.add("one", "two[fast]", tag="cp311-cp311-manylinux_2_17_aarch64.manylinux2014_aarch64")
    index.add("two", "one", "three; extra == 'fast'")
    index.add("three")
    index.add("more", "two")
    index.add("unasked")
    one = "one-1.0-cp311-cp311-manylinux_2_17_aarch64.manylinux2014_aarch64.whl"
    pure = {f"{name}-1.0-py3-none-any.whl" for name in ("two", "three", "more")}
    assert index.fetch(TARGET, "sound") == {one, *pure}
    assert index.told[0] == "fetching for aarch64, Python 3.11, glibc 2.34: more==1.0, one==1.0"


@pytest.mark.parametrize(
    "tag",
    [
        "cp311-cp311-manylinux_2_17_x86_64",
        "cp312-cp312-manylinux_2_17_aarch64",
        "cp311-cp311-manylinux_2_39_aarch64",
    ],
)
def test_a_wheel_that_is_for_other_boards_only_is_named(index: Index, tag: str) -> None:
    index.needs("one")
    index.add("one", tag=tag)
    with pytest.raises(
        BundleError, match=r"for aarch64, Python 3\.11, glibc 2\.34 were not fetched: .*one==1\.0"
    ):
        index.fetch()


def test_sources_are_not_built(index: Index) -> None:
    index.needs("one")
    index.add("one").rename(index.folder / "one-1.0.tar.gz")
    with pytest.raises(BundleError, match=r"were not fetched: .*one==1\.0"):
        index.fetch()


def test_a_wheel_that_is_not_the_one_that_was_locked_is_refused(index: Index) -> None:
    index.needs("one")
    index.add("one").write_bytes(tiny_wheel("one", files={"evil.py": "import os"}))
    with pytest.raises(BundleError, match="DO NOT MATCH THE HASHES"):
        index.fetch()


def test_what_is_not_locked_is_not_fetched(index: Index) -> None:
    index.needs("one")
    with pytest.raises(BundleError, match=r"one is not locked for aarch64"):
        index.fetch()


def test_without_network_it_says_so(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    index.needs("one")
    index.add("one").unlink()
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(BundleError, match="is there a network"):
        index.fetch()


def test_a_lock_file_that_is_missing_is_named(index: Index) -> None:
    index.needs()
    index.lock.unlink()
    with pytest.raises(BundleError, match=r"lock: cannot be read: No such file or directory; give it by --lock"):
        index.fetch()


def test_our_own_wheel_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    first = own_wheel(tmp_path / "one")
    before = os.umask(0o077)
    try:
        second = own_wheel(tmp_path / "two")
    finally:
        os.umask(before)
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as wheel:
        data = {"agent/models/zoo/nanodet.tflite", "agent/firmware_configs/pi4b.toml"}
        assert data | {f"agent/guide/{topic}.md" for topic in TOPICS} <= set(wheel.namelist())
        assert [name for name in wheel.namelist() if name.startswith(("tests/", "scripts/"))] == []


def test_the_lock_file_is_that_of_the_clone(tmp_path: Path) -> None:
    assert check_means(TARGET, None, None) == ROOT / "requirements.lock"
    assert check_means(TARGET, None, tmp_path / "lock") == tmp_path / "lock"


def test_without_a_clone_wheel_and_lock_file_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.update.bundle.wheels._OWN", tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match="run it in a clone, or give --wheel FILE and --lock"):
        check_means(TARGET, tmp_path / "x.whl", None)
    path = tmp_path / "vedette-1.0-py3-none-any.whl"
    path.write_bytes(tiny_wheel())
    assert check_means(TARGET, path, tmp_path / "lock") == tmp_path / "lock"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("vedette-1.0-cp311-cp311-linux_x86_64.whl", "not for aarch64"),
        ("vedette.whl", "not the name of a wheel"),
    ],
)
def test_a_wheel_of_ours_for_another_board_is_refused(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / name).write_bytes(tiny_wheel())
    with pytest.raises(BundleError, match=why):
        check_python(tmp_path / name, TARGET)


def test_a_wheel_of_ours_for_another_python_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vedette-1.0-py3-none-any.whl"
    path.write_bytes(tiny_wheel(python=">=3.12"))
    with pytest.raises(BundleError, match=r"needs Python >=3\.12; --python 3\.11 is not"):
        check_python(path, TARGET)


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + bytes(18), b"x" * 99])
def test_what_is_no_wheel_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.whl").write_bytes(content)
    with pytest.raises(BundleError, match=r"x\.whl: not a wheel"):
        metadata(tmp_path / "x.whl")


def test_an_extra_that_a_wheel_does_not_have_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vedette-1.0-py3-none-any.whl"
    path.write_bytes(tiny_wheel(extras=("wake-word", "demo")))
    check_means(TARGET, path, path, ["demo", "Wake_Word"])
    with pytest.raises(BundleError, match="--extra nosuch: no such extra of Vedette; there are: wake-word, demo"):
        check_means(TARGET, path, path, ["nosuch"])


def test_wheels_are_taken_up_to_the_boards_glibc() -> None:
    assert platforms(Target("aarch64", "3.11", "2.18")) == [
        "manylinux_2_18_aarch64",
        "manylinux_2_17_aarch64",
        "manylinux2014_aarch64",
    ]
    with pytest.raises(BundleError, match=r"--glibc 2\.5: wheels are made for 2\.17 and newer"):
        platforms(Target("aarch64", "3.11", "2.5"))
