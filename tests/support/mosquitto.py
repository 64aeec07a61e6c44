"""A real mosquitto on a free loopback port, with accounts, TLS, persistence, and a way to take it down.

with Mosquitto(tmp_path, users={"cam": "secret"}, tls=True) as broker:
    messages = broker.subscribe("vedette/#")
    ...
    messages.wait(lambda m: len(m) >= 3)
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.config.servers import MqttConfig
from tests.support.certificates import make_certificates, run
from tests.support.received import Messages

HOST = "127.0.0.1"
_START_S = 60.0
_END_S = 60.0
_RANDOM = random.SystemRandom()  # hypothesis seeds the common one


class Mosquitto:
    """A broker process. Skips the test where mosquitto is absent."""

    def __init__(
        self,
        folder: Path,
        *,
        users: Mapping[str, str] | None = None,
        tls: bool = False,
        client_certificates: bool = False,
        persistence: bool = False,
        acl: str = "",
        lines: tuple[str, ...] = (),
        port: int = 0,
    ) -> None:
        """Prepare a broker; `start` (or `with`) starts it.

        Args:
            folder: for its files.
            users: passwords by name; None: anonymous.
            tls: with a CA of its own, `ca_file`, made here.
            client_certificates: whether clients must show one made by that CA (`cert_file`, `key_file`).
            persistence: whether sessions and retained messages outlive `stop`.
            acl: content of an access list.
            lines: further lines of its configuration.
            port: to listen on; 0: a free one.
        """
        self.binary = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin") or ""
        if not self.binary:
            import pytest  # here only: the benches use this too, and their environment has no pytest

            pytest.skip("mosquitto is not installed")
        self.folder = folder / "mosquitto"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.users, self.tls = dict(users or {}), tls or client_certificates
        self.client_certificates = client_certificates
        self.ca_file, self.cert_file, self.key_file = (
            self.folder / name for name in ("ca.pem", "client.pem", "client.key")
        )
        self.port = port or free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._subscribers: list[Messages] = []
        if self.tls:
            make_certificates(self.folder)
        self._configure(persistence, acl, lines)

    def _configure(self, persistence: bool, acl: str, lines: tuple[str, ...]) -> None:
        # The bound on a slow subscriber's queue would drop messages. 0 should mean none, but in 2.0.21 it makes
        # the broker end a connection after a refused message.
        config = [
            f"listener {self.port} {HOST}",
            "max_queued_messages 1000000",
            f"allow_anonymous {'false' if self.users else 'true'}",
        ]
        if os.geteuid() == 0:
            config.insert(0, "user root")
        if self.users:
            passwords = self.folder / "passwords"
            passwords.touch(mode=0o600)
            for user, password in self.users.items():
                run("mosquitto_passwd", "-b", str(passwords), user, password)
            config.append(f"password_file {passwords}")
        if acl:
            (self.folder / "acl").write_text(acl)
            config.append(f"acl_file {self.folder / 'acl'}")
        if self.tls:
            config += [f"cafile {self.ca_file}", f"certfile {self.folder / 'server.pem'}"]
            config += [f"keyfile {self.folder / 'server.key'}"]
        if self.client_certificates:
            config += ["require_certificate true"]
        if persistence:
            config += ["persistence true", f"persistence_location {self.folder}/"]
        (self.folder / "mosquitto.conf").write_text("\n".join([*config, *lines, ""]))

    def start(self) -> Self:
        """Start, and return when the port answers."""
        self.log = (self.folder / "mosquitto.log").open("ab")
        command = [self.binary, "-v", "-c", str(self.folder / "mosquitto.conf")]
        self._process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        deadline = time.monotonic() + _START_S
        while not _answers(self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                text = (self.folder / "mosquitto.log").read_text(errors="replace")
                raise RuntimeError(f"mosquitto did not start: {text[-2000:]}")
            time.sleep(0.02)
        return self

    def stop(self) -> None:
        """End it by SIGTERM: it closes its connections and keeps what is persistent."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it by SIGKILL."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Stop it answering without closing a connection."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        deadline = time.monotonic() + _END_S
        while self._process.poll() is None:
            # More than once: a broker that listens, but is not in its main loop yet, forgets the first one.
            self._process.send_signal(how)
            self._process.send_signal(signal.SIGCONT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1)
            if time.monotonic() > deadline:
                raise RuntimeError(f"mosquitto does not end: {self.log.name}")
        self._process = None
        self.log.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for messages in self._subscribers:
            messages.close()
        self._end(signal.SIGKILL)

    def config(self, *, user: str = "", **overrides: Any) -> MqttConfig:
        """An `MqttConfig` that fits this broker; the first user, or that one, and the client certificate."""
        fields: dict[str, Any] = {"host": HOST, "port": self.port, "reconnect_max_s": 1.0, "commands": True}
        if self.users:
            user = user or next(iter(self.users))
            secret = self.folder / f"password-{user}"
            secret.touch(mode=0o600)
            secret.write_text(self.users[user] + "\n")
            fields |= {"username": user, "password_file": str(secret)}
        if self.tls:
            fields["ca_file"] = str(self.ca_file)
        if self.client_certificates:
            fields |= {"cert_file": str(self.cert_file), "key_file": str(self.key_file)}
        return MqttConfig(**(fields | overrides))

    def subscribe(self, topic: str = "#", *, lasting: bool = False, qos: int = 1, user: str = "") -> Messages:
        """A subscriber that is ready when this returns.

        Args:
            topic: filter.
            lasting: whether its session outlives a restart of the broker (which then needs `persistence`).
            qos: of the subscription.
            user: who subscribes; empty: the first.
        """
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"test-{os.getpid()}-{len(self._subscribers)}",
            protocol=paho.MQTTv5,
        )
        self._secure(client, user)
        messages = Messages(client)
        client.on_connect = lambda c, *_: c.subscribe(topic, qos)
        client.on_subscribe = lambda *_: messages.subscribed.set()
        client.reconnect_delay_set(1, 1)
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho leaves it untyped
        properties.SessionExpiryInterval = 3600 if lasting else 0
        client.connect(HOST, self.port, clean_start=not lasting, properties=properties)
        client.loop_start()
        self._subscribers.append(messages)
        assert messages.subscribed.wait(60), "the broker did not take the subscription"
        return messages

    def _secure(self, client: paho.Client, user: str) -> None:
        if self.users:
            user = user or next(iter(self.users))
            client.username_pw_set(user, self.users[user])
        if self.client_certificates:
            client.tls_set(str(self.ca_file), str(self.cert_file), str(self.key_file))
        elif self.tls:
            client.tls_set(str(self.ca_file))


def free_port() -> int:
    """A loopback port that nothing listens on, outside those that the kernel gives to connections meanwhile."""
    while True:
        port = _RANDOM.randrange(10_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return port


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((HOST, port)) == 0
