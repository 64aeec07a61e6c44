from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.comms.mqtt.properties import LARGEST, Kind, PublishProperties, PublishPropertiesFactory

TOPICS = [f"vedette/porch/camera{number}/events" for number in range(6)]
KINDS: list[Kind] = ["event", "sample"]


def alias_of(envelope: PublishProperties) -> int:
    assert envelope.properties is not None
    packed = envelope.properties.pack()
    assert len(packed) <= LARGEST
    read, length = Properties(PacketTypes.PUBLISH).unpack(packed)  # type: ignore[no-untyped-call]
    assert length == len(packed)
    return int(getattr(read, "TopicAlias", 0))


@given(
    st.integers(0, 8),
    st.integers(0, 4_000_000_000),
    st.lists(st.tuples(st.sampled_from(TOPICS), st.booleans()), max_size=40),
)
def test_a_broker_can_always_tell_the_topic(aliases: int, expiry_s: int, sent: list[tuple[str, bool]]) -> None:
    envelopes = PublishPropertiesFactory(expiry_s, aliases, mqtt_5=True)
    known: dict[int, str] = {}
    for topic, is_refused in sent:
        envelope = envelopes.of(topic, b"{}", KINDS[TOPICS.index(topic) % 2])
        alias = alias_of(envelope)
        assert alias <= aliases
        if is_refused:  # paho would not take it, so the broker has not heard of it
            envelopes.forget(topic)
            continue
        if envelope.topic and alias:
            known[alias] = envelope.topic
        assert (envelope.topic or known[alias]) == topic


def test_without_mqtt_5_there_is_nothing() -> None:
    envelopes = PublishPropertiesFactory(60, 10, mqtt_5=False)
    for _ in range(2):
        assert envelopes.of("a", b"{}", "event") == PublishProperties("a", None)


def test_the_largest_alias_and_expiry_fit() -> None:
    envelopes = PublishPropertiesFactory(4_000_000_000, 65_535, mqtt_5=True)
    aliases = [alias_of(envelopes.of(f"t{number}", b"{}", "event")) for number in range(65_535)]
    assert aliases[-1] == 65_535
    assert envelopes.of("one more", b"{}", "event").topic == "one more"
    assert alias_of(envelopes.of("one more", b"{}", "event")) == 0
