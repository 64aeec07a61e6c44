from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import ClipsConfig, Config, GateConfig, StreamConfig, ZoneConfig
from agent.config.load import dump, load, parse
from agent.config.servers import MqttConfig
from agent.errors import ConfigError

NAME_RULE = "use letters, digits, - and _, up to 63 characters; begin with a letter or digit"
SMALLEST = '[streams.front]\nsource = "test:"\nmodel = "nanodet"\n'

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,20}", fullmatch=True)
units = st.floats(0, 1)
texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)
corners = st.lists(st.tuples(units, units), min_size=3, max_size=6).map(tuple)
zones = st.builds(ZoneConfig, name=names, polygon=corners, labels=st.lists(texts, max_size=2).map(tuple))
clips = st.builds(ClipsConfig, events=st.booleans(), before_s=st.floats(0, 100))
gates = st.builds(GateConfig, motion=st.booleans(), sensitivity=units, hold_s=st.floats(0, 100))
streams = st.builds(
    StreamConfig,
    source=texts,
    model=texts,
    gate=gates,
    zones=st.lists(zones, max_size=2).map(tuple),
    clips=st.none() | clips,
)
configs = st.builds(
    Config,
    streams=st.dictionaries(names, streams, max_size=3),
    mqtt=st.builds(
        MqttConfig,
        host=texts,
        port=st.integers(0, 65535),
        tls=st.booleans(),
    ),
)


@given(configs)
def test_what_is_dumped_is_read_back_the_same(config: Config) -> None:
    assert parse(dump(config), "x").config == config


def test_a_remark_stands_at_its_key_and_is_no_part_of_it() -> None:
    config = parse(SMALLEST.replace("test:", "a\u2028b"), "x").config
    text = dump(config, {("streams", "front", "decode", "max_detections"): "many"})
    assert "max_detections = 100  # many\n" in text
    assert parse(text, "x").config == config


def test_an_empty_table_turns_clips_on() -> None:
    assert parse(SMALLEST, "x").config.streams["front"].clips is None
    assert parse(f"{SMALLEST}[streams.front.clips]\n", "x").config.streams["front"].clips == ClipsConfig()


def test_an_unknown_key_of_a_table_that_may_be_absent_is_named_with_its_line() -> None:
    with pytest.raises(
        ConfigError, match=r"^x:5: unknown key `streams.front.clips.before`; did you mean 'before_s'"
    ):
        parse(f"{SMALLEST}[streams.front.clips]\nbefore = 3\n", "x")


def test_the_smallest_file_is_three_lines() -> None:
    config = parse(SMALLEST, "v.toml").config
    assert config.streams["front"].source == "test:"
    assert config.streams["front"].gate.motion


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[mqtt]\nhots = 'x'", "v.toml:2: unknown key `mqtt.hots`; did you mean 'host'?"),
        ("[mqqt]\nhost = 'x'", "v.toml:1: unknown key `mqqt`; did you mean 'mqtt'?"),
        (f"{SMALLEST}threshold = 0.6", "`streams.front.threshold`; did you mean 'decode.score_threshold'?"),
        (f"{SMALLEST}[streams.front.decode]\nthreshold = 0.6", "did you mean 'score_threshold'?"),
        (f"{SMALLEST}[streams.front.capture]\nfps = 6", "did you mean 'max_fps'?"),
        (f"{SMALLEST}only_zones = true", "did you mean 'publish.only_zones'?"),
        (f"{SMALLEST}max_fps = 5", "did you mean 'capture.max_fps'?"),
        (f"{SMALLEST}rotate = 90", "unknown key `streams.front.rotate`; known: "),
        (f"{SMALLEST}fps = 5", "`streams.front.fps`; did you mean 'capture.max_fps'?"),
        (f"{SMALLEST}Variant = 'x'", "`streams.front.Variant`; did you mean 'variant'?"),
        (f"{SMALLEST}[streams.front.gate]\nthreshold = 1", "`streams.front.gate.threshold`; known: crop, "),
        ("[cameras.front]", "`cameras`; did you mean 'streams'?"),
        ("[streams.Front Door]", "v.toml:1: not TOML: "),
        ("[mqtt]\nport = 99999", "v.toml:2: `mqtt.port`: expected a whole number <= 65535; found 99999"),
        ("[mqtt]\nws_path = 'mqtt'", "v.toml:2: `mqtt.ws_path`: begin with /, and use printable ASCII"),
        ("[mqtt]\nws_path = '/a b'", "v.toml:2: `mqtt.ws_path`: begin with /, and use printable ASCII"),
        ("[mqtt]\nalpn = ['']", "v.toml:2: `mqtt.alpn[0]`: use 1 to 255 printable ASCII characters"),
        ("[mqtt]\nprefix = 'a//b'", "v.toml:2: `mqtt.prefix`: use one or more parts with / between them"),
        ("[device]\nname = 'a b'", f"v.toml:2: `device.name`: {NAME_RULE}; found 'a b'"),
        ("[homeassistant]\nprefix = '#'", "v.toml:2: `homeassistant.prefix`: use one or more parts"),
        (
            "[mqtt]\ntransport = 'tpc'",
            "v.toml:2: `mqtt.transport`: expected one of tcp, websockets; found 'tpc'",
        ),
        ("[selection]\nby = 'x'", "v.toml:2: `selection.by`: expected one of latency, energy; found 'x'"),
        ("mqtt = 3", "v.toml:1: `mqtt`: expected a table; found a whole number"),
        (
            "[storage]\ndurability = 'memory'",
            "v.toml:2: `storage.durability`: expected one of event, batch; found 'memory'",
        ),
        (
            "[storage.durability]\nupdates = 'batch'",
            "v.toml:1: `storage.durability`: expected one of event, batch; found a table",
        ),
        ("streams = 3", "v.toml:1: `streams`: expected a table; found a whole number"),
        (
            SMALLEST + "[streams.front.gate]\nhold_s = 'x'",
            "v.toml:5: `streams.front.gate.hold_s`: expected a number; found text",
        ),
        (SMALLEST + "gate = {motoin = true}", "v.toml:4: unknown key `streams.front.gate.motoin`; did you mean"),
        (
            SMALLEST
            + "[[streams.front.zones]]\nname='a'\npolygon=[]\n[[streams.front.zones]]\nnam='b'\npolygon=[]",
            "v.toml:8: unknown key `streams.front.zones[1].nam`; did you mean 'name'?",
        ),
        (
            "[streams.'a b']\nsource = 'test:'\nmodel = 'x'",
            f"v.toml:1: `streams.a b`: {NAME_RULE}; found 'a b'",
        ),
        ("[streams.a]\nmodel = 'x'", "v.toml:1: `streams.a`: missing key `source`"),
        ("a = \n", "v.toml:1: not TOML: Invalid value"),
        ("[mqtt]\nx = [", "v.toml:2: not TOML: Invalid value"),
        ("[mqtt]\nx = '''\n\n", "v.toml:3: not TOML: Expected"),
        ("a = " + "9" * 5000, "v.toml: not TOML: a number with too many digits"),
        ("a = " + "[" * 5000, "v.toml: not TOML: a number with too many digits, or brackets nested too deeply"),
        ("# two\n[streams.front.gate]\ncrop = true", "v.toml:2: `streams.front`: missing key"),
        (
            SMALLEST
            + "[[streams.front.zones]]\nname = 'a'\npolygon = [\n[0.1, 0.1],\n[0.9, 0.9]\n]\nlabel = 'x'",
            "v.toml:10: unknown key `streams.front.zones[0].label`; did you mean 'labels'?",
        ),
        ("[[mqtt]]\nhost = 'x'", "v.toml:1: `mqtt`: expected a table; found a list"),
        (
            "wat = 1",
            "v.toml:1: unknown key `wat`; known: device, fusion, governor, health, homeassistant, metrics, mqtt, "
            "page, selection, storage, streams, text, thermal",
        ),
    ],
)
def test_an_error_names_file_line_key_and_the_nearest(text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "v.toml")
    assert expected in str(caught.value)


def test_every_error_of_a_file_is_told_at_once_in_its_order() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("[mqtt]\nhots = 'x'\nport = -1\n[streams.a]\nsource = 'test:'\nmodel = 'x'\nrnug = 'y'", "v.toml")
    lines = str(caught.value).splitlines()
    assert [line.split(":")[1] for line in lines] == ["2", "3", "7"]


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.toml: cannot read the configuration: No such file"):
        load(tmp_path / "nothing.toml")


def test_a_file_that_is_not_utf8_says_so(tmp_path: Path) -> None:
    (tmp_path / "v.toml").write_bytes(b"a = '\xff'")
    with pytest.raises(ConfigError, match="not UTF-8 at byte 5"):
        load(tmp_path / "v.toml")


def test_a_file_of_a_windows_editor_is_read(tmp_path: Path) -> None:
    (tmp_path / "v.toml").write_bytes(b"\xef\xbb\xbf" + SMALLEST.encode())
    assert load(tmp_path / "v.toml").config.streams


def test_where_falls_back_to_the_table_above() -> None:
    file = parse(SMALLEST, "v.toml")
    assert file.where("streams", "front", "model") == "v.toml:3"
    assert file.where("streams", "front", "zones") == "v.toml:1"
    assert file.where("health") == "v.toml"


def test_the_schema_has_every_table() -> None:
    assert "StreamConfig" in msgspec.json.schema(Config)["$defs"]
