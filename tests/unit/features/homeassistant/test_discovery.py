"""The discovery message as a table of what each kind of stream gives, and for names of every kind."""

from __future__ import annotations

import json
import re
import string
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.comms.topics import Topics
from agent.config import PublishConfig, StreamConfig
from agent.config.features import InspectionConfig
from agent.config.places import LineConfig
from agent.daemon.parts import EntityPlace, Parts
from agent.daemon.parts import entities as of_features
from agent.features.homeassistant.discovery import (
    DeviceEntitySource,
    StreamEntitySource,
    ZoneLabel,
    distinct,
    entities,
    node,
    slug,
)
from agent.features.homeassistant.part import ORIGIN, PLATFORMS, message, read, topic
from agent.models.findings import Kind

TOPICS = Topics("vedette", "porch")
FRONT = StreamEntitySource(
    "front",
    "things",
    ("person", "car", "traffic light"),
    configured_labels=(ZoneLabel("", "person"), ZoneLabel("drive", "person")),
    zones=("drive",),
    variants=("auto", "416", "256"),
)


def featured(source: StreamEntitySource, topics: Topics, **publish: bool) -> StreamEntitySource:
    """A stream with the entities of its features."""
    published = PublishConfig(counts=source.counts, events=source.events, **publish)
    lines = tuple(LineConfig(name, ((0.0, 0.0), (1.0, 1.0))) for name in source.lines)
    inspection = InspectionConfig(trigger="command") if source.inspection else None
    config = StreamConfig("file:front.mp4", "", publish=published, lines=lines, inspection=inspection)
    place = EntityPlace(topics, source.name, config, source.kind, source.commands, Path("/no-state"), Parts())
    return replace(source, of_features=of_features(place))


def device(
    *streams: StreamEntitySource, topics: Topics = TOPICS, sensors: tuple[str, ...] = ("temperature",)
) -> DeviceEntitySource:
    shown = tuple(featured(one, topics) for one in streams)
    return DeviceEntitySource(
        topics,
        "Raspberry Pi 4 Model B",
        "0.1.0",
        frozenset(sensors),
        shown,
    )


def told(made: DeviceEntitySource, known: tuple[str, ...] = (), most: int = 16) -> dict[str, dict[str, Any]]:
    return entities(made, known, most)


def of_front(subject: StreamEntitySource = FRONT, known: tuple[str, ...] = (), most: int = 16) -> set[str]:
    return {name for name in told(device(subject), known, most) if name.startswith("front.")}


_SAME = {"front.enabled", "front.threshold", "front.state", "front.fps"}
_PICTURES = {"front.picture", "front.snapshot", "front.variant"}


@pytest.mark.parametrize(
    ("kind", "ids"),
    [
        (
            "things",
            {
                "front.occupancy.person",
                "front.count.person",
                "front.zone.drive.occupancy.person",
                "front.zone.drive.count.person",
                "front.zone.drive.enabled",
                "front.only_moving",
                *_PICTURES,
            },
        ),
        ("verdicts", {"front.occupancy.person", "front.zone.drive.occupancy.person", *_PICTURES}),
        ("sounds", {"front.occupancy.person", "front.zone.drive.occupancy.person", "front.variant"}),
        ("words", {"front.keyword", "front.variant"}),
        (None, set()),
    ],
)
def test_what_a_model_finds_decides_what_there_is(kind: Kind | None, ids: set[str]) -> None:
    assert of_front(replace(FRONT, kind=kind)) - {"front.variant"} == (ids | _SAME) - {"front.variant"}
    assert ("front.variant" in of_front(replace(FRONT, kind=kind))) is True


def test_the_device_tells_of_itself() -> None:
    own = {name for name in told(device()) if "." not in name}
    assert own == {"connection", "hot", "temperature", "waiting", "dropped", "version", "seen", "update"}
    assert "temperature" not in told(device(sensors=()))


def test_what_the_board_measures_has_a_sensor() -> None:
    found = told(device(sensors=("power", "under_voltage", "battery")))
    assert found["power"]["unit_of_measurement"] == "W"
    assert found["under_voltage"]["device_class"] == "problem"
    assert "else 'None'" in found["under_voltage"]["value_template"], "what nothing tells is unknown, not off"
    assert found["battery"]["unit_of_measurement"] == "%"
    assert not {"power", "under_voltage", "battery"} & told(device()).keys()


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        (
            "front.occupancy.person",
            {
                "platform": "binary_sensor",
                "name": "Front person",
                "device_class": "occupancy",
                "state_topic": "vedette/porch/front/count/person",
            },
        ),
        (
            "front.zone.drive.count.person",
            {
                "platform": "sensor",
                "name": "Front drive person count",
                "state_topic": "vedette/porch/front/zone/drive/count/person",
            },
        ),
        (
            "front.enabled",
            {
                "platform": "switch",
                "command_topic": "vedette/porch/front/set/enabled",
                "state_topic": "vedette/porch/front/state/enabled",
                "payload_on": "on",
                "payload_off": "off",
            },
        ),
        ("front.zone.drive.enabled", {"command_topic": "vedette/porch/front/set/zone/drive"}),
        ("front.threshold", {"platform": "number", "min": 0, "max": 1}),
        ("front.variant", {"platform": "select", "options": ["auto", "416", "256"]}),
        ("front.snapshot", {"platform": "button", "command_topic": "vedette/porch/front/set/snapshot"}),
        ("front.picture", {"platform": "image", "image_topic": "vedette/porch/front/snapshot"}),
        ("front.state", {"device_class": "enum", "state_topic": "vedette/porch/health"}),
        ("hot", {"platform": "binary_sensor", "device_class": "problem"}),
        ("seen", {"device_class": "timestamp", "availability": []}),
        ("update", {"platform": "update"}),
    ],
)
def test_an_entity_listens_and_speaks_where_the_device_does(name: str, fields: dict[str, Any]) -> None:
    assert told(device(FRONT))[name].items() >= fields.items()


def test_a_word_is_an_event_of_its_kind() -> None:
    heard = told(device(replace(FRONT, kind="words", labels=("one", "two"))))["front.keyword"]
    assert heard["platform"] == "event"
    assert heard["event_types"] == ["one", "two"]
    assert heard["state_topic"] == "vedette/porch/front/events"


@pytest.mark.parametrize(
    ("off", "gone"),
    [
        ({"counts": False}, {"front.occupancy.person", "front.count.person"}),
        ({"commands": False}, {"front.enabled", "front.threshold", "front.variant", "front.snapshot"}),
        ({"variants": ("only",)}, {"front.variant"}),
    ],
)
def test_what_is_not_published_is_not_announced(off: dict[str, Any], gone: set[str]) -> None:
    assert gone <= of_front()
    assert not gone & of_front(replace(FRONT, **off))


def test_a_stream_without_snapshots_has_no_picture() -> None:
    assert "front.picture" in featured(FRONT, TOPICS).of_features
    assert "front.picture" not in featured(FRONT, TOPICS, snapshot=False).of_features


def test_a_silent_stream_of_words_has_no_event() -> None:
    assert "front.keyword" not in of_front(replace(FRONT, kind="words", events=False))


def test_a_label_that_nobody_named_becomes_an_entity_when_it_was_seen_and_stays() -> None:
    free = replace(FRONT, configured_labels=())
    assert "front.occupancy.car" not in of_front(free)
    seen = replace(free, counted_labels=(ZoneLabel("", "car"), ZoneLabel("drive", "car")))
    assert {"front.occupancy.car", "front.zone.drive.count.car"} <= of_front(seen)
    known = tuple(of_front(seen))
    assert of_front(free, known) == of_front(seen), "and after a restart"
    assert "front.occupancy.car" not in of_front(replace(free, labels=("person",)), known), (
        "the model was exchanged"
    )


def test_there_are_no_more_than_so_many_labels_that_nobody_named() -> None:
    labels = tuple(f"thing{number}" for number in range(80))
    seen = tuple(ZoneLabel(zone, label) for label in labels for zone in ("", "drive"))
    many = replace(FRONT, labels=("person", *labels), counted_labels=seen)
    made = entities(device(many), (), 3)
    assert sum("occupancy.thing" in name for name in made) == 3 * 2
    assert "front.occupancy.person" in made, "the configuration names it"


def _body(made: DeviceEntitySource, gone: dict[str, str] | None = None) -> dict[str, Any]:
    return dict(json.loads(message(made, told(made), gone or {})))


def test_the_message_says_who_it_is_about_and_when_that_is_there() -> None:
    body = _body(device(FRONT))
    assert body["dev"]["ids"] == ["vedette/porch"]
    assert body["dev"]["name"] == "Porch"
    assert body["o"]["name"] == ORIGIN
    assert body["avty"][0]["t"] == "vedette/porch/status"
    watching = body["cmps"]["front.occupancy.person"]
    assert [one["t"] for one in watching["avty"]] == ["vedette/porch/status", "vedette/porch/health"]
    assert watching["avty_mode"] == "all"
    assert topic("homeassistant", "porch") == "homeassistant/device/porch/config"


def test_what_is_gone_is_removed_by_its_platform_alone_and_comes_first() -> None:
    parts = _body(device(FRONT), {"back.fps": "sensor"})["cmps"]
    assert parts["back.fps"] == {"p": "sensor"}
    assert next(iter(parts)) == "back.fps"


@given(st.dictionaries(st.from_regex(r"[a-z.]{1,20}", fullmatch=True), st.sampled_from(sorted(PLATFORMS))))
def test_whatever_is_removed_is_read_as_removed(gone: dict[str, str]) -> None:
    made = device()
    found = read(message(made, {}, gone), made)
    assert (found.alive, found.gone) == ({}, gone)


def test_every_platform_that_there_is_can_be_raised() -> None:
    kinds: list[Kind] = ["things", "words"]
    made = device(*(replace(FRONT, name=kind, kind=kind) for kind in kinds))
    assert {one["platform"] for one in told(made).values()} == PLATFORMS


def test_a_message_of_ours_is_understood() -> None:
    made = device(FRONT)
    found = read(message(made, told(made), {"back.fps": "sensor"}), made)
    assert found.alive == {name: one["platform"] for name, one in told(made).items()}
    assert found.gone == {"back.fps": "sensor"}
    assert not found.owner


@pytest.mark.parametrize(
    "body",
    [
        b"{not json",
        b"\xff\xfe",
        b"[]",
        b'{"cmps": 3}',
        b'{"o": {"name": "other"}, "dev": {"ids": ["vedette/porch"]}, "cmps": {}}',
        b'{"o": {"name": "Vedette"}, "dev": {"ids": ["eyes/porch"]}, "cmps": {}}',
        b"[" * 100_000,
    ],
)
def test_what_is_not_ours_is_somebody_elses(body: bytes) -> None:
    found = read(body, device())
    assert found.owner
    assert not found.alive
    assert not found.gone


def test_nothing_is_nobodys() -> None:
    assert not read(b"", device()).owner


def test_a_message_in_our_name_cannot_have_us_announce_what_we_do_not_know() -> None:
    forged = {"o": {"name": ORIGIN}, "dev": {"ids": ["vedette/porch"]}}
    parts = {f"x{number}": {"p": "sensor"} for number in range(10_000)}
    parts |= {"a": {"p": "lock"}, "b": {"p": "sensor", "uniq_id": "b"}, "y" * 1000: {"p": "sensor"}}
    found = read(
        json.dumps({**forged, "cmps": {**{"b": parts["b"], "a": parts["a"]}, **parts}}).encode(), device()
    )
    assert found.alive == {"b": "sensor"}
    assert len(found.gone) <= 2000
    assert told(device(FRONT), tuple(found.alive)).keys() == told(device(FRONT)).keys()


def test_a_line_has_counters_and_a_switch_and_its_stream_a_button_that_counts_anew() -> None:
    made = told(device(replace(FRONT, lines=("gate",))))
    inwards = made["front.line.gate.in"]
    assert inwards["state_topic"] == made["front.line.gate.out"]["state_topic"] == "vedette/porch/front/line/gate"
    assert (inwards["name"], inwards["state_class"]) == ("Front gate in", "total_increasing")
    assert made["front.line.gate.enabled"]["command_topic"] == "vedette/porch/front/set/line/gate"
    reset = made["front.reset"]
    assert (reset["command_topic"], reset["payload_press"]) == ("vedette/porch/front/set/reset", "all")
    assert not [name for name in told(device(replace(FRONT, lines=("gate",), counts=False))) if "gate.in" in name]


def test_named_filters_and_motion_masks_are_switches() -> None:
    made = told(device(replace(FRONT, filters=("cats",), motion_masks=True)))
    topics = {name: made[name]["command_topic"] for name in ("front.filter.cats.enabled", "front.motion_masks")}
    assert topics == {
        "front.filter.cats.enabled": "vedette/porch/front/set/filter/cats",
        "front.motion_masks": "vedette/porch/front/set/motion_masks",
    }
    assert made["front.motion_masks"]["state_topic"] == "vedette/porch/front/state/motion_masks"
    assert made["front.filter.cats.enabled"]["name"] == "Front cats filter"


_name = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,12}", fullmatch=True)
_text = st.one_of(
    st.sampled_from(
        ["Bark", "bark", "Smoke detector, smoke alarm", "traffic light", "traffic_light", "犬", "{{ 1/0 }}"]
    ),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
)


@st.composite
def _subjects(draw: st.DrawFn) -> StreamEntitySource:
    labels = tuple(draw(st.lists(_text, unique=True, max_size=5)))
    zones = tuple(draw(st.lists(_name, unique=True, max_size=3)))
    pairs = [ZoneLabel(zone, label) for zone in ("", *zones) for label in labels]
    some = st.lists(st.sampled_from(pairs), unique=True) if pairs else st.just([])
    kind = draw(st.one_of(st.none(), st.sampled_from(get_args(Kind))))
    variants = tuple(draw(st.lists(_name, unique=True, max_size=3)))
    told = tuple(draw(st.lists(_name, unique=True, max_size=2)))
    given = labels, tuple(draw(some)), tuple(draw(some)), zones, variants
    lines = tuple(draw(st.lists(_name, unique=True, max_size=2))) if kind == "things" else ()
    filters = tuple(draw(st.lists(_name, unique=True, max_size=2))) if kind == "things" else ()
    masks = draw(st.booleans()) if kind == "things" else False
    made = StreamEntitySource(draw(_name), kind, *given, attributes=told, lines=lines)
    return replace(made, filters=filters, motion_masks=masks)


@given(
    st.lists(_subjects(), unique_by=lambda one: one.name, max_size=3), _name, st.sampled_from(["vedette", "a/b"])
)
def test_ids_are_unique_and_valid_whatever_streams_zones_and_labels_are_called(
    subjects: list[StreamEntitySource], name: str, prefix: str
) -> None:
    made = device(*subjects, topics=Topics(prefix, name))
    parts = _body(made)["cmps"]
    ids = [part["uniq_id"] for part in parts.values()]
    assert len(set(ids)) == len(parts) == len(told(made))
    expected = 8 + sum(_expected(subject) for subject in subjects)
    assert len(parts) == expected, "no two have shared an id"
    assert all(set(one) <= set(f"{string.ascii_letters}{string.digits}._-") for one in parts)
    for part in parts.values():
        assert part["p"]
        assert part["name"].strip()
        topics = [value for key, value in part.items() if key.endswith("_t")]
        assert topics
        assert all(one.startswith(f"{prefix}/{name}/") and not set(one) & set("+#\0") for one in topics)
    again = read(json.dumps(_body(made)).encode(), made)
    assert again.alive == {name: part["p"] for name, part in parts.items()}


def _expected(subject: StreamEntitySource) -> int:
    pairs = len({*subject.configured_labels, *subject.counted_labels})
    things, pictures = subject.kind == "things", subject.kind in ("things", "verdicts", "texts")
    labels = 0 if subject.kind in ("words", None) else pairs * (2 if things else 1)
    labels = {"numbers": len(subject.labels), "texts": 1}.get(subject.kind or "", labels)
    heard = subject.kind == "words" and bool(subject.labels)
    # Of a line two sensors and a switch; of all lines a button; of things one more switch.
    lines = 3 * len(subject.lines) + bool(subject.lines) + things
    zones = (len(subject.zones) if things else 0) + lines
    zones += len(subject.filters) + subject.motion_masks
    # Of numbers there is a button for a snapshot in place of a threshold.
    return len(subject.attributes) + labels + heard + zones + 4 + (len(subject.variants) > 1) + 2 * pictures


@given(_subjects())
def test_no_name_of_a_stream_or_a_label_gets_into_a_template(subject: StreamEntitySource) -> None:
    templates = re.findall(
        r'"val_tpl":"((?:[^"\\]|\\.)*)"',
        message(device(subject), told(device(subject)), {}).decode(),
    )
    assert templates
    assert not any("1/0" in one for one in templates)


def test_streams_that_sound_alike_have_each_names_of_their_own() -> None:
    made = told(device(replace(FRONT, name="back-yard"), replace(FRONT, name="back_yard")))
    names = [one["name"] for one in made.values()]
    assert len(set(names)) == len(names)
    assert "Back yard person (back-yard)" in names
    assert "Back yard person (back_yard)" in names


def test_an_inspection_has_counters_and_a_verdict_in_place_of_labels() -> None:
    line = replace(FRONT, inspection=True, zones=())
    made = told(device(line))
    ids = {name for name in made if name.startswith("front.")}
    parts = {f"front.parts.{verdict}" for verdict in ("ok", "ng", "unsure")}
    assert ids == {*_SAME, *_PICTURES, *parts, "front.verdict", "front.inspect"}
    assert made["front.parts.ng"]["state_topic"] == "vedette/porch/front/inspection"
    assert made["front.inspect"]["command_topic"] == "vedette/porch/front/set/inspect"


def test_an_attribute_is_a_sensor_of_the_newest_event_that_has_it() -> None:
    made = told(device(replace(FRONT, attributes=("plate",))))
    sensor = made["front.attribute.plate"]
    assert sensor["state_topic"] == "vedette/porch/front/events"
    assert "'plate'" in sensor["value_template"]
    assert "this.state" in sensor["value_template"]
    silent = told(device(replace(FRONT, attributes=("plate",), events=False)))
    assert "front.attribute.plate" not in silent


@pytest.mark.parametrize(
    ("subject", "name"),
    [
        (replace(FRONT, attributes=("plate",)), "front.attribute.plate"),
        (replace(FRONT, kind="texts", labels=(), zones=(), configured_labels=()), "front.text"),
    ],
)
def test_what_is_told_once_is_unknown_and_not_a_word_where_it_was_missed(
    subject: StreamEntitySource, name: str
) -> None:
    template = told(device(subject))[name]["value_template"]
    assert "'None' if this.state in ('unknown', 'unavailable') else this.state" in template


def test_the_picture_of_a_stream_that_is_switched_off_is_unavailable() -> None:
    picture = told(device(FRONT))["front.picture"]
    assert [one["topic"] for one in picture["availability"]] == ["vedette/porch/status", "vedette/porch/health"]
    assert "'disabled'" in picture["availability"][1]["value_template"]
    assert "'lost'" not in picture["availability"][1]["value_template"], "the last picture is still of interest"


def test_a_measurement_is_a_sensor_with_its_unit() -> None:
    gauge = replace(
        FRONT, kind="numbers", labels=("oil level", "pressure"), unit="kPa", zones=(), configured_labels=()
    )
    made = told(device(gauge))
    sensors = {name: one for name, one in made.items() if ".value." in name}
    assert len(sensors) == 2
    assert {one["state_topic"] for one in sensors.values()} == {
        "vedette/porch/front/value/oil_level",
        "vedette/porch/front/value/pressure",
    }
    assert all(one["unit_of_measurement"] == "kPa" for one in sensors.values())
    assert not any("occupancy" in name for name in made)
    assert "front.picture" not in made  # there are no events
    assert "front.threshold" not in made
    assert "front.snapshot" in made


def test_a_text_that_is_read_is_one_sensor_and_part_of_no_topic() -> None:
    made = told(device(replace(FRONT, kind="texts", labels=(), zones=(), configured_labels=())))
    assert made["front.text"]["state_topic"] == "vedette/porch/front/events"
    assert "front.picture" in made
    assert not any("/count/" in str(one) for one in made.values())


_LABELS = [
    "person",
    "traffic light",
    "Bark",
    "bark",
    "Smoke detector, smoke alarm",
    "Hündchen",
    "犬",
    "",
    "a_b",
    "a b",
]


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("person", "person"),
        ("traffic light", "traffic_light_34d739"),
        ("Bark", "bark_"),
        ("Smoke detector, smoke alarm", "smoke_detector_smoke_alarm_"),
        ("Hündchen", "hundchen_"),
        ("犬", ""),
    ],
)
def test_a_part_of_an_id_is_plain_and_tells_what_it_is(text: str, made: str) -> None:
    found = slug(text)
    assert found == made or (found.startswith(made) and re.fullmatch("[0-9a-f]{6}", found.removeprefix(made)))


@given(st.lists(st.one_of(st.text(max_size=60), st.sampled_from(_LABELS)), unique=True, max_size=20))
def test_two_texts_never_make_the_same_id(texts: list[str]) -> None:
    made = [slug(text) for text in texts]
    assert all(re.fullmatch("[a-z0-9_-]{1,47}", one) for one in made)
    assert len(set(made)) == len(texts)


@given(st.text(max_size=40))
def test_what_was_made_of_a_text_is_not_made_of_itself_unless_it_is_that_text(text: str) -> None:
    made = slug(text)
    assert made == text or slug(made) != made


@pytest.mark.parametrize("device", ["porch", "Pi_4-B"])
def test_a_device_is_in_its_topic_as_it_is(device: str) -> None:
    assert node(device) == device


@given(st.lists(st.text(st.characters(categories=["L", "Nd"]), min_size=1, max_size=20), unique=True))
def test_any_host_name_makes_a_topic_that_home_assistant_takes(devices: list[str]) -> None:
    made = [node(device) for device in devices]
    assert all(re.fullmatch("[a-zA-Z0-9_-]+", one) for one in made)
    assert len(set(made)) == len(devices)


def test_names_that_sound_alike_say_what_they_belong_to() -> None:
    names = {
        "hot": "Too hot",
        "too.occupancy.hot": "Too hot",
        "back-yard.state": "Back yard state",
        "back_yard.state": "Back yard state",
        "front.count.a": "Front count",
        "front.count.b": "Front count",
        "front.state": "Front state",
    }
    assert list(distinct(names).values()) == [
        "Too hot",
        "Too hot (too)",
        "Back yard state (back-yard)",
        "Back yard state (back_yard)",
        "Front count (front.count.a)",
        "Front count (front.count.b)",
        "Front state",
    ]


@given(st.dictionaries(st.from_regex(r"[ab](\.[ab]{1,2})?", fullmatch=True), st.sampled_from(["A", "a", "B"])))
def test_of_names_of_streams_no_two_are_the_same(names: dict[str, str]) -> None:
    told = [name.casefold() for one, name in distinct(names).items() if "." in one]
    assert len(set(told)) == len(told)
