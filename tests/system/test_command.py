"""`vedette command` to a running daemon over real brokers, and what it says when nobody answers."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from agent.cli.command import command
from agent.cli.demo import EmbeddedBroker
from agent.comms.consumer import NoAnswerError
from agent.errors import BrokerError
from tests.support.doubles import person_model
from tests.support.hostile import peer, read_packet, until_left
from tests.support.mosquitto import HOST, Mosquitto, free_port
from tests.support.operator import Operator
from tests.support.publishing import TOPICS, wait_for
from tests.support.rights import example_acl
from tests.support.running import Vedette, camera, hear, states

ACL = example_acl()


def call(port: int, *words: str) -> Result:
    """Run the verb; that the device does not answer becomes a line and an exit code, as in the program."""
    done = CliRunner().invoke(command, ["-H", HOST, "-p", str(port), *words])
    if isinstance(done.exception, NoAnswerError):
        done.exit_code = done.exception.exit_code
        done.output_bytes = f"vedette: {done.exception}\n".encode()
    elif done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def assert_names(output: str, *facts: str) -> None:
    """The output is one line with every fact."""
    assert output.count("\n") == 1
    assert [fact for fact in facts if fact not in output] == []


def test_a_person_commands_a_board_from_a_shell(tmp_path: Path, broker: Mosquitto) -> None:
    operator = Operator(broker)
    with Vedette(tmp_path, broker, front=camera(person_model(tmp_path))):
        hear(operator.messages, 2)
        assert call(broker.port, "porch", "front", "threshold", "0.5").output == "done\n"
        done = call(broker.port, "porch", "front", "threshold", "5")
        assert done.exit_code == 1
        assert_names(done.output, "refused", "threshold", "'5'")
        assert call(broker.port, "porch", "front", "snapshot").output == f"done: {TOPICS.snapshot('front')}\n"
        done = call(broker.port, "porch", "status")
        assert (
            done.output.splitlines()[1]
            == "  front  running: 160x120 at 20 fps  threshold=0.5  variant=full  (set by command: threshold)"
        )
        status = json.loads(call(broker.port, "--json", "porch", "status").output)
        assert status["streams"]["front"]["threshold"] == 0.5
        assert call(broker.port, "porch", "front", "threshold", "default").exit_code == 0
        assert call(broker.port, "porch", "reload").output == "nothing has changed\n"
        done = call(broker.port, "porch", "doctor")
        assert done.exit_code == 0
        assert done.output.splitlines()[0] == "Board"
        assert call(broker.port, "porch", "front", "enabled", "off").exit_code == 0
        operator.messages.wait(lambda m: states(m)["front"] == "disabled")


def test_a_device_that_speaks_3_1_1_is_heard_at_a_broker_that_speaks_5(tmp_path: Path, broker: Mosquitto) -> None:
    operator = Operator(broker)
    with Vedette(tmp_path, broker, front=camera(person_model(tmp_path))) as vedette:
        vedette.config["mqtt"]["protocol"] = "3.1.1"
        vedette.end()
        vedette.start()
        vedette.wait_said("connected, MQTT 3.1.1")
        hear(operator.messages, 2)
        assert call(broker.port, "--timeout", "5s", "porch", "front", "threshold", "0.5").output == "done\n"
        done = call(broker.port, "--timeout", "5s", "porch", "front", "threshold", "5")
        assert done.exit_code == 1
        assert_names(done.output, "refused", "threshold", "'5'")


def test_why_nobody_answers_is_told(tmp_path: Path, broker: Mosquitto) -> None:
    done = call(broker.port, "porch", "status")
    assert done.exit_code == 3
    assert_names(done.output, "porch", f"{HOST}:{broker.port}")
    operator = Operator(broker)
    with Vedette(tmp_path, broker, front=camera(person_model(tmp_path))) as vedette:
        hear(operator.messages, 2)
        done = call(broker.port, "porhc", "status")
        assert_names(done.output, "porhc", f"{HOST}:{broker.port}", "porch")
        vedette.process.send_signal(signal.SIGSTOP)
        done = call(broker.port, "--timeout", "1s", "porch", "status")
        vedette.process.send_signal(signal.SIGCONT)
        assert done.exit_code == 3
        assert_names(done.output, "porch", "1 s", "online", "[mqtt] commands", "access list")
        vedette.config["mqtt"]["commands"] = False
        vedette.reload()
        operator.messages.wait(lambda m: m.of(TOPICS.status)[-2:] == [b"stopped", b"online"])
        operator.messages.close()  # with nobody who hears everything the broker can tell that nobody hears this
        # The broker tells that nobody hears this, once the daemon has unsubscribed; before, it answers itself.
        wait_for(lambda: "online" in call(broker.port, "porch", "status").output)
        assert_names(call(broker.port, "porch", "status").output, "porch", "online", "[mqtt] commands")
        vedette.end()
    assert call(broker.port, "porch", "status").output == "vedette: porch is stopped\n"


def test_nobody_there_is_one_line() -> None:
    with pytest.raises(BrokerError, match=r"cannot reach the broker at .*: nothing listens there"):
        call(free_port(), "porch", "status")


def test_who_may_not_command_is_told_so(tmp_path: Path) -> None:
    users = {"porch": "a", "kitchen": "b", "chief": "c"}
    with Mosquitto(tmp_path, users=users, acl=ACL) as broker:
        operator = Operator(broker, user="chief")
        for user, password in {**users, "nobody": "x"}.items():
            (tmp_path / user).write_text(f"{password}\n")
        with Vedette(tmp_path, broker, front=camera(person_model(tmp_path))) as vedette:
            vedette.end()
            vedette.config["mqtt"] |= {"username": "porch", "password_file": str(tmp_path / "porch")}
            vedette.start()
            hear(operator.messages, 2)

            def as_user(user: str) -> Result:
                return call(
                    broker.port,
                    "--timeout",
                    "5s",
                    "-u",
                    user,
                    "--password-file",
                    str(tmp_path / user),
                    "porch",
                    "status",
                )

            assert as_user("chief").exit_code == 0
            done = as_user("kitchen")
            assert done.exit_code == 3
            assert_names(done.output, "the broker's access list does not let 'kitchen' command it")
            with pytest.raises(BrokerError, match=r"refuses 'nobody': .* check --username and --password-file"):
                as_user("nobody")


def test_a_broker_of_mqtt_3_1_1_only(tmp_path: Path, broker: Mosquitto) -> None:
    pytest.importorskip("amqtt.broker", reason="amqtt is not installed (extra [demo])")
    with EmbeddedBroker() as old, Vedette(tmp_path, broker, front=camera(person_model(tmp_path))) as vedette:
        vedette.end()
        vedette.config["mqtt"] = {"host": HOST, "port": old.port, "reconnect_max_s": 0.5, "commands": True}
        vedette.start()
        wait_for(lambda: vedette.said(", MQTT 3.1.1"))
        # amqtt may leave a subscription unanswered while another client publishes all that it retains.
        wait_for(lambda: vedette.said("announced"))
        done = call(old.port, "porch", "status")
        assert done.exit_code == 0
        assert done.output.startswith("porch, Vedette")
        assert call(old.port, "porch", "front", "variant", "x").output == (
            f"refused: model {tmp_path / 'person.toml'} has no variant 'x'; it has: full\n"
        )


def test_a_broker_that_wants_a_client_certificate(tmp_path: Path) -> None:
    with Mosquitto(tmp_path, client_certificates=True) as broker:
        own = ("--ca-file", str(broker.ca_file), "--cert-file", str(broker.cert_file))
        done = call(broker.port, *own, "--key-file", str(broker.key_file), "porch", "status")
        assert done.output.startswith("vedette: no device porch is known at")
        with pytest.raises(BrokerError, match=r"--cert-file = .*client\.pem: not usable as PEM"):
            call(broker.port, *own, "porch", "status")
        with pytest.raises(BrokerError, match=f"the broker at {HOST}:{broker.port}"):
            call(broker.port, *own[:2], "porch", "status")


def test_a_broker_behind_a_websocket(tmp_path: Path) -> None:
    port = free_port()
    with Mosquitto(tmp_path, lines=(f"listener {port} {HOST}", "protocol websockets")) as broker:
        broker.subscribe("nothing")  # its second port is open soon after the first
        done = call(port, "--transport", "websockets", "porch", "status")
        assert done.output.startswith("vedette: no device porch is known at")
        with pytest.raises(BrokerError, match="does not answer as a WebSocket; check --port and --ws-path"):
            call(broker.port, "--transport", "websockets", "porch", "status")


def test_plain_words_at_a_port_of_tls_are_answered_with_a_hint(tmp_path: Path) -> None:
    with Mosquitto(tmp_path, tls=True) as broker, pytest.raises(BrokerError, match=r"TLS there, set --tls$"):
        call(broker.port, "porch", "status")


def test_the_timeout_holds_for_a_broker_that_keeps_silent_too() -> None:
    with peer(until_left) as port:  # hangs up after 5 s
        with pytest.raises(BrokerError, match=f"the broker at {HOST}:{port} refuses .*: no answer to CONNECT"):
            call(port, "--timeout", "1s", "porch", "status")
        with pytest.raises(BrokerError, match="no answer; if it speaks no TLS there"):
            call(port, "--tls", "--timeout", "1s", "porch", "status")


def test_the_timeout_holds_for_a_broker_that_lets_us_in_and_keeps_silent_then() -> None:
    def mute(connection: socket.socket) -> None:
        read_packet(connection)
        connection.sendall(b"\x20\x02\x00\x00")
        until_left(connection)

    with peer(mute) as port, pytest.raises(BrokerError, match="does not answer the subscription"):
        call(port, "--timeout", "1s", "porch", "status")
