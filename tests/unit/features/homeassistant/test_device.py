from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.features.homeassistant.device import distinct, node, slug

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
