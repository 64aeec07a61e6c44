"""Attacks on what unpacks a bundle, by their names. Each leaves nothing behind."""

from __future__ import annotations

import gzip
import hashlib
import io
import resource
import signal
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import BundleError, StorageError
from agent.storage.tar import BLOCK, ArchiveLimits, ExpectedMember, check, header, unpack, walk, write_tarball

LIMITS = ArchiveLimits(files=8, size=100_000)
FILES = {"a/one": b"1" * 700, "a/two": b"", "three": b"3"}
END = bytes(2 * BLOCK)


def raw(name: str, content: bytes = b"x", *, size: int | None = None) -> bytes:
    """A member; its header may lie about the size."""
    return header(name, len(content) if size is None else size) + content + bytes(-len(content) % BLOCK)


def foreign(info: tarfile.TarInfo, content: bytes = b"", kind: Literal[0, 1, 2] = tarfile.USTAR_FORMAT) -> bytes:
    """A member as tarfile writes it."""
    info.size = len(content)
    return info.tobuf(kind) + content + bytes(-len(content) % BLOCK)


def special(kind: bytes, target: str = "") -> bytes:
    info = tarfile.TarInfo("three")
    info.type, info.linkname = kind, target
    return foreign(info)


def expected(files: Mapping[str, bytes]) -> dict[str, ExpectedMember]:
    return {
        name: ExpectedMember(hashlib.sha256(content).hexdigest(), len(content)) for name, content in files.items()
    }


def refused(folder: Path, tar: bytes, why: str, files: Mapping[str, bytes] = FILES) -> None:
    path = folder / "x.tar"
    path.write_bytes(tar)
    before = sorted(folder.rglob("*"))
    with pytest.raises(BundleError, match=why):
        check(path, expected(files), LIMITS)
    with pytest.raises(BundleError, match=why):
        unpack(path, expected(files), folder / "fresh", LIMITS)
    assert sorted(folder.rglob("*")) == before


def whole(files: Mapping[str, bytes] = FILES) -> bytes:
    return b"".join(raw(name, content) for name, content in files.items())


def test_what_was_written_is_unpacked(tmp_path: Path) -> None:
    write_tarball(tmp_path / "x.tar", ((name, len(content), [content]) for name, content in FILES.items()))
    assert (tmp_path / "x.tar").read_bytes() == whole() + END
    unpack(tmp_path / "x.tar", expected(FILES), tmp_path / "fresh", LIMITS)
    found = {str(path.relative_to(tmp_path / "fresh")): path for path in (tmp_path / "fresh").rglob("*")}
    assert {name: path.read_bytes() for name, path in found.items() if path.is_file()} == FILES


@pytest.mark.parametrize("name", ["../three", "a/../../three", "a/..", "..", "a/./b", "./three", "a//b"])
def test_path_traversal(tmp_path: Path, name: str) -> None:
    refused(tmp_path, raw(name) + END, "expected a path within the archive", {name: b"x"})


@pytest.mark.parametrize("name", ["/etc/cron.d/evil", "//etc/x", "/"])
def test_absolute_path(tmp_path: Path, name: str) -> None:
    refused(tmp_path, raw(name) + END, "expected a path within the archive|expected a plain file", {name: b"x"})


@pytest.mark.parametrize("name", ["a\\..\\three", "thr\x1b[2Jee", "three\n", ""])
def test_a_name_that_is_no_name(tmp_path: Path, name: str) -> None:
    refused(tmp_path, raw(name) + END, "expected a path within the archive", {name: b"x"})


@pytest.mark.parametrize("target", ["/etc/shadow", "../..", "a"])
def test_symlink(tmp_path: Path, target: str) -> None:
    refused(tmp_path, special(tarfile.SYMTYPE, target) + END, "expected a plain file")


def test_a_file_through_a_symlink_that_came_before_it(tmp_path: Path) -> None:
    link = tarfile.TarInfo("a")
    link.type, link.linkname = tarfile.SYMTYPE, "/tmp"
    refused(tmp_path, foreign(link) + raw("a/one", FILES["a/one"]) + END, "expected a plain file")


def test_hard_link(tmp_path: Path) -> None:
    refused(tmp_path, whole() + special(tarfile.LNKTYPE, "/etc/shadow") + END, "expected a plain file")


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
        tarfile.DIRTYPE,
        tarfile.CONTTYPE,
        tarfile.AREGTYPE,
        b"Z",
    ],
)
def test_device_and_other_kinds(tmp_path: Path, kind: bytes) -> None:
    refused(tmp_path, special(kind) + END, "expected a plain file")


def test_set_uid(tmp_path: Path) -> None:
    info = tarfile.TarInfo("three")
    info.mode = 0o4755
    refused(tmp_path, foreign(info, b"3") + END, "expected a plain file")


def test_doubled_member(tmp_path: Path) -> None:
    refused(tmp_path, whole() + raw("three", b"3") + END, "three: is there twice")


def test_case_twins(tmp_path: Path) -> None:
    refused(tmp_path, raw("three") + raw("Three") + END, "Three: is there twice", {"three": b"x", "Three": b"x"})


def test_a_file_where_a_folder_has_to_be(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(raw("a") + raw("a/b") + END)
    with pytest.raises(StorageError, match="cannot be unpacked"):
        unpack(tmp_path / "x.tar", expected({"a": b"x", "a/b": b"x"}), tmp_path / "fresh", LIMITS)
    assert not (tmp_path / "fresh").exists()


def test_huge_member(tmp_path: Path) -> None:
    big = {"three": bytes(LIMITS.size + 1)}
    refused(tmp_path, whole(big) + END, "too much to unpack", big)


def test_a_size_of_eight_exabytes(tmp_path: Path) -> None:
    block = bytearray(header("three", 1))
    block[124:136] = b"\x80" + (2**63).to_bytes(11, "big")
    checksum = sum(block[:148]) + 8 * 32 + sum(block[156:])
    block[148:156] = b"%06o\0 " % checksum
    refused(tmp_path, bytes(block) + b"3" + bytes(BLOCK - 1) + END, "expected a plain file")


def test_a_negative_size(tmp_path: Path) -> None:
    block = bytearray(header("three", 1))
    block[124:136] = b"\xff" * 12
    checksum = sum(block[:148]) + 8 * 32 + sum(block[156:])
    block[148:156] = b"%06o\0 " % checksum
    refused(tmp_path, bytes(block) + END, "expected a plain file")


def test_too_many_files(tmp_path: Path) -> None:
    many = {f"{number}": b"" for number in range(LIMITS.files + 1)}
    refused(tmp_path, whole(many) + END, "too much to unpack", many)


def test_more_bytes_than_told(tmp_path: Path) -> None:
    refused(tmp_path, whole() + END + b"more", "something comes after the end")
    refused(tmp_path, whole() + END + whole(), "something comes after the end")
    refused(tmp_path, raw("three", b"3" * 600, size=1) + END, "expected a plain file")
    refused(tmp_path, whole({**FILES, "three": b"33"}) + END, "three: 2 bytes, and 1 are listed")


def test_a_second_archive_behind_one_block_of_zeros(tmp_path: Path) -> None:
    refused(tmp_path, whole() + bytes(BLOCK) + raw("evil") + END, "something comes after the end")


@pytest.mark.parametrize("cut", [1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 1, 4 * BLOCK])
def test_truncated(tmp_path: Path, cut: int) -> None:
    refused(tmp_path, (whole() + END)[:-cut], "cut off")


def test_a_pax_header_that_gives_another_path(tmp_path: Path) -> None:
    info = tarfile.TarInfo("three")
    info.pax_headers = {"path": "../../evil"}
    refused(tmp_path, foreign(info, b"3", tarfile.PAX_FORMAT) + END, "expected a plain file")


def test_a_pax_header_that_gives_another_size(tmp_path: Path) -> None:
    info = tarfile.TarInfo("three")
    info.pax_headers = {"size": "9999999"}
    refused(tmp_path, foreign(info, b"3", tarfile.PAX_FORMAT) + END, "expected a plain file")


def test_a_pax_header_for_all(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "y.tar", "w", format=tarfile.PAX_FORMAT, pax_headers={"path": "evil"}) as tar:
        tar.addfile(tarfile.TarInfo("three"))
    refused(tmp_path, (tmp_path / "y.tar").read_bytes(), "expected a plain file")


def test_a_long_name_of_gnu(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x/" * 120 + "three")
    refused(tmp_path, foreign(info, b"3", tarfile.GNU_FORMAT) + END, "expected a plain file")
    info = tarfile.TarInfo("three")
    info.type, info.linkname = tarfile.SYMTYPE, "y" * 200
    refused(tmp_path, foreign(info, kind=tarfile.GNU_FORMAT) + END, "expected a plain file")


def test_sparse_file(tmp_path: Path) -> None:
    info = tarfile.TarInfo("three")
    info.type = tarfile.GNUTYPE_SPARSE
    refused(tmp_path, foreign(info, kind=tarfile.GNU_FORMAT) + END, "expected a plain file")


def test_a_file_that_is_listed_and_missing(tmp_path: Path) -> None:
    refused(tmp_path, raw("three", b"3") + END, "a/one: is listed in the bundle, but is not in it")


def test_a_file_that_is_there_and_not_listed(tmp_path: Path) -> None:
    refused(tmp_path, whole() + raw("evil") + END, "evil: is in the bundle, but is not listed")


def test_a_file_of_another_content(tmp_path: Path) -> None:
    refused(tmp_path, whole({**FILES, "three": b"4"}) + END, "three: its sha256 is")


def test_an_empty_file_and_one_of_zeros(tmp_path: Path) -> None:
    refused(tmp_path, b"", "cut off")
    refused(tmp_path, END, "is listed in the bundle")
    refused(tmp_path, bytes(10_240), "something comes after the end")


def test_a_compressed_archive(tmp_path: Path) -> None:
    refused(tmp_path, gzip.compress(whole() + END) + bytes(BLOCK), "expected a plain file")


def test_a_folder_that_is_a_link_already(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(whole() + END)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "fresh").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="cannot be made anew"):
        unpack(tmp_path / "x.tar", expected(FILES), tmp_path / "fresh", LIMITS)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_disk_that_takes_no_more_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(whole() + END)
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(StorageError, match="cannot be unpacked: File too large"):
            unpack(tmp_path / "x.tar", expected(FILES), tmp_path / "fresh", LIMITS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not (tmp_path / "fresh").exists()


NAMES = st.text(st.sampled_from("abZ./\\-\x00é"), max_size=12) | st.just("../" * 3 + "x")
KINDS = st.sampled_from([tarfile.REGTYPE, *(bytes([kind]) for kind in b"01234567xgLKS")])
FORMATS: st.SearchStrategy[Literal[0, 1, 2]] = st.sampled_from(
    [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
MEMBERS = st.lists(st.tuples(NAMES, KINDS, st.binary(max_size=600), st.integers(0, 0o7777), FORMATS), max_size=5)


@given(MEMBERS, st.integers(0, 3), st.data())
def test_whatever_a_tar_holds_nothing_is_written_outside(
    tmp_path_factory: pytest.TempPathFactory,
    members: list[tuple[str, bytes, bytes, int, Literal[0, 1, 2]]],
    damage: int,
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("tars")
    tar = bytearray()
    for name, kind, content, mode, form in members:
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.linkname = kind, mode, "../../x"
        tar += foreign(info, content, form)
    tar += END
    for _ in range(damage):
        tar[data.draw(st.integers(0, len(tar) - 1))] = data.draw(st.integers(0, 255))
    (folder / "x.tar").write_bytes(tar)
    listed: dict[str, ExpectedMember] = {}
    for name, kind, content, _, _ in members:
        if kind == tarfile.REGTYPE:
            listed |= expected({name: content})
    try:
        unpack(folder / "x.tar", listed, folder / "fresh", LIMITS)
    except (BundleError, StorageError):
        assert [path.name for path in folder.iterdir()] == ["x.tar"]
    else:
        made = [path for path in (folder / "fresh").rglob("*") if not path.is_dir()]
        assert {str(path.relative_to(folder / "fresh")) for path in made} == set(listed)
        assert all(path.is_file() and not path.is_symlink() for path in made)


@given(st.binary(max_size=3000))
def test_any_bytes_are_walked_or_refused(data: bytes) -> None:
    try:
        found = list(walk(io.BytesIO(data), LIMITS))
    except BundleError:
        return
    assert sum(BLOCK + member.size + -member.size % BLOCK for member in found) + len(END) == len(data)


@given(st.dictionaries(st.from_regex(r"[a-z0-9]{1,9}(/[a-z0-9]{1,9})?", fullmatch=True), st.binary(max_size=900)))
def test_what_is_written_is_read_by_us_and_by_tarfile(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]
) -> None:
    path = tmp_path_factory.mktemp("tars") / "x.tar"
    write_tarball(path, ((name, len(content), [content]) for name, content in files.items()))
    check(path, expected(files), ArchiveLimits(len(files), 10_000_000))
    if files:
        with tarfile.open(path) as tar:
            assert {one.name: _content(tar, one) for one in tar} == files
    assert [one.name for one in path.parent.iterdir()] == ["x.tar"]


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None
    return file.read()
