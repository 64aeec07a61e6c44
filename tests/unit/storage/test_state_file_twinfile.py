"""A state file kept twice, with one of the two or both damaged, and a power cut between them."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import StorageError
from agent.storage.state_file import StateFile, StoredContent, TwinFile


def whole(data: bytes) -> str:
    """Understands what ends with a full stop."""
    if not data.endswith(b"."):
        raise StorageError("it has no end")
    return data.decode()


@pytest.fixture
def twin(tmp_path: Path) -> TwinFile:
    return TwinFile(tmp_path / "x.json")


@pytest.fixture
def paths(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "x.json", tmp_path / "x.copy.json"


def test_what_is_written_lies_in_both_and_an_empty_content_leaves_neither(
    twin: TwinFile, paths: tuple[Path, Path], tmp_path: Path
) -> None:
    assert twin.read(whole) == StoredContent(None)
    twin.write(b"one.")
    assert [path.read_bytes() for path in paths] == [b"one."] * 2
    assert twin.read(whole) == StoredContent("one.")
    twin.write(b"")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", [b"", b"\0\0\0\0", b"one", None])
@pytest.mark.parametrize("number", [0, 1])
def test_damage_of_either_costs_nothing(
    twin: TwinFile, paths: tuple[Path, Path], number: int, damage: bytes | None
) -> None:
    twin.write(b"one.")
    if damage is None:
        paths[number].unlink()
    else:
        paths[number].write_bytes(damage)
    found = twin.read(whole)
    assert found.content == "one."
    assert found.faults == (f"{paths[number]}: {'is missing' if damage is None else 'it has no end'}",)
    assert [file.path for file in found.damaged] == ([] if damage is None else [paths[number]])


def test_damage_of_both_is_told_of_both_and_is_not_the_same_as_nothing(
    twin: TwinFile, paths: tuple[Path, Path]
) -> None:
    for path in paths:
        path.write_bytes(b"?")
    found = twin.read(whole)
    assert (found.content, len(found.faults), len(found.damaged)) == (None, 2, 2)
    paths[0].unlink()
    assert twin.read(whole).content is None
    assert len(twin.read(whole).faults) == 2


@pytest.mark.parametrize(("new", "counts"), [(b"new.", "new."), (b"", "old.")])
def test_a_power_cut_between_the_two_leaves_one_that_counts(
    twin: TwinFile, monkeypatch: pytest.MonkeyPatch, new: bytes, counts: str
) -> None:
    twin.write(b"old.")
    written: list[Path] = []
    write = StateFile.write

    def cut(self: StateFile, content: bytes) -> None:
        if written:
            raise StorageError("the power is gone")
        written.append(self.path)
        write(self, content)

    monkeypatch.setattr(StateFile, "write", cut)
    with pytest.raises(StorageError):
        twin.write(new)
    found = twin.read(whole)
    assert found.content == counts
    assert len(found.faults) == 1, "so that they are made alike again"
