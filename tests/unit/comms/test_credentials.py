from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from agent.comms import identity
from agent.comms.credentials import port, read_credentials, uses_tls
from agent.comms.identity import client_id
from agent.comms.mqtt import Publisher
from agent.comms.topics import Topics
from agent.config import MqttConfig
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


@pytest.mark.parametrize(("content", "password"), [("pass word\nnote", "pass word"), ("x\r\n", "x"), ("", "")])
def test_the_password_is_the_first_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, password: str
) -> None:
    (tmp_path / "mqtt").write_bytes(content.encode())
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    for name in (f"{tmp_path}/mqtt", "$CREDENTIALS_DIRECTORY/mqtt", "${CREDENTIALS_DIRECTORY}/mqtt"):
        credentials = read_credentials(MqttConfig(username="cam", password_file=name))
        assert credentials.password == password
        assert "pass word" not in repr(credentials)
    assert read_credentials(MqttConfig(username="cam")).password is None


def test_what_cannot_be_read_is_named_with_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_certificates(tmp_path)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    (tmp_path / "latin").write_bytes(b"gr\xfc\xdfe")
    (tmp_path / "empty.pem").touch()
    locked = ("openssl", "ec", "-in", "client.key", "-aes256", "-passout", "pass:x", "-out", "locked.key")
    subprocess.run(locked, cwd=tmp_path, check=True, capture_output=True)
    here = str(tmp_path)
    client = f"{here}/client.pem"
    cases: list[tuple[dict[str, Any], str]] = [
        ({"username": "u", "password_file": f"{here}/none"}, "password_file = .*/none: No such file"),
        ({"username": "u", "password_file": f"{here}/latin"}, "password_file = .*/latin: not UTF-8 at byte 2"),
        ({"username": "u", "password_file": "$CREDENTIALS_DIRECTORY/x"}, "CREDENTIALS_DIRECTORY is not set"),
        ({"password_file": f"{here}/latin"}, "password_file is set but username is not"),
        ({"ca_file": f"{here}/none"}, "ca_file = .*/none: No such file"),
        ({"ca_file": here}, "ca_file = .*: Is a directory"),
        ({"ca_file": f"{here}/empty.pem"}, "ca_file = .*/empty.pem: not usable as PEM"),
        ({"cert_file": f"{here}/none"}, "cert_file = .*/none: No such file"),
        ({"cert_file": client}, "cert_file = .*/client.pem: not usable as PEM"),
        ({"cert_file": client, "key_file": f"{here}/none"}, "key_file = .*/none: No such file"),
        ({"cert_file": client, "key_file": f"{here}/server.key"}, "its key does not fit"),
        ({"cert_file": client, "key_file": f"{here}/locked.key"}, "the key is encrypted"),
        ({"key_file": f"{here}/client.key"}, "key_file is set but cert_file is not"),
        ({"host": ""}, "host is empty"),
    ]
    for fields, expected in cases:
        with pytest.raises(ConfigError, match=expected) as caught:
            Publisher(MqttConfig(**fields), TOPICS, Kept())
        assert "\n" not in str(caught.value)


def test_a_machine_without_an_id_still_has_a_stable_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").touch()
    monkeypatch.setattr(identity, "_MACHINE_IDS", (tmp_path / "none", tmp_path / "empty"))
    assert client_id(TOPICS) == client_id(TOPICS)
