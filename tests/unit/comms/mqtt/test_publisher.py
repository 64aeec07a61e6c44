"""Which broker and which MQTT is tried next, and a change of the configuration."""

from __future__ import annotations

import math
import socket
import threading

from hypothesis import given
from hypothesis import strategies as st

from agent.comms.mqtt.connection import TIMINGS, ConnectionTimings
from agent.comms.mqtt.endpoint import UNSUPPORTED_PROTOCOL, RefusedError, UnansweredError
from agent.comms.mqtt.publisher import BrokerEndpoint, FailoverPolicy, Publisher
from agent.config.servers import MqttConfig, MqttVersion
from agent.errors import BrokerError
from tests.support.hostile import CONNACK_5, peer, receive_until, until_left
from tests.support.mosquitto import HOST
from tests.support.publishing import TOPICS, Kept, wait_for

PATIENCE_S = 10.0


def order(count: int = 3) -> FailoverPolicy:
    return FailoverPolicy(count, PATIENCE_S, 0.0)


def test_a_single_broker_is_tried_again_after_a_pause() -> None:
    one = order(1)
    for now in range(100):
        assert not one.failed(float(now), at_once=True)
        assert one.current == 0


def test_the_first_is_given_time_and_the_others_are_tried_in_their_order_at_once() -> None:
    it = order()
    assert not it.failed(1.0)
    assert not it.failed(9.9)
    assert it.current == 0
    assert it.failed(10.0)
    assert it.current == 1
    assert it.failed(10.1)
    assert it.current == 2
    assert not it.failed(10.2), "a round is over: a pause"
    assert it.current == 0
    assert it.failed(11.0), "the next round begins without patience"


def test_a_broker_that_refuses_us_is_not_waited_for() -> None:
    it = order()
    assert it.failed(0.1, at_once=True)
    assert it.current == 1


def test_a_short_restart_of_the_first_moves_nobody() -> None:
    it = order()
    it.connected(1.0)
    assert not it.lost(1000.0)
    assert not it.failed(1005.0)
    assert it.current == 0
    assert it.failed(1010.0)


def test_a_first_that_never_stays_is_left_too() -> None:
    it = order()
    now = 0.0
    while it.current == 0:
        it.connected(now)
        now += 1.0
        it.lost(now)
        assert now < 60.0
    assert it.current == 1


def test_when_a_fallback_is_lost_the_first_is_tried_first_and_without_patience() -> None:
    it = order()
    it.failed(20.0)
    it.connected(21.0)
    assert not it.lost(500.0)
    assert it.current == 0
    assert it.failed(500.5)
    assert it.current == 1


def test_on_a_fallback_the_first_is_tried_at_intervals() -> None:
    it = order()
    it.connected(0.0)
    assert not it.is_return_due(1e9), "it is in use"
    it.failed(20.0)
    it.connected(21.0)
    assert not it.is_return_due(20.0 + TIMINGS.return_every_s)
    assert it.is_return_due(21.0 + TIMINGS.return_every_s)
    it.postpone_return(621.0)
    assert not it.is_return_due(620.0 + TIMINGS.return_every_s)
    it.return_to_first()
    assert it.current == 0
    assert it.failed(700.0), "without patience: a fallback is there"
    assert it.current == 1


@given(
    st.integers(1, 4), st.lists(st.tuples(st.sampled_from(["fail", "refuse", "work", "lose"]), st.floats(0, 900)))
)
def test_whatever_happens_a_broker_is_current_and_none_is_tried_twice_in_one_round(
    count: int, steps: list[tuple[str, float]]
) -> None:
    it, now, in_a_row = order(count), 0.0, 0
    for step, pause in steps:
        now += pause
        if step == "work":
            it.connected(now)
            in_a_row = 0
        else:
            at_once = it.lost(now) if step == "lose" else it.failed(now, at_once=step == "refuse")
            in_a_row = in_a_row + 1 if at_once else 0
        assert 0 <= it.current < count
        assert in_a_row < count
        assert it.current > 0 or not it.is_return_due(math.nextafter(math.inf, 0))


SILENT, CLOSED = UnansweredError("x", silent=True), UnansweredError("x", silent=False)
TOO_NEW = RefusedError("x", UNSUPPORTED_PROTOCOL)


def choice(protocol: MqttVersion = "auto") -> BrokerEndpoint:
    return BrokerEndpoint(MqttConfig(protocol=protocol), "id", None)


def spoken(broker: BrokerEndpoint) -> str:
    return broker.protocol


def test_a_broker_that_says_it_does_not_speak_mqtt_5_is_tried_with_3_1_1_at_once() -> None:
    broker = choice()
    assert spoken(broker) == "5"
    assert broker.speaks_another(TOO_NEW)
    assert spoken(broker) == "3.1.1"
    broker._is_proven = True
    assert not broker.speaks_another(CLOSED)
    assert not broker.speaks_another(CLOSED)
    assert spoken(broker) == "3.1.1", "once proven, only the broker's word changes it"
    broker.speaks_another(TOO_NEW)
    assert spoken(broker) == "5"


def test_a_broker_that_keeps_silent_is_not_waited_for_long() -> None:
    broker = choice()
    assert broker.speaks_another(SILENT)
    assert spoken(broker) == "3.1.1"


def test_a_broker_that_hangs_up_gets_a_second_chance() -> None:
    broker = choice()
    assert not broker.speaks_another(CLOSED)
    assert not broker.speaks_another(BrokerError("nothing listens there"))
    assert spoken(broker) == "5"
    assert broker.speaks_another(CLOSED)
    assert spoken(broker) == "3.1.1"
    broker.speaks_another(CLOSED)
    broker.speaks_another(CLOSED)
    assert spoken(broker) == "5"


def test_a_configured_version_is_never_changed() -> None:
    versions: tuple[MqttVersion, ...] = ("5", "3.1.1")
    for version in versions:
        broker = choice(version)
        for error in (TOO_NEW, SILENT, CLOSED):
            assert not broker.speaks_another(error)
        assert spoken(broker) == version


def test_a_new_configuration_does_not_wait_for_a_broker_that_keeps_silent() -> None:
    connected: list[bytes] = []
    asked = threading.Event()

    def mute(connection: socket.socket) -> None:
        connection.recv(4096)
        asked.set()
        connection.recv(4096)

    def serve(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(CONNACK_5)
        connected.append(receive_until(connection, b"kept"))
        until_left(connection)

    patient = ConnectionTimings(answer_s=60.0, first_answer_s=60.0)
    with peer(mute) as first, peer(serve) as second:
        made = Publisher(MqttConfig(host=HOST, port=first, protocol="5"), TOPICS, Kept(), timings=patient)
        made.retain(TOPICS.health, b"kept")
        made.start()
        assert asked.wait(60.0)
        made.reconfigure(MqttConfig(host=HOST, port=second, protocol="5"))
        wait_for(lambda: made.state.connected, 50.0)  # the first broker is given 60 s
        assert made.state.broker == f"{HOST}:{second}"
        wait_for(lambda: connected)
        made.stop(1.0)
