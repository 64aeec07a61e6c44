"""Operators' overrides of the file, and when they lapse."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.config import Config, DecodeConfig, GateConfig, StreamConfig, TrackConfig, ZoneConfig
from agent.config.places import FilterConfig, LineConfig
from agent.daemon.overrides import Overrides, OverridesFile, Value, basis_of, decode
from agent.errors import StorageError

SQUARE = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0))
FRONT = StreamConfig(
    "test:",
    "nanodet",
    zones=(ZoneConfig("drive", SQUARE), ZoneConfig("lawn", SQUARE)),
    lines=(LineConfig("gate", SQUARE),),
    filters=(FilterConfig(("person",)), FilterConfig(("cat",), name="cats")),
    gate=GateConfig(masks=(SQUARE,)),
)
FILE = Config({"front": FRONT, "back": StreamConfig("test:", "nanodet", enabled=False)})

SETTINGS = st.one_of(
    st.tuples(st.just("enabled"), st.booleans()),
    st.tuples(st.just("threshold"), st.floats(0.0, 1.0)),
    st.tuples(st.just("variant"), st.sampled_from(["416", "256", "auto"])),
    st.tuples(st.sampled_from(["zone/drive", "zone/lawn", "line/gate", "filter/cats"]), st.booleans()),
    st.tuples(st.sampled_from(["only_moving", "motion_masks"]), st.booleans()),
)


def front(config: Config) -> StreamConfig:
    return config.streams["front"]


@given(st.lists(SETTINGS, max_size=10))
def test_what_is_set_is_used_and_survives_a_restart(settings: list[tuple[str, Value]]) -> None:
    overrides = Overrides()
    for what, value in settings:
        overrides = overrides.set(FILE, "front", what, value)
    again, dropped = decode(overrides.encode()).still_valid(FILE)
    assert (again, dropped) == (overrides, [])
    used = front(again.apply_to(FILE))
    last = dict(settings)
    assert used.enabled == last.get("enabled", True)
    assert used.decode.score_threshold == last.get("threshold")
    assert used.variant == last.get("variant", "")
    assert {zone.name: zone.enabled for zone in used.zones} == {
        name: last.get(f"zone/{name}", True) for name in ("drive", "lawn")
    }
    assert used.lines[0].enabled is last.get("line/gate", True)
    assert [one.enabled for one in used.filters] == [True, last.get("filter/cats", True)]
    assert used.gate.masks_enabled is last.get("motion_masks", True)
    assert used.track.only_moving is last.get("only_moving", False)
    assert again.apply_to(FILE).streams["back"] == FILE.streams["back"]


@given(st.lists(SETTINGS, max_size=10))
def test_back_to_the_file_leaves_nothing(settings: list[tuple[str, Value]]) -> None:
    overrides = Overrides()
    for what, value in settings:
        overrides = overrides.set(FILE, "front", what, value)
    for what, _ in settings:
        overrides = overrides.set(FILE, "front", what, None)
    assert overrides == Overrides()
    assert overrides.apply_to(FILE) == FILE


def test_what_the_file_says_anyway_is_no_override() -> None:
    off = Overrides().set(FILE, "front", "enabled", False)
    assert off.keys_of("front") == ("enabled",)
    assert off.set(FILE, "front", "enabled", True) == Overrides()


@pytest.mark.parametrize(
    ("what", "value", "change"),
    [
        ("enabled", False, {"enabled": False}),
        ("threshold", 0.7, {"decode": DecodeConfig(score_threshold=0.3)}),
        ("threshold", 0.7, {"model": "other"}),
        ("variant", "256", {"variant": "320"}),
        ("variant", "256", {"model": "other"}),
        ("zone/drive", False, {"zones": (ZoneConfig("drive", SQUARE, enabled=False),)}),
        ("only_moving", True, {"track": TrackConfig(only_moving=True)}),
    ],
)
def test_the_file_counts_again_when_it_says_something_else(
    what: str, value: Value, change: dict[str, Any]
) -> None:
    overrides = Overrides().set(FILE, "front", what, value)
    file = replace(FILE, streams={**FILE.streams, "front": replace(FRONT, **change)})
    kept, dropped = overrides.still_valid(file)
    assert kept == Overrides()
    assert dropped == [f"stream front: the file has changed {what}, so the setting by command lapses"]
    assert kept.apply_to(file) == file


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("zone/drive", {"zones": (ZoneConfig("path", SQUARE),)}),
        ("line/gate", {"lines": ()}),
        ("filter/cats", {"filters": (FilterConfig(("cat",), name="cat"),)}),
        ("motion_masks", {"gate": GateConfig()}),
    ],
)
def test_a_setting_of_what_was_removed_goes_with_it(what: str, change: dict[str, Any]) -> None:
    overrides = Overrides().set(FILE, "front", what, False)
    file = replace(FILE, streams={**FILE.streams, "front": replace(FRONT, **change)})
    told = f"stream front: {what} was removed, and with it its setting by command"
    assert overrides.still_valid(file) == (Overrides(), [told])


def test_what_else_changes_in_the_file_does_not_switch_a_camera_on() -> None:
    overrides = Overrides().set(FILE, "front", "enabled", False)
    changed = replace(FRONT, source="v4l2:/dev/video1", model="other", variant="x")
    kept, dropped = overrides.still_valid(Config({"front": changed}))
    assert (front(kept.apply_to(Config({"front": changed}))).enabled, dropped) == (False, [])


def test_a_stream_that_is_gone_takes_its_overrides_with_it() -> None:
    overrides = Overrides().set(FILE, "front", "enabled", False).set(FILE, "back", "enabled", True)
    kept, dropped = overrides.still_valid(Config({"back": FILE.streams["back"]}))
    assert kept.keys_of("back") == ("enabled",)
    assert dropped == ["stream front was removed, and with it its setting by command: enabled"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 200,
        b"{",
        b"\xff",
        b"[]",
        b'{"streams": 1}',
        b'{"streams": {"front": {"enabled": {"value": []}}}}',
        b'{"x": 1}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_file_is_refused_in_plain_words(data: bytes) -> None:
    with pytest.raises(StorageError, match="not readable as overrides"):
        decode(data)


@pytest.mark.parametrize(
    ("what", "value"),
    [("enabled", b'"on"'), ("threshold", b'"x"'), ("threshold", b"7"), ("threshold", b"true"), ("variant", b"1")],
)
def test_a_value_of_the_wrong_kind_is_dropped(what: str, value: bytes) -> None:
    basis = Overrides().set(FILE, "front", what, {"enabled": False, "threshold": 0.1}.get(what, "256"))
    text = basis.encode().decode()
    head, _, tail = text.rpartition('"value": ')
    head = re.sub(r'"check": "[0-9a-f]+"', '"check": ""', head)
    damaged = decode(f'{head}"value": {value.decode()}\n{tail.partition(chr(10))[2]}'.encode())
    kept, dropped = damaged.still_valid(FILE)
    assert kept == Overrides()
    assert len(dropped) == 1


def test_of_a_zone_that_there_is_not_the_file_says_nothing() -> None:
    assert basis_of(FRONT, "zone/road") is None
    assert basis_of(FRONT, "source") is None
    assert decode(b'{"streams": {}}') == Overrides()


@given(st.lists(SETTINGS, min_size=1, max_size=5), st.data())
def test_a_bit_that_has_fallen_over_is_noticed(settings: list[tuple[str, Value]], data: st.DataObject) -> None:
    """Else a stream could get another name, and lose what was set of it."""
    overrides = Overrides().set(FILE, "front", "threshold", 0.123)
    for what, value in settings:
        overrides = overrides.set(FILE, "front", what, value)
    said = bytearray(overrides.encode())
    bit = data.draw(st.integers(0, 8 * len(said) - 1))
    said[bit // 8] ^= 1 << bit % 8
    try:
        found = decode(bytes(said))
    except StorageError:
        return
    assert found == overrides


def test_one_that_was_written_by_hand_needs_no_checksum() -> None:
    found = decode(b'{"streams": {"front": {"enabled": {"value": false, "basis": [true]}}}}')
    assert found == Overrides().set(FILE, "front", "enabled", False)


def off(name: str = "front") -> Overrides:
    return Overrides().set(Config({name: StreamConfig("test:", "nanodet")}), name, "enabled", False)


def test_a_change_replaces_the_file_and_nothing_set_leaves_none(tmp_path: Path) -> None:
    file = OverridesFile(tmp_path)
    assert file.read() == Overrides()
    file.write(off())
    assert OverridesFile(tmp_path).read() == off()
    file.write(Overrides())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", [b"", b"\0\0\0\0", b'{"streams": {"front"'])
def test_a_damaged_file_is_refused_and_set_aside(tmp_path: Path, damage: bytes) -> None:
    file = OverridesFile(tmp_path)
    file.path.write_bytes(damage)
    with pytest.raises(StorageError, match=str(file.path)):
        file.read()
    (aside,) = file.set_aside()
    assert aside.read_bytes() == file.path.read_bytes() == damage
