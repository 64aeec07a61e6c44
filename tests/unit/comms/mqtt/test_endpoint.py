from __future__ import annotations

import hashlib
import os
import socket
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from agent.comms.mqtt import endpoint
from agent.comms.mqtt.endpoint import (
    client_id,
    commands_off,
    port,
    read_certificates,
    read_password,
    uses_tls,
)
from agent.comms.mqtt.publisher import Publisher
from agent.comms.topics import Topics
from agent.config import servers
from agent.config.servers import MqttConfig
from agent.errors import ConfigError
from tests.support.certificates import make_certificates
from tests.support.publishing import Kept

TOPICS = Topics("vedette", "porch")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (MqttConfig(), (False, 1883)),
        (MqttConfig(tls=True), (True, 8883)),
        (MqttConfig(ca_file="ca.pem"), (True, 8883)),
        (MqttConfig(cert_file="me.pem", port=1), (True, 1)),
    ],
)
def test_tls_is_implied_by_its_files_and_sets_the_port(config: MqttConfig, expected: tuple[bool, int]) -> None:
    assert (uses_tls(config), port(config)) == expected


@pytest.mark.parametrize(
    ("content", "password"), [("pass word\nnote", "pass word"), ("x\r\n", "x"), ("\ufeffx\ty\n", "x\ty")]
)
def test_the_password_is_the_first_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, password: str
) -> None:
    (tmp_path / "mqtt").write_bytes(content.encode())
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    for name in (f"{tmp_path}/mqtt", "$CREDENTIALS_DIRECTORY/mqtt", "${CREDENTIALS_DIRECTORY}/mqtt"):
        assert read_password(MqttConfig(username="cam", password_file=name)) == password
    assert read_password(MqttConfig(username="cam")) is None


def test_a_pipe_in_place_of_a_password_file_is_refused_at_once(tmp_path: Path) -> None:
    pipe, said = tmp_path / "pipe", list[str]()
    os.mkfifo(pipe)

    def read() -> None:
        with pytest.raises(ConfigError) as caught:
            servers.read_password(str(pipe), ConfigError)
        said.append(str(caught.value))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(60.0)
    assert said == [f"= {pipe}: is a pipe, a device or a socket, and must be a file"]


def test_what_cannot_be_read_is_named_with_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_certificates(tmp_path)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    (tmp_path / "latin").write_bytes(b"gr\xfc\xdfe")
    (tmp_path / "empty.pem").touch()
    (tmp_path / "mark").write_bytes(b"\xef\xbb\xbf\r\n")
    (tmp_path / "binary").write_bytes(b"secr\0et\n")
    (tmp_path / "long").write_bytes(b"secret" * 20_000)
    locked = ("openssl", "ec", "-in", "client.key", "-aes256", "-passout", "pass:x", "-out", "locked.key")
    subprocess.run(locked, cwd=tmp_path, check=True, capture_output=True)
    here = str(tmp_path)
    client = f"{here}/client.pem"
    cases: list[tuple[dict[str, Any], str]] = [
        ({"username": "u", "password_file": f"{here}/none"}, "password_file = .*/none: No such file"),
        (
            {"username": "u", "password_file": f"{here}/latin"},
            "password_file = .*/latin: its first line must",
        ),
        (
            {"username": "u", "password_file": f"{here}/empty.pem"},
            "password_file = .*/empty.pem: its first line must",
        ),
        ({"username": "u", "password_file": f"{here}/mark"}, "password_file = .*/mark: its first line must"),
        ({"username": "u", "password_file": here}, "password_file = .*: Is a directory"),
        (
            {"username": "u", "password_file": f"{here}/binary"},
            "password_file = .*/binary: .* must be the",
        ),
        (
            {"username": "u", "password_file": f"{here}/long"},
            "password_file = .*/long: .* at most 65535 bytes",
        ),
        ({"username": "u", "password_file": "$CREDENTIALS_DIRECTORY/x"}, "CREDENTIALS_DIRECTORY is not set"),
        ({"password_file": f"{here}/latin"}, "password_file is set but username is not"),
        ({"cert_file": "${CREDENTIALS_DIRECTORY}/x"}, "cert_file = .*: .CREDENTIALS_DIRECTORY is not set"),
        ({"alpn": ("mqtt",)}, "alpn is set but the connection is not encrypted"),
        ({"ca_file": f"{here}/none"}, "ca_file = .*/none: No such file"),
        ({"ca_file": here}, "ca_file = .*: Is a directory"),
        ({"ca_file": f"{here}/empty.pem"}, "ca_file = .*/empty.pem: not usable as PEM"),
        ({"cert_file": f"{here}/none"}, "cert_file = .*/none: No such file"),
        ({"cert_file": client}, "cert_file = .*/client.pem: not usable as PEM"),
        ({"cert_file": client, "key_file": f"{here}/none"}, "key_file = .*/none: No such file"),
        ({"cert_file": client, "key_file": f"{here}/server.key"}, "its key does not fit"),
        ({"cert_file": client, "key_file": f"{here}/locked.key"}, "the key is encrypted"),
        ({"key_file": f"{here}/client.key"}, "key_file is set but cert_file is not"),
        ({"host": ""}, "host = .* is neither a host name nor"),
    ]
    for fields, expected in cases:
        with pytest.raises(ConfigError, match=expected) as caught:
            Publisher(MqttConfig(**fields), TOPICS, Kept())
        assert "\n" not in str(caught.value)
        assert "secr" not in str(caught.value)
        assert caught.value.keys[0] == "mqtt"


def test_a_machine_without_an_id_still_has_a_stable_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").touch()
    monkeypatch.setattr(endpoint, "_MACHINE_IDS", (tmp_path / "none", tmp_path / "empty"))
    assert client_id(TOPICS) == client_id(TOPICS)


def test_every_file_may_be_a_credential_of_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_certificates(tmp_path)
    (tmp_path / "mqtt").write_text("secret\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    config = MqttConfig(
        username="cam",
        password_file="$CREDENTIALS_DIRECTORY/mqtt",
        ca_file="$CREDENTIALS_DIRECTORY/ca.pem",
        cert_file="${CREDENTIALS_DIRECTORY}/client.pem",
        key_file="$CREDENTIALS_DIRECTORY/client.key",
    )
    assert read_password(config) == "secret"
    assert read_certificates(config) is not None


def test_secrets_that_everybody_may_read_are_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_certificates(tmp_path)
    secret, key = tmp_path / "mqtt", tmp_path / "client.key"
    secret.write_text("secret\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    config = MqttConfig(
        username="cam",
        password_file="$CREDENTIALS_DIRECTORY/mqtt",
        cert_file=f"{tmp_path}/client.pem",
        key_file=str(key),
    )
    for of_secret, of_key, told in ((0o644, 0o600, [secret]), (0o640, 0o602, [key]), (0o440, 0o400, [])):
        caplog.clear()
        secret.chmod(of_secret)
        key.chmod(of_key)
        Publisher(config, TOPICS, Kept())
        assert [r.getMessage().partition(":")[0] for r in caplog.records] == [str(path) for path in told]


def test_the_id_of_the_machine_does_not_get_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = "0123456789abcdef0123456789abcdef"
    (tmp_path / "id").write_text(machine + "\n")
    monkeypatch.setattr(endpoint, "_MACHINE_IDS", (tmp_path / "id",))
    ours = client_id(TOPICS)
    assert len(ours) == 23
    assert ours.isalnum()
    assert not any(machine[at : at + 6] in ours for at in range(len(machine) - 6))
    plain = hashlib.sha256(machine.encode()).hexdigest()
    assert plain[:16] not in ours, "nor a hash of it that others could have made"
    assert client_id(Topics("vedette", "shed")) != ours


@pytest.mark.parametrize("key", ["password_file", "ca_file", "cert_file"])
def test_a_pipe_in_place_of_a_secret_is_refused_at_once(tmp_path: Path, key: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    config = replace(MqttConfig(username="porch"), **{key: str(tmp_path / "pipe")})
    read = read_password if key == "password_file" else read_certificates
    with pytest.raises(ConfigError, match="is a pipe, a device or a socket"):
        read(config)


LOGIN: dict[str, Any] = {"username": "porch", "password_file": "secret"}


@pytest.mark.parametrize(
    ("fields", "takes"),
    [
        ({}, False),
        ({"host": "127.0.0.1"}, False),
        ({"username": "porch"}, False),
        ({"username": "porch", "password_file": "secret"}, True),
        ({"host": "192.168.1.2"}, False),
        ({"host": "broker.local"}, False),
        ({"host": "broker.local", "tls": True}, False),
        ({"host": "broker.local", "username": "porch"}, False),
        ({"host": "broker.local", "username": "porch", "password_file": "secret"}, True),
        ({"host": "broker.local", "cert_file": "porch.pem"}, True),
        ({"host": "broker.local", "commands": True}, True),
        ({**LOGIN, "host": "localhost", "commands": False}, False),
    ],
)
def test_commands_are_taken_where_the_broker_can_say_who_sends_them(fields: dict[str, Any], takes: bool) -> None:
    assert bool(commands_off(MqttConfig(**fields))) is not takes


def test_the_reason_names_the_broker_and_what_to_set() -> None:
    config = MqttConfig(host="spare.local")
    assert "spare.local:1883" in commands_off(config)
    assert "[mqtt] username and password_file, or commands = true" in commands_off(config)
    assert commands_off(MqttConfig(commands=False)) == "[mqtt] commands = false"


def certificate_error(code: int, message: str) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = code, message
    return error


def tls_error(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, f"[SSL: {reason}] (_ssl.c:1006)")
    error.reason = reason
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionRefusedError(111, "x"), "nothing listens there"),
        (TimeoutError(), "no answer"),
        (
            socket.gaierror(-2, "Name or service not known"),
            "its name cannot be resolved: Name or service not known",
        ),
        (OSError(113, "No route to host"), "No route to host"),
        (certificate_error(19, "self-signed"), "its certificate is not accepted: self-signed"),
        (certificate_error(9, "not yet valid"), "not yet valid; check [mqtt] ca_file"),
        (ssl.SSLError(1, "wrong version number"), "TLS failed: wrong version number"),
        (tls_error("WRONG_VERSION_NUMBER"), "TLS failed: wrong version number"),
        (tls_error("KEY_VALUES_MISMATCH"), "TLS failed: key values mismatch"),
        (ValueError("label too long"), "label too long"),
        (ValueError(), "ValueError"),
    ],
)
def test_errors_in_plain_words(error: Exception, words: str) -> None:
    assert words in endpoint.explain_error(error)


def test_codes_in_plain_words() -> None:
    assert "user name or password" in endpoint.in_words(0x86)
    assert endpoint.in_words(0xF0) == "code 0xf0"
