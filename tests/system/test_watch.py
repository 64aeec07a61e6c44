"""`vedette watch` and its subscriber against a real broker."""

from __future__ import annotations

import json
import socket
import ssl
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from agent.cli.watch import watch
from agent.comms.consumer import BrokerOptions, Subscriber
from agent.errors import BrokerError
from tests.support.certificates import make_certificates
from tests.support.doubles import person_model
from tests.support.hostile import CONNACK_3, packets, peer, read_packet, until_left
from tests.support.mosquitto import HOST, Mosquitto, free_port
from tests.support.publishing import EVENTS, TOPICS, device, event
from tests.support.running import Vedette, camera, kinds, states


def call(broker: Mosquitto, *args: str, seconds: float = 6.0) -> Result:
    options = ["-H", HOST, "-p", str(broker.port), "--for", str(seconds), *args]
    return CliRunner().invoke(watch, options, catch_exceptions=False)


def test_what_a_running_daemon_publishes_as_lines_and_as_a_table(tmp_path: Path, broker: Mosquitto) -> None:
    messages = broker.subscribe("vedette/#")
    with Vedette(tmp_path, broker, front=camera(person_model(tmp_path))):
        messages.wait(lambda m: "update" in kinds(m))
        lines = [json.loads(line) for line in call(broker, "--json").output.splitlines()]
        table = call(broker).output
    by_topic = {line["topic"]: line for line in lines}
    assert by_topic[TOPICS.status] == {"topic": TOPICS.status, "retained": True, "payload": "online"}
    assert by_topic[TOPICS.count("front", "person")]["payload"] == "1"
    assert by_topic[TOPICS.snapshot("front")]["payload"]["jpeg_bytes"] > 500
    assert by_topic[TOPICS.health]["payload"]["streams"]["front"]["state"] == "running"
    assert [line["payload"]["track"]["label"] for line in lines if line["topic"] == EVENTS][:2] == ["person"] * 2
    assert "person 1" in table
    assert "porch online" in table


def test_nobody_there_is_one_line() -> None:
    port = free_port()
    with pytest.raises(BrokerError, match=f"{HOST}:{port}"):
        CliRunner().invoke(watch, ["-H", HOST, "-p", str(port)], catch_exceptions=False)


def test_a_password_from_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("right\n")
    with Mosquitto(tmp_path, users={"eve": "right"}) as broker:
        access = ("-u", "eve", "--password-file", str(secret))
        assert call(broker, *access, seconds=5.0).exit_code == 0
        for wrong in ("wrong", ""):
            secret.write_text(wrong)
            with pytest.raises(BrokerError, match=r"refuses 'eve': .* check --username and --password-file"):
                call(broker, *access)


def test_a_ca_of_ones_own(tmp_path: Path) -> None:
    with Mosquitto(tmp_path, tls=True) as broker:
        assert call(broker, "--ca-file", str(broker.ca_file), seconds=5.0).exit_code == 0
        with pytest.raises(BrokerError, match="its certificate is not accepted: "):
            call(broker, "--ca-file", str(broker.folder / "other-ca.pem"))


def test_a_broker_without_tls_is_not_asked_for_it_in_codes(broker: Mosquitto) -> None:
    with pytest.raises(BrokerError, match=r"cannot reach the broker at [^\[]*$"):
        call(broker, "--tls")


def test_a_client_certificate_of_ones_own(tmp_path: Path) -> None:
    with Mosquitto(tmp_path, client_certificates=True) as broker:
        options = {"ca": broker.ca_file, "cert": broker.cert_file, "key": broker.key_file}
        said = [word for name, path in options.items() for word in (f"--{name}-file", str(path))]
        assert call(broker, *said, seconds=5.0).exit_code == 0
        with pytest.raises(BrokerError, match=f"{HOST}:{broker.port}"):
            call(broker, *said[:2])


@pytest.mark.parametrize("tls", [False, True])
def test_over_a_websocket(tmp_path: Path, tls: bool) -> None:
    port, folder = free_port(), tmp_path / "mosquitto"
    lines = [f"listener {port} {HOST}", "protocol websockets"]
    lines += [f"certfile {folder}/server.pem", f"keyfile {folder}/server.key"] if tls else []
    with Mosquitto(tmp_path, tls=tls, lines=tuple(lines)) as broker, device(tmp_path, broker.config()):
        broker.subscribe(TOPICS.status).wait(lambda m: m.of(TOPICS.status) == [b"online"])
        said = [
            "-p",
            str(port),
            "--transport",
            "websockets",
            *(["--ca-file", str(broker.ca_file)] if tls else []),
        ]
        assert '"payload":"online"' in call(broker, *said, "--json").output


def test_alpn_is_offered(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    offered: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    context.set_alpn_protocols(["http/1.1", "mqtt"])

    def serve(connection: socket.socket) -> None:
        assert isinstance(connection, ssl.SSLSocket)
        offered.append(connection.selected_alpn_protocol())
        read_packet(connection)
        connection.sendall(CONNACK_3)
        list(packets(connection))

    with peer(serve, context) as port:
        said = [
            "-H",
            HOST,
            "-p",
            str(port),
            "--ca-file",
            str(tmp_path / "ca.pem"),
            "--alpn",
            "mqtt",
            "--for",
            "5",
        ]
        assert CliRunner().invoke(watch, said, catch_exceptions=False).exit_code == 0
    assert offered == ["mqtt"]


def test_plain_words_at_a_port_of_tls_are_answered_with_a_hint(tmp_path: Path) -> None:
    with Mosquitto(tmp_path, tls=True) as broker, pytest.raises(BrokerError, match=r"TLS there, set --tls$"):
        call(broker)


def test_tls_at_a_plain_port_is_answered_with_a_hint(broker: Mosquitto) -> None:
    said = ["-H", HOST, "-p", str(broker.port), "--tls"]
    with pytest.raises(
        BrokerError, match=r"if it speaks no TLS there, leave out --tls, --ca-file and --cert-file$"
    ):
        CliRunner().invoke(watch, said, catch_exceptions=False)


def test_for_so_long_holds_for_a_broker_that_keeps_silent_too() -> None:
    with peer(until_left) as port:
        for tls, said in (([], "no answer to CONNECT"), (["--tls"], "no answer; if it speaks no TLS there")):
            with pytest.raises(BrokerError, match=said):
                CliRunner().invoke(
                    watch, ["-H", HOST, "-p", str(port), "--for", "1", *tls], catch_exceptions=False
                )


def test_only_one_device_of_a_prefix_with_levels(broker: Mosquitto) -> None:
    subscriber = Subscriber(BrokerOptions(HOST, broker.port), prefix="site/eyes", device="porch")
    subscriber.start()
    publisher = broker.subscribe("nothing").client
    for topic in ("site/eyes/shed/status", "site/eyes/porch/status", "site/eyes/porch/front/count/traffic_light"):
        publisher.publish(topic, b"1", qos=1)
    came = [m for m in subscriber.messages(time.monotonic() + 3.0) if m is not None]
    subscriber.stop()
    assert [(m.device, m.stream, m.kind) for m in came] == [("porch", "", "status"), ("porch", "front", "count")]
    assert came[0].event() is None


def test_a_broker_that_comes_back_is_heard_again(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker, device(tmp_path, broker.config(reconnect_max_s=0.5)) as (spool, _):
        subscriber = Subscriber(BrokerOptions(HOST, broker.port))
        subscriber.start()
        broker.stop()
        broker.start()
        until = time.monotonic() + 60
        for message in subscriber.messages(until):
            if message is None:
                spool.put(EVENTS, event())
            elif message.kind == "events":
                break
        subscriber.stop()
        assert time.monotonic() < until


def test_the_status_of_a_device_is_a_line(tmp_path: Path, broker: Mosquitto) -> None:
    messages = broker.subscribe("vedette/#")
    broker.subscribe("nothing").client.publish("vedette/shed/status", b"offline", qos=1, retain=True)
    with Vedette(tmp_path, broker, front=camera(person_model(tmp_path))):
        messages.wait(lambda m: "update" in kinds(m) and states(m) == {"front": "running"})
        table = call(broker).output
    assert "shed offline" in table
    assert "porch online" in table
