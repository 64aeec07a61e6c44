from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from agent.cli.main import vedette
from agent.errors import ConfigError
from agent.storage.clips.file import ClipFile, ClipLabel
from agent.types import ClipReason
from tests.support.clip_pictures import BEGAN, SECOND
from tests.support.media import Encoder, timed


def call(*args: str) -> Result:
    return CliRunner().invoke(vedette, ["clips", "list", *args], catch_exceptions=False)


def clip(folder: Path, name: str, occasion: ClipReason, began: datetime = BEGAN) -> Path:
    path = folder / "clips" / occasion.stream / f"{name}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    encoder = Encoder()
    shown = timed([encoder.packet(number, number * SECOND) for number in range(3)])
    file = ClipFile(path, ClipLabel(occasion, began), shown[0], None)
    file.append(shown)
    file.finish(())
    return path


@pytest.fixture
def config(tmp_path: Path) -> str:
    """A configuration whose state folder has two clips."""
    clip(tmp_path, "2026-11-25T10-15-04Z-asked-1a2b3c", ClipReason("back", "asked"))
    clip(tmp_path, "2026-11-25T10-15-03Z-person-1", ClipReason("front", "appeared", "1", "[red]\x1b[2Jperson"))
    path = tmp_path / "vedette.toml"
    path.write_text(f'[storage]\nstate_dir = "{tmp_path}"\n')
    return str(path)


def test_a_table_of_what_there_is_the_oldest_first(config: str, tmp_path: Path) -> None:
    shown = call("-c", config)
    assert shown.exit_code == 0
    _, _, first, second, total = shown.stdout.splitlines()
    assert first.split()[2:4] == ["front", "[red]\\x1b[2Jperson"]
    assert "3.0 s" in first
    assert "asked" in second
    assert second.rstrip().endswith("/clips/back/2026-11-25T10-15-04Z-asked-1a2b3c.mp4")
    assert total.startswith("2 clips, 0.0 MB")


def test_they_are_in_the_order_of_their_pictures_not_of_their_names(config: str, tmp_path: Path) -> None:
    earlier = clip(
        tmp_path, "2026-11-25T10-15-09Z-asked-ffffff", ClipReason("back", "asked"), BEGAN - timedelta(seconds=5)
    )
    assert json.loads(call("-c", config, "--json").stdout)[0]["path"] == str(earlier)


def test_the_help_tells_what_an_exit_with_1_means() -> None:
    assert "Exits with 1 if one of them is damaged or cut off." in " ".join(call("--help").stdout.split())


def test_as_json(config: str, tmp_path: Path) -> None:
    first, second = json.loads(call("-c", config, "--json").stdout)
    path = Path(first["path"])
    assert path == tmp_path / "clips" / "front" / "2026-11-25T10-15-03Z-person-1.mp4"
    assert first == {
        "path": str(path),
        "stream": "front",
        "began_at": "2026-11-25T10:15:03Z",
        "duration_s": 3.0,
        "bytes": path.stat().st_size,
        "label": "[red]\x1b[2Jperson",
        "track": "1",
        "reason": "appeared",
    }
    assert (second["reason"], second["track"]) == ("asked", "")


def test_only_those_of_a_stream_or_of_a_folder(config: str, tmp_path: Path) -> None:
    assert len(json.loads(call("-c", config, "--stream", "back", "--json").stdout)) == 1
    assert len(json.loads(call("--folder", str(tmp_path), "--json").stdout)) == 2


def test_a_state_folder_without_clips_has_none(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    assert json.loads(call("--folder", str(tmp_path), "--json").stdout) == []


def test_a_damaged_one_is_told_and_the_others_are_listed(config: str, tmp_path: Path) -> None:
    damaged = tmp_path / "clips" / "front" / "2026-11-25T10-15-05Z-person-2.mp4"
    damaged.write_bytes(b"no clip")
    shown = call("-c", config)
    assert shown.exit_code == 1
    assert f"{damaged}: is not a clip of Vedette's" in shown.stderr
    assert "2 clips" in shown.stdout


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_complete_clip_that_was_cut_is_damaged(config: str, tmp_path: Path, options: tuple[str, ...]) -> None:
    cut = tmp_path / "clips" / "front" / "2026-11-25T10-15-03Z-person-1.mp4"
    cut.write_bytes(cut.read_bytes()[:-100])
    shown = call("-c", config, *options)
    assert shown.exit_code == 1
    assert f"{cut}: is cut off" in shown.stderr
    assert str(cut) in shown.stdout
    assert "1a2b3c" in shown.stdout
    assert call("-c", config, "--stream", "back").exit_code == 0


def test_a_configuration_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        call("-c", str(tmp_path / "gone.toml"))
