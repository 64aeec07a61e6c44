from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.comms.mqtt.endpoint import client_id
from agent.comms.topics import Topics

TOPICS = Topics("site/a", "porch")


def test_every_topic_begins_with_the_device() -> None:
    assert TOPICS.status == "site/a/porch/status"
    assert TOPICS.health == "site/a/porch/health"
    assert TOPICS.events("front") == "site/a/porch/front/events"
    assert TOPICS.detections("front") == "site/a/porch/front/detections"
    assert TOPICS.snapshot("front") == "site/a/porch/front/snapshot"
    assert TOPICS.count("front", "traffic light") == "site/a/porch/front/count/traffic_light"
    assert (
        TOPICS.zone_count("front", "road", "traffic light") == "site/a/porch/front/zone/road/count/traffic_light"
    )


def test_what_a_stream_leaves_is_told_from_what_another_leaves() -> None:
    left = (
        TOPICS.snapshot("front"),
        TOPICS.count("front", "cat"),
        TOPICS.zone_count("front", "road", "cat"),
        TOPICS.line("front", "gate"),
    )
    assert all(topic.startswith(TOPICS.retained_of("front")) for topic in left)
    assert not any(topic.startswith(TOPICS.retained_of("fro")) for topic in left)


@given(st.text(min_size=1))
def test_a_label_is_one_level_whatever_it_holds(label: str) -> None:
    level = TOPICS.count("front", label).removeprefix("site/a/porch/front/count/")
    assert not set(level) & set("/+# \0")
    assert level.isprintable()


def test_the_client_id_fits_every_broker_and_tells_devices_apart() -> None:
    own = client_id(TOPICS)
    assert own == client_id(TOPICS)
    assert len(own) == 23
    assert own.isalnum()
    assert own != client_id(Topics("site/a", "gate"))
    assert own != client_id(Topics("site/b", "porch"))
