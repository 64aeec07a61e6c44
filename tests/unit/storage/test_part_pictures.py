"""Pictures of parts on a disk that has a limit, is slow, full, or shared with other files."""

from __future__ import annotations

import shutil
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agent.storage.part_pictures import PartPictures, picture_name
from tests.support.publishing import wait_for

AT = datetime(2026, 11, 28, 10, 0, 0, 123456, tzinfo=UTC)


def named(number: int) -> str:
    return picture_name(AT + timedelta(seconds=number), "ng", f"p{number}")


def test_a_name_tells_time_verdict_and_part() -> None:
    assert picture_name(AT, "ng", "A-1042") == "2026-11-28T10-00-00-123Z-ng-A-1042.jpg"


@pytest.mark.parametrize("part", ["../../etc/passwd", "", "a" * 500, "ä/ö\n", ".hidden"])
def test_a_name_leads_nowhere_else(part: str, tmp_path: Path) -> None:
    name = picture_name(AT, "unsure", part)
    assert (tmp_path / name).resolve().parent == tmp_path.resolve()
    assert len(name) < 120


def test_the_oldest_pictures_make_room(tmp_path: Path) -> None:
    kept = PartPictures(tmp_path / "parts" / "line", 1000)
    paths = []
    for number in range(5):
        paths.append(kept.keep(named(number), lambda: bytes(400)))
        wait_for(lambda: (tmp_path / "parts" / "line" / named(number)).exists())  # noqa: B023
    kept.close(20.0)
    assert sorted(one.name for one in (tmp_path / "parts" / "line").iterdir()) == [named(3), named(4)]


def test_pictures_of_earlier_runs_count_and_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / named(0)).write_bytes(bytes(400))
    (tmp_path / named(1)).write_bytes(bytes(400))
    (tmp_path / "2026-11-28T10-00-00Z-person-front-1.mp4").write_bytes(bytes(5000))
    kept = PartPictures(tmp_path, 1000)
    kept.keep(named(2), lambda: bytes(400))
    kept.close(20.0)
    found = sorted(one.name for one in tmp_path.iterdir())
    assert found == sorted([named(1), named(2), "2026-11-28T10-00-00Z-person-front-1.mp4"])


def test_a_picture_that_is_larger_than_all_may_be_is_told_and_deletes_none(tmp_path: Path) -> None:
    (tmp_path / named(7)).write_bytes(bytes(900))
    kept = PartPictures(tmp_path, 1000)
    kept.keep(named(0), lambda: bytes(2000))
    wait_for(lambda: kept.trouble)
    assert "keep_bytes" in kept.trouble
    kept.close(20.0)
    assert (tmp_path / named(7)).exists()


def test_what_fails_in_no_expected_way_ends_nothing(tmp_path: Path) -> None:
    kept = PartPictures(tmp_path, 1000)
    kept.keep(named(0), lambda: bytes(1 // 0))
    wait_for(lambda: kept.trouble)
    assert "ZeroDivisionError" in kept.trouble
    path = kept.keep(named(1), lambda: b"1")
    kept.close(20.0)
    assert path is not None
    assert path.exists()


def test_a_folder_that_is_deleted_meanwhile_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "clips" / "line"
    kept = PartPictures(folder, 1000)
    kept.keep(named(0), lambda: b"1")
    wait_for((folder / named(0)).exists)
    shutil.rmtree(tmp_path / "clips")
    path = kept.keep(named(1), lambda: b"1")
    kept.close(20.0)
    assert path is not None
    assert path.exists()


def test_a_folder_that_cannot_be_made_is_told_once_and_the_next_picture_tries_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "parts").write_text("a file")
    kept = PartPictures(tmp_path / "parts" / "line", 1000)
    kept.keep(named(0), lambda: b"1")
    kept.keep(named(1), lambda: b"1")
    wait_for(lambda: kept.trouble)
    (tmp_path / "parts").unlink()
    path = kept.keep(named(2), lambda: b"1")
    kept.close(20.0)
    assert path is not None
    assert path.read_bytes() == b"1"
    assert kept.trouble == ""
    assert sum("are not kept" in one.message for one in caplog.records) == 1


def test_a_slow_disk_loses_pictures_and_not_time(tmp_path: Path) -> None:
    blocked = threading.Event()
    kept = PartPictures(tmp_path, 10_000)
    kept.run(lambda: blocked.wait(60.0))
    paths = [kept.keep(named(number), lambda: b"1") for number in range(12)]
    assert paths.count(None) >= 3
    assert "slower than the line" in kept.trouble
    blocked.set()
    wait_for(lambda: len(list(tmp_path.iterdir())) == 12 - paths.count(None))
    kept.close(20.0)


def test_a_disk_that_hangs_is_not_waited_for_and_its_thread_ends_when_it_can(tmp_path: Path) -> None:
    blocked = threading.Event()
    kept = PartPictures(tmp_path, 10_000)
    kept.run(lambda: blocked.wait(60.0))
    for number in range(12):
        kept.keep(named(number), lambda: b"1")
    kept.close(0.01)
    blocked.set()
    wait_for(lambda: not kept._thread.is_alive())
