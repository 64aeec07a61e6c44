"""Board profiles: which one a board gets, what it adds, and that those that come along keep their promises."""

from __future__ import annotations

import platform
import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.board.identity import read_board
from agent.compute.infer.delegates import ROWS
from agent.config import CaptureConfig, Config
from agent.config.load import ConfigFile, choose, dump, load, merged, parse, shipped
from agent.errors import ConfigError
from tests.support.running import ROOT

CAMERA = '[streams.front]\nsource = "v4l2:/dev/video0"\nmodel = "nanodet"\n'
SHIPPED = {path.stem: path for path in shipped()}
MINE = """
[board]
title = "Mine"
[stream.gate]
hold_s = 3
[storage]
spool_max_bytes = 100000
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "vedette.toml"


def board(root: Path, *compatible: str, soc_id: str = "") -> Path:
    """A root whose kernel tells this of its board."""
    (root / "proc/device-tree").mkdir(parents=True)
    (root / "proc/device-tree/compatible").write_text("".join(f"{name}\0" for name in compatible))
    (root / "sys/devices/soc0").mkdir(parents=True)
    (root / "sys/devices/soc0/soc_id").write_text(f"{soc_id}\n")
    return root


def read(file: Path, text: str, root: Path) -> ConfigFile:
    file.write_text(text)
    return load(file, root)


@pytest.mark.parametrize(
    ("name", "compatible", "soc_id"),
    [
        ("pi4b", ("raspberrypi,4-model-b", "brcm,bcm2711"), ""),
        ("pi4b", ("raspberrypi,400", "brcm,bcm2711"), ""),
        ("pi4b", ("raspberrypi,4-compute-module-s", "brcm,bcm2711"), ""),
        ("pi4b", ("kunbus,revpi-connect-se", "brcm,bcm2711"), ""),
        ("pi5", ("raspberrypi,5-model-b", "brcm,bcm2712"), ""),
        ("pi5", ("raspberrypi,500", "brcm,bcm2712"), ""),
        ("pi5", ("raspberrypi,5-compute-module", "brcm,bcm2712"), ""),
        ("pi-zero2w", ("raspberrypi,model-zero-2-w", "brcm,bcm2837"), ""),
        ("sd865", ("qcom,qrb5165-rb5", "qcom,sm8250"), "455"),
        ("sd865", ("xiaomi,elish", "qcom,sm8250"), "356"),
        ("sd865", ("somebody,s-own",), "455"),
        ("qcs6490", ("qcom,qcs6490-rb3gen2", "qcom,qcm6490"), "498"),
        ("qcs6490", ("thundercomm,rubikpi3", "qcom,qcm6490"), ""),
        ("qcs6490", ("google,herobrine", "qcom,sc7280"), ""),
        ("qcs6490", (), "497"),
    ],
)
def test_a_board_gets_its_profile(root: Path, name: str, compatible: tuple[str, ...], soc_id: str) -> None:
    chosen = choose("auto", read_board(board(root, *compatible, soc_id=soc_id)))
    assert chosen is not None
    assert chosen.name == name


@pytest.mark.parametrize(
    ("arch", "name"), [("aarch64", "generic-arm64"), ("x86_64", "dev-x86"), ("armv7l", None), ("riscv64", None)]
)
def test_a_board_that_nobody_knows_gets_what_suits_its_architecture(
    root: Path, monkeypatch: pytest.MonkeyPatch, arch: str, name: str | None
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: arch)
    chosen = choose("auto", read_board(board(root, "raspberrypi,3-model-b", "brcm,bcm2837")))
    assert (chosen and chosen.name) == name


def test_the_board_itself_goes_before_its_soc(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "profiles"
    folder.mkdir()
    for name, compatible in (("a-soc", "brcm,*"), ("z-board", "acme,box-?")):
        (folder / f"{name}.toml").write_text(f'[board]\ntitle = "{name}"\ncompatible = ["{compatible}"]\n')
    monkeypatch.setattr("agent.config.load._FOLDERS", (tmp_path / "nothing", folder))
    chosen = choose("auto", read_board(board(root, "acme,box-1", "brcm,bcm2711")))
    assert chosen is not None
    assert chosen.name == "z-board"


def test_what_the_user_leaves_open_comes_from_the_profile(file: Path, root: Path) -> None:
    found = read(file, CAMERA, board(root, "raspberrypi,model-zero-2-w"))
    profile = tomllib.loads(SHIPPED["pi-zero2w"].read_text())
    stream = found.config.streams["front"]
    assert stream.capture.max_fps == profile["stream"]["capture"]["max_fps"]
    assert found.config.selection.candidates == tuple(profile["selection"]["candidates"])
    assert found.config.storage.spool_max_bytes == profile["storage"]["spool_max_bytes"]
    assert stream.capture.stall_s == CaptureConfig().stall_s
    assert found.remarks()["storage", "spool_max_bytes"] == "from the board's profile pi-zero2w"
    assert "profile: pi-zero2w: Raspberry Pi Zero 2 W (" in found.describe_board()


def test_what_the_user_says_wins(file: Path, root: Path) -> None:
    text = f"{CAMERA}capture.max_fps = 25\n[selection]\nthreads_max = 1\n"
    found = read(file, text, board(root, "raspberrypi,4-model-b"))
    assert found.config.streams["front"].capture.max_fps == 25
    assert found.config.selection.threads_max == 1
    assert found.config.selection.candidates == ("edgetpu",)
    assert not {("selection", "threads_max"), ("streams", "front", "capture", "max_fps")} & set(found.remarks())


@pytest.mark.parametrize("source", ["file:clip.mp4?pace=fast", "v4l2:/dev/video0?size=640x480&fps=30"])
def test_a_source_that_says_how_many_pictures_it_wants_keeps_them(file: Path, root: Path, source: str) -> None:
    text = CAMERA.replace("v4l2:/dev/video0", source)
    assert read(file, text, board(root, "raspberrypi,4-model-b")).config.streams["front"].capture.max_fps == 0


def test_a_profile_can_be_forced_and_be_done_without(file: Path, root: Path) -> None:
    here = board(root, "raspberrypi,4-model-b")
    forced = read(file, f'{CAMERA}[device]\nprofile = "qcs6490"\n', here)
    assert forced.profile is not None
    assert forced.config.selection.candidates == ("qnn-htp", "qnn-gpu", "gpu", "gpu-f32", "edgetpu")
    without = read(file, f'{CAMERA}[device]\nprofile = "none"\n', here)
    assert without.config == parse(file.read_text(), "x").config
    assert without.remarks() == {}


def test_a_board_without_a_profile_is_told(file: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "armv7l")
    found = read(file, CAMERA, board(root))
    assert found.remarks() == {("device", "profile"): "no profile fits this board"}
    assert found.describe_board().endswith("profile: none")
    assert found.config == parse(CAMERA, "x").config


def test_a_profile_of_ones_own_is_a_path(file: Path, root: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text(MINE)
    found = read(file, f'{CAMERA}[device]\nprofile = "{mine}"\n', board(root))
    assert (found.config.streams["front"].gate.hold_s, found.config.storage.spool_max_bytes) == (3.0, 100000)
    assert found.where("streams", "front", "gate", "hold_s") == f"{mine}:5"
    assert found.where("storage", "spool_max_bytes") == f"{mine}:7"
    assert found.where("streams", "front", "source") == f"{file}:2"


@pytest.mark.parametrize(
    ("profile", "why"),
    [
        ("pi4", "no profile 'pi4'; did you mean 'pi4b'?"),
        (
            "qqq",
            "no profile 'qqq'; known: auto, dev-x86, generic-arm64, none, pi-zero2w, pi4b, pi5, qcs6490, sd865",
        ),
        ("/nothing/here.toml", "no such file: /nothing/here.toml"),
        ("/", "no such file: /"),
    ],
)
def test_an_unknown_profile_is_told_at_its_line_among_the_other_errors(
    file: Path, root: Path, profile: str, why: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(file, f'{CAMERA}[device]\nprofile = "{profile}"\nnmae = "x"\n', board(root))
    first, second = str(caught.value).splitlines()
    assert first == f"{file}:5: `device.profile`: {why}"
    assert second.startswith(f"{file}:6: unknown key `device.nmae`")


@pytest.mark.parametrize("device", ["device = 3\n", "[device]\nprofile = 3\n", '[device]\nprofile = ""\n'])
def test_a_profile_that_is_no_text_is_a_wrong_value(file: Path, root: Path, device: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{file}:\d: `device(\.profile)?`: "):
        read(file, device, board(root))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "[board]\ntitle = 'x'\n[stream.capture]\nmaxfps = 3\n",
            ":4: unknown key `stream.capture.maxfps`; did you",
        ),
        ("[board]\ntitle = 'x'\n[stream]\nmodel = 'x'\n", ":4: unknown key `stream.model`; known: capture, "),
        ("[board]\ntitle = 'x'\n[thermal]\nwarn_c = 'hot'\n", ":4: `thermal.warn_c`: expected a number"),
        ("[board]\ntitle = 'x'\n[mqtt]\nhost = 'x'\n", ":3: unknown key `mqtt`"),
        ("[board]\ncompatible = []\n", ":1: `board`: missing key `title`"),
        ("[thermal]\nwarn_c = 3\n", ": `board`: missing key `title`"),
        ("[board\n", ":1: not TOML"),
    ],
)
def test_a_broken_profile_is_told_at_its_own_line(
    file: Path, root: Path, tmp_path: Path, text: str, why: str
) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read(file, f'{CAMERA}[device]\nprofile = "{mine}"\n', board(root))
    assert str(caught.value).startswith(f"{mine}{why}")


@pytest.mark.parametrize("name", SHIPPED)
def test_what_is_shown_with_a_profile_is_read_back_the_same(file: Path, root: Path, name: str) -> None:
    here = board(root)
    found = read(file, f'{CAMERA}[device]\nprofile = "{name}"\n', here)
    again = read(file, dump(found.config, found.remarks()), here)
    assert again.config == found.config
    assert again.inherited == frozenset()


def test_the_boards_that_were_promised_are_there() -> None:
    assert {"pi4b", "pi5", "pi-zero2w", "sd865", "qcs6490", "generic-arm64", "dev-x86"} == set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_candidate_of_a_profile_is_one_that_is_known(name: str) -> None:
    said = tomllib.loads(SHIPPED[name].read_text()).get("selection", {}).get("candidates", [])
    assert len(said) == len(set(said))
    assert set(said) <= {row.name for row in ROWS}


def test_a_pi_4b_is_not_given_the_gpu_whose_library_ends_its_process() -> None:
    assert "gpu" not in tomllib.loads(SHIPPED["pi4b"].read_text())["selection"]["candidates"]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_value_of_a_profile_has_its_reason(name: str) -> None:
    lines = SHIPPED[name].read_text().splitlines()
    bare = [
        f"{SHIPPED[name]}:{number}"
        for number, line in enumerate(lines, 1)
        if re.match(r"[\w-]+\s*=", line)
        and not line.startswith("title")
        and not lines[number - 2].startswith("#")
        and "#" not in line
    ]
    assert bare == []


def test_the_profiles_are_part_of_the_wheel() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert build["force-include"] == {"firmware_configs": "agent/firmware_configs"}


keys = st.sampled_from(["a", "b", "c"])
values = st.integers() | st.lists(st.integers(), max_size=2)
tables = st.recursive(
    st.dictionaries(keys, values, max_size=3), lambda inner: st.dictionaries(keys, values | inner, max_size=3)
)


def leaves(table: Any, at: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Return the leaves of a table by path; an empty table is a leaf."""
    if not isinstance(table, dict) or not table:
        return {at: table}
    return {keys: value for key, inner in table.items() for keys, value in leaves(inner, (*at, key)).items()}


def is_met(at: tuple[str, ...], above: dict[tuple[str, ...], Any]) -> bool:
    """Return True if `above` has a value at this path, on the way to it, or beyond it, but for empty tables."""
    return any(
        all(a == b for a, b in zip(at, over, strict=False)) and (value != {} or len(over) >= len(at))
        for over, value in above.items()
    )


@given(tables, tables)
def test_merging_keeps_all_that_is_above_and_what_does_not_meet_it_from_below(below: Any, above: Any) -> None:
    both, upper = leaves(merged(below, above)), leaves(above)
    kept = {at: value for at, value in leaves(below).items() if value != {} and not is_met(at, upper)}
    said = {at: value for at, value in upper.items() if value != {}}
    assert {at: value for at, value in both.items() if value != {}} == kept | said


@given(tables)
def test_merging_with_nothing_changes_nothing(table: Any) -> None:
    assert merged(table, {}) == table == merged({}, table) == merged(table, table)


def test_the_schema_of_the_configuration_knows_profiles_and_heat() -> None:
    known = msgspec.json.schema(Config)["$defs"]
    assert "profile" in known["DeviceConfig"]["properties"]
    assert "warn_c" in known["ThermalConfig"]["properties"]
