"""The log that shows what was changed."""

from __future__ import annotations

import stat
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import StorageError
from agent.storage.audit_log import AuditLog, head_path, read_audit
from agent.structs import json_decoder


class Entry(msgspec.Struct, frozen=True):
    number: int
    text: str = ""
    previous: str = ""


DECODE = json_decoder(Entry).decode


def write(path: Path, count: int) -> str:
    with AuditLog(path, DECODE) as log:
        for number in range(count):
            log.append(Entry(number, "é\n" * number))
        return log.head


def test_records_are_kept_and_each_has_the_hash_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    head = write(path, 3)
    found = list(read_audit(path, DECODE))
    assert [one.number for one, _ in found] == [0, 1, 2]
    assert found[-1][1] == head
    assert found[0][0].previous == ""
    assert [one.previous for one, _ in found[1:]] == [digest for _, digest in found[:-1]]
    with AuditLog(path, DECODE) as log:
        assert (len(log.records), log.head, log.dropped) == (3, head, 0)
        log.append(Entry(3))
    assert len(list(read_audit(path, DECODE))) == 4


@given(st.data())
def test_a_changed_byte_shows(data: st.DataObject) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "log.jsonl")
        write(path, 4)
        content = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255).filter(lambda value: value != content[place]))
        path.write_bytes(content)
        with pytest.raises(StorageError, match="line"):
            list(read_audit(path, DECODE))


@pytest.mark.parametrize("gone", [0, 1, 2, 3])
def test_a_record_that_is_taken_out_shows(tmp_path: Path, gone: int) -> None:
    path = tmp_path / "log.jsonl"
    write(path, 4)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:gone] + lines[gone + 1 :]))
    with pytest.raises(StorageError, match="changed"), AuditLog(path, DECODE):
        pass


def test_what_a_power_cut_left_of_a_record_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    head = write(path, 2)
    with path.open("ab") as file:
        file.write(b'{"number": 2, "te')
    with pytest.raises(StorageError, match="line 3 is cut off"):
        list(read_audit(path, DECODE))
    with AuditLog(path, DECODE) as log:
        assert (log.dropped, log.head) == (17, head)
        log.append(Entry(2))
    assert len(list(read_audit(path, DECODE))) == 3


def test_two_cannot_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with (
        AuditLog(path, DECODE),
        pytest.raises(StorageError, match="in use by another vedette"),
        AuditLog(path, DECODE),
    ):
        pass
    write(path, 1)


def test_a_damaged_log_leaves_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"{}\n")
    for _ in range(2):
        with pytest.raises(StorageError, match="line 1 is damaged"), AuditLog(path, DECODE):
            pass
    path.write_bytes(b"x" * 3_000_000 + b"\n")
    with pytest.raises(StorageError, match="line 1"), AuditLog(path, DECODE):
        pass


def test_a_power_cut_before_the_hash_is_written_is_no_change(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for count in (1, 3):
        path.unlink(missing_ok=True)
        head_path(path).unlink(missing_ok=True)
        with AuditLog(path, DECODE) as log:
            for number in range(count):
                before = log.head
                log.append(Entry(number))
        if before:
            head_path(path).write_text(f"{before}\n")
        else:
            head_path(path).unlink()
        assert len(list(read_audit(path, DECODE))) == count
    head_path(path).unlink()
    with pytest.raises(StorageError, match=r"log\.head: is gone"):
        list(read_audit(path, DECODE))
    head_path(path).write_bytes(b"\xff")
    with pytest.raises(StorageError, match=r"log\.head: cannot be read"):
        list(read_audit(path, DECODE))


def test_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write(path, 2)
    assert {stat.S_IMODE(one.stat().st_mode) for one in (path, head_path(path))} == {0o600}
